// A model as a Hugging Face directory (config.json and safetensors) or a GGUF file: read with every check. Directories
// are written atomically.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/thread_pool.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shards.h"
#include "model/config.h"
#include "model/weights.h"

namespace fathom {

// config.json of a directory (or that file itself), completed by generation_config.json where one stands beside it; or
// what the metadata of a .gguf file says.
// Accepts both spellings (rope_scaling / rope_parameters, torch_dtype / dtype). Other families and newer members are
// refused by name.
ModelConfig read_model_config(const std::filesystem::path& path);

// Error unless `path` can be a model: a directory, or a .gguf file.
void check_model_path(const std::filesystem::path& path);

struct LoadedModel {
  ModelConfig config;
  Parameters parameters;
};

// Weights of any stored type (f32, bf16, f16, fp8 e4m3 with 128x128 scales, GGUF's blocks) as f32. Tensors are read in
// parallel. `path`: a directory or a .gguf file.
// Of the model what `part` names.
LoadedModel load_model(const std::filesystem::path& path, ThreadPool& pool, const WeightPart& part = {});

// What save_model stores: every weight that is present, and behind an MTP layer the copies of embedding and head that
// readers look for there.
std::vector<TensorToWrite> tensors_to_save(const ModelConfig& config, const ModelWeights& weights, Format format);

// Writes config.json, generation_config.json and model.safetensors (sharded above max_shard_bytes, with an index) as
// transformers expects: bf16 or f32, correction biases always f32, MTP's copies of embedding and head included. Files
// appear whole or not at all.
struct SaveOptions {
  Format format = Format::f32;  // f32 or bf16
  int64_t max_shard_bytes = kMaxShardBytes;
};
void save_model(const std::filesystem::path& directory, const ModelConfig& config, const ModelWeights& weights,
                const SaveOptions& options);

// The end of every save: `files`, which hold all weights beside their names, take the place of the old model if there
// is one. config.json goes first and comes last, so that whatever stands in between is no model to any reader.
// `write_others` is called before it comes, for what else belongs to the model.
void commit_model(const std::filesystem::path& directory, const ModelConfig& config, Format stored,
                  std::span<AtomicFile* const> files, const std::vector<std::string>& file_names,
                  const std::string& index = "", const std::function<void()>& write_others = {});

}  // namespace fathom
