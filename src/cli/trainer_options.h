// The options of the training loop, which `train` has in common with the commands that go on from what it makes.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/command.h"
#include "train/train.h"

namespace CLI {
class Option;
}

namespace fathom::cli {

struct TrainerOptions {
  TrainOptions train;
  std::string schedule = "cosine", balance = "auto", dsa = "auto", precision = "f32", moments = "auto",
              save_format = "f32";
  std::string recompute = "none";
  std::string save_mode = "auto", save_failure = "stop";
  double min_lr = -1;
  int64_t sample_tokens = 200;
  double sample_temperature = 0.8;
  const CLI::Option* decay_fraction = nullptr;
};

// What help says of options that mean a little else in each command.
struct TrainerTexts {
  const char* steps = "Optimizer steps";
  const char* seq_len = "Tokens a sequence";
  const char* batch_size = "Sequences a step";
  const char* micro_batch = "Sequences a forward pass; gradients add up (default: the batch)";
  const char* val_data = "What is not learned from; as --data";
  bool packed = true;  // steps are sequences of one length: --seq-len, --batch-size, --micro-batch, --ema-decay,
                       // --spike-deviations
};

// --out, --resume and --steps to --save-failure, --log and --tensorboard. The defaults are those that `options` has (0
// steps or tokens a sequence: none, as the text says).
// `options` must outlive the parse.
void add_trainer_options(CLI::App& command, TrainerOptions& options, const TrainerTexts& texts = {});
// --sample-every, --prompt (what it is, in `prompt`), --sample-tokens and --temperature.
void add_sample_options(CLI::App& command, TrainerOptions& options, const char* prompt);

// What was parsed, ready for train(): names become what they name. UsageError, of `options.train.command`, for what
// cannot be.
TrainOptions trainer_options(const TrainerOptions& options, const CommonOptions& common);

// The template to tell conversations with: of `file`, or the model's, or the family's where the model has its marks and
// none; and, where the model is to have it from now on, train.chat_template. Empty where there is none.
std::string choose_chat_template(const std::string& file, TrainOptions& train);

// A result: with --json one object, `more` behind what every run has. Throws Interrupted for a run that was.
void report_training(const TrainOptions& options, const TrainResult& result, const CommonOptions& common,
                     const nlohmann::ordered_json& more);

}  // namespace fathom::cli
