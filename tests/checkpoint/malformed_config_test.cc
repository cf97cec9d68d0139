// Hostile and mistaken config.json and index files: each case must be refused with a line that names what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/hf_directory.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tiny_model.h"
#include "refusal.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

std::string config_refusal(const std::string& text) {
  return refusal([&] { (void)parse_config(JsonDocument::parse(text, "config.json")); });
}

struct ConfigCase {
  const char* pointer;  // "/rope_scaling/type"
  const char* value;
  const char* message;
};

// Over the config of tiny_v3().
const ConfigCase kV3Cases[] = {
    {"/model_type", "\"deepseek_v32\"", "index_n_heads is missing"},
    {"/model_type", "\"deepseek_v4\"",
     "deepseek_v4 is not supported; supported are deepseek_v2, deepseek_v3, deepseek_v32, llama and qwen2"},
    {"/model_type", "\"mistral\"", "mistral is not supported"},
    {"/model_type", "\"a\\nb\"", "a\\x0ab is not supported"},
    {"/model_type", "3", "model_type is not a string"},
    {"/model_type", "null", "model_type is not a string"},
    {"/hidden_act", "\"gelu\"", "hidden_act is \"gelu\"; only \"silu\""},
    {"/hidden_act", "1", "hidden_act is not a string"},
    {"/attention_bias", "true", "attention_bias is true; only false"},
    {"/attention_bias", "\"no\"", "attention_bias is not true or false"},
    {"/mlp_bias", "true", "mlp_bias is true"},
    {"/tie_word_embeddings", "true", "tie_word_embeddings is true; only false"},
    {"/moe_layer_freq", "2", "moe_layer_freq is 2; only 1"},
    {"/moe_layer_freq", "[0, 1]", "moe_layer_freq is not a whole number"},
    {"/num_key_value_heads", "1", "num_key_value_heads is 1, must be num_attention_heads (2)"},
    {"/q_lora_rank", "0", "q_lora_rank is 0; write null"},
    {"/q_lora_rank", "-1", "q_lora_rank is -1"},
    {"/topk_method", "\"greedy\"", "topk_method is \"greedy\"; only \"noaux_tc\""},
    {"/scoring_func", "\"softmax\"", "scoring_func is \"softmax\"; only \"sigmoid\""},
    {"/norm_topk_prob", "1", "norm_topk_prob is not true or false"},
    {"/routed_scaling_factor", "0", "routed_scaling_factor"},
    {"/routed_scaling_factor", "-1", "routed_scaling_factor"},
    {"/routed_scaling_factor", "1e300", "routed_scaling_factor"},
    {"/routed_scaling_factor", "\"2\"", "routed_scaling_factor is not a number"},
    {"/num_nextn_predict_layers", "17", "num_nextn_predict_layers is 17"},
    {"/num_nextn_predict_layers", "-1", "num_nextn_predict_layers is -1"},
    {"/num_experts_per_tok", "0", "num_experts_per_tok is 0"},
    {"/num_experts_per_tok", "5", "num_experts_per_tok is 5"},
    {"/num_experts_per_tok", "3", "num_experts_per_tok is 3"},
    {"/n_group", "3", "n_group is 3"},
    {"/n_group", "0", "n_group is 0"},
    {"/n_group", "4", "n_group is 4"},
    {"/topk_group", "0", "topk_group is 0"},
    {"/topk_group", "3", "topk_group is 3"},
    {"/n_routed_experts", "-4", "n_routed_experts is -4"},
    {"/n_routed_experts", "1000000", "n_routed_experts is 1000000"},
    {"/n_shared_experts", "-1", "n_shared_experts is -1"},
    {"/n_shared_experts", "2000", "n_shared_experts is 2000"},
    {"/first_k_dense_replace", "-1", "first_k_dense_replace is -1"},
    {"/moe_intermediate_size", "0", "moe_intermediate_size is 0"},
    {"/qk_rope_head_dim", "3", "qk_rope_head_dim is 3, must be even"},
    {"/qk_rope_head_dim", "0", "qk_rope_head_dim is 0"},
    {"/rms_norm_eps", "0", "rms_norm_eps is 0"},
    {"/rms_norm_eps", "-1e-6", "rms_norm_eps"},
    {"/rms_norm_eps", "\"1e-6\"", "rms_norm_eps is not a number"},
    {"/rope_theta", "1", "rope_theta is 1"},
    {"/rope_theta", "1e300", "rope_theta"},
    {"/rope_theta", "true", "rope_theta is not a number"},
    {"/rope_scaling", "[]", "rope_scaling is not a JSON object"},
    {"/rope_scaling", "{}", "rope_scaling.type is missing"},
    {"/rope_scaling/type", "\"linear\"", "rope_scaling.type is \"linear\"; only \"yarn\""},
    {"/rope_scaling/type", "1", "rope_scaling.type is not a string"},
    {"/rope_scaling/rope_type", "\"default\"", "rope_scaling.rope_type and rope_scaling.type differ"},
    {"/rope_scaling/factor", "0.5", "rope_scaling.factor is 0.5"},
    {"/rope_scaling/factor", "\"40\"", "rope_scaling.factor is not a number"},
    {"/rope_scaling/factor", "null", "rope_scaling.factor is not a number"},
    {"/rope_scaling/original_max_position_embeddings", "0", "rope_scaling.original_max_position_embeddings is 0"},
    {"/rope_scaling/original_max_position_embeddings", "1.5", "original_max_position_embeddings is not a whole number"},
    {"/rope_scaling/beta_fast", "-1", "rope_scaling.beta_fast"},
    {"/rope_scaling/beta_slow", "0", "rope_scaling.beta_fast and beta_slow"},
    {"/rope_scaling/mscale", "-1", "rope_scaling.mscale is -1"},
    {"/rope_scaling/mscale_all_dim", "1e9", "rope_scaling.mscale"},
    {"/rope_scaling/attention_factor", "1.5", "rope_scaling.attention_factor is not supported"},
    {"/rope_scaling/truncate", "false", "rope_scaling.truncate is false"},
    {"/rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 10000}",
     "both rope_scaling and rope_parameters"},
    {"/rope_interleave", "0", "rope_interleave is not true or false"},
    {"/quantization_config", "1", "quantization_config is not a JSON object"},
    {"/quantization_config", "{}", "quantization_config.quant_method is missing"},
    {"/quantization_config", "{\"quant_method\": \"gptq\"}", "quant_method gptq is not supported; only fp8"},
    {"/quantization_config", "{\"quant_method\": \"awq\"}", "quant_method awq is not supported"},
    {"/quantization_config", "{\"quant_method\": \"compressed-tensors\"}", "compressed-tensors is not supported"},
    {"/quantization_config", "{\"quant_method\": \"fp8\"}", "quantization_config.weight_block_size is missing"},
    {"/quantization_config", "{\"quant_method\": \"fp8\", \"fmt\": \"e5m2\"}", "quantization_config.fmt is \"e5m2\""},
    {"/quantization_config", "{\"quant_method\": \"fp8\", \"activation_scheme\": \"static\"}",
     "activation_scheme is \"static\""},
    {"/quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": 128}",
     "weight_block_size must be two"},
    {"/quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": [128]}",
     "weight_block_size must be two"},
    {"/quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": [0, 128]}",
     "weight_block_size must be two"},
    {"/quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 1e3]}",
     "weight_block_size is not a whole"},
    {"/quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128], \"scale_fmt\": \"x\"}",
     "scale_fmt is \"x\""},
    {"/bos_token_id", "33", "bos_token_id 33 is no id of the vocabulary (vocab_size 33)"},
    {"/bos_token_id", "-1", "bos_token_id -1 is no id"},
    {"/bos_token_id", "\"0\"", "bos_token_id is not a whole number"},
    {"/eos_token_id", "99", "eos_token_id 99 is no id"},
    {"/eos_token_id", "[1, -2]", "eos_token_id -2 is no id"},
    {"/eos_token_id", "[1, \"x\"]", "eos_token_id is not a whole number"},
    {"/vocab_size", "1e4", "vocab_size is not a whole number"},
    {"/hidden_size", "16777217", "hidden_size is 16777217"},
    {"/initializer_range", "-1", "initializer_range is -1"},
};

TEST(MalformedConfig, IsRefusedWithItsReason) {
  const Json base = Json::parse(config_json(tiny_v3(), Format::f32));
  EXPECT_EQ(config_refusal(base.dump()), "(accepted)");
  for (const auto& [pointer, value, message] : kV3Cases) {
    Json config = base;
    config[Json::json_pointer(pointer)] = Json::parse(value);
    EXPECT_THAT(config_refusal(config.dump()), HasSubstr(message)) << pointer << " = " << value;
  }
}

TEST(MalformedConfig, EveryKeyThatShapesTheModelIsDemanded) {
  const Json base = Json::parse(config_json(tiny_v3(), Format::f32));
  const char* const keys[] = {"model_type",
                              "vocab_size",
                              "hidden_size",
                              "num_hidden_layers",
                              "num_attention_heads",
                              "q_lora_rank",
                              "kv_lora_rank",
                              "qk_nope_head_dim",
                              "qk_rope_head_dim",
                              "v_head_dim",
                              "intermediate_size",
                              "max_position_embeddings",
                              "rms_norm_eps",
                              "n_routed_experts",
                              "first_k_dense_replace",
                              "moe_intermediate_size",
                              "n_shared_experts",
                              "num_experts_per_tok",
                              "n_group",
                              "topk_group",
                              "norm_topk_prob",
                              "routed_scaling_factor",
                              "rope_theta"};
  for (const std::string key : keys) {
    Json config = base;
    config.erase(key);
    EXPECT_THAT(config_refusal(config.dump()), HasSubstr(key + " is missing"));
  }
  const char* const sizes[] = {"vocab_size",          "hidden_size",       "num_hidden_layers",
                               "num_attention_heads", "kv_lora_rank",      "qk_nope_head_dim",
                               "v_head_dim",          "intermediate_size", "max_position_embeddings"};
  for (const std::string key : sizes) {
    for (const char* value :
         {"0", "-1", "1.5", "\"8\"", "null", "true", "[8]", "1099511627777", "9223372036854775808"}) {
      Json config = base;
      config.erase("num_key_value_heads");
      config[key] = Json::parse(value);
      EXPECT_THAT(config_refusal(config.dump()), HasSubstr("config.json: " + key + " is ")) << value;
    }
  }
}

TEST(MalformedConfig, SayingV2DemandsItsRouter) {
  const Json base = Json::parse(config_json(tiny_v2(), Format::f32));
  EXPECT_EQ(config_refusal(base.dump()), "(accepted)");
  const ConfigCase cases[] = {
      {"/topk_method", "\"noaux_tc\"", "topk_method is \"noaux_tc\"; deepseek_v2 has"},
      {"/scoring_func", "\"sigmoid\"", "scoring_func is \"sigmoid\"; only \"softmax\""},
      {"/rope_interleave", "false", "rope_interleave is false"},
      {"/topk_group", "0", "topk_group is 0"},
  };
  for (const auto& [pointer, value, message] : cases) {
    Json config = base;
    config[Json::json_pointer(pointer)] = Json::parse(value);
    EXPECT_THAT(config_refusal(config.dump()), HasSubstr(message)) << pointer << " = " << value;
  }
}

TEST(MalformedConfig, SayingV32DemandsItsIndexer) {
  const Json base = Json::parse(config_json(tiny_v32(), Format::f32));
  EXPECT_EQ(config_refusal(base.dump()), "(accepted)");
  EXPECT_EQ(base["architectures"], Json{"DeepseekV32ForCausalLM"});
  for (const std::string key : {"index_n_heads", "index_head_dim", "index_topk"}) {
    Json config = base;
    config.erase(key);
    EXPECT_THAT(config_refusal(config.dump()), HasSubstr("config.json: " + key + " is missing"));
    for (const char* value : {"0", "-1", "1.5", "\"8\"", "null", "true", "[8]", "4294967296", "9223372036854775808"}) {
      config[key] = Json::parse(value);
      EXPECT_THAT(config_refusal(config.dump()), HasSubstr("config.json: " + key + " is ")) << value;
    }
  }
  const ConfigCase cases[] = {
      {"/index_head_dim", "3", "index_head_dim is 3, must be qk_rope_head_dim (4) or more"},
      {"/q_lora_rank", "null", "q_lora_rank is null, but index_n_heads is 3"},
      {"/indexer_rope_interleave", "true", "indexer_rope_interleave is true; only false is supported"},
      {"/scoring_func", "\"softmax\"", "scoring_func is \"softmax\"; only \"sigmoid\""},
  };
  for (const auto& [pointer, value, message] : cases) {
    Json config = base;
    config[Json::json_pointer(pointer)] = Json::parse(value);
    EXPECT_THAT(config_refusal(config.dump()), HasSubstr(message)) << pointer << " = " << value;
  }
}

// As transformers 5 writes it, which leaves out what has one value and names the rotation another way.
TEST(Config, OfV32MayBeOfANewTransformers) {
  Json config = Json::parse(config_json(tiny_v32(), Format::f32));
  for (const char* key : {"topk_method", "scoring_func", "moe_layer_freq", "num_nextn_predict_layers", "rope_theta",
                          "rope_scaling", "rope_interleave", "torch_dtype"}) {
    config.erase(key);
  }
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 10000}};
  config["layer_types"] = Json(3, "deepseek_sparse_attention");
  config["mlp_layer_types"] = {"dense", "sparse", "sparse"};
  config["head_dim"] = 4;
  config["dtype"] = "float32";
  ModelConfig want = tiny_v32();
  want.num_nextn_predict_layers = 0;
  EXPECT_EQ(parse_config(JsonDocument::parse(config.dump(), "config.json")), want);
}

TEST(MalformedConfig, TextThatIsNoConfigIsRefused) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "is empty"},
      {"[]", "the file is not a JSON object"},
      {"{", "not valid JSON"},
      {"{\"model_type\": \"deepseek_v3\",}", "not valid JSON"},
      {"{\"model_type\": 1, \"model_type\": 2}", "stands twice"},
      {std::string(100, '['), "not valid JSON"},
      {std::string(100, '[') + std::string(100, ']'), "nested deeper than 64"},
      {"{\"a\": \"\xff\"}", "not valid JSON"},
      {"{\"a\": NaN}", "not valid JSON"},
  };
  for (const auto& [text, message] : cases) EXPECT_THAT(config_refusal(text), HasSubstr(message)) << text;
}

TEST(Config, EndTokensOfGenerationConfigAreAdded) {
  ModelConfig config = tiny_v3();
  add_generation_config(
      config, JsonDocument::parse(R"({"bos_token_id": 7, "eos_token_id": [5, 9]})", "generation_config.json"));
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{1, 5, 9}));
}

// Indexes and files of a sharded model.
struct Sharded {
  Sharded() {
    const LoadedModel model = random_model(tiny_v3());
    save_model(directory.path(), model.config, model.parameters.weights, {Format::f32, 20000});
    index = Json::parse(std::ifstream(directory.path() / "model.safetensors.index.json"));
  }
  std::string refuse(const Json& changed) const {
    std::ofstream(directory.path() / "model.safetensors.index.json") << changed.dump();
    ThreadPool pool(1);
    return refusal([&] { (void)load_model(directory.path(), pool); });
  }
  TemporaryDirectory directory;
  Json index;
};

TEST(MalformedIndex, IsRefusedWithItsReason) {
  const Sharded model;
  EXPECT_EQ(model.refuse(model.index), "(accepted)");
  for (const char* name : {"../model-00001-of-00002.safetensors", "/etc/passwd", "a/b.safetensors", "..",
                           ".hidden.safetensors", "", "model.bin", "a\\b.safetensors", "x\n.safetensors/"}) {
    Json index = model.index;
    index["weight_map"]["lm_head.weight"] = name;
    EXPECT_THAT(model.refuse(index), HasSubstr("is no file name of a shard")) << name;
  }
  Json index = model.index;
  index["weight_map"]["lm_head.weight"] = "model-00009-of-00009.safetensors";
  EXPECT_THAT(model.refuse(index), HasSubstr("model-00009-of-00009.safetensors is missing"));
  index = model.index;
  index["weight_map"]["lm_head.weight"] = index["weight_map"]["model.embed_tokens.weight"];
  EXPECT_THAT(model.refuse(index), HasSubstr("lm_head.weight"));
  index = model.index;
  index["weight_map"].erase("lm_head.weight");
  EXPECT_THAT(model.refuse(index), HasSubstr("the index does not put there: lm_head.weight"));
  index = model.index;
  index["weight_map"]["ghost"] = index["weight_map"]["lm_head.weight"];
  EXPECT_THAT(model.refuse(index), HasSubstr("as the index says: ghost"));
  for (const auto& [value, message] : {std::pair{"[]", "weight_map is not an object"},
                                       {"{}", "weight_map is empty"},
                                       {"{\"a\": 1}", "is not a string"}}) {
    index = model.index;
    index["weight_map"] = Json::parse(value);
    EXPECT_THAT(model.refuse(index), HasSubstr(message));
  }
  index = model.index;
  index["metadata"]["total_size"] = "big";
  EXPECT_THAT(model.refuse(index), HasSubstr("total_size is not a number"));
  index = model.index;
  index.erase("weight_map");
  EXPECT_THAT(model.refuse(index), HasSubstr("weight_map is missing"));
}

TEST(Load, ConfigLargerThanTheFilesIsRefusedBeforeMemoryIsTaken) {
  const Sharded model;
  for (const auto& [key, value] : {std::pair{"num_hidden_layers", 10000},
                                   {"vocab_size", 16000000},
                                   {"hidden_size", 65536},
                                   {"n_routed_experts", 65536}}) {
    Json config = Json::parse(config_json(tiny_v3(), Format::f32));
    config[key] = value;
    std::ofstream(model.directory.path() / "config.json") << config.dump();
    EXPECT_NE(model.refuse(model.index), "(accepted)") << key;
  }
}

// Names and shapes of that many experts, of the MTP layer alone, must not be made only to be found missing.
TEST(Load, MoreMtpExpertsThanTensorsAreRefusedByTheirNumber) {
  const TemporaryDirectory directory;
  const LoadedModel model = random_model(tiny_mtp());
  save_model(directory.path(), model.config, model.parameters.weights, {});
  Json config = Json::parse(config_json(model.config, Format::f32));
  config["n_routed_experts"] = 65536;
  config["first_k_dense_replace"] = config["num_hidden_layers"];
  std::ofstream(directory.path() / "config.json") << config.dump();
  ThreadPool pool(1);
  EXPECT_THAT(refusal([&] { (void)load_model(directory.path(), pool); }), HasSubstr("too few for the config's"));
}

// What the config and the files say of an indexer must be the same.
TEST(Load, IndexersAreRefusedByTheirTensors) {
  const LoadedModel model = random_model(tiny_v32());
  const auto message = [&](const std::function<void(ModelConfig&, std::vector<TensorToWrite>&)>& change) {
    ModelConfig config = model.config;
    std::vector<TensorToWrite> tensors = tensors_to_save(config, model.parameters.weights, Format::f32);
    change(config, tensors);
    const TemporaryDirectory directory;
    std::ofstream(directory.path() / "config.json") << config_json(config, Format::f32);
    AtomicFile file(directory.path() / "model.safetensors");
    write_safetensors(file, tensors);
    file.commit();
    ThreadPool pool(1);
    return refusal([&] { (void)load_model(directory.path(), pool); });
  };
  const std::string indexer = "model.layers.1.self_attn.indexer.";
  EXPECT_EQ(message([](ModelConfig&, auto&) {}), "(accepted)");
  for (const char* name : {"wq_b.weight", "wk.weight", "k_norm.weight", "k_norm.bias", "weights_proj.weight"}) {
    EXPECT_THAT(message([&](ModelConfig&, auto& tensors) {
                  std::erase_if(tensors, [&](const TensorToWrite& t) { return t.name == indexer + name; });
                }),
                HasSubstr("missing tensors: " + indexer + name));
  }
  EXPECT_THAT(message([](ModelConfig& config, auto&) { config.indexer.n_heads = 4; }),
              HasSubstr("indexer.wq_b.weight has shape [18, 10], the config asks for [24, 10]"));
  EXPECT_THAT(message([](ModelConfig& config, auto&) { config.indexer.head_dim = 9; }),
              HasSubstr("indexer.wq_b.weight has shape [18, 10], the config asks for [27, 10]"));
  EXPECT_THAT(message([](ModelConfig& config, auto&) {
                config.model_type = "deepseek_v3";
                config.indexer = {};
              }),
              HasSubstr("a model with an indexer is of model_type deepseek_v32"));
}

}  // namespace
}  // namespace fathom
