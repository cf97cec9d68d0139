// Grammars over bytes, for constrained decoding (grammar_matcher.h): a network of nodes for each rule: sets of bytes,
// calls of other rules, forks. A call at the end of a rule is none, so that lists and right recursion stay flat.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"

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

// A grammar with more ways to read a text than can be followed.
struct GrammarError : Error {
  using Error::Error;
};

// Immutable, shared by sequences. Every node leads to the end of the text: there are no dead ends.
class Grammar {
 public:
  // What GrammarBuilder makes of it: all that it is.
  struct Parts {
    std::vector<GrammarNode> nodes{};
    std::vector<ByteSet> sets{};
    uint32_t start = 0, n_classes = 1;
    std::array<uint8_t, 256> class_of{};
  };
  explicit Grammar(Parts parts) : parts_(std::move(parts)) {}

  const std::vector<GrammarNode>& nodes() const { return parts_.nodes; }  // the first is the only end
  const std::vector<ByteSet>& sets() const { return parts_.sets; }
  uint32_t start() const { return parts_.start; }
  // Bytes of one class are in the same sets.
  uint32_t class_of(uint8_t byte) const { return parts_.class_of[byte]; }
  uint32_t n_classes() const { return parts_.n_classes; }
  const Parts& parts() const { return parts_; }

 private:
  Parts parts_;
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

  // A finished grammar becomes rules; returns that of its texts.
  uint32_t add(const Grammar& grammar, const std::string& name);

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

}  // namespace fathom
