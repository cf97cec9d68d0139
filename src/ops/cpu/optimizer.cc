#include "ops/cpu/optimizer_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

float widen(float x) { return x; }
float widen(uint16_t code) {
  const uint32_t bits = static_cast<uint32_t>(code) << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
void narrow(float* to, float x) { *to = x; }
void narrow(uint16_t* to, float x) {  // to nearest, ties to even; moments are numbers
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  *to = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

template <class Moment>
void adamw(const AdamwStep& step, float* __restrict params, const float* __restrict grads, Moment* __restrict m,
           Moment* __restrict v, int64_t n) {
  const AdamwStep s = step;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grads[i] * s.gradient_scale;
    const float m_old = widen(m[i]);
    const float m_new = m_old + s.beta1_rest * (g - m_old);
    const float v_new = s.beta2 * widen(v[i]) + s.beta2_rest * (g * g);
    narrow(m + i, m_new);
    narrow(v + i, v_new);
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

const OptimizerKernels optimizer_kernels = {adamw<float>, adamw<uint16_t>, sum_of_squares};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
