// A model of the family as a GGUF file of the architecture deepseek2, with an indexer deepseek32, or of the dense ones
// llama and qwen2: its metadata as a ModelConfig, its tensors under their Hugging Face names, its tokenizer as lists.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf.h"
#include "checkpoint/hf_directory.h"
#include "model/config.h"

namespace fathom {

// What llama.cpp calls it, "deepseek2": before every key of the config.
std::string_view gguf_architecture(const ModelConfig& config);

// Whether a path that may be a model directory or a file names a GGUF file.
bool is_gguf_path(const std::filesystem::path& path);

// The file that has the metadata: `path` itself, or the first of the split that it belongs to.
GgufFile open_gguf_metadata(const std::filesystem::path& path);

// The model that the metadata describe, passed through check_config. Other architectures, and what this engine does not
// do, are refused by name. Llama 3's rope scaling, which has no keys, is what the tensor rope_freqs.weight says: by our
// own keys beside it, or by the numbers that all released models have.
ModelConfig parse_gguf_config(const GgufFile& file);

// The weights of a file and of the others of its split (NAME-00001-of-00003.gguf, any of them).
Checkpoint open_gguf(const std::filesystem::path& path);

// The tensors of a GGUF file as a checkpoint has them: named as in a Hugging Face directory, stacked experts one by
// one. attn_k_b and attn_v_b, which have no twin there, are k_b_proj and v_b_proj, see MatchedTensor. A tensor that is
// none of a model's keeps its name.
WeightFile gguf_weights(GgufFile file);

// The same names from the other side: "blk.3.attn_norm.weight" for "model.layers.3.input_layernorm.weight"; an expert's
// is that of its stack.
std::string gguf_name(std::string_view hf_name);

// Llama 3's scaling as GGUF files have it: by what each frequency is divided. [head_dim / 2]
inline constexpr std::string_view kRopeFactors = "rope_freqs.weight";
std::vector<float> rope_factors(const ModelConfig& config);
inline constexpr std::string_view kLlama3Keys = "fathom.rope_scaling.";  // before the keys of config.json

// What stands under tokenizer.ggml, for text/vocabulary.h. Views into the file.
struct GgufTokenizer {
  std::string_view pretokenizer;         // "deepseek-v3"
  std::vector<std::string_view> tokens;  // [id]
  std::vector<int64_t> types;            // [id]
  std::vector<std::string_view> merges;
  int64_t bos = -1, eos = -1;
  std::optional<bool> add_bos;  // whether texts begin with it, where the file says
  std::string_view chat_template;
};
// Nothing for a file without a tokenizer. Error for a tokenizer that is no byte-level BPE.
std::optional<GgufTokenizer> find_gguf_tokenizer(const GgufFile& file);

}  // namespace fathom
