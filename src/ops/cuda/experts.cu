#include <math.h>

#include <algorithm>

#include "base/arithmetic.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/operators.h"
#include "ops/cuda/router_scores.h"

namespace fathom::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// ---- The router

struct Route {
  int32_t* topk_ids;
  float* topk_weights;
  float* scores;
  const float* logits;
  const float* bias;  // or null
  int64_t ids_stride, weights_stride, scores_stride, logits_stride;
  int experts, k, n_group, topk_group;
  bool softmax, two_best, norm_topk_prob;
  float routed_scaling_factor;
};

__device__ float nan_as_lowest(float x) { return x == x ? x : -INFINITY; }

// How many of n values come before number i: those that are larger, of equal ones those in front.
__device__ int rank_of(const float* values, int n, int i) {
  const float mine = values[i];
  int rank = 0;
  for (int j = 0; j < n; ++j) rank += values[j] > mine || (values[j] == mine && j < i) ? 1 : 0;
  return rank;
}

// A block a token, a thread an expert.
__global__ void route_kernel(Route r) {
  __shared__ float choice[kMaxExperts], groups[kMaxExperts], reduced[kMaxExperts / kWarp];
  __shared__ int chosen_before[kMaxExperts / kWarp];
  wait_for_inputs();
  start_next();
  const int64_t token = blockIdx.x;
  const int e = static_cast<int>(threadIdx.x), lane = e % kWarp, warp = e / kWarp;
  const int n_warps = static_cast<int>(blockDim.x) / kWarp;
  const bool is_expert = e < r.experts;
  const float logit = is_expert ? r.logits[token * r.logits_stride + e] : -INFINITY;
  const float score = score_of(logit, r.softmax, is_expert, reduced, n_warps);
  if (is_expert) {
    r.scores[token * r.scores_stride + e] = score;
    choice[e] = nan_as_lowest(r.bias != nullptr ? score + r.bias[e] : score);
  }
  __syncthreads();
  if (r.n_group > 1) {
    const int group_size = r.experts / r.n_group;
    if (e < r.n_group) {
      float first = -INFINITY, second = -INFINITY;
      for (int i = 0; i < group_size; ++i) {
        const float x = choice[e * group_size + i];
        second = fmaxf(second, fminf(first, x));
        first = fmaxf(first, x);
      }
      groups[e] = r.two_best && group_size > 1 ? first + second : first;
    }
    __syncthreads();
    // -inf + -inf, and what it is compared with, are as the CPU has them.
    const bool dropped = is_expert && rank_of(groups, r.n_group, e / group_size) >= r.topk_group;
    __syncthreads();
    if (dropped) choice[e] = -INFINITY;
    __syncthreads();
  }
  const bool chosen = is_expert && rank_of(choice, r.experts, e) < r.k;
  const unsigned votes = __ballot_sync(kAllLanes, chosen);
  if (lane == 0) chosen_before[warp] = __popc(votes);
  __syncthreads();
  int place = __popc(votes & ((1u << lane) - 1));
  for (int i = 0; i < warp; ++i) place += chosen_before[i];
  if (chosen) groups[place] = score;  // the chosen ones' scores, ids ascending
  __syncthreads();
  if (!chosen) return;
  float sum = 1e-20f;
  for (int j = 0; j < r.k; ++j) sum += groups[j];
  const float gate = r.norm_topk_prob ? score / sum : score;
  r.topk_ids[token * r.ids_stride + place] = e;
  r.topk_weights[token * r.weights_stride + place] = gate * r.routed_scaling_factor;
}

// ---- Dispatch

struct Sort {
  const int32_t* ids;  // [tokens, k]
  int64_t ids_stride;
  int32_t *offsets, *token_of, *choice_of, *slot_of, *active;
  int tokens, k, experts, n_active;
};

struct Places {
  int32_t* placed;
  const int32_t *ids, *places;
  int64_t placed_stride, ids_stride;
  int k, n;
};

__global__ void place_kernel(Places p) {
  wait_for_inputs();
  start_next();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i < p.n) p.placed[i / p.k * p.placed_stride + i % p.k] = p.places[p.ids[i / p.k * p.ids_stride + i % p.k]];
}

// A warp an expert: its slots begin behind those of all lower experts, and follow the tokens. What is -1 has none.
__global__ void sort_kernel(Sort s) {
  wait_for_inputs();
  start_next();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int expert = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) / kWarp;
  if (expert >= s.experts) return;
  const int slots = s.tokens * s.k;
  const auto id_of = [&](int i) { return s.ids[i / s.k * s.ids_stride + i % s.k]; };
  int lower = 0;
  for (int begin = 0; begin < slots; begin += kWarp) {
    const int i = begin + lane;
    const int id = i < slots ? id_of(i) : -1;
    lower += __popc(__ballot_sync(kAllLanes, id >= 0 && id < expert));
    if (expert == 0 && i < slots && id < 0) s.slot_of[i] = -1;
  }
  if (lane == 0) s.offsets[expert] = lower;
  for (int begin = 0; begin < slots; begin += kWarp) {
    const int i = begin + lane;
    const bool mine = i < slots && id_of(i) == expert;
    const unsigned votes = __ballot_sync(kAllLanes, mine);
    if (mine) {
      const int slot = lower + __popc(votes & ((1u << lane) - 1));
      s.token_of[slot] = i / s.k;
      s.choice_of[slot] = i % s.k;
      s.slot_of[i] = slot;
    }
    lower += __popc(votes);
  }
  if (expert != s.experts - 1) return;
  if (lane == 0) s.offsets[s.experts] = lower;
  for (int slot = lower + lane; slot < slots; slot += kWarp)
    s.token_of[slot] = 0;  // empty ones name a row that there is
}

// One block, a thread an expert: those that have slots.
__global__ void active_kernel(Sort s) {
  __shared__ int before[kMaxExperts / kWarp];
  wait_for_inputs();
  start_next();
  const int e = static_cast<int>(threadIdx.x), lane = e % kWarp, warp = e / kWarp;
  const bool active = e < s.experts && s.offsets[e + 1] > s.offsets[e];
  const unsigned votes = __ballot_sync(kAllLanes, active);
  if (lane == 0) before[warp] = __popc(votes);
  __syncthreads();
  int place = __popc(votes & ((1u << lane) - 1)), total = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / kWarp; ++i) {
    if (i < warp) place += before[i];
    total += before[i];
  }
  if (active) s.active[place] = e;
  for (int i = total + e; i < s.n_active; i += static_cast<int>(blockDim.x)) s.active[i] = -1;
}

struct Gather {
  uint8_t* sorted;
  const uint8_t* x;
  const int32_t* token_of;
  int64_t sorted_bytes, x_bytes;  // from a row to the next
  int n;                          // pieces in a row
};

template <class Piece>
__global__ void dispatch_kernel(Gather g) {
  wait_for_inputs();
  start_next();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= g.n) return;
  const auto* from = reinterpret_cast<const Piece*>(g.x + g.token_of[blockIdx.y] * g.x_bytes);
  reinterpret_cast<Piece*>(g.sorted + blockIdx.y * g.sorted_bytes)[i] = from[i];
}

struct Combine {
  float* y;
  const float* sorted;
  const float* weights;
  const int32_t* slot_of;
  int64_t y_stride, sorted_stride, weights_stride, slot_stride;
  int cols, k;
};

__global__ void combine_kernel(Combine c) {
  wait_for_inputs();
  start_next();
  const int d = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (d >= c.cols) return;
  float* y = c.y + blockIdx.y * c.y_stride + d;
  float sum = *y;
  for (int i = 0; i < c.k; ++i) {
    const int slot = c.slot_of[blockIdx.y * c.slot_stride + i];
    if (slot < 0) continue;
    sum = fmaf(c.weights[blockIdx.y * c.weights_stride + i], c.sorted[slot * c.sorted_stride + d], sum);
  }
  *y = sum;
}

}  // namespace

void route(Context& ctx, const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores, Tensor logits,
           Tensor bias) {
  const int64_t tokens = logits.rows(), experts = config.n_routed_experts;
  if (tokens == 0) return;
  FATHOM_CHECK(experts <= kMaxExperts, "{} experts", experts);
  const bool grouped = config.method != TopkMethod::greedy && config.n_group > 1;
  launch(ctx, route_kernel, dim3(static_cast<unsigned>(tokens)), dim3(whole_warps(experts)), 0,
         Route{.topk_ids = topk_ids.i32(),
               .topk_weights = topk_weights.f32(),
               .scores = scores.f32(),
               .logits = logits.f32(),
               .bias = config.method == TopkMethod::noaux_tc && bias ? bias.f32() : nullptr,
               .ids_stride = topk_ids.row_stride,
               .weights_stride = topk_weights.row_stride,
               .scores_stride = scores.row_stride,
               .logits_stride = logits.row_stride,
               .experts = static_cast<int>(experts),
               .k = static_cast<int>(config.num_experts_per_tok),
               .n_group = grouped ? static_cast<int>(config.n_group) : 1,
               .topk_group = static_cast<int>(config.topk_group),
               .softmax = config.scoring == Scoring::softmax,
               .two_best = config.method == TopkMethod::noaux_tc,
               .norm_topk_prob = config.norm_topk_prob,
               .routed_scaling_factor = config.routed_scaling_factor});
}

void place_experts(Context& ctx, Tensor placed, Tensor topk_ids, Tensor places) {
  const int64_t n = topk_ids.size();
  if (n == 0) return;
  launch(ctx, place_kernel, dim3(static_cast<unsigned>(ceil_div(n, int64_t{kThreads}))), dim3(kThreads), 0,
         Places{placed.i32(), topk_ids.i32(), places.i32(), placed.row_stride, topk_ids.row_stride,
                static_cast<int>(topk_ids.cols()), static_cast<int>(n)});
}

Dispatch make_dispatch(Context& ctx, Tensor topk_ids, int64_t n_routed_experts) {
  const int64_t tokens = topk_ids.rows(), k = topk_ids.cols(), slots = tokens * k;
  const int64_t n_active = std::max<int64_t>(1, std::min(slots, n_routed_experts));
  FATHOM_CHECK(n_routed_experts <= kMaxExperts, "{} experts", n_routed_experts);
  const Dispatch d = {new_i32(ctx, {n_routed_experts + 1}), new_i32(ctx, {slots}), new_i32(ctx, {slots}),
                      new_i32(ctx, {tokens, k}), new_i32(ctx, {n_active})};
  const Sort sort{.ids = topk_ids.i32(),
                  .ids_stride = topk_ids.row_stride,
                  .offsets = d.offsets.i32(),
                  .token_of = d.token_of.i32(),
                  .choice_of = d.choice_of.i32(),
                  .slot_of = d.slot_of.i32(),
                  .active = d.experts.i32(),
                  .tokens = static_cast<int>(tokens),
                  .k = static_cast<int>(k),
                  .experts = static_cast<int>(n_routed_experts),
                  .n_active = static_cast<int>(n_active)};
  launch(ctx, sort_kernel, dim3(static_cast<unsigned>(ceil_div(n_routed_experts, int64_t{kWarps}))), dim3(kThreads), 0,
         sort);
  launch(ctx, active_kernel, dim3(1), dim3(whole_warps(n_routed_experts)), 0, sort);
  return d;
}

void dispatch(Context& ctx, Tensor x_sorted, Tensor x, const Dispatch& d) {
  const int64_t slots = d.token_of.size(), bytes = format_bytes(x.format, x.cols());
  Gather g{static_cast<uint8_t*>(x_sorted.data),        static_cast<const uint8_t*>(x.data),  d.token_of.i32(),
           format_bytes(x.format, x_sorted.row_stride), format_bytes(x.format, x.row_stride), 0};
  const auto whole = [&](int64_t piece) {
    return (reinterpret_cast<uintptr_t>(g.sorted) | reinterpret_cast<uintptr_t>(g.x) |
            static_cast<uintptr_t>(g.sorted_bytes | g.x_bytes | bytes)) %
               static_cast<uintptr_t>(piece) ==
           0;
  };
  const int64_t piece = whole(16) ? 16 : whole(4) ? 4 : 1;
  g.n = static_cast<int>(bytes / piece);
  for (int64_t begin = 0; begin < slots; begin += kMaxGridY) {
    Gather part = g;
    part.sorted += begin * g.sorted_bytes;
    part.token_of += begin;
    const dim3 grid(static_cast<unsigned>(ceil_div(int64_t{g.n}, int64_t{kThreads})),
                    static_cast<unsigned>(std::min(kMaxGridY, slots - begin)));
    launch(ctx,
           piece == 16  ? dispatch_kernel<uint4>
           : piece == 4 ? dispatch_kernel<uint32_t>
                        : dispatch_kernel<uint8_t>,
           grid, dim3(kThreads), 0, part);
  }
}

void combine(Context& ctx, Tensor y, Tensor y_sorted, Tensor topk_weights, const Dispatch& d) {
  const int64_t tokens = y.rows();
  for (int64_t begin = 0; begin < tokens; begin += kMaxGridY) {
    launch(ctx, combine_kernel,
           dim3(static_cast<unsigned>(ceil_div(y.cols(), int64_t{kThreads})),
                static_cast<unsigned>(std::min(kMaxGridY, tokens - begin))),
           dim3(kThreads), 0,
           Combine{y.f32_row(begin), y_sorted.f32(), topk_weights.f32_row(begin),
                   d.slot_of.i32() + begin * d.slot_of.row_stride, y.row_stride, y_sorted.row_stride,
                   topk_weights.row_stride, d.slot_of.row_stride, static_cast<int>(y.cols()),
                   static_cast<int>(d.slot_of.cols())});
  }
}

}  // namespace fathom::cuda
