// The files that hold a model's weights, and which stored tensor each weight is. Nothing here reads the weights
// themselves, so a checkpoint of any size is checked in the time its headers take.
#pragma once

#include <deque>
#include <filesystem>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint/hf_model.h"
#include "checkpoint/safetensors.h"

namespace fathom {

class JsonDocument;

inline constexpr size_t kMaxIndexBytes = size_t{64} << 20;

// One file, whatever its kind: its tensors under their Hugging Face names, in the mapping that they point into.
class WeightFile {
 public:
  WeightFile(SafetensorsFile file);  // NOLINT(google-explicit-constructor): it is one
  WeightFile(std::string where, std::vector<StoredTensor> tensors, MappedFile mapping);

  const std::string& where() const { return where_; }
  std::span<const StoredTensor> tensors() const { return tensors_; }
  const MappedFile& mapping() const { return mapping_; }

 private:
  std::string where_;
  std::vector<StoredTensor> tensors_;
  MappedFile mapping_;
};

struct Checkpoint {
  struct Place {
    const WeightFile* file;
    const StoredTensor* tensor;
  };
  std::string where;  // the directory or file, for messages
  bool is_gguf = false;
  std::deque<WeightFile> files;
  std::unordered_map<std::string_view, Place> tensors;

  void add(WeightFile file);  // Error when it holds a tensor that another file has too
  // Makes an absent tensor another one's twin (a head tied to the embedding). `name` outlives the checkpoint.
  void tie(std::string_view name, std::string_view twin);
  const StoredTensor* find(std::string_view name) const;
};

// model.safetensors of a directory, or the shards that its model.safetensors.index.json names; or the one file that
// `path` is, a GGUF file with the others of its split.
Checkpoint open_checkpoint(const std::filesystem::path& path);

// The shards of an index, wherever they are: `open` gives the one of a file name. Error when shard and index disagree.
using OpenShard = std::function<SafetensorsFile(const std::string& file_name)>;
Checkpoint open_shards(const JsonDocument& index, std::string where, const OpenShard& open);

// One weight and where it is stored.
struct MatchedTensor {
  std::string name;
  Tensor shape;                // without data, see weight_shapes
  const StoredTensor* stored;  // of that shape, in a float or block format; null where k_b and v_b are
  const StoredTensor* scale;   // weight_scale_inv of FP8 weights, else null
  const WeightFile* file;
  // kv_b_proj as GGUF files have it, in two:
  const StoredTensor* k_b = nullptr;  // [heads * kv_lora_rank, nope]: a head's rows of kv_b_proj, transposed
  const StoredTensor* v_b = nullptr;  // [heads * v, kv_lora_rank]
  // head_dim, where the rows of each head are stored in the pairs (x0, x_{d/2}), (x1, x_{d/2+1}), ..: as GGUF files of
  // the architecture llama have queries and keys. 0: as they are.
  int64_t paired_rows = 0;

  int64_t stored_row(int64_t row) const {  // of a row
    if (paired_rows == 0) return row;
    const int64_t half = paired_rows / 2, d = row % paired_rows;
    return row - d + 2 * (d % half) + d / half;
  }
};

// Every weight of the model with its stored tensor: Error when one is missing, misshapen or of a type that cannot be
// read, and when a tensor is left over. When the file has no MTP layer at all, config.num_nextn_predict_layers becomes
// 0.
std::vector<MatchedTensor> match_tensors(const Checkpoint& checkpoint, ModelConfig& config);

// The weights of `checkpoint` as a model of `config`, which has passed check_config.
LoadedModel load_model(const Checkpoint& checkpoint, const ModelConfig& config, ThreadPool& pool,
                       const WeightPart& part = {});

}  // namespace fathom
