#include <algorithm>

#include "base/arithmetic.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/operators.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int64_t kLeastTokens = 32,
                  kMostParts = 256;  // of the weight's gradient: sums over so many tokens, in so many

struct NormGradient {
  float* dx;
  const float *dy, *x, *w, *inv_rms;
  int64_t dx_stride, dy_stride, x_stride;
  int cols;
  bool accumulate;
};

// A block a token. With r = inv_rms and n columns: dx_d = r (w_d dy_d - x_d r^2 / n sum_j w_j dy_j x_j).
__global__ void __launch_bounds__(kThreads) norm_backward_input_kernel(NormGradient n) {
  __shared__ float shared[kWarps];
  wait_for_inputs();
  start_next();
  const int64_t token = blockIdx.x;
  const float *dy = n.dy + token * n.dy_stride, *x = n.x + token * n.x_stride;
  float* dx = n.dx + token * n.dx_stride;
  float dot = 0;
  for (int d = static_cast<int>(threadIdx.x); d < n.cols; d += kThreads) dot = fmaf(n.w[d] * dy[d], x[d], dot);
  const float r = n.inv_rms[token];
  const float along = r * r * block_sum(dot, shared, kWarps) / static_cast<float>(n.cols);
  for (int d = static_cast<int>(threadIdx.x); d < n.cols; d += kThreads) {
    const float value = r * (n.w[d] * dy[d] - x[d] * along);
    dx[d] = n.accumulate ? dx[d] + value : value;
  }
}

struct WeightGradient {
  float *dw, *parts;  // [cols], [parts, cols]
  const float *dy, *x, *inv_rms;
  int64_t dy_stride, x_stride, tokens, tokens_of_part;
  int cols, n_parts;
};

// A thread a column, blockIdx.y a part of the tokens.
__global__ void __launch_bounds__(kThreads) norm_backward_parts_kernel(WeightGradient g) {
  wait_for_inputs();
  start_next();
  const int d = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (d >= g.cols) return;
  const int64_t begin = blockIdx.y * g.tokens_of_part, end = min(g.tokens, begin + g.tokens_of_part);
  float sum = 0;
  for (int64_t t = begin; t < end; ++t) {
    sum = fmaf(g.dy[t * g.dy_stride + d] * g.x[t * g.x_stride + d], g.inv_rms[t], sum);
  }
  g.parts[int64_t{blockIdx.y} * g.cols + d] = sum;
}

__global__ void __launch_bounds__(kThreads) norm_backward_weight_kernel(WeightGradient g) {
  wait_for_inputs();
  start_next();
  const int d = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (d >= g.cols) return;
  float sum = 0;
  for (int part = 0; part < g.n_parts; ++part) sum += g.parts[int64_t{part} * g.cols + d];
  g.dw[d] += sum;
}

}  // namespace

void rms_norm_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor inv_rms, bool accumulate) {
  if (x.rows() == 0) return;
  launch(ctx, norm_backward_input_kernel, dim3(static_cast<unsigned>(x.rows())), dim3(kThreads), 0,
         NormGradient{dx.f32(), dy.f32(), x.f32(), w.f32(), inv_rms.f32(), dx.row_stride, dy.row_stride, x.row_stride,
                      static_cast<int>(x.cols()), accumulate});
}

void rms_norm_backward_weight(Context& ctx, Tensor dw, Tensor dy, Tensor x, Tensor inv_rms) {
  const int64_t tokens = x.rows(), cols = x.cols();
  if (tokens == 0) return;
  const int64_t of_part = std::max(kLeastTokens, ceil_div(tokens, kMostParts)), n_parts = ceil_div(tokens, of_part);
  const ArenaScope scope(ctx.arena);
  const Tensor parts = new_f32(ctx, {n_parts, cols});
  const WeightGradient g{dw.f32(),
                         parts.f32(),
                         dy.f32(),
                         x.f32(),
                         inv_rms.f32(),
                         dy.row_stride,
                         x.row_stride,
                         tokens,
                         of_part,
                         static_cast<int>(cols),
                         static_cast<int>(n_parts)};
  const auto columns = static_cast<unsigned>(ceil_div(cols, int64_t{kThreads}));
  launch(ctx, norm_backward_parts_kernel, dim3(columns, static_cast<unsigned>(n_parts)), dim3(kThreads), 0, g);
  launch(ctx, norm_backward_weight_kernel, dim3(columns), dim3(kThreads), 0, g);
}

}  // namespace fathom::cuda
