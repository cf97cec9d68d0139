#include "text/grammar.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/error.h"

namespace fathom {
namespace {

using Kind = GrammarNode::Kind;
using Piece = GrammarBuilder::Piece;

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
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

uint32_t GrammarBuilder::add(const Grammar& grammar, const std::string& name) {
  const uint32_t before = size() - 1;  // its end is the one that is there
  const auto place = [&](uint32_t at) { return at == 0 ? kEnd : before + at; };
  std::unordered_map<uint32_t, uint32_t> rules;  // by where they start
  const auto rule_at = [&](uint32_t start) {
    const auto [found, is_new] = rules.try_emplace(start, 0);
    if (is_new) {
      found->second = add_rule(name);
      rules_[found->second].start = place(start);
    }
    return found->second;
  };
  for (size_t i = 1; i < grammar.nodes().size(); ++i) {
    const auto [kind, what, next] = grammar.nodes()[i];
    uint32_t there = place(what);
    if (kind == Kind::bytes) there = set_of(grammar.sets()[what]);
    if (kind == Kind::call) there = rule_at(what);
    node(kind, there, place(next));
  }
  return rule_at(grammar.start());
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
  Grammar::Parts grammar;

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
  grammar.start = place_of(rules_[root].start);
  for (size_t i = 0; i < order.size(); ++i) {
    GrammarNode node = nodes_[order[i]];
    if (node.kind != Kind::end) node.next = place_of(node.next);
    if (node.kind == Kind::fork) node.what = place_of(node.what);
    if (node.kind == Kind::call) node.what = place_of(rules_[node.what].start);
    if (node.kind == Kind::bytes) {
      uint32_t& set = set_place[node.what];
      if (set == kNone) {
        set = static_cast<uint32_t>(grammar.sets.size());
        grammar.sets.push_back(sets_[node.what]);
      }
      node.what = set;
    }
    grammar.nodes.push_back(node);
  }

  for (const ByteSet& set : grammar.sets) {
    if (grammar.n_classes == 256) break;
    std::array<std::array<uint32_t, 2>, 256> parts{};  // of a class, outside of the set and in it; 0: none yet
    uint32_t n_parts = 0;
    for (size_t byte = 0; byte < 256; ++byte) {
      uint32_t& part = parts[grammar.class_of[byte]][set[byte] ? 1 : 0];
      if (part == 0) part = ++n_parts;
      grammar.class_of[byte] = static_cast<uint8_t>(part - 1);
    }
    grammar.n_classes = n_parts;
  }
  return std::make_shared<const Grammar>(std::move(grammar));
}

}  // namespace fathom
