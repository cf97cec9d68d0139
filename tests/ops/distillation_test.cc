#include "ops/distillation.h"

#include <cmath>

#include "ops/cross_entropy.h"
#include "ops/test_tensors.h"
#include "sanitized.h"

namespace fathom {
namespace {

struct Sizes {
  int64_t tokens, hidden, vocab, k, every;
};

struct Problem {
  Tensor x, w, targets;
  TeacherRows teacher;
};

Tensor i32_matrix(int64_t rows, int64_t cols) {
  Tensor t = i32_tensor(std::vector<int32_t>(static_cast<size_t>(rows * cols), kNoTarget));
  return t.reshape({rows, cols});
}

// Every `every`-th token has a target. The teacher is another head of the same hidden states.
Problem make_problem(const Sizes& s, double temperature) {
  std::vector<int32_t> targets, all;
  for (int64_t t = 0; t < s.tokens; ++t) {
    targets.push_back(t % s.every == 0 ? static_cast<int32_t>((t * 7919 + 3) % s.vocab) : kNoTarget);
    all.push_back(static_cast<int32_t>(t));
  }
  Problem p{random_f32(s.tokens, s.hidden, 1, s.hidden + 3),
            random_f32(s.vocab, s.hidden, 2, s.hidden + 1),
            i32_tensor(targets),
            {i32_matrix(s.tokens, s.k), filled_f32(s.tokens, s.k, 0), temperature}};
  const Tensor norms = filled_f32(s.tokens, 1, 0);
  plain::head_top_logprobs(p.teacher.ids, p.teacher.logprobs, norms, p.x, random_f32(s.vocab, s.hidden, 9), all,
                           std::vector{temperature});
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t i = 0; i < s.k; ++i) {
      float& logprob = p.teacher.logprobs.f32(t, i);
      logprob = static_cast<float>(logprob / temperature - norms.f32()[t]);
    }
    if (t % 5 == 4 && s.k > 1) p.teacher.ids.i32()[t * s.k + s.k - 1] = kNoTarget;  // a row that ends early
    if (t % 11 == 7) p.teacher.ids.i32()[t * s.k] = kNoTarget;                      // and one that is empty
  }
  return p;
}

struct Result {
  Tensor loss, divergences, dx, dw;
};
Result empty_result(const Problem& p) {
  return {random_f32(p.x.rows(), 3), random_f32(p.x.rows(), 6), random_f32(p.x.rows(), p.x.cols(), 4, p.x.cols() + 2),
          random_f32(p.w.rows(), p.w.cols(), 5, p.w.cols() + 6)};
}
Result run_backward(Context& context, const Problem& p, double weight, float scale = 0.3f) {
  const Result r = empty_result(p);
  head_distillation_backward(context, r.loss, r.divergences, r.dx, r.dw, p.x, p.w, p.targets, p.teacher, weight, scale);
  return r;
}
Result run_plain(const Problem& p, double weight, float scale = 0.3f) {
  const Result r = empty_result(p);
  plain::head_distillation_backward(r.loss, r.divergences, r.dx, r.dw, p.x, p.w, p.targets, p.teacher, weight, scale);
  return r;
}

const std::vector<Sizes> kSizes = {{1, 1, 1, 1, 1},     {1, 17, 129, 3, 1},    {3, 7, 65, 65, 1},
                                   {65, 33, 17, 16, 1}, {129, 8, 1500, 64, 1}, {129, 8, 1025, 7, 3},
                                   {600, 5, 40, 1, 1},  {1100, 5, 40, 9, 2},   {7, 4, 70000, 100, 4}};

TEST(HeadDistillation, EqualsItsPlainTwin) {
  for (const Sizes& s : kSizes) {
    for (const double temperature : {1.0, 2.5}) {
      const Problem p = make_problem(s, temperature);
      for (const double weight : {0.0, 0.4, 1.0}) {
        if (test::kSanitized && weight != 0.4) continue;
        const std::string what =
            fmt::format("{} {} {} {}: {} {}", s.tokens, s.hidden, s.vocab, s.k, temperature, weight);
        const Result want = run_plain(p, weight);
        const Result got = run_backward(ctx(), p, weight);
        EXPECT_LT(max_abs_error(got.loss, want.loss), 1e-5) << what;
        EXPECT_LT(max_abs_error(got.divergences, want.divergences), 3e-5) << what;
        // What is all but equal to the teacher has all but no gradient.
        EXPECT_LT(max_abs_error(got.dx, want.dx), 1e-5 * std::max(max_abs(want.dx), 1.0)) << what;
        EXPECT_LT(max_abs_error(got.dw, want.dw), 1e-5 * std::max(max_abs(want.dw), 1.0)) << what;
        EXPECT_TRUE(gaps_untouched(got.dx) && gaps_untouched(got.dw));
        const Result forward = empty_result(p);
        head_distillation(ctx(), forward.loss, forward.divergences, p.x, p.w, p.targets, p.teacher);
        EXPECT_LT(max_abs_error(forward.loss, got.loss), 1e-5) << what;
        EXPECT_TRUE(same_bits(forward.divergences, got.divergences)) << what;
      }
    }
  }
}

TEST(HeadDistillation, BackwardIsTheGradientOfForward) {
  for (const Sizes& s : std::vector<Sizes>{{11, 6, 37, 5, 2}, {9, 6, 13, 13, 1}}) {
    for (const double temperature : {1.0, 3.0}) {
      const Problem p = make_problem(s, temperature);
      for (const double weight : {0.0, 0.5, 1.0}) {
        const auto loss = [&] {
          const Result r = empty_result(p);
          head_distillation(ctx(), r.loss, r.divergences, p.x, p.w, p.targets, p.teacher);
          double sum = 0;
          for (int64_t t = 0; t < s.tokens; ++t) {
            const double soft = p.teacher.ids.i32()[t * s.k] == kNoTarget ? 0 : weight;
            sum += (1 - soft) * r.loss.f32()[t] + soft * r.divergences.f32()[t];
          }
          return 0.5 * sum;
        };
        const Result r = empty_result(p);
        const Tensor dx = zeros_like(p.x), dw = zeros_like(p.w);
        head_distillation_backward(ctx(), r.loss, r.divergences, dx, dw, p.x, p.w, p.targets, p.teacher, weight, 0.5f);
        EXPECT_LT(gradient_error(loss, p.x, dx), 2e-3) << temperature << " " << weight;
        EXPECT_LT(gradient_error(loss, p.w, dw), 2e-3) << temperature << " " << weight;
      }
    }
  }
}

// Over all tokens the divergence is that of the whole distributions, and its gradient in the logits their difference.
TEST(HeadDistillation, OfAllTokensIsTheDivergenceOfTheDistributions) {
  const int64_t vocab = 23;
  const Problem p = make_problem({1, 4, vocab, vocab, 1}, 2);
  const Result r = run_backward(ctx(), p, 1, 1);
  std::vector<double> q(static_cast<size_t>(vocab));
  double sum = 0, kl = 0;
  for (int64_t v = 0; v < vocab; ++v) {
    double logit = 0;
    for (int64_t i = 0; i < 4; ++i) logit += static_cast<double>(p.x.f32(0, i)) * p.w.f32(v, i);
    sum += q[static_cast<size_t>(v)] = std::exp(logit / 2);
  }
  for (int64_t i = 0; i < vocab; ++i) {
    const double log_p = p.teacher.logprobs.f32(0, i);
    kl += std::exp(log_p) * (log_p - std::log(q[static_cast<size_t>(p.teacher.ids.i32()[i])] / sum));
  }
  EXPECT_NEAR(r.divergences.f32()[0], 4 * kl, 1e-4);
}

// What the student believes within the rest is its own business: only the mass there counts.
TEST(HeadDistillation, NothingIsPreferredWithinTheRest) {
  Problem p = make_problem({1, 5, 5, 2, 1}, 1);
  for (int64_t v = 0; v < 5; ++v) {
    for (int64_t i = 0; i < 5; ++i) p.w.f32(v, i) = v == i ? 1 : 0;  // the logits are x
  }
  const float x[] = {0.3f, -0.2f, 1.0f, 0.1f, -1.5f};
  std::copy_n(x, 5, p.x.f32());
  p.teacher.ids.i32()[0] = 1, p.teacher.ids.i32()[1] = 3;
  p.teacher.logprobs.f32()[0] = std::log(0.6f), p.teacher.logprobs.f32()[1] = std::log(0.1f);
  const Result before = run_backward(ctx(), p, 1, 1);
  double q_rest = 0, all = 0;
  for (int v = 0; v < 5; ++v) {
    all += std::exp(x[v]);
    if (v != 1 && v != 3) q_rest += std::exp(x[v]);
  }
  for (const int v : {0, 2, 4}) {  // each by its part of the rest
    EXPECT_NEAR(before.dx.f32(0, v), std::exp(x[v]) / all * (1 - 0.3 / (q_rest / all)), 1e-6) << v;
  }
  std::swap(p.x.f32()[0], p.x.f32()[2]);
  EXPECT_NEAR(run_backward(ctx(), p, 1, 1).divergences.f32()[0], before.divergences.f32()[0], 1e-6);
}

TEST(HeadDistillation, AStudentThatEqualsItsTeacherHasNeitherDivergenceNorGradient) {
  const Sizes s{20, 6, 50, 8, 1};
  for (const double temperature : {1.0, 2.0}) {
    Problem p = make_problem(s, temperature);
    std::vector<int32_t> all(20);
    std::iota(all.begin(), all.end(), 0);
    const Tensor norms = filled_f32(20, 1, 0);
    head_top_logprobs(ctx(), p.teacher.ids, p.teacher.logprobs, norms, p.x, p.w, all, std::vector{temperature});
    for (int64_t t = 0; t < 20; ++t) {
      for (int64_t i = 0; i < 8; ++i) {
        p.teacher.logprobs.f32(t, i) = static_cast<float>(p.teacher.logprobs.f32(t, i) / temperature - norms.f32()[t]);
      }
    }
    const Result r = run_backward(ctx(), p, 1, 1);
    EXPECT_LT(max_abs(r.divergences), 1e-5);
    EXPECT_LT(max_abs(r.dx), 1e-5);
  }
}

TEST(HeadDistillation, WithoutWeightIsTheCrossEntropy) {
  const Problem p = make_problem({129, 8, 1025, 7, 3}, 2);
  const Result got = run_backward(ctx(), p, 0), want = empty_result(p);
  head_cross_entropy_backward(ctx(), want.loss, want.dx, want.dw, p.x, p.w, p.targets, 0.3f);
  EXPECT_TRUE(same_bits(got.loss, want.loss));
  EXPECT_LT(max_relative_error(got.dx, want.dx), 1e-6);
}

TEST(HeadDistillation, RowsHaveScalesOfTheirOwn) {
  const Problem p = make_problem({70, 9, 130, 5, 3}, 2);
  const Tensor scales = random_f32(70, 1, 8);
  const Result got = empty_result(p), want = empty_result(p);
  head_distillation_backward(ctx(), got.loss, got.divergences, got.dx, got.dw, p.x, p.w, p.targets, p.teacher, 0.5,
                             0.3f, scales);
  plain::head_distillation_backward(want.loss, want.divergences, want.dx, want.dw, p.x, p.w, p.targets, p.teacher, 0.5,
                                    0.3f, scales);
  EXPECT_LT(max_relative_error(got.dx, want.dx), 1e-5);
  EXPECT_LT(max_relative_error(got.dw, want.dw), 1e-5);
  EXPECT_TRUE(same_bits(got.loss, run_backward(ctx(), p, 0.5).loss));
}

TEST(HeadDistillation, ATokenWithoutTargetHasNothing) {
  Problem p = make_problem({9, 5, 13, 4, 1}, 1);
  for (int64_t t = 0; t < 9; ++t) p.targets.i32()[t] = kNoTarget;
  const Result r = run_backward(ctx(), p, 0.5), before = empty_result(p);
  EXPECT_EQ(max_abs(r.loss), 0);
  EXPECT_EQ(max_abs(r.divergences), 0);
  EXPECT_EQ(max_abs(r.dx), 0);
  EXPECT_TRUE(same_bits(r.dw, before.dw));
}

// What f16 leaves of probabilities may sum to more than 1.
TEST(HeadDistillation, ProbabilitiesAboveOneAreDividedByTheirSum) {
  Problem p = make_problem({4, 5, 30, 3, 1}, 1);
  const Problem scaled = make_problem({4, 5, 30, 3, 1}, 1);
  for (int64_t t = 0; t < 4; ++t) {
    double sum = 0;
    for (int64_t i = 0; i < 3; ++i) sum += std::exp(p.teacher.logprobs.f32(t, i));
    for (int64_t i = 0; i < 3; ++i) {
      scaled.teacher.logprobs.f32(t, i) = static_cast<float>(p.teacher.logprobs.f32(t, i) - std::log(sum));
      p.teacher.logprobs.f32(t, i) = static_cast<float>(scaled.teacher.logprobs.f32(t, i) + std::log(1.01));
    }
  }
  const Result got = run_backward(ctx(), p, 1), want = run_backward(ctx(), scaled, 1);
  EXPECT_LT(max_abs_error(got.divergences, want.divergences), 1e-5);
  EXPECT_LT(max_relative_error(got.dx, want.dx), 1e-4);
}

TEST(HeadDistillation, LargeLogitsNeitherOverflowNorVanish) {
  const Problem p = make_problem({4, 3, 50, 6, 1}, 1);
  for (int64_t v = 0; v < 50; ++v) {
    for (int64_t i = 0; i < 3; ++i) p.w.f32(v, i) *= 60;
  }
  const Result got = run_backward(ctx(), p, 0.5), want = run_plain(p, 0.5);
  EXPECT_LT(max_relative_error(got.divergences, want.divergences), 1e-5);
  EXPECT_LT(max_relative_error(got.dx, want.dx), 1e-4);
}

TEST(HeadDistillation, WhatIsNotFiniteShows) {
  for (const int64_t at : {0, 29}) {
    const Problem p = make_problem({1, 5, 30, 3, 1}, 1);
    p.w.f32(at, 2) = std::numeric_limits<float>::quiet_NaN();
    for (const double weight : {0.5, 1.0}) {
      const Result r = run_backward(ctx(), p, weight);
      EXPECT_FALSE(std::isfinite(r.loss.f32()[0]));
      EXPECT_FALSE(std::isfinite(r.divergences.f32()[0]));
    }
  }
}

TEST(HeadDistillation, BitsDoNotDependOnTheNumberOfThreads) {
  const Problem p = make_problem({300, 40, 200, 20, 2}, 2);
  Result first{};
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    Arena arena;
    Context context{pool, arena};
    const Result r = run_backward(context, p, 0.7);
    if (threads == 1) {
      first = r;
    } else {
      EXPECT_TRUE(same_bits(r.loss, first.loss) && same_bits(r.divergences, first.divergences)) << threads;
      EXPECT_TRUE(same_bits(r.dx, first.dx) && same_bits(r.dw, first.dw)) << threads;
    }
  }
}

TEST(HeadDistillation, AllocatesNoMatrixOfAllTokensAndTheVocabulary) {
  const Tensor ids = i32_matrix(4096, 2);
  for (int32_t t = 0; t < 4096; ++t) ids.i32()[t * 2] = t;
  const Problem p{random_f32(4096, 2, 1),
                  random_f32(4096, 2, 2),
                  i32_tensor(std::vector<int32_t>(4096, 1)),
                  {ids, filled_f32(4096, 2, -1), 1}};
  ThreadPool pool(2);
  Arena arena;
  Context context{pool, arena};
  run_backward(context, p, 0.5);
  EXPECT_LT(arena.peak_bytes(), size_t{4096} * 4096 * 4 / 2);
}

TEST(HeadTopLogprobs, EqualTheirPlainTwin) {
  const std::vector<double> temperatures = {1, 2, 0.5};
  for (const Sizes& s : kSizes) {
    std::vector<int32_t> tokens;
    for (int64_t t = 0; t < s.tokens; t += s.every) tokens.push_back(static_cast<int32_t>(t));
    const Tensor x = random_f32(s.tokens, s.hidden, 1, s.hidden + 3), w = random_f32(s.vocab, s.hidden, 2);
    const int64_t n = std::ssize(tokens);
    const Tensor ids = i32_matrix(n, s.k), want_ids = i32_matrix(n, s.k);
    const Tensor got = filled_f32(n, s.k, 1), want = filled_f32(n, s.k, 1);
    const Tensor norms = filled_f32(n, 3, 1), want_norms = filled_f32(n, 3, 1);
    head_top_logprobs(ctx(), ids, got, norms, x, w, tokens, temperatures);
    plain::head_top_logprobs(want_ids, want, want_norms, x, w, tokens, temperatures);
    EXPECT_LT(max_abs_error(got, want), 1e-5) << s.vocab;
    EXPECT_LT(max_abs_error(norms, want_norms), 1e-4) << s.vocab;
    for (int64_t i = 0; i < n * s.k; ++i) {
      if (ids.i32()[i] == want_ids.i32()[i]) continue;
      EXPECT_NEAR(got.f32()[i], want.f32()[i], 1e-5);  // two that are all but equal may change places
    }
  }
}

TEST(HeadTopLogprobs, OfEqualTokensTheLowerIdComesFirst) {
  const Tensor w = filled_f32(40, 3, 1), x = random_f32(2, 3, 1), logprobs = filled_f32(2, 5, 1);
  const Tensor ids = i32_matrix(2, 5);
  head_top_logprobs(ctx(), ids, logprobs, filled_f32(2, 1, 0), x, w, std::vector{0, 1}, std::vector{1.0});
  for (int i = 0; i < 10; ++i) EXPECT_EQ(ids.i32()[i], i % 5);
}

TEST(HeadDistillationDeathTest, RefusesATeachersTokenOutsideTheVocabulary) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Problem p = make_problem({3, 2, 5, 2, 1}, 1);
  p.teacher.ids.i32()[2] = 5;
  EXPECT_DEATH(run_backward(ctx(), p, 1), "teacher's token 5 for token 1, vocab 5");
}

}  // namespace
}  // namespace fathom
