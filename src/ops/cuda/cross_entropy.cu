#include <math.h>

#include "ops/cross_entropy.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/operators.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

struct CrossEntropy {
  float* loss;
  const float* logits;
  const int32_t* targets;
  int64_t logits_stride;
  int vocab;
};

// A block a token.
__global__ void cross_entropy_kernel(CrossEntropy c) {
  __shared__ float shared[kWarps];
  wait_for_inputs();
  start_next();
  const int64_t token = blockIdx.x;
  const int target = c.targets[token];
  if (target < 0 || target >= c.vocab) {
    if (threadIdx.x == 0) c.loss[token] = 0;
    return;
  }
  const float* row = c.logits + token * c.logits_stride;
  float largest = -INFINITY;
  for (int v = threadIdx.x; v < c.vocab; v += kThreads) largest = fmaxf(largest, row[v]);
  largest = block_max(largest, shared, kWarps);
  float sum = 0;
  for (int v = threadIdx.x; v < c.vocab; v += kThreads) sum += expf(row[v] - largest);
  sum = block_sum(sum, shared, kWarps);
  if (threadIdx.x == 0) c.loss[token] = largest + logf(sum) - row[target];
}

struct Gradient {
  CrossEntropy forward;
  float* logits;            // become the gradient
  const float* row_scales;  // or null
  float scale;
};

// A block a token.
__global__ void __launch_bounds__(kThreads) cross_entropy_backward_kernel(Gradient g) {
  __shared__ float shared[kWarps];
  wait_for_inputs();
  start_next();
  const CrossEntropy& c = g.forward;
  const int64_t token = blockIdx.x;
  const int target = c.targets[token];
  float* row = g.logits + token * c.logits_stride;
  if (target < 0 || target >= c.vocab) {
    for (int v = threadIdx.x; v < c.vocab; v += kThreads) row[v] = 0;
    if (threadIdx.x == 0) c.loss[token] = 0;
    return;
  }
  float largest = -INFINITY;
  for (int v = threadIdx.x; v < c.vocab; v += kThreads) largest = fmaxf(largest, row[v]);
  largest = block_max(largest, shared, kWarps);
  float sum = 0;
  for (int v = threadIdx.x; v < c.vocab; v += kThreads) sum += expf(row[v] - largest);
  sum = block_sum(sum, shared, kWarps);
  if (threadIdx.x == 0) c.loss[token] = largest + logf(sum) - row[target];
  __syncthreads();  // the target's logit is read
  const float scale = g.row_scales != nullptr ? g.scale * g.row_scales[token] : g.scale;
  const float of_power = scale / sum;
  for (int v = threadIdx.x; v < c.vocab; v += kThreads) {
    row[v] = of_power * expf(row[v] - largest) - (v == target ? scale : 0);
  }
}

}  // namespace

void cross_entropy_backward(Context& ctx, Tensor loss, Tensor logits, Tensor targets, float scale, Tensor row_scales) {
  const int64_t tokens = logits.rows();
  FATHOM_CHECK(loss.size() == tokens && targets.size() == tokens && loss.contiguous() && targets.contiguous());
  FATHOM_CHECK(!row_scales || (row_scales.size() == tokens && row_scales.contiguous()));
  if (tokens == 0) return;
  const CrossEntropy forward{loss.f32(), nullptr, targets.i32(), logits.row_stride, static_cast<int>(logits.cols())};
  launch(ctx, cross_entropy_backward_kernel, dim3(static_cast<unsigned>(tokens)), dim3(kThreads), 0,
         Gradient{forward, logits.f32(), row_scales ? row_scales.f32() : nullptr, scale});
}

void cross_entropy(Context& ctx, Tensor loss, Tensor logits, Tensor targets) {
  const int64_t tokens = logits.rows();
  FATHOM_CHECK(loss.size() == tokens && targets.size() == tokens && loss.contiguous() && targets.contiguous());
  if (tokens == 0) return;
  launch(ctx, cross_entropy_kernel, dim3(static_cast<unsigned>(tokens)), dim3(kThreads), 0,
         CrossEntropy{loss.f32(), logits.f32(), targets.i32(), logits.row_stride, static_cast<int>(logits.cols())});
}

}  // namespace fathom::cuda
