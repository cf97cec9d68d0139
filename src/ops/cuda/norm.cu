#include <math.h>

#include <algorithm>

#include "ops/cuda/kernel.h"
#include "ops/cuda/operators.h"
#include "ops/cuda/quantize.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kRotateThreads = 512;
constexpr int kNormThreads = 512, kNormWarps = kNormThreads / kWarp;
constexpr int kPieces = 4;      // of four floats, in a thread's registers
constexpr int kMaxPairs = 128;  // of a rotated head, in a kernel's parameters

struct Norm {
  float* y;
  const float* x;
  const float* added;  // or null; then `sum` gets x + added, and is what is normed
  float* sum;
  uint8_t* by_32;  // or null
  const float* w;
  float* inv_rms;  // or null
  int64_t y_stride, x_stride, added_stride, sum_stride, by_32_bytes;
  int cols;
  float eps;
};

// A block a token. Rows of whole float4 that the block's registers hold are read once.
template <bool kInRegisters>
__global__ void __launch_bounds__(kNormThreads) rms_norm_kernel(Norm n) {
  __shared__ float shared[kNormWarps];
  const int thread = static_cast<int>(threadIdx.x);
  wait_for_inputs();
  start_next();
  const float* x = n.x + blockIdx.x * n.x_stride;
  float* y = n.y + blockIdx.x * n.y_stride;
  float4 part[kPieces];
  float sum = 0;
  if (kInRegisters) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int k = (i * kNormThreads + thread) * 4;
      part[i] = k < n.cols ? *reinterpret_cast<const float4*>(x + k) : make_float4(0, 0, 0, 0);
      if (n.added != nullptr && k < n.cols) {
        const float4 b = *reinterpret_cast<const float4*>(n.added + blockIdx.x * n.added_stride + k);
        part[i] = make_float4(part[i].x + b.x, part[i].y + b.y, part[i].z + b.z, part[i].w + b.w);
        *reinterpret_cast<float4*>(n.sum + blockIdx.x * n.sum_stride + k) = part[i];
      }
      sum = fmaf(part[i].x, part[i].x, sum);
      sum = fmaf(part[i].y, part[i].y, sum);
      sum = fmaf(part[i].z, part[i].z, sum);
      sum = fmaf(part[i].w, part[i].w, sum);
    }
  } else {
    for (int k = thread; k < n.cols; k += kNormThreads) sum = fmaf(x[k], x[k], sum);
  }
  const float scale = 1 / sqrtf(block_sum(sum, shared, kNormWarps) / static_cast<float>(n.cols) + n.eps);
  if (kInRegisters) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int k = (i * kNormThreads + thread) * 4;
      const bool there = k < n.cols;
      const float4 w = there ? *reinterpret_cast<const float4*>(n.w + k) : make_float4(0, 0, 0, 0);
      const float4 normed = make_float4(part[i].x * scale * w.x, part[i].y * scale * w.y, part[i].z * scale * w.z,
                                        part[i].w * scale * w.w);
      if (there) *reinterpret_cast<float4*>(y + k) = normed;
      if (n.by_32 != nullptr) quantize_four(n.by_32 + blockIdx.x * n.by_32_bytes, k, normed, there);
    }
  } else {
    for (int k = thread; k < n.cols; k += kNormThreads) y[k] = x[k] * scale * n.w[k];
  }
  if (n.inv_rms != nullptr && thread == 0) n.inv_rms[blockIdx.x] = scale;
}

struct Rotation {
  float* x;
  const int32_t* positions;
  int64_t x_stride;
  int head_stride, offset, n_heads, half;
  bool interleaved;
  float attention_scaling;
  float direction;  // 1, or -1 for the opposite angle
  float inv_freq[kMaxPairs];
};

// Threads [0, n_threads) of a block take pairs, of each of some heads.
__device__ __forceinline__ void rotate_token(const Rotation& r, int64_t token, int thread, int n_threads) {
  const auto position = static_cast<float>(r.positions[token]);
  const int pair = thread % r.half, heads_at_once = n_threads / r.half;
  if (thread >= heads_at_once * r.half) return;
  const float angle = position * r.inv_freq[pair];
  const float cosine = cosf(angle) * r.attention_scaling, sine = sinf(angle) * r.attention_scaling * r.direction;
  const int first = r.interleaved ? 2 * pair : pair, second = r.interleaved ? 2 * pair + 1 : pair + r.half;
  for (int h = thread / r.half; h < r.n_heads; h += heads_at_once) {
    float* head = r.x + token * r.x_stride + static_cast<int64_t>(h) * r.head_stride + r.offset;
    const float a = head[first], b = head[second];
    head[first] = a * cosine - b * sine;
    head[second] = b * cosine + a * sine;
  }
}

// A block a token.
__global__ void __launch_bounds__(kThreads) rope_kernel(Rotation r) {
  wait_for_inputs();
  start_next();
  rotate_token(r, blockIdx.x, static_cast<int>(threadIdx.x), kThreads);
}

struct NormAndRotate {
  Rotation q;
  float* kv_a;
  float* latent;
  const float* w;
  float* inv_rms;  // or null
  int64_t kv_a_stride, latent_stride;
  int rank;
  float eps;
};

// A block a token: the first warps norm the latent, the next one rotates the key, the others the query.
__global__ void __launch_bounds__(kRotateThreads) norm_and_rotate_kernel(NormAndRotate n) {
  constexpr int kWarpsOfNorm = 4, kNorm = kWarpsOfNorm * kWarp, kKey = kNorm + kMaxPairs;
  __shared__ float shared[kWarpsOfNorm];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t token = blockIdx.x;
  wait_for_inputs();
  start_next();
  float* kv_a = n.kv_a + token * n.kv_a_stride;
  float sum = 0;
  if (thread < kNorm) {
    for (int k = thread; k < n.rank; k += kNorm) sum = fmaf(kv_a[k], kv_a[k], sum);
    sum = warp_sum(sum);
    if (thread % kWarp == 0) shared[thread / kWarp] = sum;
  } else if (thread < kKey) {
    Rotation key = n.q;
    key.x = n.kv_a;
    key.x_stride = n.kv_a_stride;
    key.n_heads = 1;
    key.offset = n.rank;
    rotate_token(key, token, thread - kNorm, kMaxPairs);
  } else {
    rotate_token(n.q, token, thread - kKey, kRotateThreads - kKey);
  }
  __syncthreads();
  if (thread >= kNorm) return;
  sum = 0;
  for (int i = 0; i < kWarpsOfNorm; ++i) sum += shared[i];
  const float scale = 1 / sqrtf(sum / static_cast<float>(n.rank) + n.eps);
  for (int k = thread; k < n.rank; k += kNorm) n.latent[token * n.latent_stride + k] = kv_a[k] * scale * n.w[k];
  if (n.inv_rms != nullptr && thread == 0) n.inv_rms[token] = scale;
}

Rotation rotation(const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout, float direction = 1) {
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
             direction,
             {}};
  std::copy(rope.inv_freq.begin(), rope.inv_freq.end(), r.inv_freq);
  return r;
}

}  // namespace

LinearInput add_norm_input(Context& ctx, Tensor y, Tensor sum, Tensor a, Tensor b, Tensor w, float eps, Tensor inv_rms,
                           std::span<const Tensor> weights) {
  LinearInput input = y;
  if (y.rows() == 0) return input;
  const auto whole = [](Tensor t) {
    return !t || (reinterpret_cast<uintptr_t>(t.data) | static_cast<uintptr_t>(t.row_stride * 4)) % sizeof(float4) == 0;
  };
  const bool in_registers = y.cols() % 4 == 0 && y.cols() <= kNormThreads * kPieces * 4 && whole(a) && whole(b) &&
                            whole(sum) && whole(y) && reinterpret_cast<uintptr_t>(w.data) % sizeof(float4) == 0;
  if (b && !in_registers) add(ctx, sum, a, b);
  for (const Tensor& weight : weights) {
    if (!weight || !in_registers || form_for(ctx, weight) != &LinearInput::by_32 || input.by_32) continue;
    input.by_32 = new_tensor(ctx, Format::u8, {y.rows(), y.cols() / 32 * kBlock32});
  }
  const Tensor x = b && !in_registers ? sum : a;
  const bool adds = b && in_registers;
  launch(ctx, in_registers ? rms_norm_kernel<true> : rms_norm_kernel<false>, dim3(static_cast<unsigned>(y.rows())),
         dim3(kNormThreads), 0,
         Norm{.y = y.f32(),
              .x = x.f32(),
              .added = adds ? b.f32() : nullptr,
              .sum = adds ? sum.f32() : nullptr,
              .by_32 = input.by_32 ? input.by_32.as<uint8_t>() : nullptr,
              .w = w.f32(),
              .inv_rms = inv_rms ? inv_rms.f32() : nullptr,
              .y_stride = y.row_stride,
              .x_stride = x.row_stride,
              .added_stride = b.row_stride,
              .sum_stride = sum.row_stride,
              .by_32_bytes = y.cols() / 32 * kBlock32,
              .cols = static_cast<int>(y.cols()),
              .eps = eps});
  add_forms(ctx, input, weights);
  return input;
}

void rms_norm(Context& ctx, Tensor y, Tensor x, Tensor w, float eps, Tensor inv_rms) {
  add_norm_input(ctx, y, x, x, {}, w, eps, inv_rms, {});
}

void norm_and_rotate(Context& ctx, const Rope& rope, Tensor q, const RopeLayout& layout, Tensor latent, Tensor kv_a,
                     Tensor w, float eps, Tensor inv_rms, Tensor positions) {
  if (q.rows() == 0) return;
  NormAndRotate call{rotation(rope, q, positions, layout),
                     kv_a.f32(),
                     latent.f32(),
                     w.f32(),
                     inv_rms ? inv_rms.f32() : nullptr,
                     kv_a.row_stride,
                     latent.row_stride,
                     static_cast<int>(latent.cols()),
                     eps};
  launch(ctx, norm_and_rotate_kernel, dim3(static_cast<unsigned>(q.rows())), dim3(kRotateThreads), 0, call);
}

void rope(Context& ctx, const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout) {
  if (x.rows() == 0) return;
  launch(ctx, rope_kernel, dim3(static_cast<unsigned>(x.rows())), dim3(kThreads), 0,
         rotation(rope, x, positions, layout));
}

void rope_backward(Context& ctx, const Rope& rope, Tensor dx, Tensor positions, const RopeLayout& layout) {
  if (dx.rows() == 0) return;
  launch(ctx, rope_kernel, dim3(static_cast<unsigned>(dx.rows())), dim3(kThreads), 0,
         rotation(rope, dx, positions, layout, -1));
}

}  // namespace fathom::cuda
