// A model small enough to be split over ranks many ways in a test.
#pragma once

#include "model/config.h"

namespace fathom {

// Dense and MoE layers, shared experts, groups; with or without MTP modules.
inline ModelConfig small_config(int64_t layers, int64_t mtp) {
  ModelConfig c;
  c.vocab_size = 50;
  c.hidden_size = 32;
  c.num_hidden_layers = layers;
  c.num_attention_heads = 2;
  c.q_lora_rank = 16;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = 8;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 8;
  c.intermediate_size = 48;
  c.moe_intermediate_size = 16;
  c.n_shared_experts = 1;
  c.first_k_dense_replace = 1;
  c.num_nextn_predict_layers = mtp;
  c.max_position_embeddings = 64;
  c.initializer_range = 0.2;
  c.router.n_routed_experts = 8;
  c.router.num_experts_per_tok = 3;
  c.router.n_group = 4;
  c.router.topk_group = 2;
  check_config(c, "test");
  return c;
}

}  // namespace fathom
