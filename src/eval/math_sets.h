// Sets of real numbers as unions of intervals, whatever they are written as.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "eval/math_number.h"
#include "eval/math_tree.h"

namespace fathom::eval {

struct RealEnd {
  int infinite = 0;  // -1, 1
  Value value = {};
};
struct RealInterval {
  RealEnd low, high;
  bool low_closed, high_closed;
};
struct RealSet {
  std::vector<RealInterval> intervals;  // in order, with a point missing at least between two
  std::string variable;                 // of the relation that it was written as; else empty
};

// Of intervals, sets of numbers, their unions and differences, the real numbers, and relations of one variable such as
// 2 < x <= 5, x != 3 and x \in [0, 1). Nothing for others, and where numbers cannot be ordered.
std::optional<RealSet> real_set(const MathNode& node, Work& work);

bool same_set(const RealSet& a, const RealSet& b);

}  // namespace fathom::eval
