// Which steps of a run are taken: none whose loss or gradient is no number, and none whose loss stands far above those
// before it. A step that is skipped leaves weights, moments and biases as they were.
#pragma once

#include <cstdint>
#include <string>

namespace fathom {

struct LossGuard {
  double mean = 0, variance = 0;  // of the losses of the steps taken, moving
  int64_t taken = 0;
  int64_t skipped = 0;  // in a row, up to now
};

// Why this step must be skipped; empty where it may be taken. spike_deviations: how many standard deviations above the
// mean is a spike (0: none is), told from the 100th step on and never within a fifth above the mean.
std::string reason_to_skip(const LossGuard& guard, double loss, double mtp_loss, double gradient_norm,
                           double spike_deviations);
void count_taken(LossGuard& guard, double loss);

}  // namespace fathom
