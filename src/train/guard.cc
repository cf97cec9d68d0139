#include "train/guard.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace fathom {

std::string reason_to_skip(const LossGuard& guard, double loss, double mtp_loss, double gradient_norm,
                           double spike_deviations) {
  if (!std::isfinite(loss) || !std::isfinite(mtp_loss)) return "the loss is not finite";
  if (!std::isfinite(gradient_norm)) return "the gradient is not finite";
  constexpr int64_t kSteps = 100;
  if (spike_deviations <= 0 || guard.taken < kSteps) return {};
  const double limit = guard.mean + std::max(spike_deviations * std::sqrt(guard.variance), guard.mean / 5);
  if (loss <= limit) return {};
  return fmt::format("the loss of {:.4f} is a spike: {:.4f} was usual, {:.4f} the limit", loss, guard.mean, limit);
}

void count_taken(LossGuard& guard, double loss) {
  constexpr double kLatest = 0.02;
  const double difference = loss - guard.mean, part = guard.taken == 0 ? 1 : kLatest;
  guard.mean += part * difference;
  if (guard.taken > 0) guard.variance += kLatest * ((1 - kLatest) * difference * difference - guard.variance);
  ++guard.taken;
  guard.skipped = 0;
}

}  // namespace fathom
