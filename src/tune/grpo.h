// Reinforcement learning with verifiable rewards: a step samples groups of answers to some questions, has them judged,
// and moves the policy towards those that were better than the others of their group (GRPO, V3 section 5.2.2; R1
// section 2; V3.2 section 3.1).
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "train/options.h"
#include "tune/grpo_loss.h"
#include "tune/rewards.h"
#include "tune/rollout.h"

namespace fathom::tune {

struct GrpoOptions {
  // Of the trainer's: --init is the policy that it begins with, data and val_data are questions (tune/questions.h).
  // What says how text is read counts for nothing.
  TrainOptions train;
  QuestionOptions questions;
  int64_t questions_a_step = 32, group_size = 16;  // answers to each
  RolloutOptions rollout;
  RewardOptions rewards;
  PolicyLossOptions loss;
  bool by_deviation = false;                   // of advantages (tune/advantages.h)
  bool by_token = false;                       // a mini-batch's tokens count alike, not its answers
  int64_t mini_batches = 1, inner_epochs = 1;  // updates of a step: their product
  int64_t pass_tokens = 8192;                  // of a pass that trains, at least one answer
  bool keep_routing = true;  // experts that sampling chose, in all updates of the step (V3.2 section 3.1)
  int64_t ref_every = 0;     // the reference becomes the policy every so many steps; 0: it stays that of the beginning
  std::filesystem::path save_samples;  // .jsonl, an answer a line; empty: none
};

// UsageError that names the option.
void check_grpo_options(const GrpoOptions& options);

struct GrpoResult {
  int64_t step = 0, tokens = 0;                 // tokens: of answers that were learned from
  double reward = 0;                            // mean of the last step
  std::optional<double> val_reward, val_exact;  // the last that were measured, by this process
  double seconds = 0;                           // of this process
  bool stopped = false;                         // by stop_requested, after saving a checkpoint
};

// Runs until `steps` are done, or stop_requested() is true before a step's first update: then that step is begun again
// by a --resume. At the end OUT is a model directory with the report beside it. Same options, same bits, for any number
// of threads, with or without interruption; but for what a reward command says and how long code takes.
GrpoResult grpo(const GrpoOptions& options, ThreadPool& pool, const std::function<bool()>& stop_requested);

}  // namespace fathom::tune
