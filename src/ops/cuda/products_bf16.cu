#include "ops/cuda/products.h"

namespace fathom::cuda {
namespace {

constexpr int kDepth = 32;  // of k at a time

// Of warps, in a tile.
template <int kTile>
struct Warps {
  static constexpr int kRows = kTile / 32, kCols = 4;
  static constexpr int kThreads = kRows * kCols * kWarp;
};

// A strip in shared memory as it is stored, in halves: by_k [kRows, kDepth], else [kDepth, kRows]. Eight neighbours
// stand together, and these eights in another order in each line, so that eight lines' same eights, which an 8 x 8
// matrix is, lie in different banks, and so does what a warp stores at a time.
template <Stored stored, int kRows>
__device__ __forceinline__ int place_of(int row, int k) {
  return stored == Stored::by_k ? row * kDepth + (k / 8 ^ row / 2 % 4) * 8 + k % 8
                                : k * kRows + (row / 8 ^ k % 8) * 8 + row % 8;
}

template <Stored stored, int kRows, int kThreads, bool kGathered>
__device__ __forceinline__ void store(uint16_t* shared,
                                      const Strip<stored, kRows, kDepth, kThreads, kGathered>& strip) {
  using S = Strip<stored, kRows, kDepth, kThreads, kGathered>;
#pragma unroll
  for (int i = 0; i < S::kFours; ++i) {
    const float4 x = strip.fours[i];
    *reinterpret_cast<uint2*>(shared + place_of<stored, kRows>(S::row_of(i), S::k_of(i))) =
        make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
  }
}

// The four 8 x 8 matrices of rows row .. row + 16 and numbers k .. k + 16, rows of a matrix being rows. kRowsFirst: the
// lower rows' first half of k is the second one, else the upper rows' second half.
template <Stored stored, int kRows, bool kRowsFirst>
__device__ __forceinline__ void fetch(uint32_t (&words)[4], const uint16_t* shared, int row, int k, int lane) {
  const int first = lane / 8 % 2 * 8, second = lane / 16 * 8, line = lane % 8;
  row += kRowsFirst ? first : second;
  k += kRowsFirst ? second : first;
  if (stored == Stored::by_k) {
    load_matrices(words, shared + place_of<stored, kRows>(row + line, k));
  } else {
    load_matrices_transposed(words, shared + place_of<stored, kRows>(row, k + line));
  }
}

template <Stored a_stored, Stored b_stored, int kTile>
__global__ void __launch_bounds__(Warps<kTile>::kThreads) product_bf16_kernel(Product p) {
  constexpr int kThreads = Warps<kTile>::kThreads, kWarpCols = Warps<kTile>::kCols;
  constexpr int kRows = kTile / Warps<kTile>::kRows, kCols = kTile / kWarpCols;  // of a warp
  constexpr int kMT = kRows / 16, kNT = kCols / 8, kStrip = kTile * kDepth;
  __shared__ uint4 memory[2][2][kStrip / 8];  // what is multiplied, and what comes next
  wait_for_inputs();
  start_next();
  Part part;
  if (!find_part(part, p, kTile, kTile)) return;
  const auto shared = [&](int stage, int operand) { return reinterpret_cast<uint16_t*>(memory[stage][operand]); };
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = warp / kWarpCols * kRows, col = warp % kWarpCols * kCols;
  Strip<a_stored, kTile, kDepth, kThreads, a_stored == Stored::by_k> a(part.a, p.lda, p.whole_a, part.m, part.m_end,
                                                                       p.row_of);
  Strip<b_stored, kTile, kDepth, kThreads, false> b(part.b, p.ldb, p.whole_b, part.n, p.n, nullptr);
  float sum[kMT][kNT][4] = {};
  const auto add_products = [&](int stage, int q) {
    uint32_t columns_of_b[kNT / 2][4];
#pragma unroll
    for (int j = 0; j < kNT / 2; ++j) {
      fetch<b_stored, kTile, false>(columns_of_b[j], shared(stage, 1), col + j * 16, q, lane);
    }
#pragma unroll
    for (int i = 0; i < kMT; ++i) {
      uint32_t rows_of_a[4];
      fetch<a_stored, kTile, true>(rows_of_a, shared(stage, 0), row + i * 16, q, lane);
#pragma unroll
      for (int j = 0; j < kNT; ++j) {
        mma_bf16(sum[i][j], rows_of_a[0], rows_of_a[1], rows_of_a[2], rows_of_a[3], columns_of_b[j / 2][j % 2 * 2],
                 columns_of_b[j / 2][j % 2 * 2 + 1]);
      }
    }
  };
  a.load(part.k, part.k_end);
  b.load(part.k, part.k_end);
  store(shared(0, 0), a);
  store(shared(0, 1), b);
  __syncthreads();
  int stage = 0;
  for (int k = part.k; k < part.k_end; k += kDepth, stage ^= 1) {
    const bool more = k + kDepth < part.k_end;
    if (more) {
      a.load(k + kDepth, part.k_end);
      b.load(k + kDepth, part.k_end);
    }
    add_products(stage, 0);
    add_products(stage, 16);
    if (more) {
      store(shared(stage ^ 1, 0), a);
      store(shared(stage ^ 1, 1), b);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kMT; ++i) {
#pragma unroll
    for (int j = 0; j < kNT; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = part.m + row + i * 16 + lane / 4 + half * 8, c = part.n + col + j * 8 + lane % 4 * 2;
        if (r >= part.m_end) continue;
        float* to = part.c + r * p.ldc + c;
        const float first = sum[i][j][half * 2], second = sum[i][j][half * 2 + 1];
        if (p.whole_c && c + 1 < p.n) {
          float2 was = make_float2(0, 0);
          if (p.accumulate) was = *reinterpret_cast<const float2*>(to);
          *reinterpret_cast<float2*>(to) = make_float2(was.x + first, was.y + second);
          continue;
        }
        if (c < p.n) to[0] = p.accumulate ? to[0] + first : first;
        if (c + 1 < p.n) to[1] = p.accumulate ? to[1] + second : second;
      }
    }
  }
}

}  // namespace

template <Stored a, Stored b, bool kLarge>
void launch_product_bf16(Context& ctx, dim3 grid, const Product& product) {
  constexpr int kTile = kLarge ? 128 : 64;
  launch(ctx, product_bf16_kernel<a, b, kTile>, grid, dim3(Warps<kTile>::kThreads), 0, product);
}

template void launch_product_bf16<Stored::by_k, Stored::by_k, true>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_k, Stored::by_k, false>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_k, Stored::by_rows_of_k, true>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_k, Stored::by_rows_of_k, false>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_rows_of_k, Stored::by_rows_of_k, true>(Context&, dim3, const Product&);
template void launch_product_bf16<Stored::by_rows_of_k, Stored::by_rows_of_k, false>(Context&, dim3, const Product&);

}  // namespace fathom::cuda
