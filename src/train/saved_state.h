// Checkpoints of a run: everything that a resumed run needs to go on with the same bits.
//
//   OUT/checkpoints/step-N/   a model directory (f32) that also holds
//     optimizer.safetensors     the two moments, f32 or bf16, each flat in the layout of Parameters
//     trainer.json              step, tokens seen, losses, settings
//     manifest.json             length and xxh3 of every other file
//
// Written as step-N.partial, synced, and renamed when whole, so that a folder called step-N was complete once; the
// manifest finds what broke later.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "checkpoint/hf_model.h"
#include "text/tokenizer.h"
#include "train/guard.h"

namespace fathom {

// What AdamW keeps of every trained parameter, in the layout of Parameters.
struct Moment {
  Buffer memory;
  Tensor values;  // [n_trained], f32 or bf16
};
Moment allocate_moment(const Parameters& parameters, Format format);  // zeros

struct TrainedState {
  ModelConfig config;
  Parameters parameters;
  Moment first_moment, second_moment;
  int64_t step = 0;    // steps done
  int64_t tokens = 0;  // targets learned from
  double loss = 0;     // of the last step taken
  LossGuard guard;
  std::optional<double> val_loss;  // the last that was measured
};

// Options that change the result, by name: a resumed run must have the same.
using Settings = std::map<std::string, std::string>;

std::filesystem::path checkpoint_directory(const std::filesystem::path& out, int64_t step);

// Error, with no folder of that name left, when there is no room. Keeps the newest `keep` checkpoints (0: all).
void save_checkpoint(const std::filesystem::path& out, const TrainedState& state, const Tokenizer& tokenizer,
                     const Settings& settings, int64_t keep);

// The newest checkpoint under `out` whose manifest holds; damaged ones are named in the log and passed over. Nothing
// when there is none. Error when its settings are not `settings`.
std::optional<TrainedState> load_newest_checkpoint(const std::filesystem::path& out, const Settings& settings,
                                                   ThreadPool& pool);

// Whether `out` holds a checkpoint, whole or not.
bool has_checkpoints(const std::filesystem::path& out);

}  // namespace fathom
