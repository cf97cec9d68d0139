// Checkpoints of a run: everything that a resumed run needs to go on with the same bits.
//
//   OUT/checkpoints/step-N/   a model directory (f32) that also holds
//     optimizer.safetensors     the two moments, f32 or bf16, each flat in the layout of Parameters
//     average.safetensors       the moving average of the weights, in the same layout, where there is one; of
//                               reinforcement learning the weights of the reference policy
//     trainer.json              step, tokens seen, losses, settings
//     manifest.json             length and xxh3 of every other file, and in its last line its own
//
// Written as step-N.partial, synced, and renamed when whole, so that a folder called step-N was complete once; the
// manifest finds what broke later. One that is to be removed becomes step-N.removed first, and only when that is on
// disk its files go, so that no half of it is ever taken for a checkpoint.
#pragma once

#include <filesystem>
#include <functional>
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
Moment allocate_moment(int64_t n, Format format);  // zeros

struct TrainedState {
  ModelConfig config;
  Parameters parameters;
  Moment first_moment, second_moment;
  Parameters average;  // of the weights over the steps, or the reference policy (tune/grpo.h); empty without one
  int64_t step = 0;    // steps done
  int64_t tokens = 0;  // targets learned from
  double loss = 0;     // of the last step taken
  LossGuard guard;
  std::optional<double> val_loss;  // the last that was measured
  std::optional<double> lr;        // of the last step; older checkpoints do not tell
};

// Makes `into` a copy of `state` in memory of its own, which is taken again where it has the size.
void copy_state(TrainedState& into, const TrainedState& state);

// Options that change the result, by name: a resumed run must have the same.
using Settings = std::map<std::string, std::string>;
inline constexpr const char* kInstructionSet = "instruction set";  // that one may have another, which is told

std::filesystem::path checkpoint_directory(const std::filesystem::path& out, int64_t step);

// Which checkpoints stay.
struct Keep {
  int64_t newest = 0;  // so many; 0: all
  int64_t every = 0;   // and those whose step is a multiple of this; 0: none
};

// Error when the disk has no room for a checkpoint of `state`.
void check_free_space(const std::filesystem::path& out, const TrainedState& state);

// When it returns the checkpoint survives a power loss. Error, with earlier checkpoints untouched and nothing
// half-written left, when there is no room, writing fails, or a weight is not finite (such a model would not load).
void save_checkpoint(const std::filesystem::path& out, const TrainedState& state, const Tokenizer& tokenizer,
                     const Settings& settings);

// The steps of it, for who writes the files itself (train/sharded_state.h): a directory that is not yet a checkpoint;
// the numbers of `state` in it, without weights and moments; and when everything is there its name and place, or
// nothing of it.
std::filesystem::path partial_checkpoint(const std::filesystem::path& out, int64_t step);  // the directory's name
std::filesystem::path begin_checkpoint(const std::filesystem::path& out, int64_t step);
void write_trainer(const std::filesystem::path& partial, const TrainedState& state, const Settings& settings);
void finish_checkpoint(const std::filesystem::path& out, int64_t step);
void drop_checkpoint(const std::filesystem::path& out, int64_t step) noexcept;
// Error that names the tensor: such a model would not load.
void check_finite(const ModelWeights& weights, const ModelConfig& config, int64_t step);
// And of reading one: the newest that verifies, others named in the log and passed over; its numbers, checked against
// `settings`.
std::filesystem::path newest_whole_checkpoint(const std::filesystem::path& out);
TrainedState read_trainer(const std::filesystem::path& directory, const Settings& settings);

// Where a trained tensor lies among flat parameters, counted from where these begin.
struct TrainedTensor {
  std::string name;
  int64_t offset, size;
};
std::vector<TrainedTensor> trained_tensors(const ModelWeights& weights, const ModelConfig& config);
// And the correction biases, which lie behind them.
std::vector<TrainedTensor> averaged_tensors(const ModelWeights& weights, const ModelConfig& config);

// Pieces of what a checkpoint keeps beside the weights, whatever process wrote them: so many elements from `offset` of
// the tensor `name` on. Error for files that are not such.
enum class Kept { first_moment, second_moment, average };
struct StatePiece {
  std::string name;  // of the tensor
  Kept kept;
  int64_t offset;  // elements
  Tensor values;   // [n], f32 or bf16; of an average f32
};
void for_each_state_piece(const std::filesystem::path& directory, const ModelConfig& config,
                          const std::function<void(const StatePiece&)>& visit);
// How a piece is called in a file of its own: "first_moment/NAME/OFFSET".
std::string state_piece_name(const std::string& tensor, Kept kept, int64_t offset);
inline constexpr const char* kOptimizerShard = "optimizer-";  // files that hold them begin so

// Removes those up to step `saved` that `keep` does not name; later ones were passed over as damaged, and must not push
// it out. What could not be removed is returned as a line, empty where nothing failed.
std::string remove_old_checkpoints(const std::filesystem::path& out, int64_t saved, Keep keep);

// The newest step below `step` of which there is a checkpoint, whole or not; 0 for none.
int64_t checkpoint_before(const std::filesystem::path& out, int64_t step);

// Removes what saves that were cut off left behind, and names it in the log. For who holds the lock of `out`.
void remove_leftovers(const std::filesystem::path& out);

// Error that names the file that is not as save_checkpoint wrote it. Any changed byte and any other length is found.
void verify_checkpoint(const std::filesystem::path& directory);

// The newest checkpoint under `out` that verifies; damaged ones are named in the log and passed over. Error when there
// is none, its settings are not `settings`, or what is whole cannot be loaded.
TrainedState load_newest_checkpoint(const std::filesystem::path& out, const Settings& settings, ThreadPool& pool);

// Whether `out` holds a checkpoint, whole or not.
bool has_checkpoints(const std::filesystem::path& out);

}  // namespace fathom
