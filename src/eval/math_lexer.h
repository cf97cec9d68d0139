// Tokens of answers in LaTeX, in plain text, or in both.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::eval {

struct MathToken {
  enum Kind {
    number,  // digits with at most one point, thousands joined
    based,   // digits and capitals before a subscript, "152A"
    letter,  // one letter, or a Greek one: "x", "\\alpha"
    name,    // a function: "sin"
    word,    // of a unit or a sentence
    symbol,  // punctuation, "\\frac", "\\begin{pmatrix}", "\\{", "\\text{and}"
    end
  } kind;
  std::string text;
  bool space_before = false;
};

// Never fails: what is nothing known becomes a symbol of its own. Ends with an `end`. At most about as many tokens as
// bytes.
std::vector<MathToken> lex_math(std::string_view text);

}  // namespace fathom::eval
