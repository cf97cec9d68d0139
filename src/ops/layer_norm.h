// Layer normalization (Ba et al. 2016): of the indexer's keys alone, a head's width (V3.2 section 2.1.1).
//   y[t, d] = (x[t, d] - mean_t) / sqrt(variance_t + eps) * w[d] + b[d]
#pragma once

#include "ops/context.h"

namespace fathom {

// x, y: [tokens, n] f32, rows may be strided; w, b: [n]. Statistics in double. y may be x.
void layer_norm(Context& ctx, Tensor y, Tensor x, Tensor w, Tensor b, float eps);

// dx = dL/dx; dw += dL/dw, db += dL/db, summed over tokens in their order. dx may be dy.
void layer_norm_backward(Context& ctx, Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, float eps);

}  // namespace fathom
