// Writes a model as a GGUF file of the architecture deepseek2, deepseek32, llama or qwen2, tensor by tensor: a model of
// any size passes through a few megabytes.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string_view>

#include "base/thread_pool.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/gguf_write.h"
#include "model/weights.h"

namespace fathom {

// Rows [first, first + n) of a weight, by its Hugging Face name, as f32; of kv_b_proj whole heads.
using ReadRows = std::function<void(const NamedTensor& tensor, int64_t first, int64_t n, float* out)>;

// The type that a matrix is to be stored in, by its name in the GGUF file and its shape, [out, in] or [experts, out,
// in]. Vectors, the router and weights of indexer heads are always f32, and not asked for. Where a row is no whole
// blocks, q8_0 or f32 takes the place of the type.
using ChooseFormat = std::function<Format(std::string_view gguf_name, std::span<const int64_t> shape)>;

// How much the columns of one matrix of a tensor (an expert, a head) matter, see encode_blocks; null: all the same.
using ImportanceOf = std::function<const float*(std::string_view gguf_name, int64_t matrix)>;

// Error for a config that the format cannot express.
std::vector<GgufTensor> gguf_tensors(const ModelConfig& config, const ChooseFormat& choose);

// Experts are stacked, kv_b_proj is stored in its two halves, without MTP's copies of embedding and head; of llama the
// rows of queries and keys are in pairs (MatchedTensor::paired_rows), and Llama 3's scaling is a tensor. `tokenizer`
// may be null; its lists are filled up with unused ids to the model's vocabulary. Error as of gguf_tensors. The
// file appears whole or not at all.
void save_gguf(const std::filesystem::path& path, const ModelConfig& config, const GgufTokenizer* tokenizer,
               const ChooseFormat& choose, const ReadRows& read, ThreadPool& pool, const ImportanceOf& importance = {});

// The same of weights in memory.
ReadRows rows_of(const ModelWeights& weights, const ModelConfig& config);

}  // namespace fathom
