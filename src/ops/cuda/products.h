// Matrix products of f32 numbers that are stored row by row, as training has them: one, or one for each expert.
#pragma once

#include <stdint.h>

#include "ops/cuda/kernel.h"

namespace fathom::cuda {

// How an operand lies in memory: the dimension that is summed over, k, is that of its columns, or that of its rows.
enum class Stored { by_k, by_rows_of_k };

// Rows of a tile, of one expert.
struct RowTile {
  int group, begin, end;  // group: -1 where there is none
};

// C[m, n] (+)= sum_k A[m, k] B[k, n].
struct Product {
  const float *a, *b;
  float* c;
  int64_t lda, ldb, ldc;   // floats from a stored row to the next
  int64_t b_step, c_step;  // floats from an expert's matrix to the next one's
  int m, n, k;
  const int32_t* row_of;   // which stored row of A row m is, or null
  const RowTile* tiles;    // experts have rows of A and C: where these are, one for each blockIdx.x; or null
  const int32_t* offsets;  // experts have parts of k: where these begin, one for each blockIdx.z; or null
  int k_of_part;           // else blockIdx.z has so much of k
  bool accumulate;
};

// What a block works on.
struct Part {
  const float *a, *b;
  float* c;
  int m, m_end, n, k, k_end;
};

// false: on nothing.
__device__ __forceinline__ bool find_part(Part& part, const Product& p, int tile_rows, int tile_cols) {
  part = {p.a, p.b, p.c, static_cast<int>(blockIdx.x) * tile_rows, p.m, static_cast<int>(blockIdx.y) * tile_cols,
          0,   p.k};
  if (p.tiles != nullptr) {
    const RowTile tile = p.tiles[blockIdx.x];
    if (tile.group < 0) return false;
    part.m = tile.begin;
    part.m_end = min(tile.end, tile.begin + tile_rows);
    part.b += tile.group * p.b_step;
  } else if (p.offsets != nullptr) {
    part.k = p.offsets[blockIdx.z];
    part.k_end = p.offsets[blockIdx.z + 1];
    part.c += blockIdx.z * p.c_step;
    return part.k < part.k_end;
  } else {
    part.k = static_cast<int>(blockIdx.z) * p.k_of_part;
    part.k_end = min(p.k, part.k + p.k_of_part);
    part.c += blockIdx.z * p.c_step;
  }
  return true;
}

// Number (row, k) of an operand, rows being those of C or its columns; 0 outside.
template <Stored stored>
__device__ __forceinline__ float number_of(const float* numbers, int64_t stride, int64_t stored_row, int row, int k,
                                           bool there) {
  if (!there) return 0;
  return stored == Stored::by_k ? numbers[stored_row * stride + k] : numbers[int64_t{k} * stride + row];
}

// On CUDA cores, and in bf16 on tensor cores. grid: tiles of rows, of columns, and parts. kLarge: tiles of 128 x 128,
// else of 64 x 64.
template <Stored a, Stored b, bool kLarge>
void launch_product_f32(Context& ctx, dim3 grid, const Product& product);
template <Stored a, Stored b, bool kLarge>
void launch_product_bf16(Context& ctx, dim3 grid, const Product& product);

}  // namespace fathom::cuda
