// The sum of products that the plain twins are made of.
#pragma once

#include <cstdint>

namespace fathom::plain {

inline double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

}  // namespace fathom::plain
