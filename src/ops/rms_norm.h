// Root-mean-square normalization (Zhang & Sennrich 2019), as every norm of the family.
//   y[t, d] = x[t, d] * w[d] / sqrt(mean_d(x[t, d]^2) + eps)
#pragma once

#include "ops/linear.h"

namespace fathom {

// x, y: [tokens, hidden] f32, rows may be strided; w: [hidden] f32. Statistics in f32. y may be x.
// inv_rms (optional, [tokens]) is kept for the backward pass.
void rms_norm(Context& ctx, Tensor y, Tensor x, Tensor w, float eps, Tensor inv_rms = {});

// sum = a + b, y = rms_norm(sum), and y in the forms that `weights` read. sum may be a or b; without b (absent) it is
// a.
LinearInput add_norm_input(Context& ctx, Tensor y, Tensor sum, Tensor a, Tensor b, Tensor w, float eps, Tensor inv_rms,
                           std::initializer_list<Tensor> weights);

// dx += dL/dx (dx = dL/dx when accumulate is false); needs x, w and the saved inv_rms.
void rms_norm_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor inv_rms,
                             bool accumulate = true);
// dw += dL/dw, summed over tokens in an order that depends on the shapes alone.
void rms_norm_backward_weight(Context& ctx, Tensor dw, Tensor dy, Tensor x, Tensor inv_rms);

namespace plain {
void rms_norm(Tensor y, Tensor x, Tensor w, float eps, Tensor inv_rms = {});
void rms_norm_backward_input(Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor inv_rms, bool accumulate = true);
void rms_norm_backward_weight(Tensor dw, Tensor dy, Tensor x, Tensor inv_rms);
}  // namespace plain

}  // namespace fathom
