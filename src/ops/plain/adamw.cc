#include "ops/adamw.h"

#include <cmath>

namespace fathom::plain {

void adamw_step(const AdamwConfig& config, int64_t step, std::span<float> params, std::span<const float> grads,
                std::span<float> m, std::span<float> v, float gradient_scale) {
  const double correction1 = 1 - std::pow(static_cast<double>(config.beta1), static_cast<double>(step));
  const double correction2 = 1 - std::pow(static_cast<double>(config.beta2), static_cast<double>(step));
  for (size_t i = 0; i < params.size(); ++i) {
    const double g = static_cast<double>(grads[i]) * gradient_scale;
    m[i] = static_cast<float>(config.beta1 * static_cast<double>(m[i]) + (1.0 - config.beta1) * g);
    v[i] = static_cast<float>(config.beta2 * static_cast<double>(v[i]) + (1.0 - config.beta2) * g * g);
    const double decayed = params[i] * (1.0 - static_cast<double>(config.lr) * config.weight_decay);
    const double denominator = std::sqrt(static_cast<double>(v[i])) / std::sqrt(correction2) + config.eps;
    params[i] = static_cast<float>(decayed - config.lr / correction1 * m[i] / denominator);
  }
}

}  // namespace fathom::plain
