// Floats rounded to the grids of narrower formats, and left floats.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

// Sign, exponent and mantissa of a format without infinities: numbers are rounded to nearest, ties to even.
struct FloatGrid {
  int dropped_bits;       // of a float's mantissa
  float least_normal;     // below it the steps stay as they are there,
  float subnormal_shift;  // and this, added and taken away again, rounds to them
  float largest;
};
inline constexpr FloatGrid kE4m3 = {20, 0x1p-6F, 0x1.8p14F, 448};
inline constexpr FloatGrid kE5m6 = {17, 0x1p-14F, 0x1.8p3F, 65024};

struct RoundingKernels {
  void (*bf16)(float* out, const float* in, int64_t n);
  // The largest magnitude, NaN aside.
  float (*largest)(const float* in, int64_t n);
  // out = scale * the grid's nearest to in / scale
  void (*scaled)(float* out, const float* in, int64_t n, float scale, const FloatGrid& grid);
  // The same for a tile of rows, with a scale for each column (see tile_scale).
  void (*columns)(float* out, int64_t out_stride, const float* in, int64_t in_stride, int64_t rows, int64_t cols,
                  bool power_of_two, const FloatGrid& grid);
};

namespace baseline {
extern const RoundingKernels rounding_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const RoundingKernels rounding_kernels;
}
namespace avx512 {
extern const RoundingKernels rounding_kernels;
}
#else
namespace avx2 {
using baseline::rounding_kernels;
}
namespace avx512 {
using baseline::rounding_kernels;
}
#endif

}  // namespace fathom::cpu
