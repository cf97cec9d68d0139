#include "infer/sampler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"

namespace fathom {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

int32_t sample_once(std::vector<float> logits, const SamplerOptions& options, Rng& rng,
                    const std::vector<int32_t>& previous = {}, int64_t n_generated = 0) {
  return sample(logits, previous, n_generated, options, rng);
}

// Shares of `draws` draws, by token.
std::vector<double> frequencies(const std::vector<float>& logits, const SamplerOptions& options, int draws = 40000) {
  Rng rng(7);
  std::vector<double> share(logits.size());
  for (int i = 0; i < draws; ++i) share[static_cast<size_t>(sample_once(logits, options, rng))] += 1.0 / draws;
  return share;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  double sum = 0;
  for (const float logit : logits) sum += p.emplace_back(std::exp(logit / temperature));
  for (double& x : p) x /= sum;
  return p;
}

std::vector<int32_t> reachable(const std::vector<float>& logits, const SamplerOptions& options) {
  const auto share = frequencies(logits, options, 5000);
  std::vector<int32_t> ids;
  for (size_t i = 0; i < share.size(); ++i) {
    if (share[i] > 0) ids.push_back(static_cast<int32_t>(i));
  }
  return ids;
}

TEST(Sampler, DrawsFromTheSoftmaxAtTheTemperature) {
  const std::vector<float> logits = {1.5f, -0.5f, 0.0f, 2.0f, -3.0f};
  for (const double temperature : {0.5, 1.0, 3.0}) {
    const auto expected = softmax(logits, temperature);
    const auto share = frequencies(logits, {.temperature = temperature});
    for (size_t i = 0; i < logits.size(); ++i) {
      // Five standard deviations of a share over 40,000 draws.
      EXPECT_NEAR(share[i], expected[i], 5 * std::sqrt(expected[i] * (1 - expected[i]) / 40000))
          << temperature << " " << i;
    }
  }
}

TEST(Sampler, LogitBiasIsAddedFirst) {
  Rng rng(1);
  EXPECT_EQ(sample_once({1, 2, 3}, {.logit_bias = {{0, 2.5f}}}, rng), 0);
  EXPECT_EQ(sample_once({1, 2, 3}, {.logit_bias = {{1, -100.0f}, {2, -100.0f}, {9, 100.0f}}}, rng), 0);
  // The penalty sees the sum: (-1 + 3) / 4 < 1.
  EXPECT_EQ(sample_once({-1, 1}, {.repetition_penalty = 4, .logit_bias = {{0, 3.0f}}}, rng, {0}), 1);
  EXPECT_THAT(reachable({0, 0, 0}, {.temperature = 1, .logit_bias = {{1, -100.0f}}}), testing::ElementsAre(0, 2));
}

TEST(Sampler, GreedyTakesTheLowerIdOfEqualLogits) {
  Rng rng(1);
  EXPECT_EQ(sample_once({1, 3, 2, 3, 3}, {}, rng), 1);
  EXPECT_EQ(sample_once({-kInf, -kInf, -5}, {}, rng), 2);
  EXPECT_EQ(sample_once({4}, {}, rng), 0);
}

TEST(Sampler, GreedyLeavesTheGeneratorAndOthersTakeOneDraw) {
  Rng rng(1);
  const auto before = rng.state();
  sample_once({1, 2}, {}, rng);
  EXPECT_EQ(rng.state(), before);
  sample_once({1, 2, 3}, {.temperature = 1, .top_k = 1}, rng);
  Rng other(1);
  other.next();
  EXPECT_EQ(rng.state(), other.state());
}

TEST(Sampler, SameSeedSameTokensAndFiltersThatKeepAllChangeNothing) {
  std::vector<float> logits(257);
  Rng values(3);
  for (float& x : logits) x = static_cast<float>(values.normal());
  Rng a(9), b(9), c(9);
  for (int i = 0; i < 200; ++i) {
    const int32_t id = sample_once(logits, {.temperature = 1}, a);
    EXPECT_EQ(id, sample_once(logits, {.temperature = 1}, b));
    EXPECT_EQ(id, sample_once(logits, {.temperature = 1, .top_k = 257, .top_p = 1, .min_p = 0}, c));
  }
}

TEST(Sampler, TopKKeepsTheLargestAndLowerIdsAtTheEdge) {
  EXPECT_THAT(reachable({1, 2, 3, 2, 2}, {.temperature = 5, .top_k = 3}), testing::ElementsAre(1, 2, 3));
  EXPECT_THAT(reachable({1, 2, 3}, {.temperature = 5, .top_k = 1}), testing::ElementsAre(2));
  EXPECT_THAT(reachable({1, 2, 3}, {.temperature = 5, .top_k = 99}), testing::ElementsAre(0, 1, 2));
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  // Probabilities 0.5, 0.3, 0.15, 0.05.
  const std::vector<float> logits = {std::log(0.15f), std::log(0.5f), std::log(0.05f), std::log(0.3f)};
  EXPECT_THAT(reachable(logits, {.temperature = 1, .top_p = 0.45}), testing::ElementsAre(1));
  EXPECT_THAT(reachable(logits, {.temperature = 1, .top_p = 0.55}), testing::ElementsAre(1, 3));
  EXPECT_THAT(reachable(logits, {.temperature = 1, .top_p = 0.9}), testing::ElementsAre(0, 1, 3));
  EXPECT_THAT(reachable(logits, {.temperature = 1, .top_p = 1e-9}), testing::ElementsAre(1));
}

TEST(Sampler, TopPKeepsTheSameTokensAsSortingThemAll) {
  Rng values(5);
  for (const size_t n : {1u, 3u, 65u, 1000u}) {
    std::vector<float> logits(n);
    for (float& x : logits) x = static_cast<float>(3 * values.normal());
    auto p = softmax(logits, 1);
    std::sort(p.rbegin(), p.rend());
    size_t expected = 0;
    for (double reached = 0; reached < 0.8; ++expected) reached += p[expected];
    const auto ids = reachable(logits, {.temperature = 1, .top_p = 0.8});
    EXPECT_LE(ids.size(), expected) << n;
    const double least = p[expected - 1];
    for (const int32_t id : ids) EXPECT_GE(softmax(logits, 1)[static_cast<size_t>(id)], least * (1 - 1e-9));
  }
}

TEST(Sampler, TopPMeasuresWhatTopKLeft) {
  // Of 0.4, 0.3, 0.3 the top 2 weigh 4/7 and 3/7: 0.5 is reached by the first alone, though 0.4 < 0.5.
  const std::vector<float> logits = {std::log(0.4f), std::log(0.3f), std::log(0.3f)};
  EXPECT_THAT(reachable(logits, {.temperature = 1, .top_k = 2, .top_p = 0.5}), testing::ElementsAre(0));
}

TEST(Sampler, MinPIsAShareOfTheMostLikely) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  EXPECT_THAT(reachable(logits, {.temperature = 1, .min_p = 0.55}), testing::ElementsAre(0, 1));
  EXPECT_THAT(reachable(logits, {.temperature = 1, .min_p = 1}), testing::ElementsAre(0));
}

TEST(Sampler, MinusInfinityIsNeverDrawn) {
  EXPECT_THAT(reachable({0, -kInf, 0}, {.temperature = 100}), testing::ElementsAre(0, 2));
}

TEST(Sampler, ExtremeTemperaturesStayFinite) {
  EXPECT_THAT(reachable({1, 2, 1.999f}, {.temperature = 1e-300}), testing::ElementsAre(1));
  EXPECT_THAT(reachable({3e38f, -3e38f}, {.temperature = 1}), testing::ElementsAre(0));
  EXPECT_THAT(reachable({3e38f, 3e38f}, {.temperature = 1e6}), testing::ElementsAre(0, 1));
}

TEST(Sampler, RepetitionPenaltyCountsPromptAndOutputOnce) {
  std::vector<float> logits = {4, -4, 1};
  Rng rng(1);
  EXPECT_EQ(sample(logits, std::vector<int32_t>{0, 0, 1}, 1, {.repetition_penalty = 2}, rng), 0);
  EXPECT_THAT(logits, testing::ElementsAre(2, -8, 1));
}

TEST(Sampler, PresenceAndFrequencyPenaltiesCountTheOutputAlone) {
  std::vector<float> logits = {4, 4, 4};
  Rng rng(1);
  // Token 0 stands in the prompt, 1 once and 2 twice in the output.
  EXPECT_EQ(
      sample(logits, std::vector<int32_t>{0, 0, 1, 2, 2}, 3, {.presence_penalty = 0.5, .frequency_penalty = 0.25}, rng),
      0);
  EXPECT_THAT(logits, testing::ElementsAre(4, 3.25, 3));
}

TEST(Sampler, PenaltiesComeBeforeGreedy) {
  Rng rng(1);
  EXPECT_EQ(sample_once({5, 4}, {.repetition_penalty = 2}, rng, {0}), 1);
}

TEST(Sampler, BrokenLogitsAreRefused) {
  Rng rng(1);
  for (const double temperature : {0.0, 1.0}) {
    const SamplerOptions options{.temperature = temperature};
    EXPECT_THROW(sample_once({1, std::nanf(""), 2}, options, rng), Error);
    EXPECT_THROW(sample_once({std::nanf("")}, options, rng), Error);
    EXPECT_THROW(sample_once({1, kInf}, options, rng), Error);
    EXPECT_THROW(sample_once({-kInf, -kInf}, options, rng), Error);
  }
}

TEST(Sampler, OptionsOutsideTheirRangeAreRefusedByName) {
  const auto refused = [](const SamplerOptions& options, const char* name) {
    try {
      check_sampler(options);
      ADD_FAILURE() << name;
    } catch (const UsageError& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr(name));
    }
  };
  refused({.temperature = -1}, "--temperature");
  refused({.temperature = std::nan("")}, "--temperature");
  refused({.top_k = -1}, "--top-k");
  refused({.top_p = 0}, "--top-p");
  refused({.top_p = 1.1}, "--top-p");
  refused({.min_p = std::nan("")}, "--min-p");
  refused({.repetition_penalty = 0}, "--repetition-penalty");
  refused({.presence_penalty = std::nan("")}, "--presence-penalty");
  refused({.frequency_penalty = 1e9}, "--frequency-penalty");
  check_sampler({.temperature = 2, .top_k = 5, .top_p = 1, .min_p = 1});
}

}  // namespace
}  // namespace fathom
