// Scores of the lightning indexer for blocks of keys (ops/indexer.h), and the exact choice of the largest of many.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

// scores[i, s] = scales[s] sum_j weights[i, j] relu(queries[i, j] . keys[s]) for the 64 keys of a block, which lie in
// tiles of 16. Products are summed in order of the elements, heads in their order: a score's bits depend on its own
// query and key alone.
struct IndexProduct {
  const void* keys;
  int64_t dim;  // elements of floats, quads of bytes
  int64_t n_queries, n_heads;
  const void* queries;
  int64_t query_stride, head_stride;  // bytes
  const float* weights;
  int64_t weight_stride;  // floats, from query to query
  float* scores;          // [n_queries, 64]
  const char* ahead;      // what is read next: fetched meanwhile
  int64_t ahead_bytes;
  // Of bytes alone. Keys are codes + 128, queries have signs; offsets are -128 times the sum of a head's codes.
  const int32_t* offsets;  // [n_queries, n_heads]
  const void* scales;      // [64] f32, without alignment; null: all are 1
};

// Scores as integers of the same order: -0 is +0, NaN the largest of all. None is the least integer.
struct IndexerKernels {
  // The Hadamard transform of n = 2^i numbers, times factor.
  void (*hadamard)(float* x, int64_t n, float factor);
  // The largest magnitude of n > 0, NaN where one is not finite.
  float (*largest)(const float* x, int64_t n);
  // Codes from -127 to 127 of n numbers and zeros up to a whole quad; returns their scale, NaN where a number is not
  // finite.
  float (*round_i8)(int8_t* codes, int32_t* sum, const float* x, int64_t n);
  // e4m3 codes of a block's tiles, with their scales, as floats in tiles.
  void (*widen_f8)(float* tiles, const uint8_t* codes, const uint8_t* scales, int64_t dim);
  void (*score_f32)(const IndexProduct&);
  void (*score_i8)(const IndexProduct&);
  // Appends the orders of those of n <= 64 scores (of 64 that can be read) that are above `bound`, and their rows from
  // first_row, behind `count` others; returns the new count. There is room for 64 + 16.
  int64_t (*append)(int32_t* orders, int32_t* rows, int64_t count, const float* scores, int64_t n, int32_t first_row,
                    int32_t bound);
  // The least and the largest of n > 0.
  void (*range)(const int32_t* orders, int64_t n, int32_t* least, int32_t* largest);
  int64_t (*count_above)(const int32_t* orders, int64_t n, int32_t bound);
  // Those above `low` up to `high`, which may be put over their source; returns how many. Room for 16 behind them.
  int64_t (*pick)(int32_t* picked, const int32_t* orders, int64_t n, int32_t low, int32_t high);
  // Leaves those above `bound` and the first n_equal of those that equal it, in their order; returns how many. Room for
  // 16 behind all.
  int64_t (*keep)(int32_t* orders, int32_t* rows, int64_t n, int32_t bound, int64_t n_equal);
};

// Those of the instruction sets: see indexer_variants.h.
namespace baseline {
extern const IndexerKernels indexer_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const IndexerKernels indexer_kernels;
}
namespace avx2_vnni {
extern const IndexerKernels indexer_kernels;
}
namespace avx512 {
extern const IndexerKernels indexer_kernels;
}
namespace avx512_vnni {
extern const IndexerKernels indexer_kernels;
}
#elif defined(__aarch64__)
namespace dotprod {
extern const IndexerKernels indexer_kernels;
}
#endif

}  // namespace fathom::cpu
