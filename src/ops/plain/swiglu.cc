#include "ops/swiglu.h"

#include <cmath>

namespace fathom::plain {

void swiglu(Tensor y, Tensor gate_up) {
  const int64_t inter = y.cols();
  for (int64_t t = 0; t < y.rows(); ++t) {
    for (int64_t i = 0; i < inter; ++i) {
      const double gate = gate_up.f32(t, i), up = gate_up.f32(t, inter + i);
      y.f32(t, i) = static_cast<float>(gate / (1 + std::exp(-gate)) * up);
    }
  }
}

// silu'(z) = sigmoid(z) * (1 + z * (1 - sigmoid(z)))
void swiglu_backward(Tensor d_gate_up, Tensor dy, Tensor gate_up) {
  const int64_t inter = dy.cols();
  for (int64_t t = 0; t < dy.rows(); ++t) {
    for (int64_t i = 0; i < inter; ++i) {
      const double gate = gate_up.f32(t, i), up = gate_up.f32(t, inter + i), d = dy.f32(t, i);
      const double sigmoid = 1 / (1 + std::exp(-gate));
      d_gate_up.f32(t, i) = static_cast<float>(d * up * sigmoid * (1 + gate * (1 - sigmoid)));
      d_gate_up.f32(t, inter + i) = static_cast<float>(d * gate * sigmoid);
    }
  }
}

}  // namespace fathom::plain
