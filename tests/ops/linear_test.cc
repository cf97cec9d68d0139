#include "ops/linear.h"

#include "ops/test_tensors.h"

namespace fathom {
namespace {

constexpr double kTolerance = 2e-6;  // of the largest magnitude

struct Sizes {
  int64_t tokens, in, out;
};
const std::vector<Sizes> kSizes = {{1, 1, 1},      {1, 64, 33},    {2, 17, 129}, {3, 65, 7},
                                   {7, 129, 17},   {17, 7, 65},    {65, 300, 1}, {129, 3, 300},
                                   {130, 513, 70}, {300, 96, 160}, {5, 700, 64}, {0, 5, 3}};

TEST(Linear, EqualsItsPlainTwin) {
  for (const auto& [tokens, in, out] : kSizes) {
    for (const bool accumulate : {false, true}) {
      const Tensor x = random_f32(tokens, in, 1, in + 5), w = random_f32(out, in, 2, in + 3);
      const Tensor y = random_f32(tokens, out, 3, out + 1), want = copy_of(y);
      linear(ctx(), y, x, w, accumulate);
      plain::linear(want, x, w, accumulate);
      EXPECT_LT(max_relative_error(y, want), kTolerance) << tokens << " " << in << " " << out << " " << accumulate;
      EXPECT_TRUE(gaps_untouched(y));
    }
  }
}

TEST(LinearBackwardInput, EqualsItsPlainTwin) {
  for (const auto& [tokens, in, out] : kSizes) {
    for (const bool accumulate : {false, true}) {
      const Tensor dy = random_f32(tokens, out, 1, out + 5), w = random_f32(out, in, 2, in + 3);
      const Tensor dx = random_f32(tokens, in, 3, in + 1), want = copy_of(dx);
      linear_backward_input(ctx(), dx, dy, w, accumulate);
      plain::linear_backward_input(want, dy, w, accumulate);
      EXPECT_LT(max_relative_error(dx, want), kTolerance) << tokens << " " << in << " " << out << " " << accumulate;
      EXPECT_TRUE(gaps_untouched(dx));
    }
  }
}

TEST(LinearBackwardWeight, EqualsItsPlainTwin) {
  for (const auto& [tokens, in, out] : kSizes) {
    const Tensor dy = random_f32(tokens, out, 1, out + 5), x = random_f32(tokens, in, 2, in + 3);
    const Tensor dw = random_f32(out, in, 3, in + 1), want = copy_of(dw);
    linear_backward_weight(ctx(), {{dw, dy, x}});
    plain::linear_backward_weight(want, dy, x);
    EXPECT_LT(max_relative_error(dw, want), kTolerance) << tokens << " " << in << " " << out;
    EXPECT_TRUE(gaps_untouched(dw));
  }
}

// Experts without rows at either end and between, one row, uneven numbers.
struct Experts {
  Tensor offsets, w;
  int64_t rows;
};
Experts make_experts(int64_t out, int64_t in) {
  const std::vector<int32_t> offsets = {0, 0, 1, 8, 8, 8, 73, 202, 203, 220, 220};
  const int64_t n = static_cast<int64_t>(offsets.size()) - 1;
  Tensor w = random_f32(n * out, in, 7, in + 2);
  w.rank = 3;
  w.shape[0] = n, w.shape[1] = out, w.shape[2] = in;
  return {i32_tensor(offsets), w, offsets.back()};
}

TEST(GroupedLinear, EqualsItsPlainTwin) {
  for (const auto& [tokens, in, out] : kSizes) {
    const auto [offsets, w, rows] = make_experts(out, in);
    for (const bool accumulate : {false, true}) {
      const Tensor x = random_f32(rows, in, 1, in + 1);
      const Tensor y = random_f32(rows, out, 2, out + 3), want = copy_of(y);
      grouped_linear(ctx(), y, x, w, offsets, accumulate);
      plain::grouped_linear(want, x, w, offsets, accumulate);
      EXPECT_LT(max_relative_error(y, want), kTolerance);
      EXPECT_TRUE(gaps_untouched(y));

      const Tensor dx = random_f32(rows, in, 3, in + 4), want_dx = copy_of(dx);
      grouped_linear_backward_input(ctx(), dx, y, w, offsets, accumulate);
      plain::grouped_linear_backward_input(want_dx, y, w, offsets, accumulate);
      EXPECT_LT(max_relative_error(dx, want_dx), kTolerance);
      EXPECT_TRUE(gaps_untouched(dx));

      const Tensor dw = copy_of(w), want_dw = copy_of(w);
      linear_backward_weight(ctx(), {{dw, y, x, offsets}});
      plain::grouped_linear_backward_weight(want_dw, y, x, offsets);
      EXPECT_LT(max_relative_error(dw, want_dw), kTolerance);
      EXPECT_TRUE(gaps_untouched(dw));
    }
  }
}

TEST(GroupedLinear, GradientsAreThoseOfTheFunction) {
  const Tensor offsets = i32_tensor({0, 3, 3, 4, 9});
  Tensor w = random_f32(4 * 5, 6, 1), dw = zeros_like(w);
  const Tensor flat_w = w, flat_dw = dw;
  for (Tensor* t : {&w, &dw}) t->rank = 3, t->shape[0] = 4, t->shape[1] = 5, t->shape[2] = 6;
  const Tensor x = random_f32(9, 6, 2), dy = random_f32(9, 5, 3), y = zeros_like(dy), dx = zeros_like(x);
  grouped_linear_backward_input(ctx(), dx, dy, w, offsets);
  linear_backward_weight(ctx(), {{dw, dy, x, offsets}});
  const auto loss = [&] {
    grouped_linear(ctx(), y, x, w, offsets);
    return dot(y, dy);
  };
  EXPECT_LT(gradient_error(loss, x, dx), 1e-3);
  EXPECT_LT(gradient_error(loss, flat_w, flat_dw), 1e-3);
}

TEST(GroupedLinear, LeavesTheGradientOfAnExpertWithoutRowsAlone) {
  const auto [offsets, w, rows] = make_experts(5, 7);
  const Tensor dw = filled_like(w, -0.0f), before = copy_of(dw);
  linear_backward_weight(ctx(), {{dw, random_f32(rows, 5, 1), random_f32(rows, 7, 2), offsets}});
  for (const int64_t expert : {0, 3, 4, 9}) EXPECT_TRUE(same_bits(dw[expert], before[expert])) << expert;
}

TEST(Linear, ARowsBitsDoNotDependOnTheRowsBesideIt) {
  constexpr int64_t kTokens = 150, kIn = 601, kOut = 75;
  const Tensor x = random_f32(kTokens, kIn, 1), w = random_f32(kOut, kIn, 2), w_t = random_f32(kIn, kOut, 3);
  const Tensor all = zeros_like(random_f32(kTokens, kOut, 0)), all_back = zeros_like(all);
  linear(ctx(), all, x, w);
  linear_backward_input(ctx(), all_back, x, w_t);
  for (const int64_t n : {1, 2, 3, 8, 9, 40, 149}) {
    for (const int64_t begin : {int64_t{0}, int64_t{5}, kTokens - n}) {
      if (begin + n > kTokens) continue;
      const Tensor some = zeros_like(all.slice(begin, n));
      linear(ctx(), some, x.slice(begin, n), w);
      EXPECT_TRUE(same_bits(some, all.slice(begin, n))) << n << " rows from " << begin;
      linear_backward_input(ctx(), some, x.slice(begin, n), w_t);
      EXPECT_TRUE(same_bits(some, all_back.slice(begin, n))) << n << " rows from " << begin;
    }
  }
}

TEST(Linear, BitsDoNotDependOnTheNumberOfThreads) {
  const auto [offsets, w, rows] = make_experts(70, 300);
  const Tensor x = random_f32(rows, 300, 1);
  Tensor first_y, first_dx, first_dw;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    Arena arena;
    Context context{pool, arena};
    const Tensor y = zeros_like(random_f32(rows, 70, 0)), dx = zeros_like(x), dw = zeros_like(w);
    grouped_linear(context, y, x, w, offsets);
    linear(context, y, x, w[2], true);
    grouped_linear_backward_input(context, dx, y, w, offsets);
    linear_backward_input(context, dx, y, w[1], true);
    linear_backward_weight(context, {{dw, y, x, offsets}});
    linear_backward_weight(context, {{dw[5], y, x}});
    if (threads == 1) {
      first_y = y, first_dx = dx, first_dw = dw;
    } else {
      EXPECT_TRUE(same_bits(y, first_y)) << threads;
      EXPECT_TRUE(same_bits(dx, first_dx)) << threads;
      EXPECT_TRUE(same_bits(dw, first_dw)) << threads;
    }
  }
}

TEST(Linear, BackwardIsTheGradientOfForward) {
  const Tensor x = random_f32(9, 21, 1), w = random_f32(13, 21, 2), dy = random_f32(9, 13, 3);
  const auto loss = [&] {
    const Tensor y = zeros_like(dy);
    linear(ctx(), y, x, w);
    return dot(y, dy);
  };
  const Tensor dx = zeros_like(x), dw = zeros_like(w);
  linear_backward_input(ctx(), dx, dy, w);
  linear_backward_weight(ctx(), {{dw, dy, x}});
  EXPECT_LT(gradient_error(loss, x, dx), 1e-4);
  EXPECT_LT(gradient_error(loss, w, dw), 1e-4);
}

TEST(LinearDeathTest, RefusesShapesThatDoNotMeet) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(linear(ctx(), filled_f32(2, 3, 0), filled_f32(2, 4, 0), filled_f32(3, 5, 0)), "a weight \\[3, 5\\]");
}

}  // namespace
}  // namespace fathom
