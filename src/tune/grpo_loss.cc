#include "tune/grpo_loss.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace fathom::tune {

PolicyLossSums& PolicyLossSums::operator+=(const PolicyLossSums& part) {
  loss += part.loss;
  kl += part.kl;
  log_ratio += part.log_ratio;
  tokens += part.tokens;
  clipped += part.clipped;
  answers += part.answers;
  masked += part.masked;
  greatest_log_ratio = std::max(greatest_log_ratio, part.greatest_log_ratio);
  return *this;
}

void policy_loss(const PolicyLossOptions& o, double advantage, double token_weight, std::span<const float> policy,
                 std::span<const float> sampler, std::span<const float> reference, std::span<float> weights,
                 PolicyLossSums& sums) {
  const size_t n = policy.size();
  FATHOM_CHECK(sampler.size() == n && weights.size() == n && (o.beta == 0 || reference.size() == n));
  double drift = 0;
  for (size_t t = 0; t < n; ++t) drift += static_cast<double>(sampler[t]) - policy[t];
  const bool masked =
      o.mask_off_policy && advantage < 0 && n > 0 && drift / static_cast<double>(n) > *o.mask_off_policy;
  for (size_t t = 0; t < n; ++t) {
    const double log_ratio = static_cast<double>(policy[t]) - sampler[t], ratio = std::exp(log_ratio);
    double gain = 0, slope = 0;  // of M_i min(...) - beta KL, and its derivative by log pi
    if (!masked) {
      const double clipped = std::clamp(ratio, 1 - o.clip_low, 1 + o.clip_high) * advantage;
      const bool is_clipped = clipped < ratio * advantage;
      gain = is_clipped ? clipped : ratio * advantage;
      if (!is_clipped) slope = ratio * advantage;
      sums.clipped += is_clipped ? 1 : 0;
    }
    if (o.beta != 0) {
      const double log_reference = static_cast<double>(reference[t]) - policy[t];  // log(pi_ref / pi)
      const double plain = std::exp(log_reference) - log_reference - 1;
      if (o.kl == KlEstimate::unbiased) {
        gain -= o.beta * ratio * plain;
        slope += o.beta * ratio * log_reference;  // of -rho plain: -(rho plain + rho (1 - pi_ref / pi))
        sums.kl += ratio * plain;
      } else {
        gain -= o.beta * plain;
        slope -= o.beta * (1 - std::exp(log_reference));
        sums.kl += plain;
      }
    }
    sums.loss -= token_weight * gain;
    weights[t] = static_cast<float>(token_weight * slope);
    sums.log_ratio += std::abs(log_ratio);
    sums.greatest_log_ratio = std::max(sums.greatest_log_ratio, std::abs(log_ratio));
  }
  sums.tokens += static_cast<int64_t>(n);
  ++sums.answers;
  sums.masked += masked ? 1 : 0;
}

}  // namespace fathom::tune
