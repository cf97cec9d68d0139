// Constrained decoding: how far a text follows a grammar, and which tokens may come next.
//
// A text has been read in one or more ways, each a stack of nodes to come back to. Masks come from walking a trie of
// the vocabulary along an automaton whose states are sets of such stacks, made as they are met.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/grammar.h"
#include "text/tokenizer.h"

namespace fathom {

// Pairs of numbers, each kept once and numbered in the order in which they came.
class PairSet {
 public:
  using Pair = std::pair<uint32_t, uint32_t>;

  uint32_t add(uint32_t first, uint32_t second);
  Pair operator[](size_t i) const { return {static_cast<uint32_t>(pairs_[i] >> 32), static_cast<uint32_t>(pairs_[i])}; }
  size_t size() const { return pairs_.size(); }
  size_t bytes() const { return (pairs_.capacity() + slots_.capacity()) * sizeof(uint64_t); }
  void clear();  // keeps the memory

 private:
  void grow();

  std::vector<uint64_t> pairs_;
  std::vector<uint64_t> slots_;  // generation and index; those of older generations are empty
  uint32_t generation_ = 1;
};

// One way in which a text has been read: the node to go on with, and the frame that the end of its rule returns to.
struct GrammarStack {
  uint32_t node, frame;
  auto operator<=>(const GrammarStack&) const = default;
};

// The vocabulary by the bytes of its tokens, without marks and those left out. A mark within a string would be read as
// the end of more than the string; those in `with` are wanted all the same. One for a tokenizer, shared.
class TokenTrie {
 public:
  explicit TokenTrie(const Tokenizer& tokenizer, std::span<const int32_t> left_out = {},
                     std::span<const int32_t> with = {});

  struct Node {
    uint32_t end;     // of what begins like it: the nodes up to there
    uint32_t tokens;  // where its own begin in ids()
    uint32_t depth;
    uint8_t byte;
  };
  const std::vector<Node>& nodes() const { return nodes_; }  // in order of their bytes, and one behind the last
  const std::vector<int32_t>& ids() const { return ids_; }
  size_t depth() const { return depth_; }
  size_t mask_words() const { return mask_words_; }

 private:
  std::vector<Node> nodes_;
  std::vector<int32_t> ids_;
  size_t depth_ = 0, mask_words_ = 0;
};

// The masks of a grammar's states, kept for the next time, by all sequences of one thread.
class TokenMasks {
 public:
  TokenMasks(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> trie,
             size_t max_bytes = size_t{64} << 20);

  size_t bytes() const { return bytes_ + frames_.bytes(); }
  const std::shared_ptr<const TokenTrie>& trie() const { return trie_; }

 private:
  friend class GrammarMatcher;
  struct State {
    const std::vector<GrammarStack>* stacks;
    std::vector<uint64_t> mask{};  // empty: not asked for yet
    bool looked_at = false;        // what stands below is known
    bool passes = false;           // nothing more is needed for getting past the cut
    ByteSet next{};                // that may come
  };
  // From a node, whatever is below it on the stack: the tokens that are certain, and where in the trie what is below is
  // come to, so that longer tokens depend on it.
  struct Local {
    std::vector<uint64_t> mask{};  // or
    std::vector<int32_t> ids{};    // where they are few: an object may have thousands of keys, each its own node
    std::vector<uint32_t> passing{};
  };
  struct Hash {
    size_t operator()(const std::vector<GrammarStack>& stacks) const;
  };
  void forget();
  uint32_t state_of(std::vector<GrammarStack> stacks);
  uint32_t step(uint32_t state, uint8_t byte);
  void work(size_t amount);
  const State& look_at(uint32_t state);
  template <class Visit>
  void walk(uint32_t state, size_t from, size_t end, size_t depth, std::vector<uint64_t>& mask, const Visit& visit);
  const Local& local_of(uint32_t node);
  void fill(uint32_t state);
  const std::vector<uint64_t>& mask_of(const std::vector<GrammarStack>& stacks, const PairSet& frames);

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const TokenTrie> trie_;
  size_t max_bytes_, bytes_ = 0;
  PairSet frames_, seen_;
  std::unordered_map<std::vector<GrammarStack>, uint32_t, Hash> index_;
  std::vector<State> states_;   // the first stands for none
  std::vector<uint32_t> next_;  // [state, class of bytes]
  std::unordered_map<uint32_t, Local> locals_;
  std::vector<uint32_t> path_;  // [depth]: states on the way to a node of the trie
  size_t work_ = 0;             // for the mask that is being made, in visits of twigs
};

// A text that follows a grammar, as far as it has come. One for a sequence; copies go their own ways.
class GrammarMatcher {
 public:
  explicit GrammarMatcher(std::shared_ptr<const Grammar> grammar);

  // False: they cannot come here, and nothing has changed. Error where the text can be read in too many ways.
  bool accept(std::string_view bytes);
  bool can_end() const { return ends_.can; }
  bool must_end() const { return ends_.must; }  // nothing but the end can come
  // A bit for each token id: 1 where accept would take its bytes. `masks` must be of the same grammar.
  void allowed(TokenMasks& masks, std::vector<uint64_t>& mask) const;

 private:
  struct Ends {
    bool can, must;
  };
  Ends look_ahead(const std::vector<GrammarStack>& stacks, PairSet& seen);

  std::shared_ptr<const Grammar> grammar_;
  PairSet frames_;  // node to go on with, and the frame below; behind none and one that stands for any
  size_t frames_in_use_ = 0;
  std::vector<GrammarStack> stacks_;
  Ends ends_{};
};

}  // namespace fathom
