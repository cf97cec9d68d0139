#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"

namespace fathom {

Schedule schedule_named(const std::string& name) {
  if (name == "constant") return Schedule::constant;
  if (name == "cosine") return Schedule::cosine;
  if (name == "wsd") return Schedule::wsd;
  throw UsageError("--schedule {}: must be constant, cosine or wsd", printable(name));
}

double learning_rate(const LearningRate& rate, int64_t step) {
  if (step < rate.warmup) return rate.peak * static_cast<double>(step) / static_cast<double>(rate.warmup);
  if (rate.schedule == Schedule::constant) return rate.peak;
  int64_t begin = rate.warmup;  // the last step at the peak
  if (rate.schedule == Schedule::wsd) {
    begin = std::max(begin, rate.steps - static_cast<int64_t>(rate.decay_fraction * static_cast<double>(rate.steps)));
  }
  if (step <= begin || rate.steps <= begin) return rate.peak;
  const double part = std::min(1.0, static_cast<double>(step - begin) / static_cast<double>(rate.steps - begin));
  const double height = rate.schedule == Schedule::cosine ? 0.5 * (1 + std::cos(std::numbers::pi * part)) : 1 - part;
  return rate.min + (rate.peak - rate.min) * height;
}

}  // namespace fathom
