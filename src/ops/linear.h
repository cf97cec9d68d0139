// Linear layers without bias: y = x W^T, as every projection of the family, and the same grouped over experts.
// f32; rows may be strided. `accumulate` adds to the output instead of overwriting it. Every element of a result is
// summed in an order that depends on the shapes alone: the same bits for any number of threads, and for the first two
// forms the same bits for a row whatever other rows stand beside it.
#pragma once

#include "ops/context.h"

namespace fathom {

// y[t, o] = sum_i x[t, i] w[o, i].   x: [tokens, in], w: [out, in], y: [tokens, out]
void linear(Context& ctx, Tensor y, Tensor x, Tensor w, bool accumulate = false);

// dx[t, i] = sum_o dy[t, o] w[o, i].   dy: [tokens, out], w: [out, in], dx: [tokens, in]
void linear_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor w, bool accumulate = false);

// dw[o, i] += sum_t dy[t, o] x[t, i].   dy: [tokens, out], x: [tokens, in], dw: [out, in]
void linear_backward_weight(Context& ctx, Tensor dw, Tensor dy, Tensor x);

// The same for experts: rows offsets[e] .. offsets[e+1] of x belong to expert e and meet w[e]. No padding; an expert
// without rows costs nothing (its dw gets nothing added). w: [experts, out, in]; offsets: [experts + 1] i32.
void grouped_linear(Context& ctx, Tensor y, Tensor x, Tensor w, Tensor offsets, bool accumulate = false);
void grouped_linear_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor w, Tensor offsets,
                                   bool accumulate = false);
void grouped_linear_backward_weight(Context& ctx, Tensor dw, Tensor dy, Tensor x, Tensor offsets);

namespace plain {
void linear(Tensor y, Tensor x, Tensor w, bool accumulate = false);
void linear_backward_input(Tensor dx, Tensor dy, Tensor w, bool accumulate = false);
void linear_backward_weight(Tensor dw, Tensor dy, Tensor x);
void grouped_linear(Tensor y, Tensor x, Tensor w, Tensor offsets, bool accumulate = false);
void grouped_linear_backward_input(Tensor dx, Tensor dy, Tensor w, Tensor offsets, bool accumulate = false);
void grouped_linear_backward_weight(Tensor dw, Tensor dy, Tensor x, Tensor offsets);
}  // namespace plain

}  // namespace fathom
