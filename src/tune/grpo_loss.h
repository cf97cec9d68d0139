// The policy's loss on what it has answered (GRPO: V3 equation 26, R1 equations 1-3; V3.2 section 3.1, equations 5-9),
// token by token: per token t of answer i of a mini-batch
//   L = -w_it [ M_i min(rho A_i, clip(rho, 1 - clip_low, 1 + clip_high) A_i) - beta KL ],   rho = pi / pi_old
// where w_it is 1 / (answers of the mini-batch * tokens of the answer), or 1 / tokens of the mini-batch.
// The gradient needs no more than dL / dlog pi, which LossOptions::target_weights hands on.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace fathom::tune {

enum class KlEstimate {
  plain,    // pi_ref / pi - log(pi_ref / pi) - 1
  unbiased  // that times rho, through which the gradient flows too (V3.2 equation 7)
};

struct PolicyLossOptions {
  double clip_low = 0.2, clip_high = 0.2;  // epsilon of either side
  double beta = 0;                         // of the KL divergence from the reference; 0: there is none
  KlEstimate kl = KlEstimate::unbiased;
  // M_i = 0 for an answer with A_i < 0 of which the mean of log(pi_old / pi) is above this (V3.2 equation 9); without
  // it M_i is 1.
  std::optional<double> mask_off_policy{};
};

// What a mini-batch comes to. Sums over tokens, but where it says otherwise.
struct PolicyLossSums {
  double loss = 0;                  // with all weights
  double kl = 0;                    // the estimate, not weighted
  int64_t tokens = 0, clipped = 0;  // clipped: of which no gradient of the first term flows, for the clip alone
  int64_t answers = 0, masked = 0;  // masked: M_i = 0
  double log_ratio = 0;             // |log rho|
  double greatest_log_ratio = 0;    // the greatest of these

  PolicyLossSums& operator+=(const PolicyLossSums& part);
};

// One answer: log probabilities of its tokens [tokens] by the policy, by who sampled them, and by the reference (empty
// where beta is 0). token_weight: w_it. weights [tokens] = -dL / dlog pi, overwritten.
void policy_loss(const PolicyLossOptions& options, double advantage, double token_weight, std::span<const float> policy,
                 std::span<const float> sampler, std::span<const float> reference, std::span<float> weights,
                 PolicyLossSums& sums);

}  // namespace fathom::tune
