// The numbers that make a model of the family: the keys of its config.json that carry meaning, by their own names.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ops/attention.h"
#include "ops/gqa_attention.h"
#include "ops/indexer.h"
#include "ops/rope.h"
#include "ops/router.h"

namespace fathom {

inline constexpr int64_t kMaxMtpModules = 16;

struct ModelConfig {
  std::string model_type = "deepseek_v3";  // deepseek_v2, deepseek_v3 or deepseek_v32; dense: llama or qwen2
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t q_lora_rank = 0;  // 0: queries are projected directly (null in the file)
  int64_t kv_lora_rank = 0;
  // Grouped-query attention of the dense families, which have nothing of the latent kind's; 0: latent attention.
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  bool attention_bias = false;  // of queries, keys and values
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t intermediate_size = 0;      // of the dense layers
  int64_t moe_intermediate_size = 0;  // of one expert
  int64_t n_shared_experts = 0;
  int64_t first_k_dense_replace = 0;     // layers below this are dense
  int64_t num_nextn_predict_layers = 0;  // MTP modules, up to kMaxMtpModules
  int64_t max_position_embeddings = 0;
  RouterConfig router{};  // n_routed_experts 0: every layer is dense
  IndexerDims indexer{};  // index_n_heads 0: dense attention
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<YarnScaling> rope_scaling;
  std::optional<Llama3Scaling> llama3_scaling;
  bool rope_interleave = true;
  bool tie_word_embeddings = false;  // the head is the embedding
  double initializer_range = 0.02;
  int64_t bos_token_id = -1;           // -1: none
  std::vector<int64_t> eos_token_ids;  // from config.json, or generation_config.json where it says more

  // quantization_config of an FP8 checkpoint: rows and columns of a block; 0: not quantized.
  int64_t weight_block_rows = 0, weight_block_cols = 0;
  bool scale_ue8m0 = false;  // scales are powers of two
  bool packed = false;       // weights are stored as the kernels read them (checkpoint/packed_model.h)

  bool is_moe(int64_t layer) const { return router.n_routed_experts > 0 && layer >= first_k_dense_replace; }
  bool is_sparse() const { return indexer.n_heads > 0; }  // DeepSeek Sparse Attention
  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  bool is_mla() const { return num_key_value_heads == 0; }
  int64_t cache_row() const {  // values cached for a token and layer
    return is_mla() ? kv_lora_rank + qk_rope_head_dim : gqa().row();
  }
  bool operator==(const ModelConfig&) const = default;
  MlaDims mla() const { return {num_attention_heads, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, kv_lora_rank}; }
  GqaDims gqa() const { return {num_attention_heads, num_key_value_heads, head_dim}; }
  LatentRowLayout cached_row(Format format) const {
    return is_mla() ? mla().cached_row(format) : gqa().cached_row(format);
  }
};

// Throws Error, naming the keys, for numbers that make no model: a size that is zero or absurd, k > experts, groups
// that do not divide, an odd rope size, ... `where` begins the message.
void check_config(const ModelConfig& config, const std::string& where);

// Parameters of the whole model and those one token meets (shared and chosen experts, head, without the embedding).
// MTP modules are not counted.
struct ParameterCount {
  int64_t total, active;
};
ParameterCount count_parameters(const ModelConfig& config);

// Floating-point operations a token of a training step, as PaLM's appendix B counts them for MFU: 6 for each parameter
// that a token meets, and for attention over itself and what stands before it in its sequence 6 (qk_head_dim +
// v_head_dim, or twice head_dim) a pair and head. What is recomputed does not count. with_mtp: and its MTP modules with
// their passes through the head.
double training_flops_a_token(const ModelConfig& config, int64_t seq_len, bool with_mtp);

}  // namespace fathom
