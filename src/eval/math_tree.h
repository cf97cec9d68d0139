// A mathematical answer as a tree: what math_parser.h makes of LaTeX or plain text and math_compare.h compares.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fathom::eval {

enum class MathKind {
  number,        // text: digits with at most one point, no sign
  based,         // digits to another base: text, and the base in `base`
  variable,      // text: its name, with a subscript "x_1"
  constant,      // text: "pi", "e", "i", "infinity", "reals", "empty"
  sum,           // of its parts; a part may be negative or plus_minus
  negative,      // of one part
  plus_minus,    // of one part; text: "+" for \pm, "-" for \mp
  product,       // of its parts
  quotient,      // numerator, denominator
  power,         // base, exponent
  root,          // radicand, index
  call,          // text: "sin", "log" (value, base), "abs", "floor", "ceil", "overline", ...; its arguments
  factorial,     // of one part
  binomial,      // n, k
  percent,       // of one part
  degree,        // of one part
  quantity,      // one part with a unit or other words behind it (text), as they are written
  ratio,         // a:b, and times of day
  text,          // words
  list,          // parts with commas between them and no brackets
  tuple,         // parts in brackets: open and close are ( [ or <
  set,           // in braces
  set_union,     // of its parts
  set_minus,     // A without B
  intersection,  // of its parts
  matrix,        // its parts are rows, each a tuple; text: "" or "determinant"
  relation,      // sides, with operators[i] between parts[i] and parts[i + 1]: = != < <= > >= in ~
};

struct MathNode {
  MathKind kind = MathKind::text;
  std::string text = {};
  std::vector<MathNode> parts = {};
  std::vector<std::string> operators = {};
  char open = 0, close = 0;
  int base = 0;
};

inline MathNode math_node(MathKind kind, std::string text, std::vector<MathNode> parts = {}) {
  return {.kind = kind, .text = std::move(text), .parts = std::move(parts)};
}

}  // namespace fathom::eval
