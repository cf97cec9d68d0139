#include "checkpoint/hf_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/json.h"
#include "base/terminal.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/hf_model.h"

namespace fathom {
namespace {

namespace dom = simdjson::dom;
namespace fs = std::filesystem;

// One object of a document whose keys are asked for one by one. `name` ("rope_scaling") stands before its keys in
// messages.
class Keys {
 public:
  Keys(dom::element element, std::string where, std::string name = {})
      : where_(std::move(where)), name_(std::move(name)) {
    if (element.get(object_)) {
      throw Error("{}: {} is not a JSON object", where_, name_.empty() ? "the file" : name_);
    }
  }

  // Whether the key is there with a value other than null.
  bool has(std::string_view key) const {
    dom::element value;
    return !object_.at_key(key).get(value) && !value.is_null();
  }
  bool is_null(std::string_view key) const {
    dom::element value;
    return !object_.at_key(key).get(value) && value.is_null();
  }
  dom::element at(std::string_view key) const {
    dom::element value;
    if (object_.at_key(key).get(value)) throw Error("{}: {} is missing", where_, full(key));
    return value;
  }
  int64_t integer(std::string_view key) const { return integer(at(key), key); }
  int64_t integer_or(std::string_view key, int64_t absent) const { return has(key) ? integer(key) : absent; }
  double number(std::string_view key) const {
    const dom::element value = at(key);
    double x;
    if (!value.is_number() || value.get(x)) throw wrong_type(key, "a number");
    return x;
  }
  double number_or(std::string_view key, double absent) const { return has(key) ? number(key) : absent; }
  bool boolean(std::string_view key) const {
    bool x;
    if (at(key).get(x)) throw wrong_type(key, "true or false");
    return x;
  }
  bool boolean_or(std::string_view key, bool absent) const { return has(key) ? boolean(key) : absent; }
  std::string text(std::string_view key) const {
    std::string_view x;
    if (at(key).get(x)) throw wrong_type(key, "a string");
    return std::string(x);
  }
  std::string text_or(std::string_view key, std::string_view absent) const {
    return has(key) ? text(key) : std::string(absent);
  }
  Keys object(std::string_view key) const { return Keys(at(key), where_, full(key)); }

  // A whole number, or a list of them.
  std::vector<int64_t> integers(std::string_view key) const {
    const dom::element value = at(key);
    if (!value.is_array()) return {integer(value, key)};
    std::vector<int64_t> list;
    for (const dom::element item : dom::array(value)) list.push_back(integer(item, key));
    return list;
  }

  // Refuses any value but the one that the engine implements; an absent key is that value.
  void expect_text(std::string_view key, std::string_view supported) const {
    const std::string value = text_or(key, supported);
    if (value != supported) {
      throw Error("{}: {} is \"{}\"; only \"{}\" is supported", where_, full(key), printable(value, 80), supported);
    }
  }
  void expect_flag(std::string_view key, bool supported) const {
    if (boolean_or(key, supported) != supported)
      throw Error("{}: {} is {}; only {} is supported", where_, full(key), !supported, supported);
  }
  void expect_absent(std::string_view key) const {
    if (has(key)) throw Error("{}: {} is not supported", where_, full(key));
  }

  std::string full(std::string_view key) const { return (name_.empty() ? "" : name_ + ".") + std::string(key); }
  const std::string& where() const { return where_; }

 private:
  // Everything counted in a config fits 31 bits with room to spare; larger numbers would only overflow later.
  int64_t integer(dom::element value, std::string_view key) const {
    int64_t x;
    if (!value.is<int64_t>() && !value.is<uint64_t>()) throw wrong_type(key, "a whole number");
    constexpr int64_t kLimit = int64_t{1} << 40;
    if (value.get(x) || x > kLimit || x < -kLimit) throw Error("{}: {} is out of range", where_, full(key));
    return x;
  }
  Error wrong_type(std::string_view key, std::string_view expected) const {
    return Error("{}: {} is not {}", where_, full(key), expected);
  }

  dom::object object_;
  std::string where_, name_;
};

void check_family(const Keys& keys) {
  const std::string type = keys.text("model_type");
  for (const std::string_view known : {"deepseek_v2", "deepseek_v3", "deepseek_v32", "llama", "qwen2"}) {
    if (type == known) return;
  }
  throw Error(
      "{}: model_type {} is not supported; supported are deepseek_v2, deepseek_v3, deepseek_v32, llama and qwen2",
      keys.where(), printable(type, 80));
}

RouterConfig parse_router(const Keys& keys, bool is_v3) {
  RouterConfig router{keys.integer("n_routed_experts"), keys.integer("num_experts_per_tok")};
  const bool norm_topk_prob = keys.boolean("norm_topk_prob");
  router.routed_scaling_factor = static_cast<float>(keys.number("routed_scaling_factor"));
  if (is_v3) {
    keys.expect_text("topk_method", "noaux_tc");
    keys.expect_text("scoring_func", "sigmoid");
    router.norm_topk_prob = norm_topk_prob;
    router.n_group = keys.integer("n_group");
    router.topk_group = keys.integer("topk_group");
    return router;
  }
  keys.expect_text("scoring_func", "softmax");
  router.scoring = Scoring::softmax;
  // transformers never norms the weights of this family, whatever the file says.
  if (norm_topk_prob) log("{}: norm_topk_prob is true; deepseek_v2 leaves the weights as they are", keys.where());
  router.norm_topk_prob = false;
  const std::string method = keys.text("topk_method");
  if (method == "greedy") {
    router.method = TopkMethod::greedy;
    return router;  // groups play no part
  }
  if (method != "group_limited_greedy") {
    throw Error("{}: topk_method is \"{}\"; deepseek_v2 has \"greedy\" and \"group_limited_greedy\"", keys.where(),
                printable(method, 80));
  }
  router.method = TopkMethod::group_limited_greedy;
  router.n_group = keys.integer("n_group");
  router.topk_group = keys.integer("topk_group");
  return router;
}

// rope_theta and rope_scaling, or both in rope_parameters as transformers 5 writes them.
void parse_rope(const Keys& keys, ModelConfig& config) {
  const bool together = keys.has("rope_parameters");
  if (together && keys.has("rope_scaling"))
    throw Error("{}: has both rope_scaling and rope_parameters; keep one", keys.where());
  std::optional<Keys> scaling;
  if (together) {
    scaling = keys.object("rope_parameters");
    config.rope_theta = scaling->has("rope_theta") ? scaling->number("rope_theta") : keys.number("rope_theta");
    if (keys.has("rope_theta") && keys.number("rope_theta") != config.rope_theta) {
      throw Error("{}: rope_theta and rope_parameters.rope_theta differ; keep one", keys.where());
    }
  } else {
    // Older files of llama leave it out.
    const bool needs_theta = config.is_mla();
    config.rope_theta = needs_theta ? keys.number("rope_theta") : keys.number_or("rope_theta", config.rope_theta);
    if (!keys.has("rope_scaling")) return;
    scaling = keys.object("rope_scaling");
  }
  const std::string_view type_key = scaling->has("rope_type") ? "rope_type" : "type";
  const std::string type = scaling->text(type_key);
  if (scaling->has("type") && scaling->text("type") != type) {
    throw Error("{}: {} and {} differ; keep one", keys.where(), scaling->full("rope_type"), scaling->full("type"));
  }
  if (type == "default") return;
  if (type == "llama3" && config.model_type == "llama") {
    config.llama3_scaling = {scaling->number("factor"), scaling->number("low_freq_factor"),
                             scaling->number("high_freq_factor"), scaling->integer("original_max_position_embeddings")};
    return;
  }
  if (type != "yarn") {
    throw Error("{}: {} is \"{}\"; only \"yarn\" and \"default\" are supported, of llama also \"llama3\"", keys.where(),
                scaling->full(type_key), printable(type, 80));
  }
  scaling->expect_absent("attention_factor");
  scaling->expect_flag("truncate", true);
  YarnScaling yarn;
  yarn.factor = scaling->number("factor");
  yarn.original_max_position_embeddings = scaling->integer("original_max_position_embeddings");
  yarn.beta_fast = scaling->number_or("beta_fast", 32);
  yarn.beta_slow = scaling->number_or("beta_slow", 1);
  yarn.mscale = scaling->number_or("mscale", 0);
  yarn.mscale_all_dim = scaling->number_or("mscale_all_dim", 0);
  config.rope_scaling = yarn;
}

// Weights as convert_model packs them.
constexpr const char* kPackedMethod = "fathom";
constexpr int64_t kPackedVersion = 1;

void parse_quantization(const Keys& keys, ModelConfig& config) {
  if (!keys.has("quantization_config")) return;
  const Keys quantization = keys.object("quantization_config");
  const std::string method = quantization.text("quant_method");
  if (method == kPackedMethod) {
    if (quantization.integer("version") != kPackedVersion) {
      throw Error("{}: the weights are packed in version {}, this program reads version {}; convert the model again",
                  keys.where(), quantization.integer("version"), kPackedVersion);
    }
    config.packed = true;
    return;
  }
  if (method != "fp8") {
    throw Error("{}: quantization_config.quant_method {} is not supported; only fp8 is", keys.where(),
                printable(method, 80));
  }
  quantization.expect_text("fmt", "e4m3");
  quantization.expect_text("activation_scheme", "dynamic");
  const auto block = quantization.integers("weight_block_size");
  constexpr int64_t kMaxBlock = 65536;
  if (block.size() != 2 || std::min(block[0], block[1]) < 1 || std::max(block[0], block[1]) > kMaxBlock) {
    throw Error("{}: quantization_config.weight_block_size must be two numbers from 1 to {}", keys.where(), kMaxBlock);
  }
  config.weight_block_rows = block[0];
  config.weight_block_cols = block[1];
  const std::string scales = quantization.text_or("scale_fmt", "float");
  if (scales != "float" && scales != "ue8m0") {
    throw Error("{}: quantization_config.scale_fmt is \"{}\"; only \"float\" and \"ue8m0\" are supported", keys.where(),
                printable(scales, 80));
  }
  config.scale_ue8m0 = scales == "ue8m0";
}

void check_token(const ModelConfig& config, const Keys& keys, std::string_view key, int64_t id) {
  if (id < 0 || id >= config.vocab_size) {
    throw Error("{}: {} {} is no id of the vocabulary (vocab_size {})", keys.where(), key, id, config.vocab_size);
  }
}

// The begin token where none is known yet, and the end tokens that are new.
void parse_tokens(const Keys& keys, ModelConfig& config) {
  if (keys.has("bos_token_id")) {
    const int64_t id = keys.integer("bos_token_id");
    check_token(config, keys, "bos_token_id", id);
    if (config.bos_token_id < 0) config.bos_token_id = id;
  }
  if (keys.has("eos_token_id")) {
    for (const int64_t id : keys.integers("eos_token_id")) {
      check_token(config, keys, "eos_token_id", id);
      auto& ids = config.eos_token_ids;
      if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
    }
  }
}

nlohmann::ordered_json eos_json(const ModelConfig& config) {
  if (config.eos_token_ids.empty()) return nullptr;
  if (config.eos_token_ids.size() == 1) return config.eos_token_ids[0];
  return config.eos_token_ids;
}

nlohmann::ordered_json bos_json(const ModelConfig& config) {
  if (config.bos_token_id < 0) return nullptr;
  return config.bos_token_id;
}

void parse_grouped_attention(const Keys& keys, ModelConfig& config) {
  config.attention_bias = config.model_type == "qwen2";
  if (!config.attention_bias) keys.expect_flag("attention_bias", false);
  keys.expect_flag("use_sliding_window", false);
  config.tie_word_embeddings = keys.boolean_or("tie_word_embeddings", false);
  config.num_key_value_heads = keys.integer_or("num_key_value_heads", config.num_attention_heads);
  if (config.num_key_value_heads < 1) {
    throw Error("{}: num_key_value_heads is {}, must be 1 or more", keys.where(), config.num_key_value_heads);
  }
  if (keys.has("head_dim")) {
    config.head_dim = keys.integer("head_dim");
    return;
  }
  if (config.num_attention_heads < 1 || config.hidden_size % config.num_attention_heads != 0) {
    throw Error("{}: head_dim is missing, and num_attention_heads ({}) does not divide hidden_size ({})", keys.where(),
                config.num_attention_heads, config.hidden_size);
  }
  config.head_dim = config.hidden_size / config.num_attention_heads;
}

void parse_latent_attention(const Keys& keys, ModelConfig& config) {
  keys.expect_flag("attention_bias", false);
  keys.expect_flag("tie_word_embeddings", false);
  const int64_t kv_heads = keys.integer_or("num_key_value_heads", config.num_attention_heads);
  if (kv_heads != config.num_attention_heads) {
    throw Error("{}: num_key_value_heads is {}, must be num_attention_heads ({}): latent attention has no other",
                keys.where(), kv_heads, config.num_attention_heads);
  }
  if (!keys.is_null("q_lora_rank")) {
    config.q_lora_rank = keys.integer("q_lora_rank");
    if (config.q_lora_rank == 0)
      throw Error("{}: q_lora_rank is 0; write null for queries without a low rank", keys.where());
  }
  config.kv_lora_rank = keys.integer("kv_lora_rank");
  config.qk_nope_head_dim = keys.integer("qk_nope_head_dim");
  config.qk_rope_head_dim = keys.integer("qk_rope_head_dim");
  config.v_head_dim = keys.integer("v_head_dim");
}

}  // namespace

ModelConfig parse_config(const JsonDocument& document) {
  const Keys keys(document.root(), document.where());
  check_family(keys);
  ModelConfig config;
  config.model_type = keys.text("model_type");
  const bool is_v3 = config.model_type != "deepseek_v2";
  const bool is_dense = config.model_type == "llama" || config.model_type == "qwen2";
  keys.expect_text("hidden_act", "silu");
  keys.expect_flag("mlp_bias", false);
  if (keys.integer_or("moe_layer_freq", 1) != 1)
    throw Error("{}: moe_layer_freq is {}; only 1 is supported", keys.where(), keys.integer("moe_layer_freq"));

  config.vocab_size = keys.integer("vocab_size");
  config.hidden_size = keys.integer("hidden_size");
  config.num_hidden_layers = keys.integer("num_hidden_layers");
  config.num_attention_heads = keys.integer("num_attention_heads");
  if (is_dense) {
    parse_grouped_attention(keys, config);
  } else {
    parse_latent_attention(keys, config);
  }
  config.intermediate_size = keys.integer("intermediate_size");
  config.max_position_embeddings = keys.integer("max_position_embeddings");
  config.rms_norm_eps = keys.number("rms_norm_eps");
  config.initializer_range = keys.number_or("initializer_range", config.initializer_range);
  config.num_nextn_predict_layers = is_dense ? 0 : keys.integer_or("num_nextn_predict_layers", 0);

  // Without routed experts (null or 0) every layer is dense.
  const bool has_experts = !is_dense && !keys.is_null("n_routed_experts") && keys.integer("n_routed_experts") != 0;
  if (has_experts) {
    config.first_k_dense_replace = keys.integer("first_k_dense_replace");
    config.moe_intermediate_size = keys.integer("moe_intermediate_size");
    config.n_shared_experts = keys.is_null("n_shared_experts") ? 0 : keys.integer("n_shared_experts");
    config.router = parse_router(keys, is_v3);
  }
  if (config.model_type == "deepseek_v32") {
    config.indexer = {keys.integer("index_n_heads"), keys.integer("index_head_dim"), keys.integer("index_topk")};
    if (config.indexer.n_heads < 1) {
      throw Error("{}: index_n_heads is {}, must be 1 or more: deepseek_v32 has an indexer in every layer",
                  keys.where(), config.indexer.n_heads);
    }
    keys.expect_flag("indexer_rope_interleave", false);
  }
  parse_rope(keys, config);
  if (is_dense) {
    config.rope_interleave = false;
  } else {
    config.rope_interleave = keys.boolean_or("rope_interleave", true);
    if (!is_v3) keys.expect_flag("rope_interleave", true);
  }
  parse_quantization(keys, config);
  check_config(config, keys.where());
  parse_tokens(keys, config);
  return config;
}

void add_generation_config(ModelConfig& config, const JsonDocument& document) {
  parse_tokens(Keys(document.root(), document.where()), config);
}

ModelConfig read_model_config(const fs::path& path) {
  if (is_gguf_path(path)) return parse_gguf_config(open_gguf_metadata(path));
  const fs::path file = path_is_directory(path) ? path / "config.json" : path;
  ModelConfig config = parse_config(JsonDocument::read(file, kMaxConfigBytes));
  const fs::path beside = file.parent_path() / "generation_config.json";
  if (path_exists(beside)) add_generation_config(config, JsonDocument::read(beside, kMaxConfigBytes));
  return config;
}

namespace {

using Json = nlohmann::ordered_json;

Json rope_scaling_json(const ModelConfig& c) {
  if (c.llama3_scaling) {
    const Llama3Scaling& l = *c.llama3_scaling;
    return {{"factor", l.factor},
            {"low_freq_factor", l.low_freq_factor},
            {"high_freq_factor", l.high_freq_factor},
            {"original_max_position_embeddings", l.original_max_position_embeddings},
            {"rope_type", "llama3"}};
  }
  if (!c.rope_scaling) return nullptr;
  const YarnScaling& y = *c.rope_scaling;
  Json scaling;
  scaling["type"] = "yarn";
  scaling["factor"] = y.factor;
  scaling["original_max_position_embeddings"] = y.original_max_position_embeddings;
  scaling["beta_fast"] = y.beta_fast;
  scaling["beta_slow"] = y.beta_slow;
  if (y.mscale != 0) scaling["mscale"] = y.mscale;
  if (y.mscale_all_dim != 0) scaling["mscale_all_dim"] = y.mscale_all_dim;
  return scaling;
}

// What all families have, behind what says their shape.
void add_common(Json& json, const ModelConfig& c, Format stored) {
  json["hidden_act"] = "silu";
  json["attention_dropout"] = 0.0;
  json["tie_word_embeddings"] = c.tie_word_embeddings;
  json["rms_norm_eps"] = c.rms_norm_eps;
  json["rope_theta"] = c.rope_theta;
  json["rope_scaling"] = rope_scaling_json(c);
  json["max_position_embeddings"] = c.max_position_embeddings;
  json["initializer_range"] = c.initializer_range;
  json["bos_token_id"] = bos_json(c);
  json["eos_token_id"] = eos_json(c);
  const bool in_f32 = stored == Format::f32, in_fp8 = stored == Format::f8_e4m3;
  json["torch_dtype"] = in_f32 ? "float32" : stored == Format::f16 ? "float16" : "bfloat16";
  json["use_cache"] = true;
  if (in_fp8) {
    json["quantization_config"] = {{"activation_scheme", "dynamic"},
                                   {"fmt", "e4m3"},
                                   {"quant_method", "fp8"},
                                   {"weight_block_size", {c.weight_block_rows, c.weight_block_cols}}};
    if (c.scale_ue8m0) json["quantization_config"]["scale_fmt"] = "ue8m0";
  }
  if (c.packed) json["quantization_config"] = {{"quant_method", kPackedMethod}, {"version", kPackedVersion}};
}

Json dense_config_json(const ModelConfig& c) {
  const bool is_qwen2 = c.model_type == "qwen2";
  Json json;
  json["architectures"] = {is_qwen2 ? "Qwen2ForCausalLM" : "LlamaForCausalLM"};
  json["model_type"] = c.model_type;
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["intermediate_size"] = c.intermediate_size;
  json["num_hidden_layers"] = c.num_hidden_layers;
  json["num_attention_heads"] = c.num_attention_heads;
  json["num_key_value_heads"] = c.num_key_value_heads;
  json["head_dim"] = c.head_dim;
  if (is_qwen2) {
    json["use_sliding_window"] = false;
  } else {
    json["attention_bias"] = false;
    json["mlp_bias"] = false;
  }
  return json;
}

Json latent_config_json(const ModelConfig& c) {
  const bool is_v3 = c.model_type != "deepseek_v2";
  const RouterConfig& r = c.router;
  Json json;
  json["architectures"] = {c.is_sparse() ? "DeepseekV32ForCausalLM"
                           : is_v3       ? "DeepseekV3ForCausalLM"
                                         : "DeepseekV2ForCausalLM"};
  json["model_type"] = c.model_type;
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.hidden_size;
  json["num_hidden_layers"] = c.num_hidden_layers;
  json["num_attention_heads"] = c.num_attention_heads;
  json["num_key_value_heads"] = c.num_attention_heads;
  json["q_lora_rank"] = c.q_lora_rank > 0 ? Json(c.q_lora_rank) : nullptr;
  json["kv_lora_rank"] = c.kv_lora_rank;
  json["qk_nope_head_dim"] = c.qk_nope_head_dim;
  json["qk_rope_head_dim"] = c.qk_rope_head_dim;
  json["v_head_dim"] = c.v_head_dim;
  if (c.is_sparse()) {
    json["index_n_heads"] = c.indexer.n_heads;
    json["index_head_dim"] = c.indexer.head_dim;
    json["index_topk"] = c.indexer.topk;
  }
  json["intermediate_size"] = c.intermediate_size;
  json["n_routed_experts"] = r.n_routed_experts;
  // transformers makes every layer from first_k_dense_replace on an MoE layer.
  json["first_k_dense_replace"] = r.n_routed_experts > 0 ? c.first_k_dense_replace : c.num_hidden_layers;
  json["moe_layer_freq"] = 1;
  if (r.n_routed_experts > 0) {
    json["moe_intermediate_size"] = c.moe_intermediate_size;
    json["n_shared_experts"] = c.n_shared_experts;
    json["num_experts_per_tok"] = r.num_experts_per_tok;
    json["n_group"] = r.n_group;
    json["topk_group"] = r.topk_group;
    json["topk_method"] = r.method == TopkMethod::noaux_tc ? "noaux_tc"
                          : r.method == TopkMethod::greedy ? "greedy"
                                                           : "group_limited_greedy";
    json["scoring_func"] = r.scoring == Scoring::sigmoid ? "sigmoid" : "softmax";
    json["norm_topk_prob"] = r.norm_topk_prob;
    // The shortest decimal of the float: 2.446, not 2.4460000991821289.
    json["routed_scaling_factor"] = std::stod(fmt::format("{}", r.routed_scaling_factor));
  }
  if (is_v3) json["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  json["attention_bias"] = false;
  if (is_v3) json["rope_interleave"] = c.rope_interleave;
  return json;
}

}  // namespace

std::string config_json(const ModelConfig& c, Format stored) {
  Json json = c.is_mla() ? latent_config_json(c) : dense_config_json(c);
  add_common(json, c, stored);
  return json.dump(2) + "\n";
}

std::string generation_config_json(const ModelConfig& config) {
  nlohmann::ordered_json json;
  json["_from_model_config"] = true;
  json["bos_token_id"] = bos_json(config);
  json["eos_token_id"] = eos_json(config);
  return json.dump(2) + "\n";
}

}  // namespace fathom
