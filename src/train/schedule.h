// What changes from step to step: learning rate, sequences, weight of the MTP loss.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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

// Sequences of each step: `start` in the first, from there on growing linearly, by `multiple` at a time, to `full` in
// the first step after `ramp` (V3 section 4.2: 3072 to 15360 over the first 469 of 14800 B tokens).
class BatchSizes {
 public:
  BatchSizes(int64_t start, int64_t full, int64_t ramp, int64_t multiple);
  int64_t of(int64_t step) const;      // step counts from 1
  int64_t before(int64_t step) const;  // the sum over all earlier steps

 private:
  std::vector<int64_t> before_;  // of the steps 1 .. ramp + 1
  int64_t full_;
};

}  // namespace fathom
