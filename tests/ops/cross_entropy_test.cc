#include "ops/cross_entropy.h"

#include <cmath>

#include "ops/test_tensors.h"

namespace fathom {
namespace {

struct Problem {
  Tensor x, w, targets;
};

// Every `every`-th token has a target.
Problem make_problem(int64_t tokens, int64_t hidden, int64_t vocab, int64_t every) {
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < tokens; ++t) {
    targets.push_back(t % every == 0 ? static_cast<int32_t>((t * 7919 + 3) % vocab) : kNoTarget);
  }
  return {random_f32(tokens, hidden, 1, hidden + 3), random_f32(vocab, hidden, 2, hidden + 1), i32_tensor(targets)};
}

struct Result {
  Tensor loss, dx, dw;
};
Result empty_result(const Problem& p) {
  return {random_f32(p.x.rows(), 3), random_f32(p.x.rows(), p.x.cols(), 4, p.x.cols() + 2),
          random_f32(p.w.rows(), p.w.cols(), 5, p.w.cols() + 6)};
}
Result run_backward(Context& context, const Problem& p, float scale) {
  const Result r = empty_result(p);
  head_cross_entropy_backward(context, r.loss, r.dx, r.dw, p.x, p.w, p.targets, scale);
  return r;
}

TEST(HeadCrossEntropy, EqualsItsPlainTwin) {
  struct Sizes {
    int64_t tokens, hidden, vocab, every;
  };
  for (const auto& [tokens, hidden, vocab, every] : std::vector<Sizes>{{1, 1, 1, 1},
                                                                       {1, 17, 129, 1},
                                                                       {3, 7, 65, 1},
                                                                       {65, 33, 17, 1},
                                                                       {129, 8, 1500, 1},
                                                                       {129, 8, 1025, 3},
                                                                       {600, 5, 40, 1},
                                                                       {1100, 5, 40, 2},
                                                                       {7, 4, 70000, 4}}) {
    const Problem p = make_problem(tokens, hidden, vocab, every);
    const Result got = run_backward(ctx(), p, 0.3f), want = empty_result(p);
    plain::head_cross_entropy_backward(want.loss, want.dx, want.dw, p.x, p.w, p.targets, 0.3f);
    EXPECT_LT(max_abs_error(got.loss, want.loss), 1e-5) << tokens << " " << hidden << " " << vocab;
    EXPECT_LT(max_relative_error(got.dx, want.dx), 1e-5) << tokens << " " << hidden << " " << vocab;
    EXPECT_LT(max_relative_error(got.dw, want.dw), 1e-5) << tokens << " " << hidden << " " << vocab;
    EXPECT_TRUE(gaps_untouched(got.dx) && gaps_untouched(got.dw));

    const Tensor loss = random_f32(tokens, 9), plain_loss = random_f32(tokens, 9);
    head_cross_entropy(ctx(), loss, p.x, p.w, p.targets);
    plain::head_cross_entropy(plain_loss, p.x, p.w, p.targets);
    EXPECT_TRUE(same_bits(loss, got.loss)) << tokens << " " << hidden << " " << vocab;
    EXPECT_TRUE(same_bits(plain_loss, want.loss));
  }
}

TEST(HeadCrossEntropy, GradientsMadeApartHaveTheBitsOfThoseMadeTogether) {
  for (const int64_t every : {1, 3}) {
    const Problem p = make_problem(129, 8, 1025, every);
    const Result together = run_backward(ctx(), p, 0.3f), apart = empty_result(p);
    head_cross_entropy_backward(ctx(), apart.loss, apart.dx, {}, p.x, p.w, p.targets, 0.3f);
    EXPECT_TRUE(same_bits(apart.loss, together.loss) && same_bits(apart.dx, together.dx)) << every;
    EXPECT_TRUE(same_bits(apart.dw, empty_result(p).dw)) << every;
    const Tensor loss = random_f32(129, 9);
    head_cross_entropy_backward(ctx(), loss, {}, apart.dw, p.x, p.w, p.targets, 0.3f);
    EXPECT_TRUE(same_bits(loss, together.loss) && same_bits(apart.dw, together.dw)) << every;

    const Result plain_together = empty_result(p), plain_apart = empty_result(p);
    plain::head_cross_entropy_backward(plain_together.loss, plain_together.dx, plain_together.dw, p.x, p.w, p.targets,
                                       1);
    plain::head_cross_entropy_backward(plain_apart.loss, plain_apart.dx, {}, p.x, p.w, p.targets, 1);
    plain::head_cross_entropy_backward(plain_apart.loss, {}, plain_apart.dw, p.x, p.w, p.targets, 1);
    EXPECT_TRUE(same_bits(plain_apart.dx, plain_together.dx) && same_bits(plain_apart.dw, plain_together.dw)) << every;
  }
}

TEST(HeadCrossEntropy, RowsHaveScalesOfTheirOwn) {
  const Problem p = make_problem(70, 9, 130, 3);
  const Tensor scales = random_f32(70, 1, 8);
  const Result got = empty_result(p), want = empty_result(p);
  head_cross_entropy_backward(ctx(), got.loss, got.dx, got.dw, p.x, p.w, p.targets, 0.3f, scales);
  plain::head_cross_entropy_backward(want.loss, want.dx, want.dw, p.x, p.w, p.targets, 0.3f, scales);
  EXPECT_LT(max_relative_error(got.dx, want.dx), 1e-5);
  EXPECT_LT(max_relative_error(got.dw, want.dw), 1e-5);
  EXPECT_TRUE(same_bits(got.loss, run_backward(ctx(), p, 0.3f).loss));
}

TEST(HeadLogprobs, AreMinusTheLosses) {
  for (const int64_t every : {1, 3}) {
    const Problem p = make_problem(70, 9, 130, every);
    const Tensor logprobs = random_f32(70, 1), entropies = random_f32(70, 1), losses = random_f32(70, 1);
    head_logprobs(ctx(), logprobs, p.x, p.w, p.targets, entropies);
    plain::head_cross_entropy(losses, p.x, p.w, p.targets);
    for (int64_t t = 0; t < 70; ++t) {
      EXPECT_NEAR(logprobs.f32()[t], -losses.f32()[t], 1e-5);
      if (p.targets.i32()[t] == kNoTarget) {
        EXPECT_EQ(entropies.f32()[t], 0);
        continue;
      }
      double entropy = 0;  // by its definition, from the loss of every token
      for (int32_t v = 0; v < 130; ++v) {
        const Tensor loss = random_f32(1, 1);
        plain::head_cross_entropy(loss, p.x.slice(t, 1), p.w, i32_tensor({v}));
        entropy += std::exp(-loss.f32()[0]) * loss.f32()[0];
      }
      EXPECT_NEAR(entropies.f32()[t], entropy, 1e-4);
    }
  }
}

// A mask of a sampler: rows keep every n-th token and their target; one in three keeps all.
struct Mask {
  std::vector<int64_t> begins{0};
  std::vector<int32_t> kept;
  SamplingMask mask;
};
Mask make_mask(const Problem& p, double temperature, int32_t n) {
  Mask made;
  for (int64_t t = 0; t < p.x.rows(); ++t) {
    const int32_t target = p.targets.i32()[t];
    for (int32_t v = 0; t % 3 != 0 && v < p.w.rows(); ++v) {
      if (v % n == 1 || v == target) made.kept.push_back(v);
    }
    made.begins.push_back(std::ssize(made.kept));
  }
  made.mask = {temperature, made.begins, made.kept};
  return made;
}

TEST(HeadCrossEntropy, OfWhatASamplerLeftEqualsItsPlainTwin) {
  struct Sizes {
    int64_t tokens, hidden, vocab, every;
    double temperature;
    int32_t n;
  };
  for (const auto& [tokens, hidden, vocab, every, temperature, n] : std::vector<Sizes>{
           {1, 1, 1, 1, 1, 1}, {2, 17, 129, 1, 0.6, 1}, {70, 9, 130, 3, 1, 7}, {129, 8, 1025, 1, 1.7, 300}}) {
    const Problem p = make_problem(tokens, hidden, vocab, every);
    const Mask m = make_mask(p, temperature, n);
    const Tensor scales = random_f32(tokens, 1, 8);
    const Result got = empty_result(p), want = empty_result(p);
    head_cross_entropy_backward(ctx(), got.loss, got.dx, got.dw, p.x, p.w, p.targets, 0.3f, scales, &m.mask);
    plain::head_cross_entropy_backward(want.loss, want.dx, want.dw, p.x, p.w, p.targets, 0.3f, scales, &m.mask);
    EXPECT_LT(max_abs_error(got.loss, want.loss), 1e-5) << tokens << " " << vocab;
    EXPECT_LT(max_relative_error(got.dx, want.dx), 1e-5) << tokens << " " << vocab;
    EXPECT_LT(max_relative_error(got.dw, want.dw), 1e-5) << tokens << " " << vocab;
    const Tensor logprobs = random_f32(tokens, 1), entropies = random_f32(tokens, 1);
    head_logprobs(ctx(), logprobs, p.x, p.w, p.targets, entropies, &m.mask);
    for (int64_t t = 0; t < tokens; ++t) {
      EXPECT_NEAR(logprobs.f32()[t], -want.loss.f32()[t], 1e-5);
      const auto kept = m.mask.of(t);
      const auto n_left = static_cast<double>(kept.empty() ? vocab : std::ssize(kept));
      EXPECT_LE(entropies.f32()[t], std::log(n_left) + 1e-5);
    }
  }
}

TEST(HeadCrossEntropy, AMaskThatLeavesAllAsItIsChangesNoBit) {
  const Problem p = make_problem(70, 9, 130, 3);
  const SamplingMask none;
  const Result got = empty_result(p), want = run_backward(ctx(), p, 0.3f);
  head_cross_entropy_backward(ctx(), got.loss, got.dx, got.dw, p.x, p.w, p.targets, 0.3f, {}, &none);
  EXPECT_TRUE(same_bits(got.loss, want.loss) && same_bits(got.dx, want.dx) && same_bits(got.dw, want.dw));
  const Tensor masked = random_f32(70, 1), plain = random_f32(70, 1);
  head_logprobs(ctx(), masked, p.x, p.w, p.targets, {}, &none);
  head_logprobs(ctx(), plain, p.x, p.w, p.targets);
  EXPECT_TRUE(same_bits(masked, plain));
}

TEST(HeadCrossEntropy, BackwardIsTheGradientOfForward) {
  const Problem p = make_problem(11, 6, 37, 2);
  constexpr float kScale = 0.5f;
  const auto loss = [&] {
    const Tensor losses = random_f32(11, 1);
    head_cross_entropy(ctx(), losses, p.x, p.w, p.targets);
    double sum = 0;
    for (int64_t t = 0; t < 11; ++t) sum += losses.f32()[t];
    return kScale * sum;
  };
  const Tensor losses = random_f32(11, 1), dx = zeros_like(p.x), dw = zeros_like(p.w);
  head_cross_entropy_backward(ctx(), losses, dx, dw, p.x, p.w, p.targets, kScale);
  EXPECT_LT(gradient_error(loss, p.x, dx), 1e-3);
  EXPECT_LT(gradient_error(loss, p.w, dw), 1e-3);
}

TEST(HeadCrossEntropy, ATokenWithoutTargetHasNoLossAndPassesNoGradient) {
  Problem p = make_problem(9, 5, 13, 1);
  for (int64_t t = 0; t < 9; ++t) p.targets.i32()[t] = kNoTarget;
  const Result r = run_backward(ctx(), p, 1), before = empty_result(p);
  EXPECT_EQ(max_abs(r.loss), 0);
  EXPECT_EQ(max_abs(r.dx), 0);
  EXPECT_TRUE(same_bits(r.dw, before.dw));
}

TEST(HeadCrossEntropy, BitsDoNotDependOnTheNumberOfThreads) {
  const Problem p = make_problem(300, 40, 200, 2);
  Result first;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    Arena arena;
    Context context{pool, arena};
    const Result r = run_backward(context, p, 0.1f);
    if (threads == 1) {
      first = r;
    } else {
      EXPECT_TRUE(same_bits(r.loss, first.loss) && same_bits(r.dx, first.dx) && same_bits(r.dw, first.dw)) << threads;
    }
  }
}

TEST(HeadCrossEntropy, LargeLogitsNeitherOverflowNorVanish) {
  const Problem p = make_problem(4, 3, 50, 1);
  for (int64_t v = 0; v < 50; ++v) {
    for (int64_t i = 0; i < 3; ++i) p.w.f32(v, i) *= 300;
  }
  const Result got = run_backward(ctx(), p, 1), want = empty_result(p);
  plain::head_cross_entropy_backward(want.loss, want.dx, want.dw, p.x, p.w, p.targets, 1);
  EXPECT_LT(max_relative_error(got.loss, want.loss), 1e-5);
  EXPECT_LT(max_relative_error(got.dx, want.dx), 1e-4);
}

TEST(HeadCrossEntropy, AllocatesNoMatrixOfAllTokensAndTheVocabulary) {
  const Problem p = make_problem(4096, 2, 4096, 1);
  ThreadPool pool(2);
  Arena arena;
  Context context{pool, arena};
  run_backward(context, p, 1);
  EXPECT_LT(arena.peak_bytes(), size_t{4096} * 4096 * 4 / 2);
}

TEST(HeadCrossEntropyDeathTest, RefusesATargetOutsideTheVocabulary) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Problem p = make_problem(3, 2, 5, 1);
  p.targets.i32()[1] = 5;
  EXPECT_DEATH(head_cross_entropy(ctx(), random_f32(3, 1), p.x, p.w, p.targets), "target 5 of token 1, vocab 5");
  p.targets.i32()[1] = -2;
  EXPECT_DEATH(head_cross_entropy(ctx(), random_f32(3, 1), p.x, p.w, p.targets), "target -2 of token 1, vocab 5");
}

}  // namespace
}  // namespace fathom
