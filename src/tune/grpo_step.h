// One step of reinforcement learning: answers, rewards, advantages, updates.
#pragma once

#include "train/metrics.h"
#include "train/update.h"
#include "tune/grpo.h"

namespace fathom::tune {

// Everything that a step works on.
struct GrpoRun {
  const GrpoOptions& options;
  const std::function<bool()>& stop_requested;
  Context ctx;
  const Tokenizer& tokenizer;
  std::span<const Question> questions;
  std::span<const Question> val_questions;
  Rewards& rewards;
  TrainedState state;  // its average is the reference, where there is one
  Model model;         // views of state.parameters
  Model reference;     // and of state.average
  Parameters gradients;
  TrainedRuns runs;
  LossOptions loss;
  Balance balance;
  Arena scratch{};                      // of what is made again
  bool broken = false;                  // the last step has left weights or moments that are not finite
  int64_t last_taken = 0;               // step, of this process
  std::optional<uint64_t> state_sum{};  // of what the last step left, where that is checked (--check-memory)
};

struct StepDone {
  StepMetrics metrics;
  double reward = 0;
  std::optional<double> val_reward, val_exact;
  std::string samples;  // lines for --save-samples
};
// Nothing, and nothing changed, when it is told to stop before its first update. Error where memory has lost bits.
std::optional<StepDone> grpo_step(GrpoRun& run, int64_t step);

// Which questions a step asks: all of them once, in an order by the seed, before any comes again.
std::vector<size_t> questions_of_step(uint64_t seed, size_t n_questions, int64_t questions_a_step, int64_t step);

}  // namespace fathom::tune
