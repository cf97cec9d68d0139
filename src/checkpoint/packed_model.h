// Models for inference: weights in the formats in which they are stored, in the order in which the kernels read them. A
// directory that convert_model wrote is mapped and used as it stands; others are packed when they are loaded.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string_view>

#include "base/thread_pool.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/packing.h"

namespace fathom {

struct Imatrix;

struct PackedModel {
  ModelConfig config;
  ModelWeights weights;
  Buffer memory;      // where weights were packed, or what of them is on a device
  Checkpoint mapped;  // or what they are views of
  Buffer experts;     // where routed experts were packed that stay while `memory` is a device's
  // How each weight stands in `mapped`, in the order of for_each_weight without those that are absent.
  std::vector<const StoredTensor*> stored;
};
PackedModel load_packed_model(const std::filesystem::path& path, ThreadPool& pool);
// Error where load_packed_model would need more memory than there is.
void check_fits_in_memory(const std::filesystem::path& path);
// The same of a directory that is packed already, which its `config` says.
PackedModel map_packed_model(const std::filesystem::path& path, const ModelConfig& config);

// Which weight gets which format: rows of one table in packed_model.cc.
struct Recipe {
  const char* name;  // "q4_k_m"
  Format embedding, attention, kv_b, dense, shared, experts, experts_down, head;
};
const Recipe* find_recipe(std::string_view name);  // null for none
std::string recipe_names();                        // "bf16, f16, ..."
Format recipe_format(const Recipe& recipe, WeightKind kind);

// How much of a model is stored in each format.
struct WeightBytes {
  int64_t numbers = 0, bytes = 0;
  bool operator==(const WeightBytes&) const = default;
};
using WeightSizes = std::map<Format, WeightBytes>;
// What convert_model would write, and convert_to_gguf.
WeightSizes packed_sizes(const std::filesystem::path& from, const Recipe& recipe);
WeightSizes gguf_sizes(const std::filesystem::path& from, const Recipe& recipe);

struct ConvertOptions {
  const Imatrix* imatrix = nullptr;    // fitted to the model: how much its columns matter
  std::function<void()> check;         // called now and then, may throw to give up
  std::function<void()> write_others;  // of a directory: see commit_model
};
// Writes `to`, a directory with config.json, generation_config.json and the packed weights, from any model but a packed
// one. Weights go through memory piece by piece, on all threads. The old content of `to` stays until all is written.
void convert_model(const std::filesystem::path& from, const std::filesystem::path& to, const Recipe& recipe,
                   ThreadPool& pool, const ConvertOptions& options = {});
// The same as a GGUF file (checkpoint/gguf_save.h).
void convert_to_gguf(const std::filesystem::path& from, const std::filesystem::path& to, const Recipe& recipe,
                     const GgufTokenizer* tokenizer, ThreadPool& pool, const ConvertOptions& options = {});

}  // namespace fathom
