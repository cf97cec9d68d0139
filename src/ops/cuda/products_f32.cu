#include "ops/cuda/products.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kSide = 16;  // threads along a side of a tile
constexpr int kDepth = 16;                 // of k at a time

// One operand's part of a tile on its way: kRows of it, kDepth numbers each.
template <Stored stored, int kRows>
struct Strip {
  static constexpr int kMine = kRows * kDepth / kThreads;
  static constexpr int kStride = kRows + 4;
  float numbers[kMine];

  // Neighbouring threads read neighbours in memory.
  __device__ static int row_of(int i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    return stored == Stored::by_k ? at / kDepth : at % kRows;
  }
  __device__ static int k_of(int i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    return stored == Stored::by_k ? at % kDepth : at / kRows;
  }
  // stored_row(i): of this thread's number i, where rows are not in order.
  template <class StoredRow>
  __device__ void load(const float* from, int64_t stride, int row, int row_end, int k, int k_end,
                       const StoredRow& stored_row) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int r = row + row_of(i), q = k + k_of(i);
      numbers[i] = number_of<stored>(from, stride, stored_row(i, r), r, q, r < row_end && q < k_end);
    }
  }
  __device__ void store(float* shared) const {  // [kDepth, kStride]
#pragma unroll
    for (int i = 0; i < kMine; ++i) shared[k_of(i) * kStride + row_of(i)] = numbers[i];
  }
};

// A thread has kMine x kMine numbers of the tile: fours of neighbours, kSide * 4 apart.
template <Stored a_stored, Stored b_stored, int kTile>
__global__ void __launch_bounds__(kThreads) product_f32_kernel(Product p) {
  constexpr int kMine = kTile / kSide, kFours = kMine / 4;
  using StripA = Strip<a_stored, kTile>;
  using StripB = Strip<b_stored, kTile>;
  __shared__ float4 memory_a[kDepth * StripA::kStride / 4], memory_b[kDepth * StripB::kStride / 4];
  float *const shared_a = &memory_a[0].x, *const shared_b = &memory_b[0].x;
  wait_for_inputs();
  start_next();
  Part part;
  if (!find_part(part, p, kTile, kTile)) return;
  const int row = static_cast<int>(threadIdx.x) / kSide * 4, col = static_cast<int>(threadIdx.x) % kSide * 4;
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
  float sum[kMine][kMine] = {};
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
    for (int q = 0; q < kDepth; ++q) {
      float of_row[kMine], of_col[kMine];
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const float4 x = *reinterpret_cast<const float4*>(shared_a + q * StripA::kStride + i * kSide * 4 + row);
        const float4 y = *reinterpret_cast<const float4*>(shared_b + q * StripB::kStride + i * kSide * 4 + col);
        of_row[i * 4] = x.x, of_row[i * 4 + 1] = x.y, of_row[i * 4 + 2] = x.z, of_row[i * 4 + 3] = x.w;
        of_col[i * 4] = y.x, of_col[i * 4 + 1] = y.y, of_col[i * 4 + 2] = y.z, of_col[i * 4 + 3] = y.w;
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
#pragma unroll
        for (int j = 0; j < kMine; ++j) sum[i][j] = fmaf(of_row[i], of_col[j], sum[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int r = part.m + i / 4 * kSide * 4 + row + i % 4;
    if (r >= part.m_end) continue;
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const int c = part.n + j / 4 * kSide * 4 + col + j % 4;
      if (c >= p.n) continue;
      float* to = part.c + r * p.ldc + c;
      *to = p.accumulate ? *to + sum[i][j] : sum[i][j];
    }
  }
}

}  // namespace

template <Stored a, Stored b, bool kLarge>
void launch_product_f32(Context& ctx, dim3 grid, const Product& product) {
  launch(ctx, product_f32_kernel < a, b, kLarge ? 128 : 64 >, grid, dim3(kThreads), 0, product);
}

template void launch_product_f32<Stored::by_k, Stored::by_k, true>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_k, Stored::by_k, false>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_k, Stored::by_rows_of_k, true>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_k, Stored::by_rows_of_k, false>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_rows_of_k, Stored::by_rows_of_k, true>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_rows_of_k, Stored::by_rows_of_k, false>(Context&, dim3, const Product&);

}  // namespace fathom::cuda
