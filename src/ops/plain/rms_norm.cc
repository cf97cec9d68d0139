#include "ops/rms_norm.h"

#include <cmath>
#include <limits>

namespace fathom::plain {

void rms_norm(Tensor y, Tensor x, Tensor w, float eps, Tensor inv_rms) {
  for (int64_t t = 0; t < x.rows(); ++t) {
    double sum = 0;
    for (int64_t d = 0; d < x.cols(); ++d) sum += static_cast<double>(x.f32(t, d)) * x.f32(t, d);
    const float root = static_cast<float>(1 / std::sqrt(sum / static_cast<double>(x.cols()) + eps));
    const float inverse = sum <= std::numeric_limits<float>::max() ? root : std::numeric_limits<float>::quiet_NaN();
    for (int64_t d = 0; d < x.cols(); ++d) y.f32(t, d) = x.f32(t, d) * inverse * w.f32()[d];
    if (inv_rms) inv_rms.f32()[t] = inverse;
  }
}

// With r = inv_rms and n columns: dx_d = r * (w_d dy_d - x_d * r^2 / n * sum_j w_j dy_j x_j).
void rms_norm_backward_input(Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor inv_rms, bool accumulate) {
  for (int64_t t = 0; t < x.rows(); ++t) {
    const double r = inv_rms.f32()[t];
    double dot = 0;
    for (int64_t d = 0; d < x.cols(); ++d) dot += static_cast<double>(w.f32()[d]) * dy.f32(t, d) * x.f32(t, d);
    const double along = r * r * dot / static_cast<double>(x.cols());
    for (int64_t d = 0; d < x.cols(); ++d) {
      const auto value = static_cast<float>(r * (static_cast<double>(w.f32()[d]) * dy.f32(t, d) - x.f32(t, d) * along));
      dx.f32(t, d) = accumulate ? dx.f32(t, d) + value : value;
    }
  }
}

void rms_norm_backward_weight(Tensor dw, Tensor dy, Tensor x, Tensor inv_rms) {
  for (int64_t d = 0; d < x.cols(); ++d) {
    double sum = 0;
    for (int64_t t = 0; t < x.rows(); ++t) sum += static_cast<double>(dy.f32(t, d)) * x.f32(t, d) * inv_rms.f32()[t];
    dw.f32()[d] += static_cast<float>(sum);
  }
}

}  // namespace fathom::plain
