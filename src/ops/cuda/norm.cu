#include <math.h>

#include <algorithm>

#include "ops/cuda/kernel.h"
#include "ops/cuda/operators.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxPairs = 128;  // of a rotated head, in a kernel's parameters

struct Norm {
  float* y;
  const float* x;
  const float* w;
  float* inv_rms;  // or null
  int64_t y_stride, x_stride;
  int cols;
  float eps;
};

// A block a token.
__global__ void rms_norm_kernel(Norm n) {
  __shared__ float shared[kWarps];
  wait_for_inputs();
  start_next();
  const float* x = n.x + blockIdx.x * n.x_stride;
  float* y = n.y + blockIdx.x * n.y_stride;
  float sum = 0;
  for (int k = static_cast<int>(threadIdx.x); k < n.cols; k += kThreads) sum = fmaf(x[k], x[k], sum);
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += shared[i];
  const float scale = 1 / sqrtf(sum / static_cast<float>(n.cols) + n.eps);
  for (int k = static_cast<int>(threadIdx.x); k < n.cols; k += kThreads) y[k] = x[k] * scale * n.w[k];
  if (n.inv_rms != nullptr && threadIdx.x == 0) n.inv_rms[blockIdx.x] = scale;
}

struct Rotation {
  float* x;
  const int32_t* positions;
  int64_t x_stride;
  int head_stride, offset, n_heads, half;
  bool interleaved;
  float attention_scaling;
  float inv_freq[kMaxPairs];
};

// A block a token; threads take pairs, of each of some heads.
__global__ void rope_kernel(Rotation r) {
  wait_for_inputs();
  start_next();
  const auto position = static_cast<float>(r.positions[blockIdx.x]);
  const int pair = static_cast<int>(threadIdx.x) % r.half, heads_at_once = kThreads / r.half;
  if (static_cast<int>(threadIdx.x) >= heads_at_once * r.half) return;
  const float angle = position * r.inv_freq[pair];
  const float cosine = cosf(angle) * r.attention_scaling, sine = sinf(angle) * r.attention_scaling;
  const int first = r.interleaved ? 2 * pair : pair, second = r.interleaved ? 2 * pair + 1 : pair + r.half;
  for (int h = static_cast<int>(threadIdx.x) / r.half; h < r.n_heads; h += heads_at_once) {
    float* head = r.x + blockIdx.x * r.x_stride + static_cast<int64_t>(h) * r.head_stride + r.offset;
    const float a = head[first], b = head[second];
    head[first] = a * cosine - b * sine;
    head[second] = b * cosine + a * sine;
  }
}

}  // namespace

void rms_norm(Context& ctx, Tensor y, Tensor x, Tensor w, float eps, Tensor inv_rms) {
  if (x.rows() == 0) return;
  launch(ctx, rms_norm_kernel, dim3(static_cast<unsigned>(x.rows())), dim3(kThreads), 0,
         Norm{y.f32(), x.f32(), w.f32(), inv_rms ? inv_rms.f32() : nullptr, y.row_stride, x.row_stride,
              static_cast<int>(x.cols()), eps});
}

void rope(Context& ctx, const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout) {
  if (x.rows() == 0) return;
  FATHOM_CHECK(rope.dim / 2 <= kMaxPairs, "heads with {} rotated dimensions", rope.dim);
  Rotation r{x.f32(),
             positions.i32(),
             x.row_stride,
             static_cast<int>(layout.head_stride),
             static_cast<int>(layout.offset),
             static_cast<int>(layout.n_heads),
             static_cast<int>(rope.dim / 2),
             rope.interleaved,
             rope.attention_scaling,
             {}};
  std::copy(rope.inv_freq.begin(), rope.inv_freq.end(), r.inv_freq);
  launch(ctx, rope_kernel, dim3(static_cast<unsigned>(x.rows())), dim3(kThreads), 0, r);
}

}  // namespace fathom::cuda
