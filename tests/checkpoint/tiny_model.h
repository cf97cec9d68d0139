// Small models and folders for the tests of checkpoints.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

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

inline ModelConfig tiny_mtp() {
  ModelConfig c = tiny_v3();
  c.num_nextn_predict_layers = 1;
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

inline LoadedModel random_model(const ModelConfig& config, uint64_t seed = 1) {
  LoadedModel model{config, allocate_parameters(config)};
  initialize(model.parameters, config, seed);
  float bias = 4.71f;  // initialize() leaves them zero
  for_each_tensor(model.parameters.weights, config, [&](const NamedTensor& t) {
    if (t.trained) return;
    for (int64_t i = 0; i < t.view.size(); ++i) t.view.f32()[i] = bias += 0.137f;
  });
  return model;
}

inline void expect_equal_configs(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(a.model_type, b.model_type);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.hidden_size, b.hidden_size);
  EXPECT_EQ(a.num_hidden_layers, b.num_hidden_layers);
  EXPECT_EQ(a.num_attention_heads, b.num_attention_heads);
  EXPECT_EQ(a.q_lora_rank, b.q_lora_rank);
  EXPECT_EQ(a.kv_lora_rank, b.kv_lora_rank);
  EXPECT_EQ(a.qk_nope_head_dim, b.qk_nope_head_dim);
  EXPECT_EQ(a.qk_rope_head_dim, b.qk_rope_head_dim);
  EXPECT_EQ(a.v_head_dim, b.v_head_dim);
  EXPECT_EQ(a.intermediate_size, b.intermediate_size);
  EXPECT_EQ(a.moe_intermediate_size, b.moe_intermediate_size);
  EXPECT_EQ(a.n_shared_experts, b.n_shared_experts);
  EXPECT_EQ(a.first_k_dense_replace, b.first_k_dense_replace);
  EXPECT_EQ(a.num_nextn_predict_layers, b.num_nextn_predict_layers);
  EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings);
  EXPECT_EQ(a.router.n_routed_experts, b.router.n_routed_experts);
  EXPECT_EQ(a.router.num_experts_per_tok, b.router.num_experts_per_tok);
  EXPECT_EQ(a.router.n_group, b.router.n_group);
  EXPECT_EQ(a.router.topk_group, b.router.topk_group);
  EXPECT_EQ(a.router.scoring, b.router.scoring);
  EXPECT_EQ(a.router.method, b.router.method);
  EXPECT_EQ(a.router.norm_topk_prob, b.router.norm_topk_prob);
  EXPECT_EQ(a.router.routed_scaling_factor, b.router.routed_scaling_factor);
  EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
  EXPECT_EQ(a.rope_theta, b.rope_theta);
  ASSERT_EQ(a.rope_scaling.has_value(), b.rope_scaling.has_value());
  if (a.rope_scaling) {
    EXPECT_EQ(a.rope_scaling->factor, b.rope_scaling->factor);
    EXPECT_EQ(a.rope_scaling->original_max_position_embeddings, b.rope_scaling->original_max_position_embeddings);
    EXPECT_EQ(a.rope_scaling->beta_fast, b.rope_scaling->beta_fast);
    EXPECT_EQ(a.rope_scaling->beta_slow, b.rope_scaling->beta_slow);
    EXPECT_EQ(a.rope_scaling->mscale, b.rope_scaling->mscale);
    EXPECT_EQ(a.rope_scaling->mscale_all_dim, b.rope_scaling->mscale_all_dim);
  }
  EXPECT_EQ(a.rope_interleave, b.rope_interleave);
  EXPECT_EQ(a.initializer_range, b.initializer_range);
  EXPECT_EQ(a.bos_token_id, b.bos_token_id);
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
  EXPECT_EQ(a.weight_block_rows, b.weight_block_rows);
  EXPECT_EQ(a.weight_block_cols, b.weight_block_cols);
}

}  // namespace fathom
