#include "ops/router.h"

#include <string>

#include "each_isa.h"
#include "fixtures.h"
#include "test_tensors.h"

namespace fathom {
namespace {

Tensor filled_i32(int64_t rows, int64_t cols, int32_t value) {
  return Tensor(test_memory<int32_t>(rows * cols, value), Format::i32, {rows, cols});
}

std::vector<int32_t> row_of(Tensor ids, int64_t t) {
  const int32_t* row = ids.i32() + t * ids.row_stride;
  return {row, row + ids.cols()};
}

// What route() makes of logits.
struct Routed {
  Tensor ids, weights, scores;
  Routed(const RouterConfig& config, int64_t tokens)
      : ids(filled_i32(tokens, config.num_experts_per_tok, -1)),
        weights(filled_f32(tokens, config.num_experts_per_tok, 0)),
        scores(filled_f32(tokens, config.n_routed_experts, 0)) {}
};
Routed routed(const RouterConfig& config, Tensor logits, Tensor bias = {}) {
  const Routed r(config, logits.rows());
  route(ctx(), config, r.ids, r.weights, r.scores, logits, bias);
  return r;
}
Routed plainly_routed(const RouterConfig& config, Tensor logits, Tensor bias = {}) {
  const Routed r(config, logits.rows());
  plain::route(config, r.ids, r.weights, r.scores, logits, bias);
  return r;
}

RouterConfig fixture_config(simdjson::dom::element parameters) {
  const simdjson::dom::element c = parameters["config"];
  const bool v3 = parameters["kind"].get_string().value() == "v3";
  const auto count = [&](const char* key) { return c[key].get_int64().value(); };
  const bool greedy = !v3 && c["topk_method"].get_string().value() == "greedy";
  return {.n_routed_experts = count("n_routed_experts"),
          .num_experts_per_tok = count("num_experts_per_tok"),
          .n_group = count("n_group"),
          .topk_group = count("topk_group"),
          .scoring = v3 ? Scoring::sigmoid : Scoring::softmax,
          .method = v3 ? TopkMethod::noaux_tc : (greedy ? TopkMethod::greedy : TopkMethod::group_limited_greedy),
          .norm_topk_prob = v3,
          .routed_scaling_factor = static_cast<float>(c["routed_scaling_factor"].get_double())};
}

class RouterFixture : public testing::TestWithParam<const char*> {};

TEST_P(RouterFixture, ChoicesWeightsAndLoadMatch) {
  const OpFixtures fixtures;
  const std::string name = GetParam();
  const RouterConfig config = fixture_config(fixtures.parameters("/router/" + name));
  const auto tensor = [&](const char* of) { return fixtures["router." + name + "." + of]; };
  const Tensor logits = tensor("logits"), want_ids = tensor("topk_ids"), want_load = tensor("expert_load");
  const Tensor bias = config.method == TopkMethod::noaux_tc ? tensor("bias") : Tensor{};
  for (const Routed& r : {routed(config, logits, bias), plainly_routed(config, logits, bias)}) {
    EXPECT_TRUE(same_bits(r.ids, want_ids));
    EXPECT_LT(max_abs_error(r.weights, tensor("topk_weights")), 1e-5);
    const Tensor load(test_memory<int64_t>(config.n_routed_experts, 0), Format::i64, {config.n_routed_experts});
    count_expert_load(load, r.ids);
    for (int64_t e = 0; e < config.n_routed_experts; ++e) EXPECT_EQ(load.as<int64_t>()[e], want_load.i32()[e]);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, RouterFixture, testing::Values("v3_671b", "moonlight", "v2_236b", "v2_lite"),
                         [](const auto& param) { return std::string(param.param); });

std::vector<RouterConfig> configs() {
  const auto v3 = Scoring::sigmoid;
  const auto v2 = Scoring::softmax;
  return {{1, 1, 1, 1, v3, TopkMethod::noaux_tc, true, 1},
          {7, 3, 1, 1, v3, TopkMethod::noaux_tc, true, 2.5f},
          {7, 7, 7, 7, v3, TopkMethod::noaux_tc, false, 1},
          {16, 3, 4, 2, v3, TopkMethod::noaux_tc, true, 2.5f},
          {65, 6, 5, 2, v3, TopkMethod::noaux_tc, false, 1},
          {9, 2, 1, 1, v2, TopkMethod::greedy, false, 1},
          {33, 5, 1, 1, v2, TopkMethod::greedy, true, 3},
          {160, 6, 8, 3, v2, TopkMethod::group_limited_greedy, false, 16}};
}

TEST(Router, MatchesPlainOverConfigsAndStrides) {
  for (const RouterConfig& config : configs()) {
    for (const int64_t tokens : {1, 3, 129}) {
      const int64_t experts = config.n_routed_experts, k = config.num_experts_per_tok;
      SCOPED_TRACE(testing::Message() << experts << " experts, " << tokens << " tokens");
      const Tensor logits = random_f32(tokens, experts, 1, experts + 1), bias = random_f32(experts, 2);
      Routed r(config, tokens);
      r.weights = filled_f32(tokens, k, 0, k + 1);
      r.scores = filled_f32(tokens, experts, 0, experts + 2);
      route(ctx(), config, r.ids, r.weights, r.scores, logits, bias);
      const Routed want = plainly_routed(config, logits, bias);
      EXPECT_TRUE(same_bits(r.ids, want.ids));
      EXPECT_LT(max_abs_error(r.scores, want.scores), 1e-6);
      EXPECT_LT(max_abs_error(r.weights, want.weights), 1e-6 * config.routed_scaling_factor);
      EXPECT_TRUE(gaps_untouched(r.weights));
      EXPECT_TRUE(gaps_untouched(r.scores));

      const Tensor d_weights = random_f32(tokens, k, 3, k + 1), d_scores = random_f32(tokens, experts, 4, experts + 1);
      for (const Tensor& extra : {Tensor{}, d_scores}) {
        const Tensor d = filled_f32(tokens, experts, 9, experts + 3), want_d = filled_f32(tokens, experts, 0);
        route_backward(ctx(), config, d, d_weights, r.ids, r.scores, extra);
        plain::route_backward(config, want_d, d_weights, r.ids, r.scores, extra);
        EXPECT_LT(max_abs_error(d, want_d), 2e-6 * std::max(1.0, max_abs(want_d)));
        EXPECT_TRUE(gaps_untouched(d));
      }
    }
  }
}

TEST(Router, GradientIsThatOfTheFunction) {
  for (const RouterConfig& config : configs()) {
    const int64_t experts = config.n_routed_experts, k = config.num_experts_per_tok;
    SCOPED_TRACE(experts);
    const Tensor logits = random_f32(3, experts, 1), d_weights = random_f32(3, k, 2);
    const Tensor d_scores = random_f32(3, experts, 3), d = zeros_like(logits);
    // Choices far from each other, so that a step of the differences changes none.
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t e = 0; e < experts; ++e) {
        logits.f32(t, e) = static_cast<float>((e * 29 + t * 11) % experts) * (4.0f / static_cast<float>(experts)) - 2;
      }
    }
    const Routed r = routed(config, logits);
    route_backward(ctx(), config, d, d_weights, r.ids, r.scores, d_scores);
    const auto loss = [&] {
      const Routed now = plainly_routed(config, logits);
      EXPECT_TRUE(same_bits(now.ids, r.ids));
      return dot(now.weights, d_weights) + dot(now.scores, d_scores);
    };
    EXPECT_LT(gradient_error(loss, logits, d, 3e-3f), 2e-3);
  }
}

TEST(Router, ChosenExpertsAreWeighedAsIfRouted) {
  for (const bool norm : {false, true}) {
    for (const Scoring scoring : {Scoring::sigmoid, Scoring::softmax}) {
      const RouterConfig config{.n_routed_experts = 24,
                                .num_experts_per_tok = 5,
                                .scoring = scoring,
                                .norm_topk_prob = norm,
                                .routed_scaling_factor = 1.7f};
      const Tensor logits = random_f32(33, 24, 3), bias = random_f32(1, 24, 4);
      const Routed by_choice = routed(config, logits, bias), given(config, 33);
      weigh_chosen(ctx(), config, by_choice.ids, given.weights, given.scores, logits);
      EXPECT_TRUE(same_bits(given.weights, by_choice.weights) && same_bits(given.scores, by_choice.scores));
      // Any experts: their weights are those that a bias would have given which lets them win.
      const Tensor others = filled_i32(33, 5, 0), one_bias = filled_f32(1, 24, 0);
      for (int32_t j = 0; j < 5; ++j) {
        for (int64_t t = 0; t < 33; ++t) others.i32()[t * others.row_stride + j] = 2 * j + 1;
        one_bias.f32()[2 * j + 1] = 100;
      }
      const Routed forced = routed(config, logits, one_bias);
      weigh_chosen(ctx(), config, others, given.weights, given.scores, logits);
      EXPECT_TRUE(same_bits(forced.ids, others) && same_bits(given.weights, forced.weights));
    }
  }
}

TEST(Router, EqualScoresGoToTheLowerId) {
  RouterConfig config = {.n_routed_experts = 16, .num_experts_per_tok = 3, .n_group = 4, .topk_group = 2};
  const Tensor logits = filled_f32(2, 16, 0.5f);
  EXPECT_EQ(row_of(routed(config, logits).ids, 0), (std::vector<int32_t>{0, 1, 2}));
  logits.f32(0, 9) = 1;  // group 2 is best, then group 0
  EXPECT_EQ(row_of(routed(config, logits).ids, 0), (std::vector<int32_t>{0, 1, 9}));
  config.n_group = config.topk_group = 1;
  logits.f32(1, 5) = logits.f32(1, 15) = 2;
  EXPECT_EQ(row_of(routed(config, logits).ids, 1), (std::vector<int32_t>{0, 5, 15}));
}

TEST(Router, BiasDecidesMembershipButNotWeights) {
  const RouterConfig config = {.n_routed_experts = 4, .num_experts_per_tok = 2, .norm_topk_prob = false};
  const Tensor logits = filled_f32(1, 4, 0), bias = filled_f32(1, 4, 0);
  logits.f32()[0] = 3;
  bias.f32()[3] = 10;
  bias.f32()[0] = -10;
  const Routed r = routed(config, logits, bias[0]);
  EXPECT_EQ(row_of(r.ids, 0), (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(r.weights.f32()[0], 0.5f);
  EXPECT_EQ(r.weights.f32()[1], 0.5f);
}

TEST(Router, GroupsRankByTheirTwoBestInV3AndTheirBestInV2) {
  RouterConfig config = {.n_routed_experts = 6, .num_experts_per_tok = 2, .n_group = 2, .topk_group = 1};
  const Tensor logits = filled_f32(1, 6, -3);
  logits.f32()[0] = 1;                    // the best expert, alone in its group
  logits.f32()[4] = logits.f32()[5] = 0;  // two good ones
  EXPECT_EQ(row_of(routed(config, logits).ids, 0), (std::vector<int32_t>{4, 5}));
  config.scoring = Scoring::softmax;
  config.method = TopkMethod::group_limited_greedy;
  EXPECT_EQ(row_of(routed(config, logits).ids, 0), (std::vector<int32_t>{0, 1}));
}

TEST(Router, AnyLogitsGiveDistinctIdsInRange) {
  const float strange[] = {NAN, -NAN, INFINITY, -INFINITY, 1e4f, -1e4f, 0, 3e38f, -3e38f};
  for (RouterConfig config : configs()) {
    const int64_t experts = config.n_routed_experts, tokens = 200;
    const Tensor logits = filled_f32(tokens, experts, NAN);
    Rng rng(7);
    for (int64_t t = 1; t < tokens; ++t) {
      for (int64_t e = 0; e < experts; ++e) logits.f32(t, e) = strange[rng.below(std::size(strange))];
    }
    for (const Routed& r : {routed(config, logits), plainly_routed(config, logits)}) {
      for (int64_t t = 0; t < tokens; ++t) {
        const std::vector<int32_t> ids = row_of(r.ids, t);
        for (size_t j = 0; j < ids.size(); ++j) {
          ASSERT_GE(ids[j], j == 0 ? 0 : ids[j - 1] + 1);
          ASSERT_LT(ids[j], experts);
          if (t == 0 && config.method == TopkMethod::greedy) {
            EXPECT_EQ(ids[j], static_cast<int32_t>(j)) << "all NaN: the lowest";
          }
        }
      }
    }
  }
}

TEST(Router, BitsDoNotDependOnThreads) {
  const RouterConfig config = {64, 6, 8, 3, Scoring::sigmoid, TopkMethod::noaux_tc, true, 2.5f};
  const Tensor logits = random_f32(700, 64, 1), bias = random_f32(64, 2), d_weights = random_f32(700, 6, 3);
  const Tensor offsets = i32_tensor({0, 1, 300, 300, 700});
  std::vector<Tensor> first;
  double first_loss = 0;
  for (const int threads : {1, 2, 5}) {
    ThreadedContext c(threads);
    const Routed r(config, 700);
    const Tensor d = zeros_like(logits), d_scores = zeros_like(logits);
    route(c.ctx, config, r.ids, r.weights, r.scores, logits, bias);
    const double loss = sequence_balance_loss(c.ctx, config, d_scores, r.scores, offsets, 0.01, 1);
    route_backward(c.ctx, config, d, d_weights, r.ids, r.scores, d_scores);
    if (first.empty()) {
      first = {r.ids, r.weights, r.scores, d};
      first_loss = loss;
    }
    EXPECT_TRUE(same_bits(r.ids, first[0]));
    EXPECT_TRUE(same_bits(r.weights, first[1]));
    EXPECT_TRUE(same_bits(r.scores, first[2]));
    EXPECT_TRUE(same_bits(d, first[3]));
    EXPECT_EQ(loss, first_loss);
  }
}

// The definition, in double. f keeps its value at `frozen`, as no gradient passes through the choice.
double balance_loss(const RouterConfig& config, Tensor scores, Tensor frozen, Tensor offsets, double alpha) {
  double loss = 0;
  for (int64_t q = 0; q + 1 < offsets.size(); ++q) {
    const int64_t begin = offsets.i32()[q], end = offsets.i32()[q + 1], n = config.n_routed_experts;
    for (int64_t i = 0; i < n; ++i) {
      double count = 0, share = 0;
      for (int64_t t = begin; t < end; ++t) {
        int64_t better = 0;
        double total = 0;
        for (int64_t j = 0; j < n; ++j) {
          const float a = frozen.f32(t, j), b = frozen.f32(t, i);
          better += a > b || (a == b && j < i);
          total += scores.f32(t, j);
        }
        count += better < config.num_experts_per_tok;
        share += scores.f32(t, i) / total;
      }
      const double length = static_cast<double>(end - begin);
      if (length > 0) {
        loss += alpha * static_cast<double>(n) / static_cast<double>(config.num_experts_per_tok) * count / length *
                share / length;
      }
    }
  }
  return loss;
}

TEST(BalanceLoss, MatchesItsDefinitionAndGradient) {
  const RouterConfig config = {.n_routed_experts = 9, .num_experts_per_tok = 2, .n_group = 3, .topk_group = 1};
  const Tensor logits = random_f32(301, 9, 1), offsets = i32_tensor({0, 3, 3, 4, 301});
  const Tensor scores = routed(config, logits).scores, frozen = copy_of(scores);
  const Tensor d = filled_f32(301, 9, 1, 11);
  const double loss = sequence_balance_loss(ctx(), config, d, scores, offsets, 0.5, 3);
  EXPECT_NEAR(loss, balance_loss(config, scores, frozen, offsets, 0.5), 1e-6);
  EXPECT_TRUE(gaps_untouched(d));
  const Tensor gradient = zeros_like(scores);
  for (int64_t t = 0; t < 301; ++t) {
    for (int64_t e = 0; e < 9; ++e) gradient.f32(t, e) = (d.f32(t, e) - 1) / 3;
  }
  const auto function = [&] { return balance_loss(config, scores, frozen, offsets, 0.5); };
  EXPECT_LT(gradient_error(function, scores, gradient, 1e-3f), 1e-3);
}

TEST(BalanceLoss, EqualsItsPlainTwin) {
  struct Sizes {
    int64_t experts, k;
    std::vector<int32_t> offsets;
  };
  for (const auto& [experts, k, offsets] : std::vector<Sizes>{{1, 1, {0, 1}},
                                                              {9, 2, {0, 3, 3, 4, 301}},
                                                              {7, 7, {0, 128, 256}},
                                                              {64, 6, {0, 127, 256, 385}},
                                                              {33, 3, {0, 0, 5}}}) {
    for (const Scoring scoring : {Scoring::sigmoid, Scoring::softmax}) {
      const RouterConfig config = {.n_routed_experts = experts, .num_experts_per_tok = k, .scoring = scoring};
      const Tensor scores = routed(config, random_f32(offsets.back(), experts, 1)).scores;
      const Tensor got = filled_f32(offsets.back(), experts, 1, experts + 3), want = copy_of(got);
      const double loss = sequence_balance_loss(ctx(), config, got, scores, i32_tensor(offsets), 0.5, 3);
      EXPECT_NEAR(loss, plain::sequence_balance_loss(config, want, scores, i32_tensor(offsets), 0.5, 3), 1e-6 * loss);
      EXPECT_LT(max_relative_error(got, want), 1e-5) << experts << " " << k;
      EXPECT_TRUE(gaps_untouched(got));
    }
  }
}

TEST(BalanceLoss, IsAlphaWhenLoadsAreEven) {
  const RouterConfig config = {.n_routed_experts = 4, .num_experts_per_tok = 1};
  const Tensor scores = filled_f32(4, 4, 0.1f), d = zeros_like(scores);
  for (int64_t t = 0; t < 4; ++t) scores.f32(t, t) = 0.9f;
  EXPECT_NEAR(sequence_balance_loss(ctx(), config, d, scores, i32_tensor({0, 4}), 0.25, 1), 0.25, 1e-6);
  EXPECT_LT(max_abs(d), 1e-7);
  EXPECT_EQ(sequence_balance_loss(ctx(), config, d.slice(0, 0), scores.slice(0, 0), i32_tensor({0}), 1, 1), 0);
}

}  // namespace
}  // namespace fathom
