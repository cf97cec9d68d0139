// How many rows make one task of an operator that passes over memory.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fathom {

// Enough of them for about 16384 numbers: some microseconds of work, so that small inputs stay on the calling thread.
inline int64_t row_grain(int64_t numbers_per_row) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, numbers_per_row));
}

}  // namespace fathom
