// The safetensors files of a Hugging Face directory, and which stored tensor each weight of a model is. Nothing here
// reads the weights themselves, so a checkpoint of any size is checked in the time its headers take.
#pragma once

#include <deque>
#include <filesystem>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "checkpoint/hf_model.h"
#include "checkpoint/safetensors.h"

namespace fathom {

inline constexpr size_t kMaxIndexBytes = size_t{64} << 20;

struct Checkpoint {
  struct Place {
    const SafetensorsFile* file;
    const StoredTensor* tensor;
  };
  std::string where;  // the directory or file, for messages
  std::deque<SafetensorsFile> files;
  std::unordered_map<std::string_view, Place> tensors;

  void add(SafetensorsFile file);  // Error when it holds a tensor that another file has too
  const StoredTensor* find(std::string_view name) const;
};

// model.safetensors of a directory, or the shards that its model.safetensors.index.json names; or the one file that
// `path` is.
Checkpoint open_checkpoint(const std::filesystem::path& path);

// The shards of an index, wherever they are: `open` gives the one of a file name. Error when shard and index disagree.
using OpenShard = std::function<SafetensorsFile(const std::string& file_name)>;
Checkpoint open_shards(const JsonDocument& index, std::string where, const OpenShard& open);

// One weight and where it is stored.
struct MatchedTensor {
  std::string name;
  Tensor shape;                // without data, see weight_shapes
  const StoredTensor* stored;  // of that shape, in a float format
  const StoredTensor* scale;   // weight_scale_inv of FP8 weights, else null
  const SafetensorsFile* file;
};

// Every weight of the model with its stored tensor: Error when one is missing, misshapen or of a type that cannot be
// read, and when a tensor is left over. When the file has no MTP layer at all, config.num_nextn_predict_layers becomes
// 0.
std::vector<MatchedTensor> match_tensors(const Checkpoint& checkpoint, ModelConfig& config);

// The weights of `checkpoint` as a model of `config`, which has passed check_config.
LoadedModel load_model(const Checkpoint& checkpoint, const ModelConfig& config, ThreadPool& pool);

}  // namespace fathom
