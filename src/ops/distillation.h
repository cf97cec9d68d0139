// Distillation of logits (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): how far a student's distribution is from a
// teacher's, of which the k likeliest tokens are known, in blocks of tokens, so that no tokens x vocab matrix of the
// whole batch is ever stored.
//
// Both distributions have k + 1 outcomes: each of the row's tokens, and "another one", in which all that is left of the
// vocabulary is added up. With p = the teacher's, q = softmax(x[t] . w / temperature) so added up:
//   divergence[t] = temperature^2 KL(p || q) = temperature^2 sum_i p_i (log p_i - log q_i)
// For the row's tokens this is what the whole vocabulary would give; within the rest nothing is preferred to anything.
// A teacher of whom the rest is not to count gives probabilities that sum to 1: then nothing is left for "another one".
// temperature^2 keeps the size of the gradient as the temperature changes.
#pragma once

#include "ops/context.h"

namespace fathom {

struct TeacherRows {
  // [tokens, k] i32 and f32: a row's tokens, none of them twice, in any order, and the teacher's log probabilities at
  // the temperature. A row may end early, with kNoTarget. What probabilities sum to above 1 is rounding: they are
  // divided by it.
  Tensor ids, logprobs;
  double temperature = 1;
};

// x, w, targets, loss: as head_cross_entropy has them (ops/cross_entropy.h), whose bits `loss` has. divergences:
// [tokens] f32, overwritten (nats); tokens without a target, or without a teacher's row, have none (0).
void head_distillation(Context& ctx, Tensor loss, Tensor divergences, Tensor x, Tensor w, Tensor targets,
                       const TeacherRows& teacher);

// The same, and in the same sweep the gradient of
//   gradient_scale * sum_t row_scales[t] ((1 - weight) loss[t] + weight divergences[t]),
// into dx and dw, with row_scales, as head_cross_entropy_backward has them. weight: 0 to 1. A token without a teacher's
// row has its loss whole.
void head_distillation_backward(Context& ctx, Tensor loss, Tensor divergences, Tensor dx, Tensor dw, Tensor x, Tensor w,
                                Tensor targets, const TeacherRows& teacher, double weight, float gradient_scale,
                                Tensor row_scales = {});

// What a teacher says of `tokens` (rows of x, rising): ids and logprobs [tokens.size(), k], k at most vocab: the
// likeliest tokens, the likeliest first, of equal ones the lower id, and their log probabilities at temperature 1.
// log_norms [tokens.size(), temperatures.size()]: log sum_v exp(logprob_v / T) over the whole vocabulary, with which
//   logprob_i / T - log_norm
// is the log probability at temperature T.
void head_top_logprobs(Context& ctx, Tensor ids, Tensor logprobs, Tensor log_norms, Tensor x, Tensor w,
                       std::span<const int32_t> tokens, std::span<const double> temperatures);

namespace plain {
void head_distillation(Tensor loss, Tensor divergences, Tensor x, Tensor w, Tensor targets, const TeacherRows& teacher);
void head_distillation_backward(Tensor loss, Tensor divergences, Tensor dx, Tensor dw, Tensor x, Tensor w,
                                Tensor targets, const TeacherRows& teacher, double weight, float gradient_scale,
                                Tensor row_scales = {});
void head_top_logprobs(Tensor ids, Tensor logprobs, Tensor log_norms, Tensor x, Tensor w,
                       std::span<const int32_t> tokens, std::span<const double> temperatures);
}  // namespace plain

}  // namespace fathom
