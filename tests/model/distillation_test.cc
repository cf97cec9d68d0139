// The loss of a model that a teacher teaches: what it is made of, and that its gradient is that.
#include <gtest/gtest.h>

#include <cmath>

#include "model/examples.h"
#include "model/tiny_models.h"
#include "ops/cross_entropy.h"

namespace fathom {
namespace {

constexpr int64_t kK = 5;

// Two sequences with a target here and there, and what another model says of them.
Examples make_examples(Context& ctx, double temperature, double weight) {
  const ModelConfig config = tiny_v3();
  Parameters p = tiny_parameters(config, 99);
  const Model teacher = make_model(config, p.weights);
  Examples examples;
  for (const int64_t n : {11, 7}) {
    examples.sequences.push_back(random_ids(n, config.vocab_size, static_cast<uint64_t>(n)));
    for (int64_t t = 0; t < n; ++t) {
      const bool is_target = t % 3 != 0 && t + 1 < n;
      examples.next.push_back(is_target ? examples.sequences.back()[static_cast<size_t>(t) + 1] : kNoTarget);
      examples.n_main += is_target;
    }
  }
  std::vector<int32_t> wanted;
  for (size_t t = 0; t < examples.next.size(); ++t) {
    if (examples.next[t] != kNoTarget) wanted.push_back(static_cast<int32_t>(t));
  }
  const auto n = std::ssize(wanted), tokens = std::ssize(examples.next);
  const Tensor ids = new_i32(ctx, {n, kK}), logprobs = new_f32(ctx, {n, kK}), norms = new_f32(ctx, {n, 1});
  const Tensor hidden = forward(ctx, teacher, make_batch(ctx, examples.sequences));
  head_top_logprobs(ctx, ids, logprobs, norms, hidden, teacher.weights.head, wanted, std::vector{temperature});
  TaughtTokens taught{kK, std::vector<int32_t>(static_cast<size_t>(tokens * kK), kNoTarget),
                      std::vector<float>(static_cast<size_t>(tokens * kK)), temperature, weight};
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t i = 0; i < kK; ++i) {
      const auto to = static_cast<size_t>(wanted[static_cast<size_t>(r)] * kK + i);
      taught.ids[to] = ids.i32()[r * kK + i];
      taught.logprobs[to] = static_cast<float>(logprobs.f32(r, i) / temperature - norms.f32()[r]);
    }
  }
  examples.taught = taught;
  return examples;
}

struct Machine {
  ThreadPool pool{2};
  Arena arena;
  Context ctx{pool, arena};
};

LossResult result_of(Machine& m, const Model& model, Parameters& grads, const Examples& examples) {
  const auto [batch, targets] = make_example(m.ctx, examples);
  return loss_and_gradients(m.ctx, model, grads.weights, batch, targets, {});
}

TEST(TaughtModel, ItsGradientIsThatOfTheMixedLoss) {
  ModelConfig config = tiny_v3();
  config.num_nextn_predict_layers = 0;
  config.router.n_group = config.router.topk_group = 1;
  config.router.num_experts_per_tok = config.router.n_routed_experts;  // a choice that turns is a jump
  Machine m;
  for (const double temperature : {1.0, 2.0}) {
    for (const double weight : {0.3, 1.0}) {
      const Examples examples = make_examples(m.ctx, temperature, weight);
      Parameters p = tiny_parameters(config), grads = allocate_parameters(config, false),
                 scratch = allocate_parameters(config, false);
      const Model model = make_model(config, p.weights);
      const LossResult first = result_of(m, model, grads, examples);
      EXPECT_EQ(first.taught_targets, examples.n_main);
      EXPECT_EQ(first.main_targets, examples.n_main);
      EXPECT_GT(first.divergence(), 0);
      const auto loss = [&] {
        const LossResult r = result_of(m, model, scratch, examples);
        return (1 - weight) * r.loss() + weight * r.divergence();
      };
      double worst = 0, largest = 0;
      const std::span<float> parameters = p.trained();
      for (size_t i = 0; i < parameters.size(); i += parameters.size() / 60) {
        const float before = parameters[i], step = 3e-3f;
        parameters[i] = before + step;
        const double up = loss();
        parameters[i] = before - step;
        const double down = loss();
        parameters[i] = before;
        worst = std::max(worst, std::abs((up - down) / (2 * step) - grads.trained()[i]));
      }
      for (const float g : grads.trained()) largest = std::max(largest, std::abs(static_cast<double>(g)));
      EXPECT_LT(worst, 0.01 * largest) << temperature << " " << weight;
    }
  }
}

TEST(TaughtModel, WithoutWeightIsTheModelThatNobodyTeaches) {
  const ModelConfig config = tiny_v3();
  Machine m;
  Examples examples = make_examples(m.ctx, 2, 0);
  Parameters p = tiny_parameters(config), taught = allocate_parameters(config, false),
             alone = allocate_parameters(config, false);
  const Model model = make_model(config, p.weights);
  const LossResult with = result_of(m, model, taught, examples);
  examples.taught.reset();
  const LossResult without = result_of(m, model, alone, examples);
  EXPECT_EQ(with.loss_sum, without.loss_sum);
  EXPECT_GT(with.divergence_sum, 0);
  EXPECT_EQ(without.divergence_sum, 0);
  EXPECT_EQ(without.taught_targets, 0);
  for (size_t i = 0; i < taught.trained().size(); ++i) {
    ASSERT_NEAR(taught.trained()[i], alone.trained()[i], 1e-6 + 1e-4 * std::abs(alone.trained()[i]));
  }
}

}  // namespace
}  // namespace fathom
