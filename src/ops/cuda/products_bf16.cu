#include "ops/cuda/products.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kDepth = 32, kPairs = kDepth / 2;  // of k at a time
constexpr int kStride = kDepth + 8;              // halves of a row in shared memory: 80 bytes, no conflicts of banks
constexpr int kWarpRows = 2, kWarpCols = 4;      // of warps in a tile

// One operand's part of a tile on its way: kRows of it, kDepth numbers each, in pairs along k. A warp takes 8 rows x 4
// pairs at a time: whole sectors of memory however it is stored, and every bank of shared memory once.
template <Stored stored, int kRows>
struct Strip {
  static constexpr int kMine = kRows * kPairs / kThreads, kRowBlocks = kRows / 8;
  uint32_t pairs[kMine];

  __device__ static int row_of(int i) {
    const int block = static_cast<int>(threadIdx.x) / kWarp + i * kWarps;
    return block % kRowBlocks * 8 + static_cast<int>(threadIdx.x) % kWarp / 4;
  }
  __device__ static int pair_of(int i) {
    const int block = static_cast<int>(threadIdx.x) / kWarp + i * kWarps;
    return block / kRowBlocks * 4 + static_cast<int>(threadIdx.x) % 4;
  }
  template <class StoredRow>
  __device__ void load(const float* from, int64_t stride, int row, int row_end, int k, int k_end,
                       const StoredRow& stored_row) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int r = row + row_of(i), q = k + 2 * pair_of(i);
      const int64_t at = stored_row(i, r);
      const float low = number_of<stored>(from, stride, at, r, q, r < row_end && q < k_end);
      const float high = number_of<stored>(from, stride, at, r, q + 1, r < row_end && q + 1 < k_end);
      pairs[i] = pack_bf16(low, high);
    }
  }
  __device__ void store(uint16_t* shared) const {  // [kRows, kStride]
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      *reinterpret_cast<uint32_t*>(shared + row_of(i) * kStride + 2 * pair_of(i)) = pairs[i];
    }
  }
};

template <Stored a_stored, Stored b_stored, int kTile>
__global__ void __launch_bounds__(kThreads) product_bf16_kernel(Product p) {
  constexpr int kRows = kTile / kWarpRows, kCols = kTile / kWarpCols;  // of a warp
  constexpr int kMT = kRows / 16, kNT = kCols / 8;
  using StripA = Strip<a_stored, kTile>;
  using StripB = Strip<b_stored, kTile>;
  __shared__ uint4 memory_a[kTile * kStride / 8], memory_b[kTile * kStride / 8];
  auto *const shared_a = reinterpret_cast<uint16_t*>(memory_a), *const shared_b = reinterpret_cast<uint16_t*>(memory_b);
  wait_for_inputs();
  start_next();
  Part part;
  if (!find_part(part, p, kTile, kTile)) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp / kWarpCols * kRows, col = warp % kWarpCols * kCols;
  int gathered[StripA::kMine];
#pragma unroll
  for (int i = 0; i < StripA::kMine; ++i) {
    const int r = part.m + StripA::row_of(i);
    gathered[i] = p.row_of != nullptr && r < part.m_end ? p.row_of[r] : r;
  }
  const auto of_a = [&](int i, int) { return static_cast<int64_t>(gathered[i]); };
  const auto of_b = [](int, int r) { return static_cast<int64_t>(r); };
  StripA a;
  StripB b;
  float sum[kMT][kNT][4] = {};
  a.load(part.a, p.lda, part.m, part.m_end, part.k, part.k_end, of_a);
  b.load(part.b, p.ldb, part.n, p.n, part.k, part.k_end, of_b);
  for (int k = part.k; k < part.k_end; k += kDepth) {
    __syncthreads();  // what it held is read
    a.store(shared_a);
    b.store(shared_b);
    __syncthreads();
    if (k + kDepth < part.k_end) {
      a.load(part.a, p.lda, part.m, part.m_end, k + kDepth, part.k_end, of_a);
      b.load(part.b, p.ldb, part.n, p.n, k + kDepth, part.k_end, of_b);
    }
#pragma unroll
    for (int q = 0; q < kDepth; q += 16) {
      // Matrices of 8 x 8: of A the upper rows' first and, behind the lower rows', second half of k; of B two tiles'.
      uint32_t rows_of_a[kMT][4], columns_of_b[kNT / 2][4];
#pragma unroll
      for (int i = 0; i < kMT; ++i) {
        load_matrices(rows_of_a[i], shared_a + (row + i * 16 + lane % 16) * kStride + q + lane / 16 * 8);
      }
#pragma unroll
      for (int j = 0; j < kNT / 2; ++j) {
        load_matrices(columns_of_b[j],
                      shared_b + (col + j * 16 + lane / 16 * 8 + lane % 8) * kStride + q + lane / 8 % 2 * 8);
      }
#pragma unroll
      for (int i = 0; i < kMT; ++i) {
#pragma unroll
        for (int j = 0; j < kNT; ++j) {
          mma_bf16(sum[i][j], rows_of_a[i][0], rows_of_a[i][1], rows_of_a[i][2], rows_of_a[i][3],
                   columns_of_b[j / 2][j % 2 * 2], columns_of_b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kMT; ++i) {
#pragma unroll
    for (int j = 0; j < kNT; ++j) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int r = part.m + row + i * 16 + lane / 4 + q / 2 * 8, c = part.n + col + j * 8 + lane % 4 * 2 + q % 2;
        if (r >= part.m_end || c >= p.n) continue;
        float* to = part.c + r * p.ldc + c;
        *to = p.accumulate ? *to + sum[i][j][q] : sum[i][j][q];
      }
    }
  }
}

}  // namespace

template <Stored a, Stored b, bool kLarge>
void launch_product_bf16(Context& ctx, dim3 grid, const Product& product) {
  launch(ctx, product_bf16_kernel < a, b, kLarge ? 128 : 64 >, grid, dim3(kThreads), 0, product);
}

template void launch_product_bf16<Stored::by_k, Stored::by_k, true>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_k, Stored::by_k, false>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_k, Stored::by_rows_of_k, true>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_k, Stored::by_rows_of_k, false>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_rows_of_k, Stored::by_rows_of_k, true>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_rows_of_k, Stored::by_rows_of_k, false>(Context&, dim3, const Product&);

}  // namespace fathom::cuda
