// Constrained decoding: grammars over bytes, how far a text follows one, and which tokens may come next.
//
// A grammar is a network of nodes for each rule: sets of bytes, calls of other rules, forks. A text has been read in
// one or more ways, each a stack of nodes to come back to; a call at the end of a rule leaves nothing on the stack, so
// that lists and right recursion stay flat. Masks come from walking a trie of the vocabulary along an automaton whose
// states are sets of such stacks, made as they are met.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/tokenizer.h"

namespace fathom {

inline constexpr size_t kMaxGrammarElements = 1'000'000;  // nodes, with every repetition written out

using ByteSet = std::bitset<256>;

// Characters, as ranges in any order.
struct CodePoints {
  std::vector<std::pair<char32_t, char32_t>> ranges;  // first and last

  void add(char32_t first, char32_t last) { ranges.emplace_back(first, last); }
  void add(char32_t one) { add(one, one); }
  void add(const CodePoints& other) { ranges.insert(ranges.end(), other.ranges.begin(), other.ranges.end()); }
  CodePoints normalized() const;  // in order, none touches another; no surrogates, nothing above U+10FFFF
  CodePoints complement() const;  // normalized
};

// Texts by what they have in common. The first twig is where all begin; a twig's children come behind it.
struct Twig {
  char32_t c = 0;
  bool ends = false;                // a text
  uint32_t child = 0, sibling = 0;  // its first child, the next of the same parent; 0: none
};
std::vector<Twig> trie_of(std::vector<std::u32string> texts);

struct GrammarNode {
  enum class Kind : uint8_t {
    end,    // of a rule
    bytes,  // one of the set `what`, then `next`
    call,   // the nodes of a rule, then `next`. To the builder `what` is the rule, in a grammar its first node
    fork,   // `next` or `what`
    jump    // `next`; in a builder alone
  };
  Kind kind;
  uint32_t what, next;
};

// Immutable, shared by sequences. Every node leads to the end of the text: there are no dead ends.
class Grammar {
 public:
  const std::vector<GrammarNode>& nodes() const { return nodes_; }  // the first is the only end
  const std::vector<ByteSet>& sets() const { return sets_; }
  uint32_t start() const { return start_; }
  // Bytes of one class are in the same sets.
  uint32_t class_of(uint8_t byte) const { return class_of_[byte]; }
  uint32_t n_classes() const { return n_classes_; }
  // Names of rules that no text comes to.
  const std::vector<std::string>& unused_rules() const { return unused_rules_; }

 private:
  friend class GrammarBuilder;
  std::vector<GrammarNode> nodes_;
  std::vector<ByteSet> sets_;
  uint32_t start_ = 0, n_classes_ = 1;
  std::array<uint8_t, 256> class_of_{};
  std::vector<std::string> unused_rules_;
};

// Puts grammars together. Error where there are more than kMaxGrammarElements nodes.
class GrammarBuilder {
 public:
  // An expression: its nodes are those from `begin` on until the next was begun, `in` is where it starts, and what
  // follows the node `out` is still open. Expressions that are combined must have been made one directly after the
  // other.
  struct Piece {
    uint32_t begin, in, out;
  };
  static constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();
  static constexpr uint32_t kEnd = 0;  // the node

  GrammarBuilder();

  uint32_t add_rule(std::string name);  // its number, to be called before it is defined
  void define(uint32_t rule, Piece body);

  Piece nothing();  // the empty text
  Piece never();    // no text at all
  Piece bytes(const ByteSet& set);
  Piece text(std::string_view text);
  Piece code_points(const CodePoints& set);  // one of them, in UTF-8
  Piece one_of(const std::vector<std::string>& texts);
  Piece call(uint32_t rule);
  Piece then(Piece first, Piece second);
  Piece either(Piece one, Piece other);
  Piece repeat(Piece piece, uint64_t min, uint64_t max);

  // For networks that are no expressions: nodes, one by one. `what` of bytes: see set_of.
  uint32_t node(GrammarNode::Kind kind, uint32_t what, uint32_t next);
  uint32_t set_of(const ByteSet& set);
  uint32_t byte_node(char byte, uint32_t next);
  uint32_t call_node(uint32_t rule, uint32_t next) { return node(GrammarNode::Kind::call, rule, next); }
  uint32_t fork_node(uint32_t one, uint32_t other) { return node(GrammarNode::Kind::fork, other, one); }
  uint32_t jump_node(uint32_t next = kEnd) { return node(GrammarNode::Kind::jump, 0, next); }
  void set_next(uint32_t node, uint32_t next) { nodes_[node].next = next; }
  uint32_t size() const { return static_cast<uint32_t>(nodes_.size()); }

  // Error for rules that begin with themselves and for a root that no text fulfils.
  std::shared_ptr<const Grammar> finish(uint32_t root) const;

 private:
  struct Rule {
    std::string name;
    uint32_t start;
  };
  std::vector<char> leading_to_end(bool through_bytes) const;
  void refuse_left_recursion(const std::vector<char>& nullable) const;

  std::vector<GrammarNode> nodes_;
  std::vector<Rule> rules_;
  std::vector<ByteSet> sets_;
  std::unordered_map<ByteSet, uint32_t> set_index_;
};

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

// The vocabulary by the bytes of its tokens, without special tokens and those left out. One for a tokenizer, shared.
class TokenTrie {
 public:
  explicit TokenTrie(const Tokenizer& tokenizer, std::span<const int32_t> left_out = {});

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

 private:
  friend class GrammarMatcher;
  struct State {
    const std::vector<GrammarStack>* stacks;
    std::optional<bool> passes;
    std::vector<uint64_t> mask;  // empty: not asked for yet
  };
  // From a node, whatever is below it on the stack: the tokens that are certain, and where in the trie what is below is
  // come to, so that longer tokens depend on it.
  struct Local {
    std::vector<uint64_t> mask;
    std::vector<uint32_t> passing;
  };
  struct Hash {
    size_t operator()(const std::vector<GrammarStack>& stacks) const;
  };
  void forget();
  uint32_t state_of(std::vector<GrammarStack> stacks);
  uint32_t step(uint32_t state, uint8_t byte);
  bool passes(uint32_t state);
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
  size_t work_ = 0;             // for the mask that is being made
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
