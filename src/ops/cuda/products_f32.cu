#include "ops/cuda/products.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDepth = 16;                   // of k at a time
constexpr int kWarpRows = 4, kWarpCols = 2;  // of warps in a tile
constexpr int kLaneRows = 4, kLaneCols = 8;  // of lanes in a warp
constexpr int kRowsApart = kLaneRows * 4, kColsApart = kLaneCols * 4;

// Numbers from one k to the next in shared memory, [kDepth, kTile]. The room lets lanes that store neighbours along k
// meet two and two in a bank, not four and four.
template <int kTile>
constexpr int kStrideOf = kTile + 4;

template <Stored stored, int kRows, bool kGathered>
__device__ __forceinline__ void store(float* shared, const Strip<stored, kRows, kDepth, kThreads, kGathered>& strip) {
  using S = Strip<stored, kRows, kDepth, kThreads, kGathered>;
  constexpr int kStride = kStrideOf<kRows>;
#pragma unroll
  for (int i = 0; i < S::kFours; ++i) {
    float* to = shared + S::k_of(i) * kStride + S::row_of(i);
    if (stored == Stored::by_k) {
      to[0] = strip.fours[i].x;
      to[kStride] = strip.fours[i].y;
      to[2 * kStride] = strip.fours[i].z;
      to[3 * kStride] = strip.fours[i].w;
    } else {
      *reinterpret_cast<float4*>(to) = strip.fours[i];
    }
  }
}

// kMine numbers of a thread's, in fours of neighbours that are kApart from each other.
template <int kMine, int kApart>
__device__ __forceinline__ void fetch(float (&numbers)[kMine], const float* shared) {
#pragma unroll
  for (int i = 0; i < kMine / 4; ++i) {
    const float4 x = *reinterpret_cast<const float4*>(shared + i * kApart);
    numbers[i * 4] = x.x, numbers[i * 4 + 1] = x.y, numbers[i * 4 + 2] = x.z, numbers[i * 4 + 3] = x.w;
  }
}

// A warp has kTile / 4 x kTile / 2 numbers of the tile, a thread kMine x kMine.
template <Stored a_stored, Stored b_stored, int kTile>
__global__ void __launch_bounds__(kThreads, 2) product_f32_kernel(Product p) {
  constexpr int kMine = kTile / 16, kStride = kStrideOf<kTile>, kStrip = kDepth * kStride;
  __shared__ float4 memory[2][2][kStrip / 4];  // what is multiplied, and what comes next
  wait_for_inputs();
  start_next();
  Part part;
  if (!find_part(part, p, kTile, kTile)) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp / kWarpCols * (kTile / kWarpRows) + lane / kLaneCols * 4;
  const int col = warp % kWarpCols * (kTile / kWarpCols) + lane % kLaneCols * 4;
  Strip<a_stored, kTile, kDepth, kThreads, a_stored == Stored::by_k> a(part.a, p.lda, p.whole_a, part.m, part.m_end,
                                                                       p.row_of);
  Strip<b_stored, kTile, kDepth, kThreads, false> b(part.b, p.ldb, p.whole_b, part.n, p.n, nullptr);
  float sum[kMine][kMine] = {};
  const auto add_products = [&](int stage) {
#pragma unroll
    for (int q = 0; q < kDepth; ++q) {
      float of_row[kMine], of_col[kMine];
      fetch<kMine, kRowsApart>(of_row, &memory[stage][0]->x + q * kStride + row);
      fetch<kMine, kColsApart>(of_col, &memory[stage][1]->x + q * kStride + col);
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
#pragma unroll
        for (int j = 0; j < kMine; ++j) sum[i][j] = fmaf(of_row[i], of_col[j], sum[i][j]);
      }
    }
  };
  a.load(part.k, part.k_end);
  b.load(part.k, part.k_end);
  store(&memory[0][0]->x, a);
  store(&memory[0][1]->x, b);
  __syncthreads();
  int stage = 0;
  for (int k = part.k; k < part.k_end; k += kDepth, stage ^= 1) {
    const bool more = k + kDepth < part.k_end;
    if (more) {
      a.load(k + kDepth, part.k_end);
      b.load(k + kDepth, part.k_end);
    }
    add_products(stage);
    if (more) {
      store(&memory[stage ^ 1][0]->x, a);
      store(&memory[stage ^ 1][1]->x, b);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int r = part.m + row + i / 4 * kRowsApart + i % 4;
    if (r >= part.m_end) continue;
#pragma unroll
    for (int j = 0; j < kMine; j += 4) {
      const int c = part.n + col + j / 4 * kColsApart;
      float* to = part.c + r * p.ldc + c;
      if (p.whole_c && c + 3 < p.n) {
        float4 was = make_float4(0, 0, 0, 0);
        if (p.accumulate) was = *reinterpret_cast<const float4*>(to);
        *reinterpret_cast<float4*>(to) =
            make_float4(was.x + sum[i][j], was.y + sum[i][j + 1], was.z + sum[i][j + 2], was.w + sum[i][j + 3]);
        continue;
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if (c + q < p.n) to[q] = p.accumulate ? to[q] + sum[i][j + q] : sum[i][j + q];
      }
    }
  }
}

}  // namespace

template <Stored a, Stored b, bool kLarge>
void launch_product_f32(Context& ctx, dim3 grid, const Product& product) {
  constexpr int kTile = kLarge ? 128 : 64;
  launch(ctx, product_f32_kernel<a, b, kTile>, grid, dim3(kThreads), 0, product);
}

template void launch_product_f32<Stored::by_k, Stored::by_k, true>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_k, Stored::by_k, false>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_k, Stored::by_rows_of_k, true>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_k, Stored::by_rows_of_k, false>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_rows_of_k, Stored::by_rows_of_k, true>(Context&, dim3, const Product&);
template void launch_product_f32<Stored::by_rows_of_k, Stored::by_rows_of_k, false>(Context&, dim3, const Product&);

}  // namespace fathom::cuda
