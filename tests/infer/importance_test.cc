// The sums of an importance matrix are those of the inputs that forward keeps, taken token by token.
#include "infer/importance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/file.h"
#include "checkpoint/packed_model.h"
#include "infer/divergence.h"
#include "infer/score.h"
#include "model/tiny_models.h"
#include "sanitized.h"
#include "temporary_directory.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kOracle = fs::path(FATHOM_TEST_DATA) / "oracle";

class Importance : public testing::Test {
 protected:
  static std::vector<std::vector<int32_t>> random_sequences(const ModelConfig& config) {
    std::vector<std::vector<int32_t>> sequences;
    for (const int64_t n : {5, 40, 1, 23}) {
      sequences.push_back(random_ids(n, config.vocab_size, static_cast<uint64_t>(n)));
    }
    return sequences;
  }
  ThreadPool pool_{2};
  Arena arena_;
  Context ctx_{pool_, arena_};
};

// One matrix's sums, row by row.
struct Wanted {
  std::vector<double> sums;
  int64_t rows = 0;
  void add(const float* row, int64_t cols) {
    sums.resize(static_cast<size_t>(cols));
    for (int64_t c = 0; c < cols; ++c) sums[static_cast<size_t>(c)] += static_cast<double>(row[c]) * row[c];
    ++rows;
  }
};

void expect_sums(const Imatrix& got, const std::string& name, int64_t matrix, const Wanted& want) {
  const auto found = got.entries.find(name);
  ASSERT_NE(found, got.entries.end()) << name;
  const ImatrixEntry& entry = found->second;
  EXPECT_EQ(entry.counts.at(static_cast<size_t>(matrix)), want.rows) << name << " " << matrix;
  if (want.rows == 0) return;
  ASSERT_EQ(entry.cols, std::ssize(want.sums)) << name;
  for (int64_t c = 0; c < entry.cols; ++c) {
    const double sum = want.sums[static_cast<size_t>(c)];
    ASSERT_NEAR(entry.sums.at(static_cast<size_t>(matrix * entry.cols + c)), sum, 1e-5 * sum) << name << " " << matrix;
  }
}

Wanted rows_of(Tensor x) {
  Wanted want;
  for (int64_t t = 0; t < x.rows(); ++t) want.add(x.f32_row(t), x.cols());
  return want;
}

void expect_latent_attention(const Imatrix& got, const ModelConfig& config, const std::string& blk, const MlaSaved& a) {
  expect_sums(got, blk + (config.q_lora_rank > 0 ? "attn_q_a.weight" : "attn_q.weight"), 0, rows_of(a.input));
  if (config.q_lora_rank > 0) expect_sums(got, blk + "attn_q_b.weight", 0, rows_of(a.q_latent));
  if (config.is_sparse()) {
    expect_sums(got, blk + "indexer.attn_q_b.weight", 0, rows_of(a.q_latent));
    expect_sums(got, blk + "indexer.attn_k.weight", 0, rows_of(a.input));
    expect_sums(got, blk + "indexer.proj.weight", 0, rows_of(a.input));
  }
  expect_sums(got, blk + "attn_kv_a_mqa.weight", 0, rows_of(a.input));
  expect_sums(got, blk + "attn_kv_b.weight", 0, rows_of(a.latent));
  expect_sums(got, blk + "attn_v_b.weight", 0, rows_of(a.latent));
  for (int64_t h = 0; h < config.num_attention_heads; ++h) {
    Wanted want;
    for (int64_t t = 0; t < a.q.rows(); ++t) {
      want.add(a.q.f32_row(t) + h * config.qk_head_dim(), config.qk_nope_head_dim);
    }
    expect_sums(got, blk + "attn_k_b.weight", h, want);
  }
}

void expect_layer(const Imatrix& got, const ModelConfig& config, int64_t layer, const LayerSaved& s) {
  const std::string blk = fmt::format("blk.{}.", layer);
  if (config.is_mla()) {
    expect_latent_attention(got, config, blk, s.attention);
  } else {
    for (const char* const name : {"attn_q.weight", "attn_k.weight", "attn_v.weight"}) {
      expect_sums(got, blk + name, 0, rows_of(s.attention.input));
    }
  }
  expect_sums(got, blk + "attn_output.weight", 0, rows_of(s.attention.o));
  const auto expect_mlp = [&](const std::string& end, const MlpSaved& mlp) {
    expect_sums(got, blk + "ffn_gate" + end, 0, rows_of(mlp.input));
    expect_sums(got, blk + "ffn_up" + end, 0, rows_of(mlp.input));
    expect_sums(got, blk + "ffn_down" + end, 0, rows_of(mlp.activated));
  };
  if (!s.moe.topk_ids) return expect_mlp(".weight", s.mlp);
  if (config.n_shared_experts > 0) expect_mlp("_shexp.weight", s.moe.shared);
  const int64_t k = config.router.num_experts_per_tok;
  for (int64_t e = 0; e < config.router.n_routed_experts; ++e) {
    Wanted in, between;
    for (int64_t t = 0; t < s.moe.input.rows(); ++t) {
      for (int64_t choice = 0; choice < k; ++choice) {
        if (s.moe.topk_ids.i32()[t * k + choice] != e) continue;
        in.add(s.moe.input.f32_row(t), s.moe.input.cols());
        between.add(s.moe.activated.f32_row(s.moe.dispatch.slot_of.i32()[t * k + choice]), s.moe.activated.cols());
      }
    }
    expect_sums(got, blk + "ffn_gate_exps.weight", e, in);
    expect_sums(got, blk + "ffn_up_exps.weight", e, in);
    expect_sums(got, blk + "ffn_down_exps.weight", e, between);
  }
}

TEST_F(Importance, IsTheSumOfWhatGoesIntoEveryMatrix) {
  for (const char* name : {"v3_mtp", "v2_lite_like", "moonlight_like", "v32_dsa", "llama_like", "qwen2_like"}) {
    SCOPED_TRACE(name);
    const PackedModel packed = load_packed_model(kOracle / name, pool_);
    const Model model = make_model(packed.config, packed.weights);
    const auto sequences = random_sequences(packed.config);
    const Imatrix got = measure_importance(ctx_, model, sequences);
    const Batch batch = make_batch(ctx_, sequences);
    ForwardSaved saved;
    const Tensor hidden = forward(ctx_, model, batch, {.saved = &saved});
    for (size_t l = 0; l < saved.layers.size(); ++l) {
      expect_layer(got, packed.config, static_cast<int64_t>(l), saved.layers[l]);
    }
    const bool tied = packed.config.tie_word_embeddings;
    expect_sums(got, tied ? "token_embd.weight" : "output.weight", 0, rows_of(hidden));
    if (!packed.weights.mtp.empty()) {
      MtpSaved mtp;
      mtp_forward(ctx_, model, model.weights.mtp[0], make_mtp_input(ctx_, batch), hidden, {.saved = &mtp});
      expect_layer(got, packed.config, packed.config.num_hidden_layers, mtp.layer);
      expect_sums(got, fmt::format("blk.{}.nextn.eh_proj.weight", packed.config.num_hidden_layers), 0,
                  rows_of(mtp.concatenated));
    }
    EXPECT_EQ(got.chunks, 4);
    EXPECT_EQ(got.chunk_tokens, 40);
    const auto coverage = expert_coverage(got, packed.config);
    int64_t moe_layers = 0;
    for (int64_t l = 0; l < packed.config.num_hidden_layers; ++l) moe_layers += packed.config.is_moe(l) ? 1 : 0;
    ASSERT_EQ(std::ssize(coverage), moe_layers + std::ssize(packed.weights.mtp));
    for (const ExpertCoverage& layer : coverage) {
      int64_t tokens = 0;
      for (const int64_t n : layer.tokens) tokens += n;
      const bool mtp = layer.layer == packed.config.num_hidden_layers;
      EXPECT_EQ(tokens, (mtp ? 65 : 69) * packed.config.router.num_experts_per_tok);
    }
  }
}

TEST_F(Importance, DoesNotDependOnThreads) {
  const PackedModel packed = load_packed_model(kOracle / "v3_mtp", pool_);
  const Model model = make_model(packed.config, packed.weights);
  const auto sequences = random_sequences(packed.config);
  ThreadPool one(1);
  Context alone{one, arena_};
  const Imatrix a = measure_importance(ctx_, model, sequences), b = measure_importance(alone, model, sequences);
  for (const auto& [name, entry] : a.entries) EXPECT_EQ(entry.sums, b.entries.at(name).sums) << name;
}

// Weights in blocks read activations in 8 bits, which are not what the sums are of.
TEST_F(Importance, IsNearlyTheSameOfAQuantizedModel) {
  const fs::path shakespeare = fs::path(FATHOM_TEST_DATA) / "../../models/shakespeare";
  const test::TemporaryDirectory packed_path;
  convert_model(shakespeare, packed_path.path(), *find_recipe("q8_0"), pool_);
  const PackedModel source = load_packed_model(shakespeare, pool_),
                    packed = load_packed_model(packed_path.path(), pool_);
  const auto sequences = random_sequences(source.config);
  const Imatrix a = measure_importance(ctx_, make_model(source.config, source.weights), sequences);
  const Imatrix b = measure_importance(ctx_, make_model(packed.config, packed.weights), sequences);
  for (const auto& [name, entry] : a.entries) {
    if (name.ends_with("_exps.weight")) continue;  // some tokens go to another expert
    double difference = 0, all = 0;
    const std::vector<float>& other = b.entries.at(name).sums;
    for (size_t i = 0; i < other.size(); ++i) {
      difference += std::abs(entry.sums[i] - other[i]);
      all += entry.sums[i];
    }
    EXPECT_LT(difference, 0.1 * all) << name;
  }
}

// The point of it all, on text that neither training nor the sums have seen. The model reads bytes.
TEST_F(Importance, BringsQuantizedModelsNearer) {
  const fs::path root = fs::path(FATHOM_TEST_DATA) / "../..", model = root / "models/shakespeare";
  const auto windows = [&](const char* file, size_t bytes) {
    const std::string text = read_file(root / "data" / file, size_t{1} << 24).substr(0, bytes);
    const std::vector<uint8_t> codes(text.begin(), text.end());
    return cut_windows(std::vector<int32_t>(codes.begin(), codes.end()), 256);
  };
  const size_t part = test::kSanitized ? 2 : 1;
  const auto seen = windows("tinyshakespeare-train.txt", 30000 / part);
  const auto held_out = windows("tinyshakespeare-val.txt", 15000 / part);
  const test::TemporaryDirectory scratch;
  const PackedModel source = load_packed_model(model, pool_);
  const Model of_source = make_model(source.config, source.weights);
  const Imatrix imatrix = measure_importance(ctx_, of_source, seen);
  const Predictions predictions = predict(ctx_, of_source, held_out);
  for (const char* recipe : {"q4_0", "q4_k"}) {
    double kl[2];
    for (const bool weighted : {false, true}) {
      const ConvertOptions options{.imatrix = weighted ? &imatrix : nullptr, .check = {}, .write_others = {}};
      convert_model(model, scratch.path() / "packed", *find_recipe(recipe), pool_, options);
      const PackedModel packed = load_packed_model(scratch.path() / "packed", pool_);
      kl[weighted] = diverge(ctx_, predictions, make_model(packed.config, packed.weights), held_out).kl_mean;
    }
    EXPECT_LT(kl[1], 0.97 * kl[0]) << recipe;
  }
}

}  // namespace
}  // namespace fathom
