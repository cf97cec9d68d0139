// Small models and folders for the tests of checkpoints.
#pragma once

#include "base/error.h"
#include "checkpoint/hf_model.h"
#include "temporary_directory.h"

namespace fathom {

using test::TemporaryDirectory;

inline ModelConfig tiny_v3() {
  ModelConfig c;
  c.vocab_size = 33;
  c.hidden_size = 24;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 2;
  c.q_lora_rank = 10;
  c.kv_lora_rank = 12;
  c.qk_nope_head_dim = 7;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 5;
  c.intermediate_size = 17;
  c.moe_intermediate_size = 9;
  c.n_shared_experts = 1;
  c.first_k_dense_replace = 1;
  c.max_position_embeddings = 4096;
  c.router = {
      .n_routed_experts = 4, .num_experts_per_tok = 2, .n_group = 2, .topk_group = 1, .routed_scaling_factor = 2.446f};
  c.rope_scaling = YarnScaling{40, 512, 24, 2, 0.9, 0.6};
  c.bos_token_id = 0;
  c.eos_token_ids = {1, 5};
  return c;
}

inline ModelConfig tiny_mtp(int64_t modules = 1) {
  ModelConfig c = tiny_v3();
  c.num_nextn_predict_layers = modules;
  c.rope_scaling.reset();
  c.rope_interleave = false;
  return c;
}

inline ModelConfig tiny_v2() {
  ModelConfig c = tiny_v3();
  c.model_type = "deepseek_v2";
  c.router.method = TopkMethod::group_limited_greedy;
  c.router.scoring = Scoring::softmax;
  c.router.norm_topk_prob = false;
  c.n_shared_experts = 2;
  c.eos_token_ids = {1};
  return c;
}

inline ModelConfig tiny_greedy_v2() {
  ModelConfig c = tiny_v2();
  c.q_lora_rank = 0;
  c.n_shared_experts = 0;
  c.router.method = TopkMethod::greedy;
  c.router.n_group = c.router.topk_group = 1;
  c.bos_token_id = -1;
  c.eos_token_ids = {};
  return c;
}

inline ModelConfig tiny_dense() {
  ModelConfig c = tiny_v3();
  c.router = {};
  c.first_k_dense_replace = c.moe_intermediate_size = c.n_shared_experts = 0;
  return c;
}

// Of the dense families.
inline ModelConfig tiny_llama() {
  ModelConfig c = tiny_dense();
  c.model_type = "llama";
  c.q_lora_rank = c.kv_lora_rank = c.qk_nope_head_dim = c.qk_rope_head_dim = c.v_head_dim = 0;
  c.num_attention_heads = 6;
  c.num_key_value_heads = 3;
  c.head_dim = 8;
  c.rope_interleave = false;
  c.rope_scaling.reset();
  c.llama3_scaling = Llama3Scaling{.factor = 32, .original_max_position_embeddings = 128};
  return c;
}
inline ModelConfig tiny_qwen2() {
  ModelConfig c = tiny_llama();
  c.model_type = "qwen2";
  c.attention_bias = c.tie_word_embeddings = true;
  c.llama3_scaling.reset();
  c.rope_scaling = YarnScaling{.factor = 4, .original_max_position_embeddings = 512};
  return c;
}

inline ModelConfig tiny_v32() {
  ModelConfig c = tiny_mtp();
  c.model_type = "deepseek_v32";
  c.rope_interleave = true;
  c.indexer = {.n_heads = 3, .head_dim = 6, .topk = 5};
  return c;
}

inline LoadedModel random_model(const ModelConfig& config, uint64_t seed = 1) {
  LoadedModel model{config, allocate_parameters(config)};
  initialize(model.parameters, config, seed);
  float bias = 4.71f;  // initialize() leaves them zero
  for_each_tensor(model.parameters.weights, config, [&](const NamedTensor& t) {
    if (t.trained && !t.name.ends_with(".bias")) return;
    for (int64_t i = 0; i < t.view.size(); ++i) t.view.f32()[i] = bias += 0.137f;
  });
  return model;
}

}  // namespace fathom
