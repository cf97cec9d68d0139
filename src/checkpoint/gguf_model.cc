#include "checkpoint/gguf_model.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "base/arithmetic.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kDense = "deepseek2", kSparse = "deepseek32";  // architectures, by their attention
constexpr std::string_view kLlama = "llama", kQwen2 = "qwen2";            // of grouped queries
constexpr std::string_view kBlock = "blk.", kLayer = "model.layers.";

struct NamePair {
  std::string_view gguf, hf;
};
constexpr NamePair kModelNames[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};
constexpr NamePair kLayerNames[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"attn_q.weight", "self_attn.q_proj.weight"},
    {"attn_k.weight", "self_attn.k_proj.weight"},
    {"attn_v.weight", "self_attn.v_proj.weight"},
    {"attn_q.bias", "self_attn.q_proj.bias"},
    {"attn_k.bias", "self_attn.k_proj.bias"},
    {"attn_v.bias", "self_attn.v_proj.bias"},
    {"attn_q_a.weight", "self_attn.q_a_proj.weight"},
    {"attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"},
    {"attn_q_b.weight", "self_attn.q_b_proj.weight"},
    {"attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"},
    {"attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"},
    {"attn_kv_b.weight", "self_attn.kv_b_proj.weight"},
    {"attn_k_b.weight", "self_attn.k_b_proj.weight"},
    {"attn_v_b.weight", "self_attn.v_b_proj.weight"},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"indexer.attn_q_b.weight", "self_attn.indexer.wq_b.weight"},
    {"indexer.attn_k.weight", "self_attn.indexer.wk.weight"},
    {"indexer.k_norm.weight", "self_attn.indexer.k_norm.weight"},
    {"indexer.k_norm.bias", "self_attn.indexer.k_norm.bias"},
    {"indexer.proj.weight", "self_attn.indexer.weights_proj.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
    {"ffn_gate_inp.weight", "mlp.gate.weight"},
    {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"},
    {"ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"},
    {"ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"},
    {"ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"},
    {"nextn.enorm.weight", "enorm.weight"},
    {"nextn.hnorm.weight", "hnorm.weight"},
    {"nextn.eh_proj.weight", "eh_proj.weight"},
    {"nextn.embed_tokens.weight", "embed_tokens.weight"},
    {"nextn.shared_head_norm.weight", "shared_head.norm.weight"},
    {"nextn.shared_head_head.weight", "shared_head.head.weight"},
};
// Stacks of a layer's experts; of the HF name what stands behind "mlp.experts.E.".
constexpr NamePair kExpertNames[] = {
    {"ffn_gate_exps.weight", "gate_proj.weight"},
    {"ffn_up_exps.weight", "up_proj.weight"},
    {"ffn_down_exps.weight", "down_proj.weight"},
};
constexpr std::string_view kExperts = "mlp.experts.";

std::string_view find_pair(std::span<const NamePair> pairs, std::string_view name, std::string_view NamePair::*from,
                           std::string_view NamePair::*to) {
  const auto found = std::find_if(pairs.begin(), pairs.end(), [&](const NamePair& p) { return p.*from == name; });
  return found == pairs.end() ? std::string_view() : (*found).*to;
}
std::string_view to_hf(std::span<const NamePair> pairs, std::string_view name) {
  return find_pair(pairs, name, &NamePair::gguf, &NamePair::hf);
}
std::string_view to_gguf(std::span<const NamePair> pairs, std::string_view name) {
  return find_pair(pairs, name, &NamePair::hf, &NamePair::gguf);
}

// "blk.3.attn_norm.weight" with the prefix "blk." -> {"3", "attn_norm.weight"}; empty-handed for other names.
struct LayerName {
  std::string_view layer, rest;
};
LayerName cut_layer(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return {};
  const size_t end = name.find('.', prefix.size());
  if (end == std::string_view::npos) return {};
  return {name.substr(prefix.size(), end - prefix.size()), name.substr(end + 1)};
}

// The experts of a stack [experts, out, in], as tensors of their own.
void unstack(const StoredTensor& stack, std::string_view layer, std::string_view hf, const std::string& where,
             std::vector<StoredTensor>& tensors) {
  if (stack.shape.size() != 3) {
    throw Error("{}: tensor {} has shape {}, must have three dimensions: [experts, out, in]", where, stack.name,
                shape_text(stack.shape));
  }
  const auto n = static_cast<size_t>(stack.shape[0]);
  for (size_t e = 0; e < n; ++e) {
    StoredTensor expert{fmt::format("{}{}.{}{}.{}", kLayer, layer, kExperts, e, hf),
                        stack.dtype,
                        stack.format,
                        {stack.shape[1], stack.shape[2]},
                        {}};
    expert.data = stack.data.subspan(e * (stack.data.size() / n), stack.data.size() / n);
    tensors.push_back(std::move(expert));
  }
}

// The parts of "NAME-00002-of-00003.gguf".
struct SplitName {
  fs::path directory;
  std::string name;
  int64_t count;
  fs::path shard(int64_t i) const { return directory / fmt::format("{}-{:05}-of-{:05}.gguf", name, i + 1, count); }
};
SplitName split_name(const GgufFile& file, const fs::path& path, int64_t count) {
  SplitName split{path.parent_path(), path.filename().string(), count};
  const std::string end = fmt::format("-of-{:05}.gguf", count);
  constexpr size_t kNumber = 6;  // "-00002"
  const std::string& name = split.name;
  const bool fits =
      name.ends_with(end) && name.size() > end.size() + kNumber && name[name.size() - end.size() - kNumber] == '-';
  if (!fits) {
    throw Error(
        "{}: is one of {} files that only together are a model; it must be called NAME-00001-of-{:05}.gguf, as "
        "it was written, for the others to be found",
        file.where(), count, count);
  }
  split.name.resize(name.size() - end.size() - kNumber);
  return split;
}

GgufFile open_shard(const SplitName& split, int64_t i) {
  const fs::path path = split.shard(i);
  if (!path_exists(path)) {
    throw Error("{}: file {} of the {} of this model is missing", printable(path.native()), i + 1, split.count);
  }
  GgufFile file(path);
  if (file.integer("split.count") != split.count || file.integer("split.no") != i) {
    throw Error("{}: says that it is file {} of {}, its name says {} of {}", file.where(), file.integer("split.no") + 1,
                file.integer("split.count"), i + 1, split.count);
  }
  return file;
}

int64_t split_count(const GgufFile& file) {
  constexpr int64_t kMax = 65535;
  const int64_t count = file.integer_or("split.count", 1);
  if (count < 0 || count > kMax) throw Error("{}: split.count is {}, must be 1 to {}", file.where(), count, kMax);
  return count;
}

// Keys of the architecture, without its prefix.
class Keys {
 public:
  // Error for an architecture that is none of the family's.
  explicit Keys(const GgufFile& file) : file_(file), architecture_(file.text("general.architecture")) {
    if (architecture_ == kDense || is_sparse() || has_grouped_queries()) return;
    throw Error(
        "{}: general.architecture {} is not supported; supported are {} (DeepSeek-V2, V3, R1, V3.1), {} (V3.2), {} and "
        "{}",
        where(), printable(architecture_, 80), kDense, kSparse, kLlama, kQwen2);
  }
  bool has_grouped_queries() const { return architecture_ == kLlama || architecture_ == kQwen2; }
  std::string architecture() const { return std::string(architecture_); }
  bool is_sparse() const { return architecture_ == kSparse; }
  bool has(std::string_view key) const { return file_.has(full(key)); }
  int64_t integer(std::string_view key) const { return file_.integer(full(key)); }
  int64_t integer_or(std::string_view key, int64_t absent) const { return file_.integer_or(full(key), absent); }
  double number(std::string_view key) const { return file_.number(full(key)); }
  double number_or(std::string_view key, double absent) const { return file_.number_or(full(key), absent); }
  bool boolean_or(std::string_view key, bool absent) const { return file_.boolean_or(full(key), absent); }
  std::string_view text_or(std::string_view key, std::string_view absent) const {
    return file_.text_or(full(key), absent);
  }
  std::string full(std::string_view key) const { return fmt::format("{}.{}", architecture_, key); }
  const std::string& where() const { return file_.where(); }

 private:
  const GgufFile& file_;
  std::string_view architecture_;
};

void parse_router(const Keys& keys, ModelConfig& config) {
  constexpr int64_t kSoftmax = 1, kSigmoid = 2;
  RouterConfig& router = config.router;
  router = {keys.integer("expert_count"), keys.integer("expert_used_count")};
  router.n_group = keys.integer_or("expert_group_count", 1);
  router.topk_group = keys.integer_or("expert_group_used_count", 1);
  router.norm_topk_prob = keys.boolean_or("expert_weights_norm", false);
  router.routed_scaling_factor = static_cast<float>(keys.number_or("expert_weights_scale", 1));
  const int64_t scoring = keys.integer_or("expert_gating_func", kSoftmax);
  if (scoring == kSigmoid) return;  // as RouterConfig has it
  if (scoring != kSoftmax) {
    throw Error("{}: {} is {}; only 1 (softmax) and 2 (sigmoid) are supported", keys.where(),
                keys.full("expert_gating_func"), scoring);
  }
  if (keys.is_sparse()) {
    throw Error("{}: {} is 1 (softmax); only 2 (sigmoid) is supported in {}", keys.where(),
                keys.full("expert_gating_func"), kSparse);
  }
  config.model_type = "deepseek_v2";
  router.scoring = Scoring::softmax;
  router.method = router.n_group > 1 ? TopkMethod::group_limited_greedy : TopkMethod::greedy;
}

void parse_rope(const Keys& keys, ModelConfig& config) {
  config.rope_theta = keys.number_or("rope.freq_base", 10000);
  const std::string_view type = keys.text_or("rope.scaling.type", "none");
  if (type == "none") return;
  if (type != "yarn") {
    throw Error("{}: {} is \"{}\"; only \"yarn\" and \"none\" are supported", keys.where(),
                keys.full("rope.scaling.type"), printable(type, 80));
  }
  if (keys.number_or("rope.scaling.attn_factor", 1) != 1) {
    throw Error("{}: {} is not supported", keys.where(), keys.full("rope.scaling.attn_factor"));
  }
  YarnScaling yarn;
  yarn.factor = keys.number("rope.scaling.factor");
  yarn.original_max_position_embeddings = keys.integer("rope.scaling.original_context_length");
  yarn.beta_fast = keys.number_or("rope.scaling.yarn_beta_fast", 32);
  yarn.beta_slow = keys.number_or("rope.scaling.yarn_beta_slow", 1);
  // 0.1 * mscale_all_dim, rounded to f32; twice rounded to the shortest decimal it is 0.707 again. mscale is the same
  // in every model that is converted: the format has no place for another.
  const double all_dim = keys.number_or("rope.scaling.yarn_log_multiplier", 0);
  yarn.mscale_all_dim = std::stod(fmt::format("{}", static_cast<float>(all_dim * 10)));
  yarn.mscale = yarn.mscale_all_dim;
  config.rope_scaling = yarn;
}

// The scaling behind the factors of a file.
void parse_rope_factors(const GgufFile& file, ModelConfig& config) {
  const StoredTensor* const stored = file.find(kRopeFactors);
  if (stored == nullptr || config.model_type != kLlama) return;
  const std::vector<int64_t> expected{config.head_dim / 2};
  if (stored->format != Format::f32 || stored->shape != expected) {
    throw Error("{}: tensor {} is {} {}, must be F32 {}", file.where(), kRopeFactors, stored->dtype,
                shape_text(stored->shape), shape_text(expected));
  }
  std::vector<float> factors(static_cast<size_t>(config.head_dim / 2));
  std::memcpy(factors.data(), stored->data.data(), stored->data.size());
  const auto key = [](std::string_view name) { return fmt::format("{}{}", kLlama3Keys, name); };
  Llama3Scaling scaling;  // 8192 positions, 1 and 4: as all released models have it
  scaling.factor = file.number_or(key("factor"), static_cast<double>(factors.back()));
  scaling.low_freq_factor = file.number_or(key("low_freq_factor"), scaling.low_freq_factor);
  scaling.high_freq_factor = file.number_or(key("high_freq_factor"), scaling.high_freq_factor);
  scaling.original_max_position_embeddings =
      file.integer_or(key("original_max_position_embeddings"), scaling.original_max_position_embeddings);
  config.llama3_scaling = scaling;
  check_config(config, file.where());
  const std::vector<float> known = rope_factors(config);
  for (size_t i = 0; i < factors.size(); ++i) {
    if (std::abs(factors[i] - known[i]) <= 1e-3f * known[i]) continue;
    throw Error("{}: tensor {} holds {} at {}, not the {} of Llama 3's rope scaling; other scalings are not supported",
                file.where(), kRopeFactors, factors[i], i, known[i]);
  }
}

// Of the dense families.
void parse_grouped_attention(const GgufFile& file, const Keys& keys, ModelConfig& config) {
  config.model_type = keys.architecture();
  config.attention_bias = config.model_type == kQwen2;
  config.rope_interleave = false;
  config.num_key_value_heads = keys.integer_or("attention.head_count_kv", config.num_attention_heads);
  if (config.num_key_value_heads < 1) {
    throw Error("{}: {} is {}, must be 1 or more", keys.where(), keys.full("attention.head_count_kv"),
                config.num_key_value_heads);
  }
  const int64_t heads = config.num_attention_heads;
  config.head_dim = keys.integer_or("attention.key_length", heads > 0 ? config.hidden_size / heads : 0);
  for (const char* const key : {"attention.value_length", "rope.dimension_count"}) {
    if (keys.integer_or(key, config.head_dim) == config.head_dim) continue;
    throw Error("{}: {} is {}; only the heads' size, {}, is supported", keys.where(), keys.full(key), keys.integer(key),
                config.head_dim);
  }
  for (const char* const key : {"expert_count", "nextn_predict_layers"}) {
    if (keys.integer_or(key, 0) != 0) throw Error("{}: {} is not supported", keys.where(), keys.full(key));
  }
  // Parts of a split may have the head elsewhere; then it is taken for a copy.
  config.tie_word_embeddings = split_count(file) < 2 && file.find("output.weight") == nullptr;
}

void parse_latent_attention(const Keys& keys, ModelConfig& config) {
  config.qk_rope_head_dim = keys.integer("rope.dimension_count");
  config.q_lora_rank = keys.integer_or("attention.q_lora_rank", 0);
  config.kv_lora_rank = keys.integer("attention.kv_lora_rank");
  // Older files, with attn_kv_b in one, have the heads' sizes under the shorter names.
  const bool split = keys.has("attention.key_length_mla");
  config.qk_nope_head_dim =
      keys.integer(split ? "attention.key_length_mla" : "attention.key_length") - config.qk_rope_head_dim;
  config.v_head_dim = keys.integer(split ? "attention.value_length_mla" : "attention.value_length");
  if (keys.integer_or("expert_count", 0) == 0) return;
  config.first_k_dense_replace = keys.integer_or("leading_dense_block_count", 0);
  config.moe_intermediate_size = keys.integer("expert_feed_forward_length");
  config.n_shared_experts = keys.integer_or("expert_shared_count", 0);
  parse_router(keys, config);
}

int64_t token_id(const GgufFile& file, std::string_view key, int64_t vocab_size) {
  const int64_t id = file.integer(key);
  if (id < 0 || id >= vocab_size) {
    throw Error("{}: {} {} is no id of the vocabulary of {}", file.where(), key, id, vocab_size);
  }
  return id;
}

}  // namespace

std::string_view gguf_architecture(const ModelConfig& config) {
  if (!config.is_mla()) return config.model_type;
  return config.is_sparse() ? kSparse : kDense;
}

std::vector<float> rope_factors(const ModelConfig& config) {
  Rope scaled = make_rope(config.head_dim, config.rope_theta, /*interleaved=*/false, {});
  const Rope plain = scaled;
  scale_as_llama3(scaled, *config.llama3_scaling);
  std::vector<float> factors;
  for (size_t i = 0; i < plain.inv_freq.size(); ++i) factors.push_back(plain.inv_freq[i] / scaled.inv_freq[i]);
  return factors;
}

bool is_gguf_path(const fs::path& path) {
  const std::string extension = path.extension();
  return (extension == ".gguf" || extension == ".GGUF") && !path_is_directory(path);
}

GgufFile open_gguf_metadata(const fs::path& path) {
  GgufFile file(path);
  const int64_t count = split_count(file);
  if (count < 2 || file.integer("split.no") == 0) return file;
  return open_shard(split_name(file, path, count), 0);
}

ModelConfig parse_gguf_config(const GgufFile& file) {
  const Keys keys(file);
  ModelConfig config;
  const bool has_tokens = file.has("tokenizer.ggml.tokens");
  const auto n_tokens = static_cast<int64_t>(has_tokens ? file.texts("tokenizer.ggml.tokens").size() : 0);
  config.vocab_size = keys.integer_or("vocab_size", n_tokens);
  if (has_tokens && n_tokens != config.vocab_size) {
    throw Error("{}: tokenizer.ggml.tokens has {} entries, but the model's vocabulary is {}", file.where(), n_tokens,
                config.vocab_size);
  }
  config.hidden_size = keys.integer("embedding_length");
  config.num_nextn_predict_layers = keys.has_grouped_queries() ? 0 : keys.integer_or("nextn_predict_layers", 0);
  config.num_hidden_layers = keys.integer("block_count") - config.num_nextn_predict_layers;
  config.num_attention_heads = keys.integer("attention.head_count");
  config.intermediate_size = keys.integer("feed_forward_length");
  config.max_position_embeddings = keys.integer("context_length");
  config.rms_norm_eps = keys.number("attention.layer_norm_rms_epsilon");
  parse_rope(keys, config);
  if (keys.has_grouped_queries()) {
    parse_grouped_attention(file, keys, config);
  } else {
    parse_latent_attention(keys, config);
  }
  if (keys.is_sparse()) {
    config.model_type = "deepseek_v32";
    config.indexer = {keys.integer("attention.indexer.head_count"), keys.integer("attention.indexer.key_length"),
                      keys.integer("attention.indexer.top_k")};
    if (config.indexer.n_heads < 1) {
      throw Error("{}: {} is {}, must be 1 or more", keys.where(), keys.full("attention.indexer.head_count"),
                  config.indexer.n_heads);
    }
  }
  check_config(config, file.where());
  parse_rope_factors(file, config);

  if (file.has("tokenizer.ggml.bos_token_id")) {
    config.bos_token_id = token_id(file, "tokenizer.ggml.bos_token_id", config.vocab_size);
  }
  for (const std::string_view key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (!file.has(key)) continue;
    const int64_t id = token_id(file, key, config.vocab_size);
    auto& ids = config.eos_token_ids;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return config;
}

WeightFile gguf_weights(GgufFile file) {
  std::vector<StoredTensor> tensors;
  for (StoredTensor tensor : file.tensors()) {
    const auto [layer, rest] = cut_layer(tensor.name, kBlock);
    if (layer.empty()) {
      if (const std::string_view hf = to_hf(kModelNames, tensor.name); !hf.empty()) tensor.name = hf;
      tensors.push_back(std::move(tensor));
    } else if (const std::string_view expert = to_hf(kExpertNames, rest); !expert.empty()) {
      unstack(tensor, layer, expert, file.where(), tensors);
    } else {
      // One head more or less is one row more or less: [heads, out, in] -> [heads * out, in].
      if ((rest == "attn_k_b.weight" || rest == "attn_v_b.weight") && tensor.shape.size() == 3) {
        tensor.shape = {tensor.shape[0] * tensor.shape[1], tensor.shape[2]};  // checked by the reader
      }
      if (const std::string_view hf = to_hf(kLayerNames, rest); !hf.empty()) {
        tensor.name = fmt::format("{}{}.{}", kLayer, layer, hf);
      }
      tensors.push_back(std::move(tensor));
    }
  }
  std::string where = file.where();
  return {std::move(where), std::move(tensors), std::move(file).take_mapping()};
}

std::string gguf_name(std::string_view hf_name) {
  const auto [layer, rest] = cut_layer(hf_name, kLayer);
  std::string_view name;
  if (layer.empty()) {
    name = to_gguf(kModelNames, hf_name);
  } else if (rest.starts_with(kExperts)) {
    const std::string_view behind = rest.substr(kExperts.size());
    name = to_gguf(kExpertNames, behind.substr(std::min(behind.find('.'), behind.size() - 1) + 1));
  } else {
    name = to_gguf(kLayerNames, rest);
  }
  FATHOM_CHECK(!name.empty(), "{}", hf_name);
  return layer.empty() ? std::string(name) : fmt::format("{}{}.{}", kBlock, layer, name);
}

Checkpoint open_gguf(const fs::path& path) {
  GgufFile opened(path);
  Checkpoint checkpoint;
  checkpoint.is_gguf = true;
  const int64_t count = split_count(opened);
  checkpoint.where = opened.where();
  if (count < 2) {
    checkpoint.add(gguf_weights(std::move(opened)));
  } else {
    const SplitName split = split_name(opened, path, count);
    checkpoint.where = printable(split.shard(0).native());
    size_t n_tensors = 0;
    std::optional<int64_t> expected;
    for (int64_t i = 0; i < count; ++i) {
      GgufFile shard = open_shard(split, i);
      n_tensors += shard.tensors().size();
      if (!expected && shard.has("split.tensors.count")) expected = shard.integer("split.tensors.count");
      checkpoint.add(gguf_weights(std::move(shard)));
    }
    if (expected && *expected != static_cast<int64_t>(n_tensors)) {
      throw Error("{}: split.tensors.count is {}, the {} files hold {} tensors", checkpoint.where, *expected, count,
                  n_tensors);
    }
  }
  checkpoint.tie("lm_head.weight", "model.embed_tokens.weight");
  return checkpoint;
}

std::optional<GgufTokenizer> find_gguf_tokenizer(const GgufFile& file) {
  if (!file.has("tokenizer.ggml.model")) return std::nullopt;
  const std::string_view model = file.text("tokenizer.ggml.model");
  if (model != "gpt2") {
    throw Error("{}: tokenizer.ggml.model {} is not supported; only gpt2, byte-level BPE, is", file.where(),
                printable(model, 80));
  }
  GgufTokenizer tokenizer;
  tokenizer.pretokenizer = file.text("tokenizer.ggml.pre");
  tokenizer.tokens = file.texts("tokenizer.ggml.tokens");
  tokenizer.types = file.has("tokenizer.ggml.token_type") ? file.integers("tokenizer.ggml.token_type")
                                                          : std::vector<int64_t>(tokenizer.tokens.size(), 1);
  if (tokenizer.types.size() != tokenizer.tokens.size()) {
    throw Error("{}: tokenizer.ggml.token_type has {} entries, tokenizer.ggml.tokens {}", file.where(),
                tokenizer.types.size(), tokenizer.tokens.size());
  }
  tokenizer.merges = file.texts("tokenizer.ggml.merges");
  const auto n = static_cast<int64_t>(tokenizer.tokens.size());
  if (file.has("tokenizer.ggml.bos_token_id")) tokenizer.bos = token_id(file, "tokenizer.ggml.bos_token_id", n);
  if (file.has("tokenizer.ggml.add_bos_token")) tokenizer.add_bos = file.boolean("tokenizer.ggml.add_bos_token");
  if (file.has("tokenizer.ggml.eos_token_id")) tokenizer.eos = token_id(file, "tokenizer.ggml.eos_token_id", n);
  tokenizer.chat_template = file.text_or("tokenizer.chat_template", "");
  return tokenizer;
}

}  // namespace fathom
