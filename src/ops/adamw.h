// AdamW (Loshchilov & Hutter 2019) and gradient clipping by the global norm.
#pragma once

#include <span>

#include "ops/context.h"

namespace fathom {

struct AdamwConfig {
  float lr, beta1, beta2, eps, weight_decay;
};

// One step over n flat parameters, torch's formula with decoupled decay:
//   p -= lr * weight_decay * p;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   p -= lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + eps)
// with g = gradient_scale * grad. `step` counts from 1. m, v: [n], both f32 or both bf16 (as V3 keeps them): the step
// is computed in f32 and uses them before they are rounded. Returns whether all of p, m and v are finite behind it.
bool adamw_step(Context& ctx, const AdamwConfig& config, int64_t step, std::span<float> params,
                std::span<const float> grads, Tensor m, Tensor v, float gradient_scale);

// average[i] += (1 - decay) (values[i] - average[i]): an exponential moving average of weights.
void move_average(Context& ctx, std::span<float> average, std::span<const float> values, float decay);

// sum of squares in double, added up in an order that depends on the size alone.
double sum_of_squares(Context& ctx, std::span<const float> values);

namespace plain {
void adamw_step(const AdamwConfig& config, int64_t step, std::span<float> params, std::span<const float> grads,
                std::span<float> m, std::span<float> v, float gradient_scale);
}  // namespace plain

}  // namespace fathom
