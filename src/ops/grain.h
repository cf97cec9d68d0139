// How many rows or columns make one task of an operator that passes over memory.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fathom {

// Enough of them for about 16384 numbers: some microseconds of work, so that small inputs stay on the calling thread.
inline int64_t row_grain(int64_t numbers_per_row) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, numbers_per_row));
}

// Columns of a matrix that is summed over its rows: a few cache lines at the least.
inline int64_t column_grain(int64_t rows) { return std::max<int64_t>(128, row_grain(rows) / 64 * 64); }

}  // namespace fathom
