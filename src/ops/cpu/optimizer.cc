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

uint32_t magnitude(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits & 0x7FFFFFFF;
}

template <class Moment>
bool adamw(const AdamwStep& step, float* __restrict params, const float* __restrict grads, Moment* __restrict m,
           Moment* __restrict v, int64_t n) {
  const AdamwStep s = step;
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grads[i] * s.gradient_scale;
    const float m_old = widen(m[i]);
    const float m_new = m_old + s.beta1_rest * (g - m_old);
    const float v_new = s.beta2 * widen(v[i]) + s.beta2_rest * (g * g);
    narrow(m + i, m_new);
    narrow(v + i, v_new);
    const float p = params[i] * s.decay - s.step_size * m_new / (sqrtf(v_new) / s.root_correction2 + s.eps);
    params[i] = p;
    const uint32_t of_moments = magnitude(m_new) > magnitude(v_new) ? magnitude(m_new) : magnitude(v_new);
    const uint32_t of_all = magnitude(p) > of_moments ? magnitude(p) : of_moments;
    largest = of_all > largest ? of_all : largest;
  }
  return largest < 0x7F800000;
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
