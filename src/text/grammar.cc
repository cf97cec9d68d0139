#include "text/grammar.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

#include "base/error.h"

namespace fathom {
namespace {

using Kind = GrammarNode::Kind;
using Piece = GrammarBuilder::Piece;

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
constexpr size_t kMaxStacks = 8192;                // behind a byte
constexpr size_t kMaxLooks = size_t{1} << 18;      // at nodes, for a byte
constexpr size_t kMaxMaskLooks = size_t{1} << 23;  // for a mask
constexpr size_t kMinFramesToForget = 1024;

[[noreturn]] void refuse_ambiguous(const char* what, size_t limit) {
  throw Error("the grammar is too ambiguous: more than {} {}", limit, what);
}

// The byte ranges of the characters `first` to `last`, which all have the same leading bytes or all that may follow
// them.
struct Utf8Ranges {
  std::array<std::pair<uint8_t, uint8_t>, 4> bytes;
  size_t n = 0;
};

size_t utf8_length(char32_t c) { return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4; }

uint8_t utf8_byte(char32_t c, size_t i, size_t n) {
  constexpr uint8_t kLeads[] = {0, 0, 0xC0, 0xE0, 0xF0};
  const auto bits = static_cast<uint8_t>(c >> 6 * (n - 1 - i) & (i == 0 ? 0x7F : 0x3F));
  return i == 0 ? kLeads[n] | bits : 0x80 | bits;
}

template <class Emit>
void for_each_utf8_range(char32_t first, char32_t last, const Emit& emit) {
  std::vector<std::pair<char32_t, char32_t>> todo = {{first, last}};
  while (!todo.empty()) {
    const char32_t low = todo.back().first, high = todo.back().second;
    todo.pop_back();
    const auto cut_behind = [&](char32_t c) {
      todo.emplace_back(c + 1, high);
      todo.emplace_back(low, c);
    };
    const size_t n = utf8_length(low);
    if (n < utf8_length(high)) {
      cut_behind(n == 1 ? 0x7F : n == 2 ? 0x7FF : 0xFFFF);
      continue;
    }
    bool cut = false;
    for (size_t i = 1; i < n && !cut; ++i) {
      const char32_t tail = (char32_t{1} << 6 * i) - 1;
      if ((low & ~tail) == (high & ~tail)) continue;
      cut = true;
      if ((low & tail) != 0) {
        cut_behind(low | tail);
      } else if ((high & tail) != tail) {
        cut_behind((high & ~tail) - 1);
      } else {
        cut = false;
      }
    }
    if (cut) continue;
    Utf8Ranges ranges{.bytes = {}, .n = n};
    for (size_t i = 0; i < n; ++i) ranges.bytes[i] = {utf8_byte(low, i, n), utf8_byte(high, i, n)};
    emit(ranges);
  }
}

ByteSet byte_range(uint8_t first, uint8_t last) {
  ByteSet set;
  for (unsigned byte = first; byte <= last; ++byte) set.set(byte);
  return set;
}

// Where `step` leads from `node` in the end, with what was found kept for the next time.
template <class Step>
uint32_t follow(std::vector<uint32_t>& known, uint32_t node, const Step& step) {
  std::vector<uint32_t> passed;
  while (known[node] == kNone) {
    const uint32_t next = step(node);
    if (next == node) {
      known[node] = node;
    } else {
      passed.push_back(node);
      node = next;
    }
  }
  for (const uint32_t one : passed) known[one] = known[node];
  return known[node];
}

}  // namespace

CodePoints CodePoints::normalized() const {
  std::vector<std::pair<char32_t, char32_t>> sorted;
  for (auto [first, last] : ranges) {
    last = std::min<char32_t>(last, 0x10FFFF);
    if (first < 0xD800 && last >= 0xD800) sorted.emplace_back(first, 0xD7FF);
    if (first < 0xE000 && last >= 0xD800) first = 0xE000;
    if (first <= last) sorted.emplace_back(first, last);
  }
  std::ranges::sort(sorted);
  CodePoints merged;
  for (const auto& [first, last] : sorted) {
    if (merged.ranges.empty() || first > merged.ranges.back().second + 1) {
      merged.add(first, last);
    } else {
      merged.ranges.back().second = std::max(merged.ranges.back().second, last);
    }
  }
  return merged;
}

CodePoints CodePoints::complement() const {
  CodePoints rest;
  char32_t next = 0;
  for (const auto& [first, last] : normalized().ranges) {
    if (first > next) rest.add(next, first - 1);
    next = last + 1;
  }
  if (next <= 0x10FFFF) rest.add(next, 0x10FFFF);
  return rest.normalized();
}

std::vector<Twig> trie_of(std::vector<std::u32string> texts) {
  std::ranges::sort(texts);
  std::vector<Twig> twigs(1);
  std::vector<std::pair<uint32_t, uint32_t>> path = {{0, 0}};  // twigs of the text before, and their last children
  std::u32string_view before;
  for (const std::u32string& text : texts) {
    const auto parted = std::ranges::mismatch(text, before).in1;
    path.resize(static_cast<size_t>(parted - text.begin()) + 1);
    for (auto c = parted; c != text.end(); ++c) {
      const auto twig = static_cast<uint32_t>(twigs.size());
      auto& [parent, last_child] = path.back();
      (last_child == 0 ? twigs[parent].child : twigs[last_child].sibling) = twig;
      last_child = twig;
      twigs.push_back({.c = *c});
      path.emplace_back(twig, 0);
    }
    twigs[path.back().first].ends = true;
    before = text;
  }
  return twigs;
}

GrammarBuilder::GrammarBuilder() { node(Kind::end, 0, 0); }

uint32_t GrammarBuilder::node(Kind kind, uint32_t what, uint32_t next) {
  if (nodes_.size() == kMaxGrammarElements) throw Error("the grammar has more than {} elements", kMaxGrammarElements);
  nodes_.push_back({kind, what, next});
  return size() - 1;
}

uint32_t GrammarBuilder::set_of(const ByteSet& set) {
  const auto [found, is_new] = set_index_.emplace(set, static_cast<uint32_t>(sets_.size()));
  if (is_new) sets_.push_back(set);
  return found->second;
}

uint32_t GrammarBuilder::byte_node(char byte, uint32_t next) {
  return node(Kind::bytes, set_of(ByteSet().set(static_cast<uint8_t>(byte))), next);
}

uint32_t GrammarBuilder::add_rule(std::string name) {
  rules_.push_back({std::move(name), kNone});
  return static_cast<uint32_t>(rules_.size() - 1);
}

void GrammarBuilder::define(uint32_t rule, Piece body) {
  set_next(body.out, kEnd);
  rules_[rule].start = body.in;
}

Piece GrammarBuilder::nothing() {
  const uint32_t jump = jump_node();
  return {jump, jump, jump};
}

Piece GrammarBuilder::never() { return bytes({}); }

Piece GrammarBuilder::bytes(const ByteSet& set) {
  const uint32_t one = node(Kind::bytes, set_of(set), kEnd);
  return {one, one, one};
}

Piece GrammarBuilder::text(std::string_view text) {
  if (text.empty()) return nothing();
  const uint32_t begin = size();
  for (const char c : text) byte_node(c, size() + 1);
  return {begin, begin, size() - 1};
}

Piece GrammarBuilder::code_points(const CodePoints& set) {
  const uint32_t begin = size(), out = jump_node();
  // Continuations are shared, and lead bytes with the same continuations are one set.
  std::map<std::pair<std::pair<uint8_t, uint8_t>, uint32_t>, uint32_t> continuations;
  std::map<uint32_t, ByteSet> leads;
  for (const auto& [first, last] : set.normalized().ranges) {
    for_each_utf8_range(first, last, [&](const Utf8Ranges& ranges) {
      uint32_t next = out;
      for (size_t i = ranges.n - 1; i > 0; --i) {
        const auto [found, is_new] = continuations.try_emplace({ranges.bytes[i], next}, 0);
        if (is_new) {
          found->second = node(Kind::bytes, set_of(byte_range(ranges.bytes[i].first, ranges.bytes[i].second)), next);
        }
        next = found->second;
      }
      leads[next] |= byte_range(ranges.bytes[0].first, ranges.bytes[0].second);
    });
  }
  uint32_t in = kNone;
  for (const auto& [next, bytes] : leads) {
    const uint32_t lead = node(Kind::bytes, set_of(bytes), next);
    in = in == kNone ? lead : fork_node(lead, in);
  }
  if (in == kNone) in = node(Kind::bytes, set_of({}), out);
  return {begin, in, out};
}

Piece GrammarBuilder::one_of(const std::vector<std::string>& texts) {
  std::vector<std::u32string> bytes;
  for (const std::string& text : texts) {
    std::u32string& one = bytes.emplace_back();
    for (const char c : text) one += static_cast<uint8_t>(c);
  }
  const std::vector<Twig> twigs = trie_of(std::move(bytes));
  const uint32_t begin = size(), out = jump_node();
  std::vector<uint32_t> inside(twigs.size()), from_here(twigs.size());  // a twig; it and those behind it
  for (size_t i = twigs.size(); i-- > 0;) {
    const Twig& twig = twigs[i];
    uint32_t behind = out;
    if (twig.child != 0) behind = twig.ends ? fork_node(from_here[twig.child], out) : from_here[twig.child];
    if (twig.child == 0 && !twig.ends) behind = node(Kind::bytes, set_of({}), out);  // there are no texts
    inside[i] = i == 0 ? behind : byte_node(static_cast<char>(twig.c), behind);
    from_here[i] = twig.sibling == 0 ? inside[i] : fork_node(inside[i], from_here[twig.sibling]);
  }
  return {begin, inside[0], out};
}

Piece GrammarBuilder::call(uint32_t rule) {
  const uint32_t one = call_node(rule, kEnd);
  return {one, one, one};
}

Piece GrammarBuilder::then(Piece first, Piece second) {
  set_next(first.out, second.in);
  return {first.begin, first.in, second.out};
}

Piece GrammarBuilder::either(Piece one, Piece other) {
  const uint32_t out = jump_node();
  set_next(one.out, out);
  set_next(other.out, out);
  return {one.begin, fork_node(one.in, other.in), out};
}

Piece GrammarBuilder::repeat(Piece piece, uint64_t min, uint64_t max) {
  FATHOM_CHECK(min <= max);
  if (max == 0) return nothing();  // what stands there is not called
  const uint32_t n_nodes = size() - piece.begin;
  const bool unlimited = max == kUnlimited;
  const uint64_t copies = unlimited ? std::max<uint64_t>(min, 1) : max;
  if (copies - 1 > (kMaxGrammarElements - nodes_.size()) / n_nodes) {
    throw Error("{} times {} elements make a grammar of more than {}", copies, n_nodes, kMaxGrammarElements);
  }
  for (uint64_t copy = 1; copy < copies; ++copy) {
    for (uint32_t i = 0; i < n_nodes; ++i) {
      GrammarNode one = nodes_[piece.begin + i];
      const auto shift = static_cast<uint32_t>(copy * n_nodes);
      if (one.next >= piece.begin) one.next += shift;  // else it is still open
      if (one.kind == Kind::fork) one.what += shift;
      node(one.kind, one.what, one.next);
    }
  }
  const uint32_t out = jump_node();
  uint32_t in = kNone, behind = kNone;
  for (uint64_t copy = 0; copy < copies; ++copy) {
    const auto shift = static_cast<uint32_t>(copy * n_nodes);
    uint32_t from = piece.in + shift;
    const uint32_t last = piece.out + shift;
    if (unlimited && copy + 1 == copies) {
      const uint32_t loop = fork_node(from, out);
      set_next(last, loop);
      if (min == 0) from = loop;
    } else if (copy >= min) {
      from = fork_node(from, out);
    }
    if (behind == kNone) {
      in = from;
    } else {
      set_next(behind, from);
    }
    behind = last;
  }
  if (!unlimited) set_next(behind, out);
  return {piece.begin, in, out};
}

// Which nodes lead to the end of their rule, with bytes on the way or only without.
std::vector<char> GrammarBuilder::leading_to_end(bool through_bytes) const {
  // Backwards from the end, along edges from what must lead there to what then does. Behind the nodes stand the rules.
  // A call waits for two: its rule and what follows it.
  const size_t n = nodes_.size();
  const auto for_each_edge = [&](const auto& edge) {
    for (uint32_t i = 0; i < n; ++i) {
      const GrammarNode& node = nodes_[i];
      if (node.kind == Kind::end || (node.kind == Kind::bytes && (!through_bytes || sets_[node.what].none()))) continue;
      edge(node.next, i);
      if (node.kind == Kind::fork) edge(node.what, i);
      if (node.kind == Kind::call) edge(n + node.what, i);
    }
    for (size_t rule = 0; rule < rules_.size(); ++rule) {
      if (rules_[rule].start != kNone) edge(rules_[rule].start, static_cast<uint32_t>(n + rule));
    }
  };
  std::vector<uint32_t> first(n + rules_.size() + 1);
  for_each_edge([&](size_t from, uint32_t) { ++first[from]; });
  std::inclusive_scan(first.begin(), first.end(), first.begin());
  std::vector<uint32_t> waiting(first.back());
  for_each_edge([&](size_t from, uint32_t to) { waiting[--first[from]] = to; });

  std::vector<char> needs(n + rules_.size(), 1), leads(n + rules_.size());
  for (size_t i = 0; i < n; ++i) {
    if (nodes_[i].kind == Kind::call) needs[i] = 2;
  }
  std::vector<uint32_t> found = {kEnd};
  leads[kEnd] = 1;
  while (!found.empty()) {
    const uint32_t one = found.back();
    found.pop_back();
    for (uint32_t i = first[one]; i < first[one + 1]; ++i) {
      const uint32_t to = waiting[i];
      if (leads[to] != 0 || --needs[to] > 0) continue;
      leads[to] = 1;
      found.push_back(to);
    }
  }
  return leads;
}

void GrammarBuilder::refuse_left_recursion(const std::vector<char>& nullable) const {
  // Which rules a rule may begin with.
  std::vector<std::vector<uint32_t>> first_calls(rules_.size());
  std::vector<char> seen(nodes_.size());
  std::vector<uint32_t> todo;
  const auto add = [&](uint32_t node) {
    if (seen[node] == 0) todo.push_back(node);
    seen[node] = 1;
  };
  seen[kEnd] = 1;
  for (size_t rule = 0; rule < rules_.size(); ++rule) {
    if (rules_[rule].start != kNone) add(rules_[rule].start);
    while (!todo.empty()) {
      const GrammarNode& node = nodes_[todo.back()];
      todo.pop_back();
      if (node.kind == Kind::call) first_calls[rule].push_back(node.what);
      if (node.kind == Kind::fork) add(node.what);
      const bool passes = node.kind != Kind::call || nullable[nodes_.size() + node.what] != 0;
      if (node.kind != Kind::bytes && passes) add(node.next);
    }
  }
  enum : char { kNew, kOpen, kDone };
  std::vector<char> state(rules_.size(), kNew);
  std::vector<std::pair<uint32_t, size_t>> path;  // a rule, and how many of its calls have been followed
  for (uint32_t root = 0; root < rules_.size(); ++root) {
    if (state[root] == kNew) path.emplace_back(root, 0);
    while (!path.empty()) {
      auto& [rule, n_followed] = path.back();
      state[rule] = kOpen;
      if (n_followed == first_calls[rule].size()) {
        state[rule] = kDone;
        path.pop_back();
        continue;
      }
      const uint32_t called = first_calls[rule][n_followed++];
      if (state[called] == kNew) path.emplace_back(called, 0);
      if (state[called] != kOpen) continue;
      std::string way = printable(rules_[called].name, 80);
      const auto from = std::ranges::find(path, called, [](const auto& step) { return step.first; });
      constexpr int64_t kMaxNames = 4;
      for (auto step = from + 1; step != path.end(); ++step) {
        way += step - from <= kMaxNames ? " -> " + printable(rules_[step->first].name, 80) : "";
        if (step - from == kMaxNames + 1) way += " -> ...";
      }
      throw Error("the rule {} begins with itself: {} -> {}", printable(rules_[called].name, 80), way,
                  printable(rules_[called].name, 80));
    }
  }
}

std::shared_ptr<const Grammar> GrammarBuilder::finish(uint32_t root) const {
  refuse_left_recursion(leading_to_end(false));
  const std::vector<char> alive = leading_to_end(true);
  if (alive[nodes_.size() + root] == 0) {
    throw Error("there is no text that the rule {} allows", printable(rules_[root].name, 80));
  }
  auto grammar = std::make_shared<Grammar>();

  std::vector<char> used(rules_.size()), seen(nodes_.size());
  std::vector<uint32_t> todo = {rules_[root].start};
  used[root] = 1;
  while (!todo.empty()) {
    const uint32_t at = todo.back();
    todo.pop_back();
    if (seen[at] != 0 || alive[at] == 0) continue;
    seen[at] = 1;
    const GrammarNode& node = nodes_[at];
    todo.push_back(node.next);
    if (node.kind == Kind::fork) todo.push_back(node.what);
    if (node.kind == Kind::call) {
      used[node.what] = 1;
      todo.push_back(rules_[node.what].start);
    }
  }
  for (size_t rule = 0; rule < rules_.size(); ++rule) {
    if (used[rule] == 0) grammar->unused_rules_.push_back(rules_[rule].name);
  }

  // Without jumps, without branches that lead nowhere, and with calls at the end of a rule made jumps: what they call
  // returns to where the rule itself does. Since no rule begins with itself, nothing goes round in circles.
  std::vector<uint32_t> without_jumps(nodes_.size(), kNone), resolved(nodes_.size(), kNone);
  const auto jump = [&](uint32_t at) {
    const GrammarNode& node = nodes_[at];
    if (node.kind == Kind::jump) return node.next;
    if (node.kind == Kind::fork && alive[node.next] == 0) return node.what;
    if (node.kind == Kind::fork && alive[node.what] == 0) return node.next;
    return at;
  };
  const auto jump_or_call = [&](uint32_t at) {
    const bool last = nodes_[at].kind == Kind::call && follow(without_jumps, nodes_[at].next, jump) == kEnd;
    return last ? rules_[nodes_[at].what].start : jump(at);
  };
  const auto resolve = [&](uint32_t at) { return follow(resolved, at, jump_or_call); };

  std::vector<uint32_t> place(nodes_.size(), kNone), set_place(sets_.size(), kNone), order = {kEnd};
  place[kEnd] = 0;
  const auto place_of = [&](uint32_t at) {
    at = resolve(at);
    if (place[at] == kNone) {
      place[at] = static_cast<uint32_t>(order.size());
      order.push_back(at);
    }
    return place[at];
  };
  grammar->start_ = place_of(rules_[root].start);
  for (size_t i = 0; i < order.size(); ++i) {
    GrammarNode node = nodes_[order[i]];
    if (node.kind != Kind::end) node.next = place_of(node.next);
    if (node.kind == Kind::fork) node.what = place_of(node.what);
    if (node.kind == Kind::call) node.what = place_of(rules_[node.what].start);
    if (node.kind == Kind::bytes) {
      uint32_t& set = set_place[node.what];
      if (set == kNone) {
        set = static_cast<uint32_t>(grammar->sets_.size());
        grammar->sets_.push_back(sets_[node.what]);
      }
      node.what = set;
    }
    grammar->nodes_.push_back(node);
  }

  for (const ByteSet& set : grammar->sets_) {
    if (grammar->n_classes_ == 256) break;
    std::map<std::pair<uint8_t, bool>, uint8_t> parts;
    for (size_t byte = 0; byte < 256; ++byte) {
      uint8_t& of_byte = grammar->class_of_[byte];
      of_byte = parts.try_emplace({of_byte, set[byte]}, static_cast<uint8_t>(parts.size())).first->second;
    }
    grammar->n_classes_ = static_cast<uint32_t>(parts.size());
  }
  return grammar;
}

namespace {

size_t mixed(uint64_t key) {  // the end of MurmurHash3
  key = (key ^ key >> 33) * 0xFF51AFD7ED558CCD;
  key = (key ^ key >> 33) * 0xC4CEB9FE1A85EC53;
  return key ^ key >> 33;
}

constexpr uint32_t kNoFrame = 0;  // at the end the text ends
constexpr uint32_t kCut = 1;      // what is below is not known: the stack was cut off here

// Calls visit(node, frame) for each end and each set of bytes that may come next. Gives up behind so many looks.
template <class Visit>
void look_at_next(const Grammar& grammar, const std::vector<GrammarStack>& stacks, PairSet& frames, PairSet& seen,
                  const Visit& visit) {
  seen.clear();
  for (const GrammarStack& stack : stacks) seen.add(stack.node, stack.frame);
  for (size_t i = 0; i < seen.size(); ++i) {
    const auto [at, frame] = seen[i];
    const GrammarNode& node = grammar.nodes()[at];
    switch (node.kind) {
      case Kind::end:
        if (frame <= kCut) {
          visit(node, frame);
        } else {
          const auto [back, below] = frames[frame];
          seen.add(back, below);
        }
        break;
      case Kind::bytes:
        visit(node, frame);
        break;
      case Kind::call:
        seen.add(node.what, frames.add(node.next, frame));
        break;
      default:
        seen.add(node.next, frame);
        seen.add(node.what, frame);
    }
    if (seen.size() > kMaxLooks) refuse_ambiguous("places to go on at", kMaxLooks);
  }
}

// What has been read, and one byte more. A rule that is at its end has returned.
void read_byte(const Grammar& grammar, const std::vector<GrammarStack>& stacks, uint8_t byte, PairSet& frames,
               PairSet& seen, std::vector<GrammarStack>& behind) {
  behind.clear();
  look_at_next(grammar, stacks, frames, seen, [&](const GrammarNode& node, uint32_t frame) {
    if (node.kind != Kind::bytes || !grammar.sets()[node.what][byte]) return;
    if (node.next == 0 && frame > kCut) {  // what a frame returns to is no end, or the call would have left none
      const auto [back, below] = frames[frame];
      behind.push_back({back, below});
    } else {
      behind.push_back({node.next, frame});
    }
  });
  std::ranges::sort(behind);
  behind.erase(std::unique(behind.begin(), behind.end()), behind.end());
  if (behind.size() > kMaxStacks) refuse_ambiguous("ways to read the text", kMaxStacks);
}

// The same stacks on frames of another set, to which they are added.
std::vector<GrammarStack> moved(const std::vector<GrammarStack>& stacks, const PairSet& from, PairSet& to) {
  // A frame comes behind the one below it.
  std::vector<uint32_t> place(from.size(), kNone);
  place[kNoFrame] = kNoFrame;
  place[kCut] = kCut;
  std::vector<uint32_t> todo;
  for (const GrammarStack& stack : stacks) {
    for (uint32_t frame = stack.frame; place[frame] == kNone; frame = from[frame].second) {
      place[frame] = 0;
      todo.push_back(frame);
    }
  }
  std::ranges::sort(todo);
  for (const uint32_t frame : todo) place[frame] = to.add(from[frame].first, place[from[frame].second]);
  std::vector<GrammarStack> there;
  there.reserve(stacks.size());
  for (const GrammarStack& stack : stacks) there.push_back({stack.node, place[stack.frame]});
  return there;
}

PairSet no_frames() {
  PairSet frames;
  for (const uint32_t frame : {kNoFrame, kCut}) frames.add(0, frame);
  return frames;
}

}  // namespace

uint32_t PairSet::add(uint32_t first, uint32_t second) {
  if (pairs_.size() * 2 >= slots_.size()) grow();
  const uint64_t key = uint64_t{first} << 32 | second;
  for (size_t slot = mixed(key);; ++slot) {
    uint64_t& found = slots_[slot & (slots_.size() - 1)];
    if (found >> 32 != generation_) {
      found = uint64_t{generation_} << 32 | pairs_.size();
      pairs_.push_back(key);
      return static_cast<uint32_t>(pairs_.size() - 1);
    }
    const auto index = static_cast<uint32_t>(found);
    if (pairs_[index] == key) return index;
  }
}

void PairSet::grow() {
  const std::vector<uint64_t> pairs = std::exchange(pairs_, {});
  slots_.assign(std::max<size_t>(64, 2 * slots_.size()), 0);
  pairs_.reserve(slots_.size() / 2);
  generation_ = 1;
  for (const uint64_t key : pairs) add(static_cast<uint32_t>(key >> 32), static_cast<uint32_t>(key));
}

void PairSet::clear() {
  pairs_.clear();
  if (++generation_ == 0) {
    std::ranges::fill(slots_, 0);
    generation_ = 1;
  }
}

TokenTrie::TokenTrie(const Tokenizer& tokenizer, std::span<const int32_t> left_out) {
  std::vector<std::pair<std::string, int32_t>> tokens;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const bool is_out = tokenizer.is_special(id) || std::ranges::find(left_out, id) != left_out.end();
    std::string bytes = is_out ? "" : tokenizer.token_bytes(id);
    if (!bytes.empty()) tokens.emplace_back(std::move(bytes), id);
  }
  std::ranges::sort(tokens);
  mask_words_ = (static_cast<size_t>(tokenizer.vocab_size()) + 63) / 64;
  std::vector<uint32_t> path;  // nodes of the token before
  std::string_view before;
  const auto leave = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) nodes_[path.back()].end = static_cast<uint32_t>(nodes_.size());
  };
  for (const auto& [bytes, id] : tokens) {
    leave(static_cast<size_t>(std::ranges::mismatch(bytes, before).in1 - bytes.begin()));
    while (path.size() < bytes.size()) {
      const auto byte = static_cast<uint8_t>(bytes[path.size()]);
      path.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({0, static_cast<uint32_t>(ids_.size()), static_cast<uint32_t>(path.size()), byte});
    }
    ids_.push_back(id);
    depth_ = std::max(depth_, bytes.size());
    before = bytes;
  }
  leave(0);
  nodes_.push_back({0, static_cast<uint32_t>(ids_.size()), 0, 0});
}

namespace {

constexpr uint32_t kUnknown = 0, kNowhere = kNone;

}  // namespace

TokenMasks::TokenMasks(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> trie, size_t max_bytes)
    : grammar_(std::move(grammar)), trie_(std::move(trie)), max_bytes_(max_bytes), path_(trie_->depth() + 1) {
  forget();
}

size_t TokenMasks::Hash::operator()(const std::vector<GrammarStack>& stacks) const {
  size_t hash = stacks.size();
  for (const GrammarStack& stack : stacks) hash = mixed(hash ^ (uint64_t{stack.node} << 32 | stack.frame));
  return hash;
}

void TokenMasks::forget() {
  frames_ = no_frames();
  seen_ = {};
  index_.clear();
  states_.assign(1, {});
  locals_.clear();
  next_.assign(grammar_->n_classes(), kUnknown);
  bytes_ = 0;
}

uint32_t TokenMasks::state_of(std::vector<GrammarStack> stacks) {
  const auto [found, is_new] = index_.try_emplace(std::move(stacks), static_cast<uint32_t>(states_.size()));
  if (is_new) {
    states_.push_back({&found->first, {}, {}});
    next_.resize(next_.size() + grammar_->n_classes(), kUnknown);
    constexpr size_t kOverhead = 96;  // of the map, about
    bytes_ += sizeof(State) + found->first.capacity() * sizeof(GrammarStack) + grammar_->n_classes() * 4 + kOverhead;
  }
  return found->second;
}

uint32_t TokenMasks::step(uint32_t state, uint8_t byte) {
  const size_t at = size_t{state} * grammar_->n_classes() + grammar_->class_of(byte);
  if (next_[at] != kUnknown) return next_[at];
  std::vector<GrammarStack> behind;
  read_byte(*grammar_, *states_[state].stacks, byte, frames_, seen_, behind);
  work_ += seen_.size();
  if (work_ > kMaxMaskLooks) refuse_ambiguous("looks for the tokens that may come next", kMaxMaskLooks);
  if (bytes() > max_bytes_) refuse_ambiguous("bytes for the tokens that may come next", max_bytes_);
  behind.shrink_to_fit();
  const uint32_t next = behind.empty() ? kNowhere : state_of(std::move(behind));
  return next_[at] = next;
}

// Whether nothing more is needed for getting past the cut.
bool TokenMasks::passes(uint32_t state) {
  if (!states_[state].passes) {
    bool passes = false;
    look_at_next(*grammar_, *states_[state].stacks, frames_, seen_,
                 [&](const GrammarNode& node, uint32_t) { passes |= node.kind == Kind::end; });
    work_ += seen_.size();
    states_[state].passes = passes;
  }
  return *states_[state].passes;
}

// Of the twigs from..end of the trie, which stand on one at this depth that was read: the tokens that can be read go
// into the mask.
template <class Visit>
void TokenMasks::walk(uint32_t state, size_t from, size_t end, size_t depth, std::vector<uint64_t>& mask,
                      const Visit& visit) {
  const std::vector<TokenTrie::Node>& nodes = trie_->nodes();
  path_[depth] = state;
  for (size_t i = from; i < end;) {
    const TokenTrie::Node& node = nodes[i];
    const uint32_t next = step(path_[node.depth - 1], node.byte);
    if (next == kNowhere) {
      i = node.end;
      continue;
    }
    path_[node.depth] = next;
    visit(i, next);
    ++i;
    for (uint32_t token = node.tokens; token < nodes[i].tokens; ++token) {
      const auto id = static_cast<size_t>(trie_->ids()[token]);
      mask[id / 64] |= uint64_t{1} << id % 64;
    }
  }
}

const TokenMasks::Local& TokenMasks::local_of(uint32_t node) {
  const auto known = locals_.find(node);
  if (known != locals_.end()) return known->second;
  Local local{.mask = std::vector<uint64_t>(trie_->mask_words()), .passing = {}};
  walk(state_of({{node, kCut}}), 0, trie_->nodes().size() - 1, 0, local.mask, [&](size_t i, uint32_t state) {
    if (passes(state)) local.passing.push_back(static_cast<uint32_t>(i));
  });
  bytes_ += local.mask.size() * sizeof(uint64_t) + local.passing.capacity() * sizeof(uint32_t);
  return locals_.emplace(node, std::move(local)).first->second;
}

void TokenMasks::fill(uint32_t state) {
  work_ = 0;
  std::vector<uint64_t> mask(trie_->mask_words());
  PairSet stacks;  // with those that are left where a rule may end
  for (const auto& [node, frame] : *states_[state].stacks) stacks.add(node, frame);
  for (size_t i = 0; i < stacks.size(); ++i) {
    const auto [node, frame] = stacks[i];
    const Local& local = local_of(node);
    std::ranges::transform(mask, local.mask, mask.begin(), std::bit_or<>());
    if (frame <= kCut) continue;
    const auto [back, below] = frames_[frame];
    if (passes(state_of({{node, kCut}}))) stacks.add(back, below);
    if (stacks.size() > kMaxStacks) refuse_ambiguous("ways to read the text", kMaxStacks);
    const uint32_t under = state_of({{back, below}});
    for (const uint32_t one : local.passing) {
      const TokenTrie::Node& twig = trie_->nodes()[one];
      walk(under, one + 1, twig.end, twig.depth, mask, [](size_t, uint32_t) {});
    }
  }
  bytes_ += mask.size() * sizeof(uint64_t);
  states_[state].mask = std::move(mask);
}

const std::vector<uint64_t>& TokenMasks::mask_of(const std::vector<GrammarStack>& stacks, const PairSet& frames) {
  if (bytes() > max_bytes_ / 2) forget();  // the walks may need the other half
  std::vector<GrammarStack> here = moved(stacks, frames, frames_);
  std::ranges::sort(here);
  const uint32_t state = state_of(std::move(here));
  if (states_[state].mask.empty()) fill(state);
  return states_[state].mask;
}

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar)
    : grammar_(std::move(grammar)), frames_(no_frames()), stacks_{{grammar_->start(), 0}} {
  PairSet seen;
  ends_ = look_ahead(stacks_, seen);
}

GrammarMatcher::Ends GrammarMatcher::look_ahead(const std::vector<GrammarStack>& stacks, PairSet& seen) {
  Ends ends{.can = false, .must = true};
  look_at_next(*grammar_, stacks, frames_, seen, [&](const GrammarNode& node, uint32_t) {
    (node.kind == Kind::end ? ends.can : ends.must) = node.kind == Kind::end;
  });
  return ends;
}

bool GrammarMatcher::accept(std::string_view bytes) {
  PairSet seen;
  std::vector<GrammarStack> now = stacks_, behind;
  for (const char c : bytes) {
    read_byte(*grammar_, now, static_cast<uint8_t>(c), frames_, seen, behind);
    if (behind.empty()) return false;
    std::swap(now, behind);
  }
  ends_ = look_ahead(now, seen);
  stacks_ = std::move(now);
  if (frames_.size() > 2 * frames_in_use_ + kMinFramesToForget) {
    PairSet kept = no_frames();
    stacks_ = moved(stacks_, frames_, kept);
    frames_ = std::move(kept);
    frames_in_use_ = frames_.size();
  }
  return true;
}

void GrammarMatcher::allowed(TokenMasks& masks, std::vector<uint64_t>& mask) const {
  FATHOM_CHECK(masks.grammar_ == grammar_);
  mask = masks.mask_of(stacks_, frames_);
}

}  // namespace fathom
