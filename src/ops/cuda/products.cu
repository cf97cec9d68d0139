#include <algorithm>
#include <limits>

#include "base/arithmetic.h"
#include "ops/cuda/operators.h"
#include "ops/cuda/products.h"
#include "ops/cuda/router_scores.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kLarge = 128, kSmall = 64;  // tiles
constexpr int64_t kLeastPart = 128;           // of k, where several blocks share a tile

struct RowTiles {
  RowTile* tiles;
  const int32_t* offsets;
  int groups, n, rows;
};

// One block, a thread an expert: its tiles stand behind those of the experts before it.
__global__ void __launch_bounds__(kMaxExperts) row_tiles_kernel(RowTiles t) {
  __shared__ int count[kMaxExperts];
  wait_for_inputs();
  start_next();
  const int e = static_cast<int>(threadIdx.x);
  const int begin = e < t.groups ? t.offsets[e] : 0, end = e < t.groups ? t.offsets[e + 1] : 0;
  count[e] = (end - begin + t.rows - 1) / t.rows;
  __syncthreads();
  int before = 0, total = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x); ++i) {
    if (i < e) before += count[i];
    total += count[i];
  }
  for (int i = 0; i < count[e]; ++i) t.tiles[before + i] = {e, begin + i * t.rows, end};
  for (int i = total + e; i < t.n; i += static_cast<int>(blockDim.x)) t.tiles[i] = {-1, 0, 0};
}

struct Parts {
  float* c;
  const float* parts;  // [parts, m, n]
  int64_t ldc, size;
  int n, n_parts;
  bool accumulate;
};

__global__ void __launch_bounds__(kThreads) add_parts_kernel(Parts p) {
  wait_for_inputs();
  start_next();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.size) return;
  float sum = 0;
#pragma unroll 8  // loads that do not wait for each other
  for (int part = 0; part < p.n_parts; ++part) sum += p.parts[part * p.size + i];
  float* to = p.c + i / p.n * p.ldc + i % p.n;
  *to = p.accumulate ? *to + sum : sum;
}

bool in_fours(const void* data, int64_t stride, int64_t step) {
  return reinterpret_cast<uintptr_t>(data) % sizeof(float4) == 0 && stride % 4 == 0 && step % 4 == 0;
}

unsigned blocks_for(int64_t n, int64_t in_block) { return static_cast<unsigned>(ceil_div(n, in_block)); }

template <Stored a, Stored b>
void launch_product(Context& ctx, Precision precision, bool large, dim3 grid, const Product& p) {
  if (precision == Precision::bf16) {
    return large ? launch_product_bf16<a, b, true>(ctx, grid, p) : launch_product_bf16<a, b, false>(ctx, grid, p);
  }
  return large ? launch_product_f32<a, b, true>(ctx, grid, p) : launch_product_f32<a, b, false>(ctx, grid, p);
}

// groups: experts, whose rows or parts of k begin at group_offsets; 0 for one product.
template <Stored a, Stored b>
void multiply(Context& ctx, Precision precision, Product p, Tensor group_offsets) {
  const int64_t groups = group_offsets ? group_offsets.size() - 1 : 0, m = p.m, n = p.n;
  if (m == 0 || n == 0 || (p.k == 0 && p.accumulate)) return;
  FATHOM_CHECK(groups <= kMaxExperts, "{} experts", groups);
  constexpr bool kShareK = a == Stored::by_rows_of_k;  // experts have parts of k
  const ArenaScope scope(ctx.arena);
  const auto tiles_of = [&](int64_t tile) {
    return ceil_div(m, tile) * ceil_div(n, tile) * (kShareK ? std::max<int64_t>(groups, 1) : 1);
  };
  const int64_t usual_rows = groups > 0 && !kShareK ? m / groups : m;
  const bool large = std::min(usual_rows, n) >= kLarge && tiles_of(kLarge) >= 2 * ctx.device->n_processors;
  const int64_t tile = large ? kLarge : kSmall;
  dim3 grid(blocks_for(m, tile), blocks_for(n, tile), 1);
  p.k_of_part = std::max(p.k, 1);
  p.whole_a = in_fours(p.a, p.lda, 0);
  p.whole_b = in_fours(p.b, p.ldb, p.b_step);
  p.whole_c = in_fours(p.c, p.ldc, p.c_step);
  if (groups > 0 && kShareK) {
    p.offsets = group_offsets.i32();
    grid.z = static_cast<unsigned>(groups);
  } else if (groups > 0) {
    grid.x += static_cast<unsigned>(groups);
    auto* const tiles = static_cast<RowTile*>(ctx.arena.allocate(size_t{grid.x} * sizeof(RowTile)));
    launch(ctx, row_tiles_kernel, dim3(1), dim3(whole_warps(groups)), 0,
           RowTiles{tiles, group_offsets.i32(), static_cast<int>(groups), static_cast<int>(grid.x),
                    static_cast<int>(tile)});
    p.tiles = tiles;
  } else if (const int64_t wanted =
                 std::min(ceil_div(int64_t{2} * ctx.device->n_processors, tiles_of(tile)), p.k / kLeastPart);
             wanted > 1) {
    // Few tiles and a long sum: blocks share it, and their parts are added up in order.
    const Product whole = p;
    p.k_of_part = static_cast<int>(ceil_div(ceil_div(int64_t{p.k}, wanted), kLeastPart) * kLeastPart);
    grid.z = blocks_for(p.k, p.k_of_part);
    const Tensor parts = new_f32(ctx, {int64_t{grid.z}, m * n});
    p.c = parts.f32();
    p.ldc = n;
    p.c_step = m * n;
    p.accumulate = false;
    p.whole_c = in_fours(p.c, p.ldc, p.c_step);
    launch_product<a, b>(ctx, precision, large, grid, p);
    launch(ctx, add_parts_kernel, dim3(blocks_for(m * n, kThreads)), dim3(kThreads), 0,
           Parts{whole.c, p.c, whole.ldc, m * n, p.n, static_cast<int>(grid.z), whole.accumulate});
    return;
  }
  launch_product<a, b>(ctx, precision, large, grid, p);
}

int stride_of(Tensor t) {
  FATHOM_CHECK(t.row_stride <= std::numeric_limits<int>::max(), "{} floats from a row to the next", t.row_stride);
  return static_cast<int>(t.row_stride);
}

// Of the whole of a matrix or of experts' matrices, without gaps between these.
int64_t matrix_step(Tensor w) { return w.rank == 3 ? w.shape[1] * w.row_stride : 0; }

}  // namespace

void linear_rows(Context& ctx, std::span<const LinearCall> calls) {
  for (const LinearCall& call : calls) {
    const Tensor x = call.x.x, w = call.w, y = call.y;
    const int64_t out = w.shape[w.rank - 2];
    FATHOM_CHECK(w.format == Format::f32 && y.rows() == x.rows() && y.cols() == out && x.cols() == w.cols());
    FATHOM_CHECK((w.rank == 3) == static_cast<bool>(call.offsets));
    multiply<Stored::by_k, Stored::by_k>(ctx, call.rounding.precision,
                                         Product{.a = x.f32(),
                                                 .b = w.f32(),
                                                 .c = y.f32(),
                                                 .lda = stride_of(x),
                                                 .ldb = stride_of(w),
                                                 .ldc = y.row_stride,
                                                 .b_step = matrix_step(w),
                                                 .c_step = 0,
                                                 .m = static_cast<int>(x.rows()),
                                                 .n = static_cast<int>(out),
                                                 .k = static_cast<int>(x.cols()),
                                                 .row_of = call.x.rows ? call.x.rows.i32() : nullptr,
                                                 .tiles = nullptr,
                                                 .offsets = nullptr,
                                                 .k_of_part = 0,
                                                 .accumulate = false},
                                         call.offsets);
  }
}

void linear_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor w, Tensor offsets, bool accumulate,
                           Precision precision) {
  multiply<Stored::by_k, Stored::by_rows_of_k>(ctx, precision,
                                               Product{.a = dy.f32(),
                                                       .b = w.f32(),
                                                       .c = dx.f32(),
                                                       .lda = stride_of(dy),
                                                       .ldb = stride_of(w),
                                                       .ldc = dx.row_stride,
                                                       .b_step = matrix_step(w),
                                                       .c_step = 0,
                                                       .m = static_cast<int>(dy.rows()),
                                                       .n = static_cast<int>(dx.cols()),
                                                       .k = static_cast<int>(dy.cols()),
                                                       .row_of = nullptr,
                                                       .tiles = nullptr,
                                                       .offsets = nullptr,
                                                       .k_of_part = 0,
                                                       .accumulate = accumulate},
                                               offsets);
}

void linear_backward_weight(Context& ctx, std::span<const WeightGradientCall> calls) {
  for (const WeightGradientCall& call : calls) {
    const Tensor dw = call.dw, dy = call.dy, x = call.x;
    FATHOM_CHECK(dy.rows() == x.rows() && dy.cols() == dw.shape[dw.rank - 2] && x.cols() == dw.cols());
    FATHOM_CHECK((dw.rank == 3) == static_cast<bool>(call.offsets) && !is_fp8(call.rounding.precision));
    multiply<Stored::by_rows_of_k, Stored::by_rows_of_k>(ctx, call.rounding.precision,
                                                         Product{.a = dy.f32(),
                                                                 .b = x.f32(),
                                                                 .c = dw.f32(),
                                                                 .lda = stride_of(dy),
                                                                 .ldb = stride_of(x),
                                                                 .ldc = dw.row_stride,
                                                                 .b_step = 0,
                                                                 .c_step = matrix_step(dw),
                                                                 .m = static_cast<int>(dy.cols()),
                                                                 .n = static_cast<int>(x.cols()),
                                                                 .k = static_cast<int>(x.rows()),
                                                                 .row_of = nullptr,
                                                                 .tiles = nullptr,
                                                                 .offsets = nullptr,
                                                                 .k_of_part = 0,
                                                                 .accumulate = true},
                                                         call.offsets);
  }
}

}  // namespace fathom::cuda
