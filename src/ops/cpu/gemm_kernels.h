// The inner loops of the matrix product. C is made in tiles of mr x nr, each held in registers while k runs; every
// element of C has one accumulator and takes its products in order of k.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

// C[m, n] (+)= A[m, k] B[k, n].
struct GemmBlock {
  int64_t m, n, k;
  const float* a;
  int64_t lda;
  bool a_packed;     // by pack_a; else rows of k floats, lda apart
  const float* b;    // panels by pack_b, the first for columns 0 .. nr
  int64_t b_stride;  // floats from one panel to the next
  float* c;
  int64_t ldc;
  bool accumulate;
};

struct GemmKernels {
  int64_t mr, nr;
  // Columns 0 .. n (n <= nr) of op(B)[k, n] become a panel [k, nr], zeros behind the last column. B is stored [k, n],
  // or [n, k] when transposed.
  void (*pack_b)(float* panel, const float* b, int64_t ldb, bool transposed, int64_t k, int64_t n);
  // A stored [k, m] becomes panels [k, mr] of mr columns each, one behind the other. Writes up to 16 floats beyond the
  // last.
  void (*pack_a)(float* panels, const float* a, int64_t lda, int64_t k, int64_t m);
  void (*multiply)(const GemmBlock& block);
};

namespace baseline {
extern const GemmKernels gemm_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const GemmKernels gemm_kernels;
}
namespace avx512 {
extern const GemmKernels gemm_kernels;
}
#else
namespace avx2 {
using baseline::gemm_kernels;
}
namespace avx512 {
using baseline::gemm_kernels;
}
#endif

}  // namespace fathom::cpu
