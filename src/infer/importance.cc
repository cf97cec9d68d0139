#include "infer/importance.h"

#include <algorithm>

#include "checkpoint/gguf_model.h"

namespace fathom {
namespace {

constexpr int64_t kGroupTokens = 2048;  // run together: what one layer keeps of them is in memory

// Adds up the inputs of one matrix after the other. A sum's order depends on the shapes alone.
struct Sums {
  Context& ctx;
  Imatrix& imatrix;

  ImatrixEntry& entry(const std::string& hf_name, int64_t matrices, int64_t cols) {
    ImatrixEntry& e = imatrix.entries[gguf_name(hf_name)];
    if (e.cols == 0) {
      e.cols = cols;
      e.sums.resize(static_cast<size_t>(matrices * cols));
      e.counts.resize(static_cast<size_t>(matrices));
    }
    return e;
  }

  // sums[i] += sum over rows of row(r)[i]^2, for `cols` columns.
  template <class Row>
  static void add_squares(float* sums, int64_t n_rows, int64_t cols, const Row& row) {
    std::vector<double> squares(static_cast<size_t>(cols));
    for (int64_t r = 0; r < n_rows; ++r) {
      const float* x = row(r);
      for (size_t i = 0; i < squares.size(); ++i) squares[i] += static_cast<double>(x[i]) * x[i];
    }
    for (size_t i = 0; i < squares.size(); ++i) sums[i] += static_cast<float>(squares[i]);
  }

  // x: [tokens, cols]
  void add(const std::string& hf_name, Tensor x, int64_t matrices = 1, int64_t matrix = 0) {
    ImatrixEntry& e = entry(hf_name, matrices, x.cols());
    e.counts[static_cast<size_t>(matrix)] += static_cast<float>(x.rows());
    float* sums = e.sums.data() + matrix * e.cols;
    ctx.pool.parallel_for(0, x.cols(), 64, [&](int64_t begin, int64_t end) {
      add_squares(sums + begin, x.rows(), end - begin, [&](int64_t t) { return x.f32_row(t) + begin; });
    });
  }
  // x: [tokens, cols] (by_token) or [slots, cols], sorted by expert.
  void add_experts(const std::string& hf_name, Tensor x, const Dispatch& d, bool by_token) {
    const int64_t experts = d.offsets.cols() - 1;
    ImatrixEntry& e = entry(hf_name, experts, x.cols());
    ctx.pool.parallel_for(0, experts, 1, [&](int64_t expert, int64_t) {
      const int32_t begin = d.offsets.i32()[expert], n = d.offsets.i32()[expert + 1] - begin;
      e.counts[static_cast<size_t>(expert)] += static_cast<float>(n);
      add_squares(e.sums.data() + expert * x.cols(), n, x.cols(),
                  [&](int64_t i) { return x.f32_row(by_token ? d.token_of.i32()[begin + i] : begin + i); });
    });
  }

  void add_latent_attention(const ModelConfig& config, const std::string& attention, const MlaSaved& a) {
    if (config.q_lora_rank > 0) {
      add(attention + "q_a_proj.weight", a.input);
      add(attention + "q_b_proj.weight", a.q_latent);
    } else {
      add(attention + "q_proj.weight", a.input);
    }
    if (config.is_sparse()) {
      add(attention + "indexer.wq_b.weight", a.q_latent);
      add(attention + "indexer.wk.weight", a.input);
      add(attention + "indexer.weights_proj.weight", a.input);
    }
    add(attention + "kv_a_proj_with_mqa.weight", a.input);
    add(attention + "kv_b_proj.weight", a.latent);
    for (int64_t h = 0; h < config.num_attention_heads; ++h) {
      add(attention + "k_b_proj.weight", a.q.columns(h * config.qk_head_dim(), config.qk_nope_head_dim),
          config.num_attention_heads, h);
    }
  }

  void add_layer(const ModelConfig& config, int64_t layer, const LayerSaved& s) {
    const std::string prefix = fmt::format("model.layers.{}.", layer), attention = prefix + "self_attn.";
    const MlaSaved& a = s.attention;
    if (config.is_mla()) {
      add_latent_attention(config, attention, a);
    } else {
      for (const char* const matrix : {"q_proj.weight", "k_proj.weight", "v_proj.weight"}) {
        add(attention + matrix, a.input);
      }
    }
    add(attention + "o_proj.weight", a.o);
    const auto add_mlp = [&](const std::string& mlp, const MlpSaved& saved) {
      add(mlp + "gate_proj.weight", saved.input);
      add(mlp + "up_proj.weight", saved.input);
      add(mlp + "down_proj.weight", saved.activated);
    };
    if (!s.moe.topk_ids) return add_mlp(prefix + "mlp.", s.mlp);
    const std::string experts = prefix + "mlp.experts.0.";
    add_experts(experts + "gate_proj.weight", s.moe.input, s.moe.dispatch, true);
    add_experts(experts + "up_proj.weight", s.moe.input, s.moe.dispatch, true);
    add_experts(experts + "down_proj.weight", s.moe.activated, s.moe.dispatch, false);
    if (config.n_shared_experts > 0) add_mlp(prefix + "mlp.shared_experts.", s.moe.shared);
  }
};

}  // namespace

Imatrix measure_importance(Context& ctx, const Model& model, std::span<const std::vector<int32_t>> sequences,
                           const OnTokens& on_tokens) {
  const ModelConfig& config = model.config;
  check_sequences(config, sequences);
  Imatrix imatrix;
  Sums sums{ctx, imatrix};
  const auto add_group = [&](const Batch& batch) {
    const LayerVisit visit = [&](int64_t layer, const LayerSaved& saved) { sums.add_layer(config, layer, saved); };
    Tensor hidden = forward(ctx, model, batch, {.on_layer = &visit});
    sums.add(config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", hidden);
    MtpSaved saved;
    const std::vector<MtpInput> inputs = make_mtp_inputs(ctx, model, batch);
    for (size_t m = 0; m < inputs.size(); ++m) {
      hidden = mtp_forward(ctx, model, model.weights.mtp[m], inputs[m], hidden, {.saved = &saved});
      const int64_t layer = config.num_hidden_layers + static_cast<int64_t>(m);
      sums.add(fmt::format("model.layers.{}.eh_proj.weight", layer), saved.concatenated);
      sums.add_layer(config, layer, saved.layer);
    }
  };
  for_each_group(ctx, sequences, kGroupTokens, add_group, on_tokens);
  for (const auto& ids : sequences) imatrix.chunk_tokens = std::max(imatrix.chunk_tokens, std::ssize(ids));
  imatrix.chunks = std::ssize(sequences);
  fit_imatrix(imatrix, config);
  return imatrix;
}

std::vector<ExpertCoverage> expert_coverage(const Imatrix& imatrix, const ModelConfig& config) {
  std::vector<ExpertCoverage> coverage;
  for (int64_t l = 0; l < config.num_hidden_layers + config.num_nextn_predict_layers; ++l) {
    const auto found = imatrix.entries.find(fmt::format("blk.{}.ffn_down_exps.weight", l));
    if (found == imatrix.entries.end()) continue;
    const std::vector<float>& counts = found->second.counts;
    coverage.push_back({l, {counts.begin(), counts.end()}});
  }
  return coverage;
}

}  // namespace fathom
