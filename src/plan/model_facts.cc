#include "plan/model_facts.h"

#include <algorithm>

#include "base/arithmetic.h"
#include "base/error.h"
#include "base/json.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/packed_model.h"
#include "checkpoint/packing.h"
#include "model/weights.h"
#include "ops/indexer.h"
#include "ops/latent_rows.h"
#include "plan/embedded.h"

namespace fathom::plan {
namespace {

constexpr std::string_view kModels[] = {"deepseek-v3",    "deepseek-r1",      "deepseek-v3.1",     "deepseek-v3.2",
                                        "deepseek-v2",    "deepseek-v2-lite", "moonlight-16b-a3b", "deepseek-67b",
                                        "llama-3.1-405b", "llama-3.1-70b",    "llama-3.1-8b",      "qwen2.5-72b"};
constexpr std::string_view kRecipeNames[] = {"f32",    "bf16", "f16",    "fp8",  "q8_0", "q6_k",
                                             "q5_k_m", "q5_k", "q4_k_m", "q4_k", "q4_0"};
constexpr std::pair<std::string_view, Format> kCacheFormats[] = {{"f32", Format::f32},
                                                                 {"bf16", Format::bf16},
                                                                 {"f16", Format::f16},
                                                                 {"fp8", Format::f8_e4m3},
                                                                 {"int8", Format::q8_0}};

int64_t size(const Tensor& t) { return t ? t.size() : 0; }
int64_t attention_size(const LayerWeights& w) {
  const MlaWeights& a = w.attention;
  return size(a.q_a) + size(a.q_a_norm) + size(a.q_b) + size(a.kv_a) + size(a.kv_a_norm) + size(a.kv_b) + size(a.o) +
         size(w.gqa.q) + size(w.gqa.k) + size(w.gqa.v) + size(w.gqa.q_bias) + size(w.gqa.k_bias) + size(w.gqa.v_bias) +
         size(w.gqa.o);
}
int64_t indexer_size(const IndexerWeights& w) {
  return size(w.q_b) + size(w.k) + size(w.k_norm) + size(w.k_bias) + size(w.head_weights);
}
int64_t norm_size(const LayerWeights& w) { return size(w.input_norm) + size(w.post_attention_norm); }
int64_t mlp_size(const MlpWeights& w) { return size(w.gate_up) + size(w.down); }

// Of one layer, and of the kinds of layers that there are.
void count_parameters(Values& v, const ModelConfig& config, const ModelWeights& w) {
  const auto set = [&](const char* name, int64_t n) { v[name] = static_cast<double>(n); };
  set("embedding_parameters", size(w.embed));
  set("head_parameters", config.tie_word_embeddings ? 0 : size(w.head));
  set("head_values", size(w.embed));  // multiplied with, be they stored twice or once
  set("final_norm_parameters", size(w.norm));
  const LayerWeights& last = w.layers.back();
  set("attention_layer_parameters", attention_size(last));
  set("indexer_layer_parameters", indexer_size(last.attention.indexer));
  set("norms_layer_parameters", norm_size(last));
  int64_t dense_layers = 0, dense = 0, router = 0, bias = 0, expert = 0, shared = 0;
  for (const LayerWeights& layer : w.layers) {
    if (!layer.moe.gate) {
      ++dense_layers;
      dense = mlp_size(layer.mlp);
      continue;
    }
    router = size(layer.moe.gate) + size(layer.moe.e_score_correction_bias);
    bias = size(layer.moe.e_score_correction_bias);
    expert = (size(layer.moe.gate_up) + size(layer.moe.down)) / config.router.n_routed_experts;
    shared = mlp_size(layer.moe.shared);
  }
  set("dense_layers", dense_layers);
  set("moe_layers", config.num_hidden_layers - dense_layers);
  set("dense_mlp_layer_parameters", dense);
  set("router_layer_parameters", router);
  set("router_bias_layer_parameters", bias);
  set("expert_parameters", expert);
  set("shared_experts_layer_parameters", shared);
  int64_t own = 0, active = 0, projection = 0;
  for (const MtpWeights& module : w.mtp) {
    const LayerWeights& layer = module.layer;
    projection = size(module.eh_proj);
    const int64_t routed = size(layer.moe.gate_up) + size(layer.moe.down);
    const int64_t rest = size(module.enorm) + size(module.hnorm) + projection + size(module.norm) +
                         attention_size(layer) + indexer_size(layer.attention.indexer) + norm_size(layer) +
                         mlp_size(layer.mlp) + mlp_size(layer.moe.shared) + size(layer.moe.gate) +
                         size(layer.moe.e_score_correction_bias);
    own = rest + routed;
    active = rest + (routed > 0 ? routed / config.router.n_routed_experts * config.router.num_experts_per_tok : 0);
  }
  set("mtp_module_parameters", own);
  set("mtp_module_active_parameters", active);
  set("mtp_projection_parameters", projection);
}

struct PartBytes {
  int64_t embedding = 0, experts = 0, rest = 0, mtp = 0;
};
// In memory, as the kernels read them: panels filled up, k_b beside kv_b.
PartBytes packed_bytes(const ModelConfig& config, const Recipe& recipe) {
  ModelWeights weights = weight_shapes(config);
  const auto* mtp_begin = reinterpret_cast<const char*>(weights.mtp.data());
  const auto* mtp_end = reinterpret_cast<const char*>(weights.mtp.data() + weights.mtp.size());
  PartBytes bytes;
  for_each_weight(weights, [&](WeightKind kind, Tensor& slot) {
    const auto* place = reinterpret_cast<const char*>(&slot);
    if (kind == WeightKind::k_b) slot = packed_k_b(config);
    if (slot.rank == 0) return;
    shape_packed(slot, kind, config, recipe_format(recipe, kind));
    const int64_t n = slot.size_bytes();
    if (place >= mtp_begin && place < mtp_end) {
      bytes.mtp += n;
    } else if (kind == WeightKind::embedding) {
      bytes.embedding += n;
    } else if (kind == WeightKind::experts || kind == WeightKind::experts_down) {
      bytes.experts += n;
    } else {
      bytes.rest += n;
    }
  });
  return bytes;
}

// As DeepSeek's checkpoints on Hugging Face have them: matrices of layers in FP8 with an f32 scale for each 128 x 128
// of them, all else in bf16, correction biases in f32; an MTP module with copies of embedding and head.
struct PublishedBytes {
  double fp8 = 0, bf16 = 0;
};
PublishedBytes published_bytes(const ModelConfig& config) {
  PublishedBytes bytes;
  for_each_tensor(weight_shapes(config), config, [&](const NamedTensor& t) {
    const auto n = static_cast<double>(t.view.size());
    const double wide = t.trained ? 2 : 4;
    bytes.bf16 += wide * n;
    const bool in_layer = t.name.find(".layers.") != std::string::npos;
    const auto ends = [&](std::string_view end) { return t.name.ends_with(end); };
    const bool rounded = in_layer && t.view.rank == 2 && !ends("mlp.gate.weight") && !ends("eh_proj.weight") &&
                         !ends("weights_proj.weight");
    if (rounded) {
      bytes.fp8 += n + 4.0 * static_cast<double>(ceil_div(t.view.shape[0], 128) * ceil_div(t.view.shape[1], 128));
    } else {
      bytes.fp8 += wide * n;
    }
  });
  const double copies = 2.0 * 2.0 * static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden_size) *
                        static_cast<double>(config.num_nextn_predict_layers);
  return {bytes.fp8 + copies, bytes.bf16 + copies};
}

}  // namespace

ModelFacts model_facts(const ModelConfig& c, std::string name) {
  ModelFacts facts{std::move(name), {}, {}};
  Values& v = facts.values;
  const auto set = [&](const char* key, int64_t n) { v[key] = static_cast<double>(n); };
  set("vocab_size", c.vocab_size);
  set("hidden_size", c.hidden_size);
  set("layers", c.num_hidden_layers);
  set("heads", c.num_attention_heads);
  set("is_mla", c.is_mla() ? 1 : 0);
  set("is_moe", c.router.n_routed_experts > 0 ? 1 : 0);
  set("is_sparse", c.is_sparse() ? 1 : 0);
  set("q_lora_rank", c.q_lora_rank);
  set("kv_lora_rank", c.kv_lora_rank);
  set("qk_nope_head_dim", c.qk_nope_head_dim);
  set("qk_rope_head_dim", c.qk_rope_head_dim);
  // Of grouped-query attention both are head_dim.
  set("qk_head_dim", c.is_mla() ? c.qk_head_dim() : c.head_dim);
  set("v_head_dim", c.is_mla() ? c.v_head_dim : c.head_dim);
  set("kv_heads", c.is_mla() ? c.num_attention_heads : c.num_key_value_heads);
  set("cache_row_values", c.cache_row());
  set("intermediate_size", c.intermediate_size);
  set("moe_intermediate_size", c.moe_intermediate_size);
  set("experts", c.router.n_routed_experts);
  set("experts_chosen", c.router.n_routed_experts > 0 ? c.router.num_experts_per_tok : 0);
  set("shared_experts", c.n_shared_experts);
  set("expert_groups", c.router.n_group);
  set("groups_chosen", c.router.topk_group);
  set("mtp_modules", c.num_nextn_predict_layers);
  set("index_heads", c.indexer.n_heads);
  set("index_head_dim", c.is_sparse() ? c.indexer.head_dim : 0);
  set("index_topk", c.is_sparse() ? c.indexer.topk : 0);
  set("model_context", c.max_position_embeddings);
  // The largest power of two that the experts can be dealt out over.
  const int64_t n = c.router.n_routed_experts;
  set("experts_even_split", n > 0 ? n & -n : 1);
  count_parameters(v, c, weight_shapes(c));
  const PublishedBytes published = published_bytes(c);
  v["published_fp8_bytes"] = published.fp8;
  v["published_bf16_bytes"] = published.bf16;
  for (const std::string_view recipe : kRecipeNames) {
    const PartBytes bytes = packed_bytes(c, *find_recipe(recipe));
    v[fmt::format("weights_{}_bytes", recipe)] =
        static_cast<double>(bytes.embedding + bytes.experts + bytes.rest + bytes.mtp);
    facts.of_choice["weights"][std::string(recipe)] = {{"embedding_weight_bytes", static_cast<double>(bytes.embedding)},
                                                       {"expert_weight_bytes", static_cast<double>(bytes.experts)},
                                                       {"other_weight_bytes", static_cast<double>(bytes.rest)},
                                                       {"mtp_weight_bytes", static_cast<double>(bytes.mtp)}};
  }
  for (const auto& [type, format] : kCacheFormats) {
    const int64_t index =
        c.is_sparse() ? index_block_bytes({index_format(format), c.indexer.head_dim}) / kIndexBlock : 0;
    facts.of_choice["kv_type"][std::string(type)] = {
        {"cache_row_bytes", static_cast<double>(latent_row_bytes(c.cached_row(format)))},
        {"index_row_bytes", static_cast<double>(index)},
        {"cache_value_bytes", static_cast<double>(format == Format::f32                             ? 4
                                                  : format == Format::bf16 || format == Format::f16 ? 2
                                                                                                    : 1)}};
  }
  return facts;
}

std::vector<std::string> known_models() { return {std::begin(kModels), std::end(kModels)}; }

bool is_known_model(std::string_view name) {
  return std::find(std::begin(kModels), std::end(kModels), name) != std::end(kModels);
}

ModelConfig known_model(std::string_view name) {
  std::string_view file = name;
  if (name == "deepseek-r1" || name == "deepseek-v3.1") file = "deepseek-v3";  // the same shape
  const std::string_view text = embedded_file(fmt::format("models/{}.json", file));
  if (!is_known_model(name) || text.empty()) {
    throw UsageError("no model is known as '{}': one of {}, or a config.json or model directory", printable(name),
                     fmt::join(kModels, ", "));
  }
  return parse_config(JsonDocument::parse(text, std::string(name)));
}

}  // namespace fathom::plan
