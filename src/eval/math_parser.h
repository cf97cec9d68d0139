// The grammar of answers: expressions, relations, lists, tuples, sets, matrices, quantities with units.
#pragma once

#include <optional>
#include <string_view>

#include "eval/math_tree.h"

namespace fathom::eval {

// Nothing where the text is no answer that is understood, nested too deep or too long.
std::optional<MathNode> parse_math(std::string_view text);

}  // namespace fathom::eval
