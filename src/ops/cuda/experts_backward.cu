#include <math.h>

#include <algorithm>

#include "base/arithmetic.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/operators.h"
#include "ops/cuda/router_scores.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// ---- The router

struct Chosen {
  const int32_t* topk_ids;
  const float* logits;
  float *topk_weights, *scores;
  int64_t ids_stride, weights_stride, scores_stride, logits_stride;
  int experts, k;
  bool softmax, norm_topk_prob;
  float routed_scaling_factor;
};

// A block a token, a thread an expert.
__global__ void weigh_chosen_kernel(Chosen c) {
  __shared__ float all[kMaxExperts], reduced[kMaxExperts / kWarp];
  wait_for_inputs();
  start_next();
  const int64_t token = blockIdx.x;
  const int e = static_cast<int>(threadIdx.x);
  const bool is_expert = e < c.experts;
  const float logit = is_expert ? c.logits[token * c.logits_stride + e] : -INFINITY;
  const float score = score_of(logit, c.softmax, is_expert, reduced, static_cast<int>(blockDim.x) / kWarp);
  if (is_expert) c.scores[token * c.scores_stride + e] = score;
  all[e] = score;
  __syncthreads();
  if (e >= c.k) return;
  const int32_t* ids = c.topk_ids + token * c.ids_stride;
  float sum = 1e-20f;
  for (int j = 0; j < c.k; ++j) sum += all[ids[j]];
  const float gate = c.norm_topk_prob ? all[ids[e]] / sum : all[ids[e]];
  c.topk_weights[token * c.weights_stride + e] = gate * c.routed_scaling_factor;
}

struct RouteGradient {
  float* d_logits;
  const float* d_weights;
  const int32_t* topk_ids;
  const float* scores;
  const float* d_scores;  // or null
  int64_t d_logits_stride, d_weights_stride, ids_stride, scores_stride, d_scores_stride;
  int experts, k;
  bool softmax, norm_topk_prob;
  float routed_scaling_factor;
};

// The same.
__global__ void route_backward_kernel(RouteGradient g) {
  __shared__ float all[kMaxExperts], through_gates[kMaxExperts], reduced[kMaxExperts / kWarp];
  wait_for_inputs();
  start_next();
  const int64_t token = blockIdx.x;
  const int e = static_cast<int>(threadIdx.x);
  const bool is_expert = e < g.experts;
  const float score = is_expert ? g.scores[token * g.scores_stride + e] : 0;
  all[e] = score;
  through_gates[e] = 0;
  __syncthreads();
  if (e < g.k) {
    // Gates s_j / sum: d s_j = (d_j - sum_i d_i s_i / sum) / sum.
    const int32_t* ids = g.topk_ids + token * g.ids_stride;
    const float* d = g.d_weights + token * g.d_weights_stride;
    float sum = 1, mean = 0;
    if (g.norm_topk_prob) {
      double total = 1e-20, dot = 0;
      for (int j = 0; j < g.k; ++j) {
        total += all[ids[j]];
        dot += static_cast<double>(d[j]) * all[ids[j]];
      }
      sum = static_cast<float>(total);
      mean = static_cast<float>(dot / total);
    }
    through_gates[ids[e]] = g.routed_scaling_factor * (d[e] - mean) / sum;
  }
  __syncthreads();
  const float d_score = is_expert && g.d_scores != nullptr ? g.d_scores[token * g.d_scores_stride + e] : 0;
  const float dz = d_score + through_gates[e];
  float of_logit = dz * score * (1 - score);
  if (g.softmax) {
    const float expected = block_sum(dz * score, reduced, static_cast<int>(blockDim.x) / kWarp);
    of_logit = score * (dz - expected);
  }
  if (is_expert) g.d_logits[token * g.d_logits_stride + e] = of_logit;
}

// ---- Dispatch and combine: what is there of a token's choices, or of a slot

struct Choices {
  const int32_t *slot_of, *token_of, *choice_of;
  const int32_t* n_slots;  // those behind are empty
  int64_t slot_stride;
  int k;
};

struct Rows {
  float* out;
  const float *a, *b, *weights;
  int64_t out_stride, a_stride, b_stride, weights_stride;
  int cols;
};

// A block a token: out[t] += sum over its slots of a.
__global__ void __launch_bounds__(kThreads) dispatch_backward_kernel(Choices c, Rows r) {
  wait_for_inputs();
  start_next();
  const int32_t* slots = c.slot_of + blockIdx.x * c.slot_stride;
  float* out = r.out + blockIdx.x * r.out_stride;
  for (int d = static_cast<int>(threadIdx.x); d < r.cols; d += kThreads) {
    float sum = out[d];
    for (int i = 0; i < c.k; ++i) {
      if (slots[i] >= 0) sum += r.a[slots[i] * r.a_stride + d];
    }
    out[d] = sum;
  }
}

// A block a slot: out[slot] = weight * a[token]. Empty slots become zeros, so that they are numbers.
__global__ void __launch_bounds__(kThreads) combine_backward_kernel(Choices c, Rows r) {
  wait_for_inputs();
  start_next();
  const int64_t slot = blockIdx.x;
  const bool there = slot < *c.n_slots;
  const int64_t token = there ? c.token_of[slot] : 0;
  const float weight = there ? r.weights[token * r.weights_stride + c.choice_of[slot]] : 0;
  for (int d = static_cast<int>(threadIdx.x); d < r.cols; d += kThreads) {
    r.out[slot * r.out_stride + d] = there ? weight * r.a[token * r.a_stride + d] : 0;
  }
}

// A warp a choice: out[t, choice] = a[slot] . b[slot] / weight.
__global__ void __launch_bounds__(kThreads) combine_backward_weights_kernel(Choices c, Rows r, int64_t n) {
  wait_for_inputs();
  start_next();
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (i >= n) return;
  const int64_t token = i / c.k, choice = i % c.k;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t slot = c.slot_of[token * c.slot_stride + choice];
  const float weight = r.weights[token * r.weights_stride + choice];
  float dot = 0;
  if (slot >= 0 && weight != 0) {
    for (int d = lane; d < r.cols; d += kWarp) dot = fmaf(r.a[slot * r.a_stride + d], r.b[slot * r.b_stride + d], dot);
    dot = warp_sum(dot) / weight;
  }
  if (lane == 0) r.out[token * r.out_stride + choice] = dot;
}

Choices choices_of(const Dispatch& d) {
  return {d.slot_of.i32(),      d.token_of.i32(),
          d.choice_of.i32(),    d.offsets.i32() + d.offsets.size() - 1,
          d.slot_of.row_stride, static_cast<int>(d.slot_of.cols())};
}

dim3 blocks(int64_t n) { return dim3(static_cast<unsigned>(n)); }

}  // namespace

void weigh_chosen(Context& ctx, const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores,
                  Tensor logits) {
  const int64_t tokens = logits.rows(), experts = config.n_routed_experts;
  if (tokens == 0) return;
  FATHOM_CHECK(experts <= kMaxExperts, "{} experts", experts);
  launch(ctx, weigh_chosen_kernel, blocks(tokens), dim3(whole_warps(experts)), 0,
         Chosen{.topk_ids = topk_ids.i32(),
                .logits = logits.f32(),
                .topk_weights = topk_weights.f32(),
                .scores = scores.f32(),
                .ids_stride = topk_ids.row_stride,
                .weights_stride = topk_weights.row_stride,
                .scores_stride = scores.row_stride,
                .logits_stride = logits.row_stride,
                .experts = static_cast<int>(experts),
                .k = static_cast<int>(config.num_experts_per_tok),
                .softmax = config.scoring == Scoring::softmax,
                .norm_topk_prob = config.norm_topk_prob,
                .routed_scaling_factor = config.routed_scaling_factor});
}

void route_backward(Context& ctx, const RouterConfig& config, Tensor d_logits, Tensor d_weights, Tensor topk_ids,
                    Tensor scores, Tensor d_scores) {
  const int64_t tokens = scores.rows(), experts = config.n_routed_experts;
  if (tokens == 0) return;
  FATHOM_CHECK(experts <= kMaxExperts, "{} experts", experts);
  launch(ctx, route_backward_kernel, blocks(tokens), dim3(whole_warps(experts)), 0,
         RouteGradient{.d_logits = d_logits.f32(),
                       .d_weights = d_weights.f32(),
                       .topk_ids = topk_ids.i32(),
                       .scores = scores.f32(),
                       .d_scores = d_scores ? d_scores.f32() : nullptr,
                       .d_logits_stride = d_logits.row_stride,
                       .d_weights_stride = d_weights.row_stride,
                       .ids_stride = topk_ids.row_stride,
                       .scores_stride = scores.row_stride,
                       .d_scores_stride = d_scores.row_stride,
                       .experts = static_cast<int>(experts),
                       .k = static_cast<int>(config.num_experts_per_tok),
                       .softmax = config.scoring == Scoring::softmax,
                       .norm_topk_prob = config.norm_topk_prob,
                       .routed_scaling_factor = config.routed_scaling_factor});
}

void dispatch_backward(Context& ctx, Tensor dx, Tensor dx_sorted, const Dispatch& d) {
  FATHOM_CHECK(dx.rows() == d.slot_of.rows() && dx_sorted.rows() == d.token_of.size() && dx_sorted.cols() == dx.cols());
  if (dx.rows() == 0) return;
  launch(ctx, dispatch_backward_kernel, blocks(dx.rows()), dim3(kThreads), 0, choices_of(d),
         Rows{dx.f32(), dx_sorted.f32(), nullptr, nullptr, dx.row_stride, dx_sorted.row_stride, 0, 0,
              static_cast<int>(dx.cols())});
}

void combine_backward(Context& ctx, Tensor dy_sorted, Tensor dy, Tensor topk_weights, const Dispatch& d) {
  if (dy_sorted.rows() == 0) return;
  launch(ctx, combine_backward_kernel, blocks(dy_sorted.rows()), dim3(kThreads), 0, choices_of(d),
         Rows{dy_sorted.f32(), dy.f32(), nullptr, topk_weights.f32(), dy_sorted.row_stride, dy.row_stride, 0,
              topk_weights.row_stride, static_cast<int>(dy.cols())});
}

void combine_backward_weights(Context& ctx, Tensor d_weights, Tensor d_inner, Tensor inner, Tensor topk_weights,
                              const Dispatch& d) {
  const int64_t n = d.slot_of.size();
  if (n == 0) return;
  launch(ctx, combine_backward_weights_kernel, blocks(ceil_div(n, int64_t{kWarps})), dim3(kThreads), 0, choices_of(d),
         Rows{d_weights.f32(), d_inner.f32(), inner.f32(), topk_weights.f32(), d_weights.row_stride, d_inner.row_stride,
              inner.row_stride, topk_weights.row_stride, static_cast<int>(inner.cols())},
         n);
}

}  // namespace fathom::cuda
