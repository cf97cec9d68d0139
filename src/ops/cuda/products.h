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
  int lda, ldb;  // floats from a stored row to the next
  int64_t ldc;
  int64_t b_step, c_step;  // floats from an expert's matrix to the next one's
  int m, n, k;
  const int32_t* row_of;   // which stored row of A row m is, or null
  const RowTile* tiles;    // experts have rows of A and C: where these are, one for each blockIdx.x; or null
  const int32_t* offsets;  // experts have parts of k: where these begin, one for each blockIdx.z; or null
  int k_of_part;           // else blockIdx.z has so much of k
  bool accumulate;
  bool whole_a = false, whole_b = false, whole_c = false;  // every stored row begins at a float4
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

// A block's part of an operand on its way to shared memory: kRows of it, kDepth numbers each, in fours of neighbours in
// memory; neighbouring threads have neighbouring fours. Rows are those of C, or its columns.
template <Stored stored, int kRows, int kDepth, int kThreads, bool kGathered>
struct Strip {
  static constexpr bool kByK = stored == Stored::by_k;
  static constexpr int kAcross = (kByK ? kDepth : kRows) / 4;   // fours in a stored row
  static constexpr int kFours = kRows * kDepth / 4 / kThreads;  // of a thread
  static_assert(kByK || !kGathered);
  static_assert(kThreads % kAcross == 0 && kFours * kThreads * 4 == kRows * kDepth);

  const float* from;
  int stride, row, row_end;
  bool whole;
  int stored_row[kGathered ? kFours : 1];
  float4 fours[kFours];

  // Of this thread's four i: where it is in the strip.
  __device__ static int across() { return static_cast<int>(threadIdx.x) % kAcross * 4; }
  __device__ static int along(int i) { return (i * kThreads + static_cast<int>(threadIdx.x)) / kAcross; }
  __device__ static int row_of(int i) { return kByK ? along(i) : across(); }
  __device__ static int k_of(int i) { return kByK ? across() : along(i); }

  // row_of_row: null, or which stored row each is (kGathered). Behind the last row stands the last one once more then:
  // what comes of it nobody writes.
  __device__ Strip(const float* numbers, int row_stride, bool in_fours, int begin, int end, const int32_t* row_of_row)
      : from(numbers), stride(row_stride), row(begin), row_end(end), whole(in_fours) {
    if constexpr (kGathered) {
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const int r = min(row + along(i), row_end - 1);
        stored_row[i] = row_of_row != nullptr ? row_of_row[r] : r;
      }
    }
  }
  // Numbers k .. k + kDepth of the rows, zeros from k_end on.
  __device__ void load(int k, int k_end) {
    const bool in_fours = whole && k + kDepth <= k_end && (kGathered || row + kRows <= row_end);
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int line = kGathered ? stored_row[kGathered ? i : 0] : (kByK ? row : k) + along(i);
      const float* at = from + int64_t{line} * stride + (kByK ? k : row) + across();
      if (in_fours) {
        fours[i] = *reinterpret_cast<const float4*>(at);
        continue;
      }
      const bool there = kGathered || line < (kByK ? row_end : k_end);
      const int n = there ? (kByK ? k_end - k : row_end - row) - across() : 0;
      fours[i] = make_float4(n > 0 ? at[0] : 0, n > 1 ? at[1] : 0, n > 2 ? at[2] : 0, n > 3 ? at[3] : 0);
    }
  }
};

// On CUDA cores, and in bf16 on tensor cores. grid: tiles of rows, of columns, and parts. kLarge: tiles of 128 x 128,
// else of 64 x 64.
template <Stored a, Stored b, bool kLarge>
void launch_product_f32(Context& ctx, dim3 grid, const Product& product);
template <Stored a, Stored b, bool kLarge>
void launch_product_bf16(Context& ctx, dim3 grid, const Product& product);

}  // namespace fathom::cuda
