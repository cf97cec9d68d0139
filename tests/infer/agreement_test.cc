// What sampling tells of a token's log probability is what training computes of it, in the same bits.
#include <gmock/gmock.h>

#include "infer/batching.h"
#include "infer/bytes_machine.h"
#include "model/loss.h"
#include "ops/cross_entropy.h"

namespace fathom {
namespace {

struct Sampled {
  std::vector<int32_t> ids;
  int64_t prompt;
  std::vector<float> logprobs;
};

// Prompts of many lengths, some of which begin alike, sampled together.
std::vector<Sampled> sample(BytesMachine& m, int64_t n, int64_t draft_tokens) {
  Rng rng(5);
  Batching batching(m.ctx, m.model, &m.tokenizer,
                    {.max_sequences = 5, .pass_tokens = 40, .draft_tokens = draft_tokens});
  std::vector<Sampled> all(static_cast<size_t>(n));
  const std::vector<int32_t> beginning = random_ids(70, 256, 1);
  for (Sampled& each : all) {
    BatchRequest request;
    if (rng.below(2) == 0) request.prompt = beginning;
    for (int64_t i = static_cast<int64_t>(rng.below(90)); i >= 0; --i) {
      request.prompt.push_back(static_cast<int32_t>(rng.below(256)));
    }
    request.options.max_tokens = 1 + static_cast<int64_t>(rng.below(80));
    request.options.seed = rng.below(1000);
    request.options.sampler.temperature = rng.below(3) == 0 ? 0 : 1;
    request.options.top_logprobs = 0;
    request.options.draft_tokens = draft_tokens;
    each.prompt = std::ssize(request.prompt);
    each.ids = request.prompt;
    request.on_end = [&each](const Generation& result, const std::string& error) {
      EXPECT_EQ(error, "");
      each.ids.insert(each.ids.end(), result.ids.begin(), result.ids.end());
      for (const TokenLogprobs& token : result.logprobs) each.logprobs.push_back(token.logprob);
    };
    batching.add(std::move(request));
  }
  while (batching.step()) {
  }
  return all;
}

struct Judged {
  Batch batch;
  Targets targets;
};
Judged judge(Context& ctx, std::span<const Sampled> all) {
  std::vector<std::vector<int32_t>> sequences;
  for (const Sampled& each : all) sequences.push_back(each.ids);
  Judged judged{make_batch(ctx, sequences), {}};
  judged.targets = make_targets(ctx, judged.batch);
  for (size_t s = 0; s < all.size(); ++s) {
    const auto prompt = static_cast<int32_t>(all[s].prompt);
    judged.batch.prompts.push_back(prompt);
    std::fill_n(judged.targets.main.i32() + judged.batch.offsets[s], prompt - 1, kNoTarget);
    judged.targets.n_main -= prompt - 1;
  }
  return judged;
}

void expect_agreement(const ModelConfig& config, int64_t draft_tokens = 0) {
  BytesMachine m(1024, config);
  const std::vector<Sampled> all = sample(m, 12, draft_tokens);
  std::vector<float> want;
  for (const Sampled& each : all) want.insert(want.end(), each.logprobs.begin(), each.logprobs.end());
  ASSERT_GT(want.size(), 100u);
  const auto targets_of = [](const Judged& judged, std::span<const float> of_all) {
    std::vector<float> values;
    for (size_t t = 0; t < of_all.size(); ++t) {
      if (judged.targets.main.i32()[t] != kNoTarget) values.push_back(of_all[t]);
    }
    return values;
  };
  for (int n_threads : {1, 2, 3}) {
    ThreadPool pool(n_threads);
    Arena arena;
    Context ctx{pool, arena};
    const Judged judged = judge(ctx, all);
    const Tensor logprobs = target_logprobs(ctx, m.model, judged.batch, judged.targets);
    EXPECT_EQ(targets_of(judged, std::span(logprobs.f32(), static_cast<size_t>(logprobs.size()))), want);
  }
  // And in the pass that trains on them, whatever it keeps.
  Parameters grads = allocate_parameters(m.config, /*with_bias=*/false);
  Arena scratch;
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
    const ArenaScope scope(m.arena);
    const Judged judged = judge(m.ctx, all);
    std::vector<float> seen;
    const TargetWeights weights = [&](std::span<const float> logprobs, std::span<float> of_targets) {
      seen = targets_of(judged, logprobs);
      std::fill(of_targets.begin(), of_targets.end(), 1.0f);
    };
    loss_and_gradients(m.ctx, m.model, grads.weights, judged.batch, judged.targets,
                       {.target_weights = &weights, .recompute = recompute, .scratch = &scratch});
    EXPECT_EQ(seen, want);
  }
}

TEST(Agreement, LogProbabilitiesOfSamplingAreThoseOfTraining) { expect_agreement(tiny_v3()); }
TEST(Agreement, WithoutLatentQueries) { expect_agreement(tiny_v2()); }
TEST(Agreement, OfDenseModels) { expect_agreement(tiny_dense()); }
TEST(Agreement, OfGroupedQueries) { expect_agreement(tiny_llama()); }
TEST(Agreement, OfTiedHeadsWithBiases) { expect_agreement(tiny_qwen2()); }
TEST(Agreement, OfSparseAttention) { expect_agreement(tiny_v32()); }
TEST(Agreement, WithDrafts) { expect_agreement(tiny_v3(), 2); }

// It is these passes' doing: in the expanded form, in which prompts are read, bits differ.
TEST(Agreement, NeedsTheFormOfGeneration) {
  BytesMachine m(1024);
  const std::vector<Sampled> all = sample(m, 12, 0);
  Judged judged = judge(m.ctx, all);
  const Tensor same = target_logprobs(m.ctx, m.model, judged.batch, judged.targets);
  judged.batch.prompts.clear();
  const Tensor other = target_logprobs(m.ctx, m.model, judged.batch, judged.targets);
  int64_t n_others = 0;
  for (int64_t t = 0; t < same.size(); ++t) {
    n_others += same.f32()[t] != other.f32()[t];
    EXPECT_NEAR(same.f32()[t], other.f32()[t], 1e-4);
  }
  EXPECT_GT(n_others, 10);
}

// Routers that take what they took before make what they made; others make something else.
TEST(Agreement, ChosenExpertsAreKept) {
  BytesMachine m(1024);
  const std::vector<Sampled> all = sample(m, 6, 0);
  Judged judged = judge(m.ctx, all);
  std::vector<Tensor> chosen;
  const Tensor before = target_logprobs(m.ctx, m.model, judged.batch, judged.targets, {}, &chosen);
  ASSERT_EQ(std::ssize(chosen), m.config.num_hidden_layers);
  EXPECT_FALSE(chosen[0]);  // dense
  judged.batch.experts = chosen;
  const auto values = [](Tensor t) { return std::vector<float>(t.f32(), t.f32() + t.size()); };
  EXPECT_EQ(values(target_logprobs(m.ctx, m.model, judged.batch, judged.targets)), values(before));
  // Biases that turn every choice around: kept ones do not see them.
  for (LayerWeights& layer : m.model.weights.layers) {
    const Tensor bias = layer.moe.e_score_correction_bias;
    for (int64_t e = 0; bias && e < bias.size(); ++e) bias.f32()[e] = e % 2 == 0 ? 10.0f : -10.0f;
  }
  EXPECT_EQ(values(target_logprobs(m.ctx, m.model, judged.batch, judged.targets)), values(before));
  judged.batch.experts.clear();
  EXPECT_NE(values(target_logprobs(m.ctx, m.model, judged.batch, judged.targets)), values(before));
}

// grads of sum_t weights[t] * cross-entropy, where the weights follow from the log probabilities.
TEST(Agreement, GradientsFollowTheWeightsOfTargets) {
  BytesMachine m(1024);
  const std::vector<Sampled> all = sample(m, 4, 0);
  Judged judged = judge(m.ctx, all);
  const auto weight_of = [](size_t t) { return 0.01f * static_cast<float>(static_cast<int>(t % 7) - 3); };
  const TargetWeights weights = [&](std::span<const float> logprobs, std::span<float> of_targets) {
    for (size_t t = 0; t < logprobs.size(); ++t) of_targets[t] = weight_of(t);
  };
  Parameters grads = allocate_parameters(m.config, /*with_bias=*/false);
  std::vector<Tensor> chosen;
  target_logprobs(m.ctx, m.model, judged.batch, judged.targets, {}, &chosen);
  judged.batch.experts = chosen;  // so that no step of a finite difference changes a choice
  loss_and_gradients(m.ctx, m.model, grads.weights, judged.batch, judged.targets, {.target_weights = &weights});
  const auto objective = [&] {
    const ArenaScope scope(m.arena);
    const Tensor logprobs = target_logprobs(m.ctx, m.model, judged.batch, judged.targets);
    double sum = 0;
    for (int64_t t = 0; t < logprobs.size(); ++t)
      sum -= static_cast<double>(weight_of(static_cast<size_t>(t))) * logprobs.f32()[t];
    return sum;
  };
  expect_slopes(m.parameters, grads, objective, 0.03, 2e-3);
}

}  // namespace
}  // namespace fathom
