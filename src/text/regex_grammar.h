// Regular expressions as ECMAScript and with it JSON Schema write them, without what is not regular: back references
// and looking ahead or behind are refused, and so are word boundaries and \p.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "text/grammar.h"

namespace fathom {

// The texts that the expression matches from end to end. Error with the column.
std::shared_ptr<const Grammar> regex_grammar(std::string_view pattern);

enum class RegexText {
  plain,       // as it is
  json_string  // inside of a JSON string: quotes, backslashes and control characters escaped, all others as they are
};
enum class RegexMatch { whole, anywhere };

GrammarBuilder::Piece regex_piece(GrammarBuilder& builder, std::string_view pattern, RegexText text, RegexMatch match);

// As a JSON text spells it.
struct NumberBound {
  std::string number;
  bool exclusive = false;
};

// Matches the numbers between the bounds, written without exponent, with up to kMaxDigits digits in front of the point
// and behind it; nothing where there are none. Error for bounds of more digits.
inline constexpr size_t kMaxDigits = 20;
std::optional<std::string> number_regex(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high,
                                        bool integers);

inline constexpr size_t kMaxGrammarDepth = 256;  // of groups within groups

// Alternatives of sequences with groups in them, as they are read from left to right.
class ExpressionReader {
 public:
  explicit ExpressionReader(GrammarBuilder& builder);

  void add(GrammarBuilder::Piece piece);
  void repeat(uint64_t min, uint64_t max);  // what was added last, a group too
  void bar();
  void open();
  void close();
  bool can_repeat() const { return groups_.back().last.has_value(); }
  GrammarBuilder::Piece finish();

 private:
  struct Group {
    std::optional<GrammarBuilder::Piece> alternatives;  // in front of the last bar
    std::optional<GrammarBuilder::Piece> sequence;      // all but the last piece
    std::optional<GrammarBuilder::Piece> last;
  };
  GrammarBuilder::Piece whole(Group& group);
  void flush(Group& group);

  GrammarBuilder& builder_;
  std::vector<Group> groups_;
};

}  // namespace fathom
