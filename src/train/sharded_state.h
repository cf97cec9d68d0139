// Checkpoints of a run on many ranks, in a file system that all of them see. They look like those of one process, which
// can go on from them as any other layout can:
//
//   OUT/checkpoints/step-N/  a model directory, in which rank R wrote model-R-of-N.safetensors: whole tensors, dealt
//                            out among the ranks that hold them
//     optimizer-R.safetensors  the pieces of the moments, and of averaged weights, that rank R looks after, as
//                              state_piece_name() calls them
//     trainer.json, manifest.json  as in train/saved_state.h, by rank 0
#pragma once

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "train/parallel_step.h"

namespace fathom {

// What a rank writes of a checkpoint.
struct RankFiles {
  int rank, n_ranks;
  std::vector<TensorToWrite> model, beside;  // views of the state: whole tensors, dealt out; pieces
  std::string index{};                       // of all ranks' model files, on rank 0
};
RankFiles files_of_rank(const RankState& state, Format format);  // collective
// Its own files, and on rank 0, when all ranks have written theirs, what makes them a model. They send nothing.
void write_model_files(const std::filesystem::path& directory, const RankFiles& files);
void write_files_beside(const std::filesystem::path& directory, const RankFiles& files);
void commit_rank_files(const std::filesystem::path& directory, const ModelConfig& config, Format format,
                       const RankFiles& files);

// A model directory of all ranks' tensors. Collective; Error on all ranks where one of them fails.
void save_sharded_model(const std::filesystem::path& directory, const RankState& state, const Tokenizer& tokenizer,
                        Format format);

// Fills weights, moments and the average, where there is one, from a checkpoint of any layout. Collective.
void load_sharded_checkpoint(const std::filesystem::path& directory, RankState& state, ThreadPool& pool);
// Weights alone, of a model directory or GGUF file.
void load_sharded_model(const std::filesystem::path& path, RankState& state, ThreadPool& pool);

// An Error that all ranks have thrown, of which one has its reason and tells it.
struct FailedTogether : Error {
  FailedTogether(const std::string& message, bool is_first) : Error(message), tells(is_first) {}
  bool tells;
};
// Throws it on all ranks where `failed` is not empty on one of them.
void fail_together(const RankGroup& all, const std::string& failed);

}  // namespace fathom
