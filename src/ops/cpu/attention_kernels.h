// What attention does with the blocks of its tiles: small products, softmax, merging. Blocks stay in the first caches,
// so the products take their operands as they lie, without packing.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

struct ProductSize {
  int64_t m, n, k;
};
// Element (i, j) stands at data[i * row + j * col], so that a block may be read as its transpose.
struct BlockIn {
  const float* data;
  int64_t row, col = 1;
};
struct BlockOut {
  float* data;
  int64_t row;
};

// Bytes that will be needed next.
struct Ahead {
  const char *next, *end;
};

struct AttentionKernels {
  // C[m, n] (+)= A[m, k] B[k, n], B with col 1. The bits of an element of C depend on its row of A and its column of B
  // alone.
  void (*multiply)(const ProductSize& size, const BlockIn& a, const BlockIn& b, const BlockOut& c, bool accumulate);
  // The same, while what lies ahead comes from memory, a few cache lines at a time.
  void (*multiply_fetching)(const ProductSize& size, const BlockIn& a, const BlockIn& b, const BlockOut& c,
                            bool accumulate, Ahead& ahead);
  // C[m, n] = A[m, k] B[n, k]^T; the same promise about bits.
  void (*multiply_transposed)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                              float* c, int64_t ldc);
  // to[j, i] = factor * from[i, j] for i < rows, j < cols.
  void (*transpose)(float* to, int64_t ld_to, const float* from, int64_t ld_from, int64_t rows, int64_t cols,
                    float factor);
  // to[i, j] = factor * from[i, j] for i < rows, j < cols; both may be the same.
  void (*copy)(float* to, int64_t ld_to, const float* from, int64_t ld_from, int64_t rows, int64_t cols, float factor);

  // Where bit i % 32 of words[i / 32 * n_queries + query] is not set, s[i, query] = -infinity; s: [n_keys, n_queries],
  // n_queries a multiple of 16.
  void (*mask_keys)(float* s, int64_t ld, int64_t n_keys, int64_t n_queries, const uint32_t* words);
  // s[i, j] = -infinity where bit j of words[i * words_stride] is not set, j < n <= 64, a multiple of 16.
  void (*mask_queries)(float* s, int64_t ld, int64_t rows, int64_t n, const uint64_t* words, int64_t words_stride);
  // One step of the online softmax of every query over the keys of a block. s: [n_keys, n_queries], a column a query;
  // n_queries is a multiple of 16. Scores become exp(s - largest), largest and sum go on from block to block,
  // and what was summed before has to be multiplied by correction.
  void (*online_softmax)(float* s, int64_t ld, int64_t n_keys, int64_t n_queries, float* largest, float* sum,
                         float* correction);
  // s[i, j] = exp(s[i, j] - lse[i * lse_stride]), 1 at most; n is a multiple of 16.
  void (*probabilities)(float* s, int64_t ld, int64_t rows, int64_t n, const float* lse, int64_t lse_stride);
  // dp[i, j] = p[i, j] * (dp[i, j] - delta[i * delta_stride]); n is a multiple of 16.
  void (*score_gradients)(float* dp, const float* p, int64_t ld, int64_t rows, int64_t n, const float* delta,
                          int64_t delta_stride);
  // y = y * factor + x * weight; absent x counts as zero.
  void (*scale_and_add)(float* y, float factor, const float* x, float weight, int64_t n);
};

namespace baseline {
extern const AttentionKernels attention_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const AttentionKernels attention_kernels;
}
namespace avx512 {
extern const AttentionKernels attention_kernels;
}
#else
namespace avx2 = baseline;
namespace avx512 = baseline;
#endif

}  // namespace fathom::cpu
