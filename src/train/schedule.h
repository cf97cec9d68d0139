// The learning rate of a step.
#pragma once

#include <cstdint>
#include <string>

namespace fathom {

enum class Schedule { constant, cosine, wsd };

// "constant", "cosine" or "wsd"; UsageError otherwise.
Schedule schedule_named(const std::string& name);

struct LearningRate {
  Schedule schedule = Schedule::cosine;
  double peak = 0, min = 0;
  int64_t warmup = 0;           // steps of linear growth from 0: step s has peak * s / warmup
  int64_t steps = 0;            // of the whole run; the last one has `min` (cosine, wsd)
  double decay_fraction = 0.2;  // wsd: the part of the run, at its end, in which the rate falls linearly
};

// step counts from 1.
double learning_rate(const LearningRate& rate, int64_t step);

}  // namespace fathom
