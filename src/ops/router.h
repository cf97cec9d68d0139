// The router of DeepSeekMoE: which experts a token goes to, with which weights (V3 equations 12-16, V2 equations
// 20-22).
#pragma once

#include "ops/context.h"

namespace fathom {

enum class Scoring { sigmoid, softmax };
enum class TopkMethod {
  greedy,                // V2: the k largest scores
  group_limited_greedy,  // V2: in the topk_group groups whose largest score is largest
  noaux_tc,              // V3: by score + bias, in the topk_group groups whose two best biased scores sum highest
};

struct RouterConfig {
  int64_t n_routed_experts, num_experts_per_tok, n_group = 1, topk_group = 1;
  Scoring scoring = Scoring::sigmoid;
  TopkMethod method = TopkMethod::noaux_tc;
  bool norm_topk_prob = true;  // weights / (their sum + 1e-20)
  float routed_scaling_factor = 1;
  bool operator==(const RouterConfig&) const = default;
};

// logits: [tokens, experts] f32; bias: [experts] f32 (noaux_tc; absent means zeros).
// scores: [tokens, experts], sigmoid or softmax of the logits, kept for the backward pass.
// topk_ids: [tokens, k] i32, ascending in a row; topk_weights: [tokens, k], in the order of topk_ids.
// Equal scores: the lower expert id wins.
void route(Context& ctx, const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores, Tensor logits,
           Tensor bias);

// The same where topk_ids are settled: scores and topk_weights of them.
void weigh_chosen(Context& ctx, const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores,
                  Tensor logits);

// d_logits = dL/d(logits) through the gate values (the choice itself passes no gradient), overwritten.
// d_weights: [tokens, k]. d_scores (optional, [tokens, experts]) is added to the gradient of the scores (balance loss).
void route_backward(Context& ctx, const RouterConfig& config, Tensor d_logits, Tensor d_weights, Tensor topk_ids,
                    Tensor scores, Tensor d_scores = {});

// load[e] += tokens routed to expert e. load: [experts] i64.
void count_expert_load(Tensor load, Tensor topk_ids);

// The sequence-wise balance loss (V3 equations 17-20), summed over sequences: for each, alpha * sum_i f_i P_i with
// f_i = E / (k T) * #{t: i in top-k of the unbiased scores}, P_i = mean_t s_i / sum_j s_j. Gradient through P alone.
// Adds dL/d(scores) * gradient_scale to d_scores; returns the loss.
double sequence_balance_loss(Context& ctx, const RouterConfig& config, Tensor d_scores, Tensor scores,
                             Tensor seq_offsets, double alpha, double gradient_scale);

namespace plain {
void route(const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores, Tensor logits, Tensor bias);
void route_backward(const RouterConfig& config, Tensor d_logits, Tensor d_weights, Tensor topk_ids, Tensor scores,
                    Tensor d_scores = {});
double sequence_balance_loss(const RouterConfig& config, Tensor d_scores, Tensor scores, Tensor seq_offsets,
                             double alpha, double gradient_scale);
}  // namespace plain

}  // namespace fathom
