// The weights of any stored model, row by row as f32 under their Hugging Face names, whatever they lie in: a Hugging
// Face directory, a GGUF file or a directory packed for inference. No more is read than is asked for.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/packed_model.h"

namespace fathom {

struct StoredWeight {
  std::string name;  // "model.layers.3.mlp.experts.7.gate_proj.weight"
  WeightKind kind;
  Tensor shape;             // without data
  const RowSource* source;  // null in a packed model, where rows from first_row on of this weight are it:
  const Tensor* packed;
  int64_t first_row;

  Format format() const;  // that it is stored in; of halves, of the second
};

struct StoredModel {
  std::string where;
  ModelConfig config;
  std::vector<StoredWeight> weights;  // in the order of for_each_tensor

  // What they point into.
  Checkpoint checkpoint;
  std::vector<MatchedTensor> matched;
  std::vector<RowSource> sources;
  PackedModel packed;
};
// Error for what is no model, with every check of those that load it.
std::unique_ptr<StoredModel> open_stored_model(const std::filesystem::path& path);

// Rows are read in multiples of this: the heads of a kv_b_proj that is stored in halves are read whole.
int64_t rows_of_reading(const StoredWeight& weight, const ModelConfig& config);

// Rows [first, first + n), out: [n, cols]. Error, with the place, for a number that is not finite. Any thread may call
// it.
void read_rows(float* out, const StoredModel& model, const StoredWeight& weight, int64_t first, int64_t n);

// How far one weight of a model is from the same of another: sqrt(sum (a - b)^2 / sum a^2).
struct WeightDifference {
  const StoredWeight* weight;  // of the second
  double relative_rms;
};
struct ModelDifference {
  std::vector<WeightDifference> weights;
  double relative_rms;  // of all numbers
};
// Both are read once, piece by piece, on all threads. Error unless they have the same weights. `on_numbers` is told how
// many are done; it may throw to give up.
ModelDifference compare_weights(const StoredModel& a, const StoredModel& b, ThreadPool& pool,
                                const std::function<void(int64_t done)>& on_numbers = {});

}  // namespace fathom
