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

BatchSizes::BatchSizes(int64_t start, int64_t full, int64_t ramp, int64_t multiple) : before_{0}, full_(full) {
  for (int64_t i = 0; i < ramp; ++i) {
    const double grown = static_cast<double>(full - start) * static_cast<double>(i) / static_cast<double>(ramp);
    before_.push_back(before_.back() + start + static_cast<int64_t>(grown) / multiple * multiple);
  }
}

int64_t BatchSizes::of(int64_t step) const { return before(step + 1) - before(step); }

int64_t BatchSizes::before(int64_t step) const {
  const auto last = static_cast<int64_t>(before_.size());
  if (step <= last) return before_[static_cast<size_t>(step - 1)];
  return before_.back() + (step - last) * full_;
}

}  // namespace fathom
