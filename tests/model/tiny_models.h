// Tiny models of every kind of the family, with random weights, for tests.
#pragma once

#include "model/forward.h"

namespace fathom {

inline ModelConfig tiny_v3() {
  ModelConfig c;
  c.vocab_size = 37;
  c.hidden_size = 20;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 3;
  c.q_lora_rank = 10;
  c.kv_lora_rank = 12;
  c.qk_nope_head_dim = 6;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 5;
  c.intermediate_size = 28;
  c.moe_intermediate_size = 9;
  c.n_shared_experts = 1;
  c.first_k_dense_replace = 1;
  c.num_nextn_predict_layers = 1;
  c.max_position_embeddings = 256;
  c.router = {.n_routed_experts = 8,
              .num_experts_per_tok = 3,
              .n_group = 4,
              .topk_group = 2,
              .scoring = Scoring::sigmoid,
              .method = TopkMethod::noaux_tc,
              .norm_topk_prob = true,
              .routed_scaling_factor = 2.5f};
  c.rope_scaling = YarnScaling{.factor = 4, .original_max_position_embeddings = 64, .mscale = 1, .mscale_all_dim = 1};
  c.initializer_range = 0.3;
  return c;
}

inline ModelConfig tiny_v2() {
  ModelConfig c = tiny_v3();
  c.model_type = "deepseek_v2";
  c.q_lora_rank = 0;
  c.num_nextn_predict_layers = 0;
  c.n_shared_experts = 2;
  c.router.method = TopkMethod::greedy;
  c.router.scoring = Scoring::softmax;
  c.router.n_group = c.router.topk_group = 1;
  c.router.norm_topk_prob = false;
  c.router.routed_scaling_factor = 1;
  c.rope_scaling.reset();
  return c;
}

inline ModelConfig tiny_dense() {
  ModelConfig c = tiny_v2();
  c.router.n_routed_experts = 0;
  c.first_k_dense_replace = c.num_hidden_layers;
  return c;
}

// Grouped-query attention, with heads that are no part of the hidden size.
inline ModelConfig tiny_llama() {
  ModelConfig c;
  c.model_type = "llama";
  c.vocab_size = 37;
  c.hidden_size = 20;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 6;
  c.num_key_value_heads = 2;
  c.head_dim = 6;
  c.intermediate_size = 28;
  c.max_position_embeddings = 256;
  c.router.n_routed_experts = 0;
  c.rope_interleave = false;
  c.llama3_scaling = Llama3Scaling{.factor = 4, .original_max_position_embeddings = 64};
  c.initializer_range = 0.3;
  return c;
}

inline ModelConfig tiny_qwen2() {
  ModelConfig c = tiny_llama();
  c.model_type = "qwen2";
  c.num_key_value_heads = 1;
  c.head_dim = 4;
  c.attention_bias = c.tie_word_embeddings = true;
  c.llama3_scaling.reset();
  return c;
}

// Sparse attention to a tenth of what its contexts hold.
inline ModelConfig tiny_v32() {
  ModelConfig c = tiny_v3();
  c.model_type = "deepseek_v32";
  c.indexer = {.n_heads = 3, .head_dim = 8, .topk = 14};
  return c;
}

// Initialized, with norms and biases that are not bland.
inline Parameters tiny_parameters(const ModelConfig& config, uint64_t seed = 7) {
  Parameters p = allocate_parameters(config);
  initialize(p, config, seed);
  Rng rng(seed, 999);
  for_each_tensor(p.weights, config, [&](const NamedTensor& t) {
    if (t.view.rank != 1) return;
    for (int64_t i = 0; i < t.view.size(); ++i) t.view.f32()[i] += static_cast<float>(0.1 * rng.normal());
  });
  return p;
}

inline std::vector<int32_t> random_ids(int64_t n, int64_t vocab, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  return ids;
}

}  // namespace fathom
