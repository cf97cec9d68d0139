// Expert dispatch and combine in one process: a stable sort of (token, choice) pairs by expert. No padding, no
// dropping.
#pragma once

#include "ops/linear.h"

namespace fathom {

// Where every (token, choice) pair went. Slots are rows of the dispatched matrix, grouped by expert, tokens ascending.
struct Dispatch {
  Tensor offsets;    // [experts + 1] i32: slots of expert e are offsets[e] .. offsets[e+1]
  Tensor token_of;   // [slots] i32
  Tensor choice_of;  // [slots] i32: which of the token's k choices
  Tensor slot_of;    // [tokens, k] i32: the inverse; -1 for a choice without a slot
  Tensor experts{};  // on a device: [min(slots, experts)] i32, those that have slots, ascending, then -1
};

// topk_ids: [tokens, k] i32; -1: an expert that is not here, which gets no slot; on a device the last slots stay empty
// then, and offsets' last number says how many do not. Memory from ctx.arena.
Dispatch make_dispatch(Context& ctx, Tensor topk_ids, int64_t n_routed_experts);

// x_sorted[slot] = x[token_of[slot]].   x: [tokens, hidden], x_sorted: [slots, hidden]
void dispatch(Context& ctx, Tensor x_sorted, Tensor x, const Dispatch& d);
// The same for all forms of an input that `w` reads; x is copied only if w reads it. Memory from ctx.arena.
LinearInput dispatch(Context& ctx, const LinearInput& x, const Dispatch& d, Tensor w);
// dx[t] += sum over the token's slots of dx_sorted, choices in order.
void dispatch_backward(Context& ctx, Tensor dx, Tensor dx_sorted, const Dispatch& d);

// y[t] += sum_choice weights[t, choice] * y_sorted[slot_of[t, choice]], choices in order.
void combine(Context& ctx, Tensor y, Tensor y_sorted, Tensor topk_weights, const Dispatch& d);
// dy_sorted[slot] = weight * dy[token], overwritten.
void combine_backward(Context& ctx, Tensor dy_sorted, Tensor dy, Tensor topk_weights, const Dispatch& d);
// d_weights[t, choice] = dy[t] . y_sorted[slot], overwritten, without y_sorted: that is W inner[slot], W the expert's
// last matrix, and d_inner = W^T dy_sorted, so that inner . d_inner is the weight times what is asked for. 0 where a
// weight is 0, whose score has no gradient either.   inner, d_inner: [slots, inter]
void combine_backward_weights(Context& ctx, Tensor d_weights, Tensor d_inner, Tensor inner, Tensor topk_weights,
                              const Dispatch& d);

namespace plain {
void dispatch(Tensor x_sorted, Tensor x, const Dispatch& d);
void dispatch_backward(Tensor dx, Tensor dx_sorted, const Dispatch& d);
void combine(Tensor y, Tensor y_sorted, Tensor topk_weights, const Dispatch& d);
void combine_backward(Tensor dy_sorted, Tensor dy, Tensor topk_weights, const Dispatch& d);
void combine_backward_weights(Tensor d_weights, Tensor d_inner, Tensor inner, Tensor topk_weights, const Dispatch& d);
}  // namespace plain

}  // namespace fathom
