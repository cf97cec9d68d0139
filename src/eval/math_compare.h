// Whether two answers that were parsed mean the same (docs/evaluation_answers.md has the rules).
#pragma once

#include "eval/math_number.h"
#include "eval/math_tree.h"

namespace fathom::eval {

// Not symmetric: a rounded number ("\approx 3.14") is one only where it is expected. Throws OutOfWork.
bool same_math(const MathNode& given, const MathNode& expected, Work& work);

}  // namespace fathom::eval
