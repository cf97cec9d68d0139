#include "ops/cpu/activation_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

void swiglu(float* y, const float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Vec g = load(gate + i);
    store(y + i, g * sigmoid(g) * load(up + i));
  }
  if (const int64_t rest = n - i; rest > 0) {
    const Vec g = load_part(gate + i, rest);
    store_part(y + i, g * sigmoid(g) * load_part(up + i, rest), rest);
  }
}

struct GateUp {
  Vec gate, up;
};

// silu'(z) = sigmoid(z) * (1 + z * (1 - sigmoid(z)))
GateUp swiglu_slopes(Vec dy, Vec gate, Vec up) {
  const Vec one = splat(1.0f), s = sigmoid(gate), dy_s = dy * s;
  return {dy_s * up * multiply_add(gate, one - s, one), dy_s * gate};
}

void swiglu_backward(float* d_gate, float* d_up, const float* dy, const float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const GateUp d = swiglu_slopes(load(dy + i), load(gate + i), load(up + i));
    store(d_gate + i, d.gate);
    store(d_up + i, d.up);
  }
  if (const int64_t rest = n - i; rest > 0) {
    const GateUp d = swiglu_slopes(load_part(dy + i, rest), load_part(gate + i, rest), load_part(up + i, rest));
    store_part(d_gate + i, d.gate, rest);
    store_part(d_up + i, d.up, rest);
  }
}

void sigmoid_row(float* y, const float* x, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, sigmoid(load(x + i)));
  if (i < n) store_part(y + i, sigmoid(load_part(x + i, n - i)), n - i);
}

void softmax_row(float* y, const float* x, int64_t n) {
  Vec largest = splat(x[0]);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) largest = max(largest, load(x + i));
  float highest = max_of(largest);
  for (; i < n; ++i) highest = highest > x[i] ? highest : x[i];
  const Vec shift = splat(highest);
  Vec total = {};
  for (i = 0; i + kWidth <= n; i += kWidth) {
    const Vec e = exp(load(x + i) - shift);
    store(y + i, e);
    total += e;
  }
  float rest_total = 0;
  if (i < n) {
    store_part(y + i, exp(load_part(x + i, n - i) - shift), n - i);
    for (int64_t j = i; j < n; ++j) rest_total += y[j];
  }
  const float scale = 1.0f / (sum(total) + rest_total);
  for (int64_t j = 0; j < n; ++j) y[j] *= scale;
}

}  // namespace

const ActivationKernels activation_kernels = {swiglu, swiglu_backward, sigmoid_row, softmax_row};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
