#include "ops/experts.h"

#include "each_isa.h"
#include "ops/cpu/row_kernels.h"
#include "test_tensors.h"

namespace fathom {
namespace {

// [tokens, k] distinct experts a row, ascending; experts 0 and 3 are chosen by none.
Tensor random_choices(int64_t tokens, int64_t k, int64_t experts, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> row;
    while (static_cast<int64_t>(row.size()) < k) {
      const auto e = static_cast<int32_t>(rng.below(static_cast<uint64_t>(experts)));
      if (e != 0 && e != 3 && std::find(row.begin(), row.end(), e) == row.end()) row.push_back(e);
    }
    std::sort(row.begin(), row.end());
    ids.insert(ids.end(), row.begin(), row.end());
  }
  return i32_tensor(ids).reshape({tokens, k});
}

struct Case {
  int64_t tokens, k, experts, hidden;
};
const Case kCases[] = {{0, 2, 8, 7},    {1, 1, 2, 1},      {1, 2, 8, 3},     {7, 3, 9, 33},
                       {65, 6, 64, 65}, {129, 8, 256, 48}, {300, 2, 5, 130}, {33, 1, 4, 64}};

TEST(Dispatch, IsAStableSortByExpertAndItsInverse) {
  for (const auto& [tokens, k, experts, hidden] : kCases) {
    const Tensor ids = random_choices(tokens, k, experts, 1);
    const Dispatch d = make_dispatch(ctx(), ids, experts);
    const int32_t* offsets = d.offsets.i32();
    ASSERT_EQ(offsets[0], 0);
    ASSERT_EQ(offsets[experts], tokens * k);
    EXPECT_EQ(offsets[1], 0) << "expert 0 is chosen by none";
    for (int64_t e = 0; e < experts; ++e) {
      ASSERT_LE(offsets[e], offsets[e + 1]);
      for (int32_t slot = offsets[e]; slot < offsets[e + 1]; ++slot) {
        const int32_t t = d.token_of.i32()[slot], choice = d.choice_of.i32()[slot];
        EXPECT_EQ(ids.i32()[t * k + choice], e);
        EXPECT_EQ(d.slot_of.i32()[t * k + choice], slot);
        if (slot > offsets[e]) {
          EXPECT_GT(t, d.token_of.i32()[slot - 1]);
        }
      }
    }
  }
}

TEST(Dispatch, MatchesPlainOverShapesAndStrides) {
  for (const auto& [tokens, k, experts, hidden] : kCases) {
    SCOPED_TRACE(testing::Message() << tokens << " tokens, " << k << " of " << experts << " by " << hidden);
    const Dispatch d = make_dispatch(ctx(), random_choices(tokens, k, experts, 1), experts);
    const int64_t slots = tokens * k;
    const Tensor weights = random_f32(tokens, k, 2, k + 1);
    const Tensor x = random_f32(tokens, hidden, 3, hidden + 1), sorted = random_f32(slots, hidden, 4, hidden + 2);

    const Tensor x_sorted = filled_f32(slots, hidden, 0, hidden + 3), want_sorted = filled_f32(slots, hidden, 0);
    dispatch(ctx(), x_sorted, x, d);
    plain::dispatch(want_sorted, x, d);
    EXPECT_TRUE(same_bits(x_sorted, want_sorted));
    EXPECT_TRUE(gaps_untouched(x_sorted));

    const Tensor dx = copy_of(x), want_dx = copy_of(x);
    dispatch_backward(ctx(), dx, sorted, d);
    plain::dispatch_backward(want_dx, sorted, d);
    EXPECT_LT(max_abs_error(dx, want_dx), 1e-5);
    EXPECT_TRUE(gaps_untouched(dx));

    const Tensor y = copy_of(x), want_y = copy_of(x);
    combine(ctx(), y, sorted, weights, d);
    plain::combine(want_y, sorted, weights, d);
    EXPECT_LT(max_abs_error(y, want_y), 1e-5);
    EXPECT_TRUE(gaps_untouched(y));

    const Tensor dy_sorted = filled_f32(slots, hidden, 9, hidden + 1), want_dy_sorted = filled_f32(slots, hidden, 0);
    combine_backward(ctx(), dy_sorted, x, weights, d);
    plain::combine_backward(want_dy_sorted, x, weights, d);
    EXPECT_TRUE(same_bits(dy_sorted, want_dy_sorted));
    EXPECT_TRUE(gaps_untouched(dy_sorted));

    // Here sorted and dy_sorted stand for what lies in front of the expert's last matrix.
    if (tokens > 0) weights.f32(0, 0) = 0;
    const Tensor d_weights = filled_f32(tokens, k, 9, k + 2), want_d_weights = filled_f32(tokens, k, 0);
    combine_backward_weights(ctx(), d_weights, dy_sorted, sorted, weights, d);
    plain::combine_backward_weights(want_d_weights, dy_sorted, sorted, weights, d);
    EXPECT_LT(max_abs_error(d_weights, want_d_weights), 1e-6 * static_cast<double>(hidden));
    EXPECT_TRUE(gaps_untouched(d_weights));
    if (tokens > 0) {
      EXPECT_EQ(d_weights.f32(0, 0), 0);
    }
  }
}

TEST(Dispatch, GradientsAreThoseOfTheFunctions) {
  const Dispatch d = make_dispatch(ctx(), random_choices(9, 3, 8, 1), 8);
  const Tensor x = random_f32(9, 17, 2), weights = random_f32(9, 3, 3), sorted = random_f32(27, 17, 4);
  const Tensor g_sorted = random_f32(27, 17, 5), g = random_f32(9, 17, 6);

  const Tensor dx = zeros_like(x), out = zeros_like(sorted);
  dispatch_backward(ctx(), dx, g_sorted, d);
  const auto dispatched = [&] {
    dispatch(ctx(), out, x, d);
    return dot(out, g_sorted);
  };
  EXPECT_LT(gradient_error(dispatched, x, dx), 1e-4);

  const Tensor d_sorted = zeros_like(sorted);
  combine_backward(ctx(), d_sorted, g, weights, d);
  const auto combined = [&] {
    const Tensor y = filled_f32(9, 17, 0);
    combine(ctx(), y, sorted, weights, d);
    return dot(y, g);
  };
  EXPECT_LT(gradient_error(combined, sorted, d_sorted), 1e-3);

  // The weights' gradient is that of experts that end in a matrix.
  const Tensor inner = random_f32(27, 5, 7), w = random_f32(17, 5, 8);
  const Tensor d_inner = zeros_like(inner), d_weights = zeros_like(weights);
  plain::linear(sorted, inner, w);
  plain::linear_backward_input(d_inner, d_sorted, w, /*accumulate=*/false);
  combine_backward_weights(ctx(), d_weights, d_inner, inner, weights, d);
  EXPECT_LT(gradient_error(combined, weights, d_weights), 1e-3);
}

TEST(Dispatch, BitsDoNotDependOnThreads) {
  const Tensor ids = random_choices(500, 6, 32, 1), weights = random_f32(500, 6, 2);
  const Tensor sorted = random_f32(3000, 97, 3), x = random_f32(500, 97, 4);
  const Tensor d_inner = random_f32(3000, 97, 5);
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 5}) {
    ThreadedContext c(threads);
    const Dispatch d = make_dispatch(c.ctx, ids, 32);
    const Tensor y = copy_of(x), d_sorted = zeros_like(sorted), d_weights = zeros_like(weights);
    combine(c.ctx, y, sorted, weights, d);
    dispatch_backward(c.ctx, y, sorted, d);
    combine_backward(c.ctx, d_sorted, x, weights, d);
    combine_backward_weights(c.ctx, d_weights, d_inner, sorted, weights, d);
    if (first.empty()) first = {y, d_sorted, d_weights};
    EXPECT_TRUE(same_bits(y, first[0]));
    EXPECT_TRUE(same_bits(d_sorted, first[1]));
    EXPECT_TRUE(same_bits(d_weights, first[2]));
  }
}

TEST(DispatchDeathTest, RefusesExpertsThatDoNotExist) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(make_dispatch(ctx(), i32_tensor({0, 4}).reshape({1, 2}), 4), "expert 4 of 4");
  EXPECT_DEATH(make_dispatch(ctx(), i32_tensor({-2, 2}).reshape({1, 2}), 4), "expert -2 of 4");
}

TEST(RowKernels, EveryInstructionSetAgreesWithPlain) {
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::row_kernels, cpu::avx2::row_kernels, cpu::avx512::row_kernels)) {
    for (int64_t n = 1; n <= 100; ++n) {
      SCOPED_TRACE(testing::Message() << isa << " " << n);
      const Tensor rows = random_f32(3, n, 1, n + 1), y = random_f32(n, 2), weights = random_f32(3, 3);
      const Tensor weighted = copy_of(y), summed = copy_of(y), scaled = zeros_like(y);
      const float* pointers[] = {rows.f32_row(0), rows.f32_row(1), rows.f32_row(2)};
      kernels.add_weighted(weighted.f32(), pointers, weights.f32(), 3, n);
      kernels.add_weighted(summed.f32(), pointers, nullptr, 3, n);
      kernels.scale(scaled.f32(), y.f32(), 0.5f, n);
      const float product = kernels.dot(y.f32(), rows.f32(), n);
      double want_product = 0;
      for (int64_t i = 0; i < n; ++i) {
        double want_weighted = y.f32()[i], want_summed = y.f32()[i];
        for (int64_t j = 0; j < 3; ++j) {
          want_weighted += static_cast<double>(weights.f32()[j]) * rows.f32(j, i);
          want_summed += rows.f32(j, i);
        }
        want_product += static_cast<double>(y.f32()[i]) * rows.f32(0, i);
        EXPECT_NEAR(weighted.f32()[i], want_weighted, 2e-6);
        EXPECT_NEAR(summed.f32()[i], want_summed, 2e-6);
        EXPECT_EQ(scaled.f32()[i], 0.5f * y.f32()[i]);
      }
      EXPECT_NEAR(product, want_product, 1e-5);
    }
  }
}

}  // namespace
}  // namespace fathom
