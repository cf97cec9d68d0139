#include "ops/cpu/optimizer_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

void adamw(const AdamwStep& step, float* __restrict params, const float* __restrict grads, float* __restrict m,
           float* __restrict v, int64_t n) {
  const AdamwStep s = step;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grads[i] * s.gradient_scale;
    const float m_new = m[i] + s.beta1_rest * (g - m[i]);
    const float v_new = s.beta2 * v[i] + s.beta2_rest * (g * g);
    m[i] = m_new;
    v[i] = v_new;
    params[i] = params[i] * s.decay - s.step_size * m_new / (sqrtf(v_new) / s.root_correction2 + s.eps);
  }
}

double sum_of_squares(const float* values, int64_t n) {
  constexpr int kLanes = 16;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double x = values[i + lane];
      lanes[lane] += x * x;
    }
  }
  for (int lane = 0; i < n; ++i, ++lane) {
    const double x = values[i];
    lanes[lane] += x * x;
  }
  double total = 0;
  for (const double lane : lanes) total += lane;
  return total;
}

}  // namespace

const OptimizerKernels optimizer_kernels = {adamw, sum_of_squares};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
