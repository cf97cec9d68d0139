// What an answer was worth beside the others to its question (GRPO, V3 equation 28).
#pragma once

#include <span>
#include <vector>

namespace fathom::tune {

// Of one group. by_deviation: (r - mean) / deviation (V3, R1); else r - mean (V3.2 section 3.1). All are 0 where the
// rewards are equal: none is further from another than 1e-8 of the greatest, as rounding alone makes them.
std::vector<double> advantages(std::span<const double> rewards, bool by_deviation);

}  // namespace fathom::tune
