#include "text/grammar_matcher.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "base/error.h"

namespace fathom {
namespace {

using Kind = GrammarNode::Kind;

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
constexpr size_t kMaxStacks = 8192;               // behind a byte
constexpr size_t kMaxLooks = size_t{1} << 18;     // at nodes, for a byte
constexpr size_t kMaxMaskWork = size_t{1} << 24;  // visits of twigs for a mask: tenths of a second
constexpr size_t kWorkOfLook = 8;                 // takes so many times as long as a visit
constexpr size_t kMinFramesToForget = 1024;

[[noreturn]] void refuse_ambiguous(const char* what, size_t limit) {
  throw GrammarError("the grammar is too ambiguous: more than {} {}", limit, what);
}

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

TokenTrie::TokenTrie(const Tokenizer& tokenizer, std::span<const int32_t> left_out, std::span<const int32_t> with) {
  const auto is_in = [](std::span<const int32_t> ids, int32_t id) { return std::ranges::find(ids, id) != ids.end(); };
  std::vector<std::pair<std::string, int32_t>> tokens;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const bool is_out = (tokenizer.is_mark(id) && !is_in(with, id)) || is_in(left_out, id);
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
    states_.push_back({.stacks = &found->first});
    next_.resize(next_.size() + grammar_->n_classes(), kUnknown);
    constexpr size_t kOverhead = 96;  // of the map, about
    bytes_ += sizeof(State) + found->first.capacity() * sizeof(GrammarStack) + grammar_->n_classes() * 4 + kOverhead;
  }
  return found->second;
}

void TokenMasks::work(size_t amount) {
  work_ += amount;
  if (work_ > kMaxMaskWork) refuse_ambiguous("steps to the tokens that may come next", kMaxMaskWork);
}

// Most bytes cannot come: they need no look of their own.
const TokenMasks::State& TokenMasks::look_at(uint32_t state) {
  State& here = states_[state];
  if (here.looked_at) return here;
  look_at_next(*grammar_, *here.stacks, frames_, seen_, [&](const GrammarNode& node, uint32_t) {
    if (node.kind == Kind::end) here.passes = true;
    if (node.kind == Kind::bytes) here.next |= grammar_->sets()[node.what];
  });
  work(kWorkOfLook * seen_.size());
  here.looked_at = true;
  return here;
}

uint32_t TokenMasks::step(uint32_t state, uint8_t byte) {
  const size_t at = size_t{state} * grammar_->n_classes() + grammar_->class_of(byte);
  if (next_[at] != kUnknown) return next_[at];
  if (!look_at(state).next[byte]) return next_[at] = kNowhere;
  std::vector<GrammarStack> behind;
  read_byte(*grammar_, *states_[state].stacks, byte, frames_, seen_, behind);
  work(kWorkOfLook * seen_.size());
  if (bytes() > max_bytes_) refuse_ambiguous("bytes for the tokens that may come next", max_bytes_);
  behind.shrink_to_fit();
  const uint32_t next = state_of(std::move(behind));
  return next_[at] = next;
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
    work(1);
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
  Local local;
  std::vector<uint64_t> mask(trie_->mask_words());
  walk(state_of({{node, kCut}}), 0, trie_->nodes().size() - 1, 0, mask, [&](size_t i, uint32_t state) {
    if (look_at(state).passes) local.passing.push_back(static_cast<uint32_t>(i));
  });
  size_t n = 0;
  for (const uint64_t word : mask) n += static_cast<size_t>(std::popcount(word));
  if (n < mask.size()) {
    local.ids.reserve(n);
    for (size_t i = 0; i < mask.size(); ++i) {
      for (uint64_t word = mask[i]; word != 0; word &= word - 1) {
        local.ids.push_back(static_cast<int32_t>(64 * i) + std::countr_zero(word));
      }
    }
  } else {
    local.mask = std::move(mask);
  }
  bytes_ += sizeof(Local) + local.mask.size() * sizeof(uint64_t) +
            (local.ids.capacity() + local.passing.capacity()) * sizeof(uint32_t);
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
    std::ranges::transform(local.mask, mask, mask.begin(), std::bit_or<>());
    for (const int32_t id : local.ids) mask[static_cast<size_t>(id) / 64] |= uint64_t{1} << id % 64;
    if (frame <= kCut) continue;
    const auto [back, below] = frames_[frame];
    if (look_at(state_of({{node, kCut}})).passes) stacks.add(back, below);
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
