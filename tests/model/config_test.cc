#include "model/config.h"

#include <gmock/gmock.h>

#include <functional>

#include "model/tiny_models.h"
#include "model/weights.h"

namespace fathom {
namespace {

TEST(Config, TinyModelsAreFine) {
  for (const auto& config : {tiny_v3(), tiny_v2(), tiny_dense(), tiny_llama(), tiny_qwen2()})
    EXPECT_NO_THROW(check_config(config, "x"));
}

TEST(Config, ImpossibleNumbersAreRefusedByKey) {
  struct Case {
    const char* key;
    std::function<void(ModelConfig&)> spoil;
  };
  const Case cases[] = {
      {"vocab_size", [](auto& c) { c.vocab_size = 0; }},
      {"hidden_size", [](auto& c) { c.hidden_size = -4; }},
      {"num_hidden_layers", [](auto& c) { c.num_hidden_layers = 1 << 30; }},
      {"num_attention_heads", [](auto& c) { c.num_attention_heads = 0; }},
      {"kv_lora_rank", [](auto& c) { c.kv_lora_rank = 0; }},
      {"qk_rope_head_dim", [](auto& c) { c.qk_rope_head_dim = 3; }},
      {"rms_norm_eps", [](auto& c) { c.rms_norm_eps = 0; }},
      {"rope_theta", [](auto& c) { c.rope_theta = -1; }},
      {"rope_scaling.factor", [](auto& c) { c.rope_scaling->factor = 0; }},
      {"rope_scaling.original", [](auto& c) { c.rope_scaling->original_max_position_embeddings = 0; }},
      {"num_experts_per_tok", [](auto& c) { c.router.num_experts_per_tok = 9; }},
      {"num_experts_per_tok", [](auto& c) { c.router.num_experts_per_tok = 5; }},
      {"n_group", [](auto& c) { c.router.n_group = 3; }},
      {"n_group", [](auto& c) { c.router.n_group = 8; }},
      {"topk_group", [](auto& c) { c.router.topk_group = 5; }},
      {"moe_intermediate_size", [](auto& c) { c.moe_intermediate_size = 0; }},
      {"routed_scaling_factor", [](auto& c) { c.router.routed_scaling_factor = -1; }},
      {"num_nextn_predict_layers", [](auto& c) { c.num_nextn_predict_layers = kMaxMtpModules + 1; }},
      {"parameters", [](auto& c) { c.hidden_size = c.intermediate_size = c.vocab_size = 1 << 24; }},
  };
  for (const auto& [key, spoil] : cases) {
    ModelConfig config = tiny_v3();
    spoil(config);
    try {
      check_config(config, "config.json");
      ADD_FAILURE() << key << " was accepted";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::StartsWith("config.json: "));
      EXPECT_THAT(error.what(), testing::HasSubstr(key));
    }
  }
}

TEST(Config, ImpossibleNumbersOfGroupedQueriesAreRefusedByKey) {
  struct Case {
    const char* key;
    std::function<void(ModelConfig&)> spoil;
  };
  const Case cases[] = {
      {"num_key_value_heads is 7", [](auto& c) { c.num_key_value_heads = 7; }},
      {"num_key_value_heads is 4, must divide", [](auto& c) { c.num_key_value_heads = 4; }},
      {"num_key_value_heads is -1", [](auto& c) { c.num_key_value_heads = -1; }},
      {"head_dim is 0", [](auto& c) { c.head_dim = 0; }},
      {"head_dim is 5, must be even", [](auto& c) { c.head_dim = 5; }},
      {"rope_scaling.factor", [](auto& c) { c.llama3_scaling->factor = 0; }},
      {"low_freq_factor", [](auto& c) { c.llama3_scaling->low_freq_factor = 4; }},
      {"rope_scaling.original", [](auto& c) { c.llama3_scaling->original_max_position_embeddings = 0; }},
      {"parameters", [](auto& c) { c.hidden_size = c.intermediate_size = c.vocab_size = 1 << 24; }},
  };
  for (const auto& [key, spoil] : cases) {
    ModelConfig config = tiny_llama();
    spoil(config);
    try {
      check_config(config, "config.json");
      ADD_FAILURE() << key << " was accepted";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::StartsWith("config.json: "));
      EXPECT_THAT(error.what(), testing::HasSubstr(key));
    }
  }
}

// The totals published for the released models (reference: the sum over the files' tensors).
TEST(Config, ParameterCountsOfReleasedModels) {
  ModelConfig v3;
  v3.vocab_size = 129280;
  v3.hidden_size = 7168;
  v3.num_hidden_layers = 61;
  v3.num_attention_heads = 128;
  v3.q_lora_rank = 1536;
  v3.kv_lora_rank = 512;
  v3.qk_nope_head_dim = v3.v_head_dim = 128;
  v3.qk_rope_head_dim = 64;
  v3.intermediate_size = 18432;
  v3.moe_intermediate_size = 2048;
  v3.n_shared_experts = 1;
  v3.first_k_dense_replace = 3;
  v3.router = {.n_routed_experts = 256, .num_experts_per_tok = 8, .n_group = 8, .topk_group = 4};
  EXPECT_EQ(count_parameters(v3).total, 671026419200);
  EXPECT_EQ(count_parameters(v3).active, 36625618432);

  ModelConfig lite = v3;
  lite.vocab_size = 102400;
  lite.hidden_size = 2048;
  lite.num_hidden_layers = 27;
  lite.num_attention_heads = 16;
  lite.q_lora_rank = 0;
  lite.intermediate_size = 10944;
  lite.moe_intermediate_size = 1408;
  lite.n_shared_experts = 2;
  lite.first_k_dense_replace = 1;
  lite.router = {
      .n_routed_experts = 64, .num_experts_per_tok = 6, .scoring = Scoring::softmax, .method = TopkMethod::greedy};
  EXPECT_EQ(count_parameters(lite).total, 15706484224);
  EXPECT_EQ(count_parameters(lite).active, 2451435008);

  ModelConfig llama_8b = tiny_llama();
  llama_8b.vocab_size = 128256;
  llama_8b.hidden_size = 4096;
  llama_8b.num_hidden_layers = 32;
  llama_8b.num_attention_heads = 32;
  llama_8b.num_key_value_heads = 8;
  llama_8b.head_dim = 128;
  llama_8b.intermediate_size = 14336;
  EXPECT_EQ(count_parameters(llama_8b).total, 8030261248);

  ModelConfig qwen_1_5b = tiny_qwen2();
  qwen_1_5b.vocab_size = 151936;
  qwen_1_5b.hidden_size = 1536;
  qwen_1_5b.num_hidden_layers = 28;
  qwen_1_5b.num_attention_heads = 12;
  qwen_1_5b.num_key_value_heads = 2;
  qwen_1_5b.head_dim = 128;
  qwen_1_5b.intermediate_size = 8960;
  EXPECT_EQ(count_parameters(qwen_1_5b).total, 1543714304);  // of Qwen2.5
  EXPECT_EQ(count_parameters(qwen_1_5b).active, 1543714304);
  qwen_1_5b.tie_word_embeddings = false;
  EXPECT_EQ(count_parameters(qwen_1_5b).total, 1777088000);  // of the distilled one
}

TEST(Weights, CountAgreesWithTheWalk) {
  for (auto config : {tiny_v3(), tiny_v2(), tiny_dense(), tiny_llama(), tiny_qwen2()}) {
    config.num_nextn_predict_layers = 0;
    const Parameters p = allocate_parameters(config);
    int64_t n = 0;
    for_each_tensor(p.weights, config, [&](const NamedTensor& t) { n += t.view.size(); });
    EXPECT_EQ(n, count_parameters(config).total);
  }
}

TEST(Weights, TheWalkVisitsEveryFloatOnce) {
  const ModelConfig config = tiny_v3();
  const Parameters p = allocate_parameters(config);
  for_each_tensor(p.weights, config, [&](const NamedTensor& t) {
    for (int64_t r = 0; r < t.view.rows(); ++r) {
      for (int64_t i = 0; i < t.view.cols(); ++i) {
        float& x = t.view.f32_row(r)[i];
        ASSERT_EQ(x, 0) << t.name;
        x = t.trained ? 1 : 2;
      }
    }
  });
  // Only the gaps that align tensors are left, and they are shorter than a cache line each.
  int64_t gap = 0;
  for (const float x : p.all()) {
    gap = x == 0 ? gap + 1 : 0;
    ASSERT_LT(gap, 16);
  }
  for (const float x : p.trained()) ASSERT_NE(x, 2);
}

}  // namespace
}  // namespace fathom
