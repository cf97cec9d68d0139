// The policy's loss beside its formulas in double precision over the whole softmax, and its gradient beside finite
// differences, first by log probabilities and then through the whole model.
#include "tune/grpo_loss.h"

#include <gmock/gmock.h>

#include <cmath>

#include "infer/bytes_machine.h"
#include "tune/rollout.h"

namespace fathom::tune {
namespace {

// As the papers have it, of one answer: -sum of the objective, times the weight of a token.
double twin(const PolicyLossOptions& o, double advantage, double token_weight, std::span<const double> policy,
            std::span<const double> sampler, std::span<const double> reference) {
  double drift = 0, sum = 0;
  for (size_t t = 0; t < policy.size(); ++t) drift += (sampler[t] - policy[t]) / static_cast<double>(policy.size());
  const double mask = o.mask_off_policy && advantage < 0 && drift > *o.mask_off_policy ? 0 : 1;
  for (size_t t = 0; t < policy.size(); ++t) {
    const double rho = std::exp(policy[t]) / std::exp(sampler[t]);
    const double clipped = std::min(std::max(rho, 1 - o.clip_low), 1 + o.clip_high);
    sum += mask * std::min(rho * advantage, clipped * advantage);
    if (o.beta == 0) continue;
    const double r = std::exp(reference[t]) / std::exp(policy[t]);
    sum -= o.beta * (r - std::log(r) - 1) * (o.kl == KlEstimate::unbiased ? rho : 1);
  }
  return -token_weight * sum;
}

std::vector<PolicyLossOptions> all_options() {
  std::vector<PolicyLossOptions> all;
  for (const double beta : {0.0, 0.3}) {
    for (const KlEstimate kl : {KlEstimate::plain, KlEstimate::unbiased}) {
      for (const std::optional<double> mask : {std::optional<double>(), std::optional<double>(0.05)}) {
        all.push_back({.clip_low = 0.2, .clip_high = 0.4, .beta = beta, .kl = kl, .mask_off_policy = mask});
      }
    }
  }
  return all;
}

TEST(PolicyLoss, AndItsGradientAreThoseOfTheFormulas) {
  Rng rng(3);
  int n_clipped = 0, n_masked = 0;
  for (const PolicyLossOptions& o : all_options()) {
    for (int round = 0; round < 30; ++round) {
      const size_t n = 1 + rng.below(9);
      std::vector<float> policy, sampler, reference, weights(n);
      for (size_t t = 0; t < n; ++t) {
        sampler.push_back(static_cast<float>(-3 * rng.uniform()));
        policy.push_back(sampler.back() + static_cast<float>(0.4 * rng.normal()));
        reference.push_back(sampler.back() + static_cast<float>(0.4 * rng.normal()));
      }
      const double advantage = rng.normal(), token_weight = 0.1 + rng.uniform();
      PolicyLossSums sums;
      policy_loss(o, advantage, token_weight, policy, sampler, o.beta != 0 ? reference : std::vector<float>(), weights,
                  sums);
      std::vector<double> p(policy.begin(), policy.end());
      const std::vector<double> s(sampler.begin(), sampler.end()), r(reference.begin(), reference.end());
      EXPECT_NEAR(sums.loss, twin(o, advantage, token_weight, p, s, r), 1e-9);
      n_clipped += static_cast<int>(sums.clipped);
      n_masked += static_cast<int>(sums.masked);
      for (size_t t = 0; t < n; ++t) {
        const double kept = p[t], step = 1e-6;
        // Where the objective has a corner there is no derivative.
        const double rho = std::exp(kept - s[t]);
        if (std::abs(rho - 1 + o.clip_low) < 1e-4 || std::abs(rho - 1 - o.clip_high) < 1e-4) continue;
        p[t] = kept + step;
        const double up = twin(o, advantage, token_weight, p, s, r);
        p[t] = kept - step;
        const double down = twin(o, advantage, token_weight, p, s, r);
        p[t] = kept;
        EXPECT_NEAR(weights[t], -(up - down) / (2 * step), 1e-5 + 1e-5 * std::abs(weights[t]));
      }
    }
  }
  EXPECT_GT(n_clipped, 50);
  EXPECT_GT(n_masked, 10);
}

TEST(PolicyLoss, CountsWhatTheReportTells) {
  PolicyLossSums sums;
  const std::vector<float> sampler = {-1, -1, -1}, policy = {-1, -0.5f, -2};
  std::vector<float> weights(3);
  policy_loss({}, 1, 1, policy, sampler, {}, weights, sums);
  EXPECT_EQ(sums.tokens, 3);
  EXPECT_EQ(sums.clipped, 1);  // e^0.5 above 1.2; below 0.8 the advantage is better met unclipped
  EXPECT_EQ(sums.greatest_log_ratio, 1);
  EXPECT_EQ(weights[1], 0);
  policy_loss({.mask_off_policy = 0.1}, -1, 1, policy, sampler, {}, weights, sums);
  EXPECT_EQ(sums.masked, 1);
  EXPECT_THAT(weights, testing::Each(0));
  EXPECT_EQ(sums.answers, 2);
}

struct Played {
  std::vector<Question> questions;
  std::vector<Sample> samples;
  std::vector<Trained> trained;
};
Played play(BytesMachine& m, const RolloutOptions& options, size_t n) {
  Played played;
  for (size_t i = 0; i < n; ++i) {
    Question& q = played.questions.emplace_back();
    q.id = std::to_string(i);
    q.prompt = random_ids(3 + static_cast<int64_t>(i) * 5, 256, i);
  }
  std::vector<Wanted> wanted;
  for (const Question& q : played.questions) wanted.push_back({&q, sample_seed(1, 1, std::ssize(wanted), 0)});
  RolloutCounts counts;
  played.samples = sample_answers(m.ctx, m.model, wanted, options, counts).value();
  for (size_t i = 0; i < n; ++i) played.trained.push_back({&played.questions[i], &played.samples[i]});
  return played;
}

// Log probabilities in double precision from logits of the whole vocabulary, over what sampling left.
std::vector<std::vector<double>> twin_logprobs(Context& ctx, const Model& model, const SampleBatch& made,
                                               std::span<const Trained> trained, double temperature) {
  const Tensor logits = head_logits(ctx, model, forward(ctx, model, made.batch));
  std::vector<std::vector<double>> all;
  for (size_t s = 0; s < trained.size(); ++s) {
    const Sample& sample = *trained[s].sample;
    auto& of_sample = all.emplace_back();
    for (size_t t = 0; t < sample.ids.size(); ++t) {
      const float* const row = logits.f32_row(made.first_rows[s] + static_cast<int64_t>(t));
      double sum = 0;
      for (int32_t v = 0; v < logits.cols(); ++v) {
        const auto kept = std::span(sample.sampling.kept);
        const bool left =
            sample.sampling.begins.empty() ||
            std::ranges::count(
                kept.subspan(static_cast<size_t>(sample.sampling.begins[t]),
                             static_cast<size_t>(sample.sampling.begins[t + 1] - sample.sampling.begins[t])),
                v) > 0;
        if (left) sum += std::exp(row[v] / temperature);
      }
      of_sample.push_back(row[sample.ids[t]] / temperature - std::log(sum));
    }
  }
  return all;
}

TEST(PolicyLoss, ThroughTheModelIsTheGradientOfTheFormulas) {
  BytesMachine m(256);
  RolloutOptions rollout;
  rollout.sampler = {.temperature = 0.8, .top_k = 40, .top_p = 0.9};
  rollout.max_tokens = 9;
  const Played played = play(m, rollout, 3);
  const PolicyLossOptions o{.clip_low = 0.3, .clip_high = 0.3, .beta = 0.2};
  const std::vector<double> advantages = {1, -0.5, -0.5};
  Rng noise(5);
  std::vector<std::vector<float>> sampler, reference;  // as if both were other policies
  for (const Sample& sample : played.samples) {
    auto &s = sampler.emplace_back(), &r = reference.emplace_back();
    for (const float p : sample.sampling.logprobs) {
      s.push_back(p + static_cast<float>(0.1 * noise.normal()));
      r.push_back(p + static_cast<float>(0.3 * noise.normal()));
    }
  }
  SampleBatch made = make_sample_batch(m.ctx, played.trained, rollout.sampler);
  std::vector<Tensor> chosen;
  target_logprobs(m.ctx, m.model, made.batch, made.targets, {}, &chosen, &made.mask);
  made.batch.experts = chosen;  // so that no step of a finite difference changes a choice
  Parameters grads = allocate_parameters(m.config, /*with_bias=*/false);
  PolicyLossSums sums;
  const TargetWeights weights = [&](std::span<const float> logprobs, std::span<float> of) {
    std::ranges::fill(of, 0.0f);
    for (size_t s = 0; s < played.samples.size(); ++s) {
      const auto first = static_cast<size_t>(made.first_rows[s]), n = played.samples[s].ids.size();
      policy_loss(o, advantages[s], 1.0 / static_cast<double>(3 * n), logprobs.subspan(first, n), sampler[s],
                  reference[s], of.subspan(first, n), sums);
    }
  };
  loss_and_gradients(m.ctx, m.model, grads.weights, made.batch, made.targets,
                     {.target_weights = &weights, .mask = &made.mask});
  const auto objective = [&] {
    const ArenaScope scope(m.arena);
    const auto policy = twin_logprobs(m.ctx, m.model, made, played.trained, 0.8);
    double sum = 0;
    for (size_t s = 0; s < policy.size(); ++s) {
      const std::vector<double> of_sampler(sampler[s].begin(), sampler[s].end()),
          of_reference(reference[s].begin(), reference[s].end());
      sum +=
          twin(o, advantages[s], 1.0 / static_cast<double>(3 * policy[s].size()), policy[s], of_sampler, of_reference);
    }
    return sum;
  };
  EXPECT_NEAR(sums.loss, objective(), 1e-5);
  expect_slopes(m.parameters, grads, objective, 0.05, 1e-3);
}

}  // namespace
}  // namespace fathom::tune
