#include "tune/rollout.h"

#include <gmock/gmock.h>

#include "infer/bytes_machine.h"

namespace fathom::tune {
namespace {

std::vector<Question> questions(size_t n) {
  std::vector<Question> all(n);
  for (size_t i = 0; i < n; ++i) {
    all[i].id = std::to_string(i);
    all[i].prompt = random_ids(2 + static_cast<int64_t>(i) * 31 % 90, 256, i);  // some longer than a page
  }
  return all;
}

std::vector<Wanted> wanted_of(std::span<const Question> all, int64_t group) {
  std::vector<Wanted> wanted;
  for (const Question& q : all) {
    for (int64_t s = 0; s < group; ++s) wanted.push_back({&q, sample_seed(7, 1, &q - all.data(), s)});
  }
  return wanted;
}

RolloutOptions options_of(double top_p = 1, int64_t draft_tokens = 0) {
  RolloutOptions options;
  options.sampler = {.temperature = 0.9, .top_p = top_p};
  options.max_tokens = 24;
  options.max_sequences = 6;
  options.draft_tokens = draft_tokens;
  return options;
}

void expect_same(const Sample& a, const Sample& b) {
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.sampling.logprobs, b.sampling.logprobs);
  EXPECT_EQ(a.sampling.entropies, b.sampling.entropies);
  EXPECT_EQ(a.sampling.begins, b.sampling.begins);
  EXPECT_EQ(a.sampling.kept, b.sampling.kept);
  EXPECT_EQ(a.cut, b.cut);
  EXPECT_EQ(a.ended, b.ended);
}

TEST(Rollout, SamplesDoNotDependOnThreadsNorOnWhatRunsBeside) {
  for (const int64_t drafts : {0, 2}) {
    BytesMachine m(256);
    m.model.config.eos_token_ids = {10, 77, 200};
    const std::vector<Question> asked = questions(5);
    const std::vector<Wanted> wanted = wanted_of(asked, 3);
    RolloutCounts counts;
    const auto all = sample_answers(m.ctx, m.model, wanted, options_of(0.95, drafts), counts).value();
    int64_t n = 0, n_cut = 0;
    for (const Sample& s : all) {
      n += std::ssize(s.ids);
      n_cut += s.cut ? 1 : 0;
      EXPECT_NE(s.cut, s.ended);
    }
    EXPECT_EQ(counts.tokens, n);
    EXPECT_GT(n_cut, 0);
    EXPECT_EQ(counts.drafted > 0, drafts > 0);
    for (const int64_t at_a_time : {1, 15}) {
      ThreadPool pool(1);
      Arena arena;
      Context ctx{pool, arena};
      RolloutOptions other = options_of(0.95, drafts);
      other.max_sequences = at_a_time;
      const auto again = sample_answers(ctx, m.model, wanted, other, counts).value();
      for (size_t i = 0; i < all.size(); ++i) expect_same(all[i], again[i]);
    }
    // Groups differ within themselves, and a step from the next.
    EXPECT_NE(all[0].ids, all[1].ids);
    EXPECT_NE(sample_seed(7, 1, 0, 0), sample_seed(7, 2, 0, 0));
    EXPECT_NE(sample_seed(7, 1, 1, 0), sample_seed(7, 1, 0, 1));
  }
}

TEST(Rollout, CanBeStopped) {
  BytesMachine m(256);
  const std::vector<Question> asked = questions(2);
  RolloutCounts counts;
  int looks = 0;
  EXPECT_EQ(sample_answers(m.ctx, m.model, wanted_of(asked, 2), options_of(), counts, [&] { return ++looks > 3; }),
            std::nullopt);
}

// The bits of what training computes of the samples, over what top-p left and by the temperature.
void expect_agreement(const ModelConfig& config, double top_p, int64_t draft_tokens) {
  BytesMachine m(256, config);
  const std::vector<Question> asked = questions(6);
  const std::vector<Wanted> wanted = wanted_of(asked, 2);
  RolloutCounts counts;
  const RolloutOptions options = options_of(top_p, draft_tokens);
  const auto samples = sample_answers(m.ctx, m.model, wanted, options, counts).value();
  std::vector<Trained> trained;
  for (size_t i = 0; i < samples.size(); ++i) trained.push_back({wanted[i].question, &samples[i]});
  const SampleBatch made = make_sample_batch(m.ctx, trained, options.sampler);
  const Tensor entropies = new_f32(m.ctx, {made.batch.n_tokens()});
  std::vector<Tensor> chosen;
  const Tensor logprobs = target_logprobs(m.ctx, m.model, made.batch, made.targets, entropies, &chosen, &made.mask);
  int64_t n = 0;
  for (size_t s = 0; s < samples.size(); ++s) {
    for (size_t t = 0; t < samples[s].ids.size(); ++t, ++n) {
      const int64_t row = made.first_rows[s] + static_cast<int64_t>(t);
      EXPECT_EQ(made.targets.main.i32()[row], samples[s].ids[t]);
      EXPECT_EQ(logprobs.f32()[row], samples[s].sampling.logprobs[t]);
      EXPECT_EQ(entropies.f32()[row], samples[s].sampling.entropies[t]);
    }
  }
  EXPECT_EQ(made.targets.n_main, n);
  // Choices of experts, cut and put together again in another order, make the same.
  if (config.router.n_routed_experts == 0) return;
  const std::vector<ChosenExperts> cut = cut_by_sample(made.batch, chosen);
  const std::vector<Trained> two = {trained[4], trained[1]};
  const std::vector<const ChosenExperts*> of_two = {&cut[4], &cut[1]};
  SampleBatch pair = make_sample_batch(m.ctx, two, options.sampler);
  pair.batch.experts = joined(m.ctx, m.model, of_two);
  for (LayerWeights& layer : m.model.weights.layers) {  // choices of their own would be others
    const Tensor bias = layer.moe.e_score_correction_bias;
    for (int64_t e = 0; bias && e < bias.size(); ++e) bias.f32()[e] = e % 2 == 0 ? 10.0f : -10.0f;
  }
  const Tensor of_pair = target_logprobs(m.ctx, m.model, pair.batch, pair.targets, {}, nullptr, &pair.mask);
  EXPECT_EQ(of_pair.f32()[pair.first_rows[0]], samples[4].sampling.logprobs[0]);
  EXPECT_EQ(of_pair.f32()[pair.first_rows[1]], samples[1].sampling.logprobs[0]);
}

TEST(Rollout, LogProbabilitiesAreThoseOfTraining) { expect_agreement(tiny_v3(), 1, 0); }
TEST(Rollout, OverWhatTopPLeft) { expect_agreement(tiny_v3(), 0.9, 0); }
TEST(Rollout, OfDenseModels) { expect_agreement(tiny_dense(), 0.9, 0); }
TEST(Rollout, OfSparseAttention) { expect_agreement(tiny_v32(), 0.9, 0); }
TEST(Rollout, WithDrafts) { expect_agreement(tiny_v3(), 0.9, 2); }

}  // namespace
}  // namespace fathom::tune
