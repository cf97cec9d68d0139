// Sums and products of rows.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

struct RowKernels {
  // out = a + b; out may be a or b.
  void (*add)(float* out, const float* a, const float* b, int64_t n);
  // y += sum_j weights[j] * rows[j], in order of j; absent weights are ones.
  void (*add_weighted)(float* y, const float* const* rows, const float* weights, int64_t n_rows, int64_t n);
  void (*scale)(float* out, const float* x, float factor, int64_t n);  // out = factor * x
  float (*dot)(const float* x, const float* y, int64_t n);
};

namespace baseline {
extern const RowKernels row_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const RowKernels row_kernels;
}
namespace avx512 {
extern const RowKernels row_kernels;
}
#else
namespace avx2 {
using baseline::row_kernels;
}
namespace avx512 {
using baseline::row_kernels;
}
#endif

}  // namespace fathom::cpu
