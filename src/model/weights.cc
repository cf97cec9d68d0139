#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "base/arithmetic.h"
#include "ops/device.h"

namespace fathom {
namespace {

// Every tensor begins at a cache line.
constexpr int64_t kAlignFloats = static_cast<int64_t>(kAlignment / sizeof(float));

// Hands out tensors one behind the other, from `base` (which may be null: then only the sizes count).
struct Layout {
  float* base = nullptr;
  int64_t used = 0;  // floats

  Tensor take(std::initializer_list<int64_t> shape) {
    Tensor t(nullptr, Format::f32, shape);
    t.data = base == nullptr ? nullptr : base + used;
    used += round_up(t.size(), kAlignFloats);
    return t;
  }
};

MlaWeights take_attention(Layout& layout, const ModelConfig& c) {
  MlaWeights w;
  const int64_t h = c.hidden_size, heads = c.num_attention_heads;
  if (c.q_lora_rank > 0) {
    w.q_a = layout.take({c.q_lora_rank, h});
    w.q_a_norm = layout.take({c.q_lora_rank});
  }
  w.q_b = layout.take({heads * c.qk_head_dim(), c.q_lora_rank > 0 ? c.q_lora_rank : h});
  w.kv_a = layout.take({c.cache_row(), h});
  w.kv_a_norm = layout.take({c.kv_lora_rank});
  w.kv_b = layout.take({heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank});
  w.o = layout.take({h, heads * c.v_head_dim});
  return w;
}

GqaWeights take_grouped_attention(Layout& layout, const ModelConfig& c) {
  const int64_t h = c.hidden_size, q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  GqaWeights w;
  w.q = layout.take({q, h});
  w.k = layout.take({kv, h});
  w.v = layout.take({kv, h});
  if (c.attention_bias) {
    w.q_bias = layout.take({q});
    w.k_bias = layout.take({kv});
    w.v_bias = layout.take({kv});
  }
  w.o = layout.take({h, q});
  return w;
}

void take_indexer(Layout& layout, const ModelConfig& c, LayerWeights& layer) {
  if (!c.is_sparse() || !layer.input_norm) return;
  const auto& [n_heads, head_dim, topk] = c.indexer;
  IndexerWeights& w = layer.attention.indexer;
  w.q_b = layout.take({n_heads * head_dim, c.q_lora_rank});
  w.k = layout.take({head_dim, c.hidden_size});
  w.k_norm = layout.take({head_dim});
  w.k_bias = layout.take({head_dim});
  w.head_weights = layout.take({n_heads, c.hidden_size});
}

MlpWeights take_mlp(Layout& layout, int64_t hidden, int64_t inter) {
  MlpWeights w;
  w.gate_up = layout.take({2 * inter, hidden});
  w.down = layout.take({hidden, inter});
  return w;
}

void take_experts(Layout& layout, const ModelConfig& c, const WeightPart& part, MoeWeights& moe) {
  const int64_t inter = c.moe_intermediate_size;
  const int64_t here = std::min(part.end_expert, c.router.n_routed_experts) - part.first_expert;
  moe.first_expert = part.first_expert;
  moe.gate_up = layout.take({here, 2 * inter, c.hidden_size});
  moe.down = layout.take({here, c.hidden_size, inter});
}

LayerWeights take_layer(Layout& layout, const ModelConfig& c, bool is_moe, const WeightPart& part) {
  LayerWeights w;
  const int64_t h = c.hidden_size, inter = c.moe_intermediate_size, experts = c.router.n_routed_experts;
  w.input_norm = layout.take({h});
  if (c.is_mla()) {
    w.attention = take_attention(layout, c);
  } else {
    w.gqa = take_grouped_attention(layout, c);
  }
  w.post_attention_norm = layout.take({h});
  if (!is_moe) {
    w.mlp = take_mlp(layout, h, c.intermediate_size);
    return w;
  }
  w.moe.gate = layout.take({experts, h});
  if (!part.experts_last) take_experts(layout, c, part, w.moe);
  if (c.n_shared_experts > 0) w.moe.shared = take_mlp(layout, h, c.n_shared_experts * inter);
  return w;
}

// Fills in where in p the parts of the trained parameters begin.
ModelWeights take_trained(Layout& layout, const ModelConfig& c, const WeightPart& part, Parameters& p) {
  ModelWeights w;
  const int64_t begin = layout.used;
  if (part.embed) w.embed = layout.take({c.vocab_size, c.hidden_size});
  p.n_embed = layout.used - begin;
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const bool is_here = l >= part.first_layer && l < part.end_layer;
    w.layers.push_back(is_here ? take_layer(layout, c, c.is_moe(l), part) : LayerWeights{});
  }
  if (part.head) {
    w.norm = layout.take({c.hidden_size});
    FATHOM_CHECK(part.embed || !c.tie_word_embeddings);
    w.head = c.tie_word_embeddings ? w.embed : layout.take({c.vocab_size, c.hidden_size});
    for (int64_t m = 0; m < c.num_nextn_predict_layers; ++m) {
      MtpWeights mtp;
      mtp.enorm = layout.take({c.hidden_size});
      mtp.hnorm = layout.take({c.hidden_size});
      mtp.eh_proj = layout.take({c.hidden_size, 2 * c.hidden_size});
      mtp.layer = take_layer(layout, c, true, part);
      mtp.norm = layout.take({c.hidden_size});
      w.mtp.push_back(mtp);
    }
  }
  p.indexers_begin = layout.used - begin;
  for (LayerWeights& layer : w.layers) take_indexer(layout, c, layer);
  for (MtpWeights& mtp : w.mtp) take_indexer(layout, c, mtp.layer);
  p.indexers_end = p.experts_begin = layout.used - begin;
  if (!part.experts_last) return w;
  for (LayerWeights& layer : w.layers) {
    if (layer.moe.gate) take_experts(layout, c, part, layer.moe);
  }
  for (MtpWeights& mtp : w.mtp) take_experts(layout, c, part, mtp.layer.moe);
  return w;
}

void take_biases(Layout& layout, const ModelConfig& c, ModelWeights& w) {
  if (c.router.method != TopkMethod::noaux_tc) return;
  const auto take = [&](MoeWeights& moe) { moe.e_score_correction_bias = layout.take({c.router.n_routed_experts}); };
  for (LayerWeights& layer : w.layers) {
    if (layer.moe.gate) take(layer.moe);
  }
  for (auto& mtp : w.mtp) take(mtp.layer.moe);
}

using Visit = std::function<void(const NamedTensor&)>;

void visit_mlp(const MlpWeights& w, const std::string& prefix, const Visit& visit) {
  const int64_t inter = w.gate_up.shape[0] / 2;
  visit({prefix + "gate_proj.weight", w.gate_up.slice(0, inter), true});
  visit({prefix + "up_proj.weight", w.gate_up.slice(inter, inter), true});
  visit({prefix + "down_proj.weight", w.down, true});
}

void visit_grouped_attention(const GqaWeights& w, const std::string& attention, const Visit& visit) {
  visit({attention + "q_proj.weight", w.q, true});
  visit({attention + "k_proj.weight", w.k, true});
  visit({attention + "v_proj.weight", w.v, true});
  if (w.q_bias) {
    visit({attention + "q_proj.bias", w.q_bias, true});
    visit({attention + "k_proj.bias", w.k_bias, true});
    visit({attention + "v_proj.bias", w.v_bias, true});
  }
  visit({attention + "o_proj.weight", w.o, true});
}

void visit_latent_attention(const MlaWeights& a, const std::string& attention, const Visit& visit) {
  if (a.q_a) {
    visit({attention + "q_a_proj.weight", a.q_a, true});
    visit({attention + "q_a_layernorm.weight", a.q_a_norm, true});
  }
  visit({attention + (a.q_a ? "q_b_proj.weight" : "q_proj.weight"), a.q_b, true});
  visit({attention + "kv_a_proj_with_mqa.weight", a.kv_a, true});
  visit({attention + "kv_a_layernorm.weight", a.kv_a_norm, true});
  visit({attention + "kv_b_proj.weight", a.kv_b, true});
  visit({attention + "o_proj.weight", a.o, true});
  if (a.indexer.q_b) {
    const std::string indexer = attention + "indexer.";
    visit({indexer + "wq_b.weight", a.indexer.q_b, true});
    visit({indexer + "wk.weight", a.indexer.k, true});
    visit({indexer + "k_norm.weight", a.indexer.k_norm, true});
    visit({indexer + "k_norm.bias", a.indexer.k_bias, true});
    visit({indexer + "weights_proj.weight", a.indexer.head_weights, true});
  }
}

void visit_layer(const LayerWeights& w, const std::string& prefix, const Visit& visit) {
  visit({prefix + "input_layernorm.weight", w.input_norm, true});
  if (w.gqa.q) {
    visit_grouped_attention(w.gqa, prefix + "self_attn.", visit);
  } else {
    visit_latent_attention(w.attention, prefix + "self_attn.", visit);
  }
  visit({prefix + "post_attention_layernorm.weight", w.post_attention_norm, true});
  if (!w.moe.gate) {
    visit_mlp(w.mlp, prefix + "mlp.", visit);
    return;
  }
  visit({prefix + "mlp.gate.weight", w.moe.gate, true});
  if (w.moe.e_score_correction_bias) {
    visit({prefix + "mlp.gate.e_score_correction_bias", w.moe.e_score_correction_bias, false});
  }
  for (int64_t e = 0; e < w.moe.gate_up.shape[0]; ++e) {
    const std::string of_expert = prefix + fmt::format("mlp.experts.{}.", w.moe.first_expert + e);
    visit_mlp({w.moe.gate_up[e], w.moe.down[e]}, of_expert, visit);
  }
  if (w.moe.shared.gate_up) visit_mlp(w.moe.shared, prefix + "mlp.shared_experts.", visit);
}

}  // namespace

Parameters allocate_parameters(const ModelConfig& config, bool with_bias, const WeightPart& part,
                               const Device* device) {
  Layout sizes{reinterpret_cast<float*>(kAlignment)};  // NOLINT(performance-no-int-to-ptr): present, though nowhere
  Parameters p;
  ModelWeights shapes = take_trained(sizes, config, part, p);
  p.n_trained = sizes.used;
  if (with_bias) take_biases(sizes, config, shapes);
  p.n_total = sizes.used;
  p.memory = allocate_where(device, static_cast<size_t>(p.n_total) * sizeof(float));
  if (device != nullptr) device->fill_zero(*device, p.memory.data(), p.memory.size());
  Layout layout{static_cast<float*>(p.memory.data())};
  p.weights = take_trained(layout, config, part, p);
  if (with_bias) take_biases(layout, config, p.weights);
  return p;
}

int64_t trained_floats(const ModelConfig& config) {
  Layout sizes;
  Parameters places;
  take_trained(sizes, config, {}, places);
  return sizes.used;
}

ModelWeights weight_shapes(const ModelConfig& config) {
  Layout layout{reinterpret_cast<float*>(kAlignment)};  // NOLINT(performance-no-int-to-ptr): present, though nowhere
  Parameters places;
  ModelWeights weights = take_trained(layout, config, {}, places);
  take_biases(layout, config, weights);
  return weights;
}

void for_each_weight(ModelWeights& weights, const std::function<void(WeightKind, Tensor&)>& visit) {
  const auto visit_present = [&](WeightKind kind, Tensor& tensor) {
    if (tensor) visit(kind, tensor);
  };
  const auto visit_layer = [&](LayerWeights& w) {
    using enum WeightKind;
    MlaWeights& a = w.attention;
    visit_present(norm, w.input_norm);
    visit_present(attention, a.q_a);
    visit_present(norm, a.q_a_norm);
    visit_present(attention, a.q_b);
    visit_present(attention, a.kv_a);
    visit_present(norm, a.kv_a_norm);
    if (!w.gqa.q) {
      visit(kv_b, a.kv_b);
      visit(k_b, a.k_b);
    }
    visit_present(attention, w.gqa.q);
    visit_present(attention, w.gqa.k);
    visit_present(values, w.gqa.v);
    visit_present(bias, w.gqa.q_bias);
    visit_present(bias, w.gqa.k_bias);
    visit_present(bias, w.gqa.v_bias);
    visit_present(attention, w.gqa.o);
    visit_present(attention, a.o);
    visit_present(indexer, a.indexer.q_b);
    visit_present(indexer, a.indexer.k);
    visit_present(norm, a.indexer.k_norm);
    visit_present(norm_bias, a.indexer.k_bias);
    visit_present(head_weights, a.indexer.head_weights);
    visit_present(norm, w.post_attention_norm);
    visit_present(dense, w.mlp.gate_up);
    visit_present(dense, w.mlp.down);
    visit_present(router, w.moe.gate);
    visit_present(router_bias, w.moe.e_score_correction_bias);
    visit_present(experts, w.moe.gate_up);
    visit_present(experts_down, w.moe.down);
    visit_present(shared, w.moe.shared.gate_up);
    visit_present(shared, w.moe.shared.down);
  };
  visit(WeightKind::embedding, weights.embed);
  for (LayerWeights& layer : weights.layers) visit_layer(layer);
  visit(WeightKind::norm, weights.norm);
  visit(WeightKind::head, weights.head);
  for (MtpWeights& mtp : weights.mtp) {
    visit(WeightKind::norm, mtp.enorm);
    visit(WeightKind::norm, mtp.hnorm);
    visit(WeightKind::mtp_projection, mtp.eh_proj);
    visit_layer(mtp.layer);
    visit(WeightKind::norm, mtp.norm);
  }
}

void for_each_tensor(const ModelWeights& w, const ModelConfig& config, const Visit& visit) {
  if (w.embed) visit({"model.embed_tokens.weight", w.embed, true});
  for (size_t l = 0; l < w.layers.size(); ++l) {
    if (w.layers[l].input_norm) visit_layer(w.layers[l], fmt::format("model.layers.{}.", l), visit);
  }
  if (w.norm) visit({"model.norm.weight", w.norm, true});
  if (w.head && !config.tie_word_embeddings) visit({"lm_head.weight", w.head, true});
  for (size_t m = 0; m < w.mtp.size(); ++m) {
    const MtpWeights& mtp = w.mtp[m];
    const std::string prefix = fmt::format("model.layers.{}.", config.num_hidden_layers + static_cast<int64_t>(m));
    visit({prefix + "enorm.weight", mtp.enorm, true});
    visit({prefix + "hnorm.weight", mtp.hnorm, true});
    visit({prefix + "eh_proj.weight", mtp.eh_proj, true});
    visit_layer(mtp.layer, prefix, visit);
    visit({prefix + "shared_head.norm.weight", mtp.norm, true});
  }
}

void initialize(Parameters& parameters, const ModelConfig& config, uint64_t seed) {
  // One a tensor, so that adding a layer leaves the others' draws alone.
  std::unordered_map<std::string, uint64_t> streams;
  for_each_tensor(weight_shapes(config), config,
                  [&](const NamedTensor& named) { streams.emplace(named.name, streams.size() + 1); });
  for_each_tensor(parameters.weights, config, [&](const NamedTensor& named) {
    Rng rng(seed, streams.at(named.name));
    const bool zero = !named.trained || named.name.ends_with(".bias"), norm = named.view.rank == 1;
    for (int64_t i = 0; i < named.view.rows(); ++i) {
      for (float& x : std::span(named.view.f32_row(i), static_cast<size_t>(named.view.cols()))) {
        x = zero ? 0.0f : norm ? 1.0f : static_cast<float>(config.initializer_range * rng.normal());
      }
    }
  });
}

}  // namespace fathom
