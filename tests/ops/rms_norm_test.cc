#include "ops/rms_norm.h"

#include "each_isa.h"
#include "ops/cpu/norm_kernels.h"
#include "test_tensors.h"

namespace fathom {
namespace {

struct Shape {
  int64_t tokens, hidden, stride;
};
const Shape kShapes[] = {{1, 1, 1},     {3, 1, 5},    {1, 3, 3},     {7, 7, 8},       {2, 15, 16},
                         {5, 16, 16},   {4, 17, 19},  {3, 31, 31},   {3, 64, 65},     {9, 65, 71},
                         {2, 129, 129}, {65, 48, 50}, {129, 33, 33}, {200, 257, 300}, {3, 2048, 2049}};

TEST(RmsNorm, MatchesPlainOverShapesAndStrides) {
  for (const auto& [tokens, hidden, stride] : kShapes) {
    SCOPED_TRACE(testing::Message() << tokens << "x" << hidden << " by " << stride);
    const Tensor x = random_f32(tokens, hidden, 1, stride), w = random_f32(hidden, 2);
    const Tensor y = filled_f32(tokens, hidden, 0, stride + 1), want = filled_f32(tokens, hidden, 0);
    const Tensor r = zeros_like(random_f32(tokens, 0)), want_r = zeros_like(r);
    rms_norm(ctx(), y, x, w, 1e-6f, r);
    plain::rms_norm(want, x, w, 1e-6f, want_r);
    EXPECT_LT(max_relative_error(y, want), 5e-7);
    EXPECT_LT(max_relative_error(r, want_r), 5e-7);
    EXPECT_TRUE(gaps_untouched(y));
  }
}

TEST(RmsNorm, WorksInPlaceAndWithoutInverse) {
  const Tensor x = random_f32(9, 65, 1, 66), w = random_f32(65, 2), want = filled_f32(9, 65, 0);
  plain::rms_norm(want, x, w, 1e-5f);
  rms_norm(ctx(), x, x, w, 1e-5f);
  EXPECT_LT(max_relative_error(x, want), 5e-7);
  EXPECT_TRUE(gaps_untouched(x));
}

TEST(RmsNorm, EpsilonCarriesARowOfZerosAndTinyNumbers) {
  const Tensor x = filled_f32(2, 7, 0), w = filled_f32(1, 7, 2), y = filled_f32(2, 7, 9);
  for (int64_t d = 0; d < 7; ++d) x.f32(1, d) = 1e-3f;
  rms_norm(ctx(), y, x, w[0], 1e-6f);
  for (int64_t d = 0; d < 7; ++d) {
    EXPECT_EQ(y.f32(0, d), 0);
    EXPECT_NEAR(y.f32(1, d), 2 / std::sqrt(2.0), 1e-6);
  }
}

TEST(RmsNorm, EveryInstructionSetAgreesWithPlain) {
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::norm_kernels, cpu::avx2::norm_kernels, cpu::avx512::norm_kernels)) {
    for (int64_t hidden = 1; hidden <= 140; ++hidden) {
      SCOPED_TRACE(testing::Message() << isa << " " << hidden);
      const Tensor x = random_f32(1, hidden, 1), w = random_f32(hidden, 2), dy = random_f32(1, hidden, 3);
      const Tensor y = zeros_like(x), want = zeros_like(x), r = random_f32(1, 0);
      plain::rms_norm(want, x, w, 1e-6f, r);
      const float inv_rms = kernels.rms_norm(y.f32(), x.f32(), w.f32(), hidden, 1e-6f);
      EXPECT_NEAR(inv_rms, r.f32()[0], 5e-7 * r.f32()[0]);
      EXPECT_LT(max_relative_error(y, want), 5e-7);

      const Tensor dx = zeros_like(x), want_dx = zeros_like(x), dw = zeros_like(w), want_dw = zeros_like(w);
      kernels.rms_norm_backward_input(dx.f32(), dy.f32(), x.f32(), w.f32(), inv_rms, hidden, true);
      plain::rms_norm_backward_input(want_dx, dy, x, w, r);
      EXPECT_LT(max_abs_error(dx, want_dx), 1e-6 * std::max(1.0, static_cast<double>(inv_rms) * max_abs(dy)));
      kernels.rms_norm_backward_weight(dw.f32(), dy.f32(), x.f32(), inv_rms, hidden);
      plain::rms_norm_backward_weight(want_dw, dy, x, r);
      EXPECT_LT(max_relative_error(dw, want_dw), 1e-6);
    }
  }
}

TEST(RmsNorm, GradientsMatchPlainOverShapesAndAccumulate) {
  for (const auto& [tokens, hidden, stride] : kShapes) {
    SCOPED_TRACE(testing::Message() << tokens << "x" << hidden << " by " << stride);
    const Tensor x = random_f32(tokens, hidden, 1, stride), w = random_f32(hidden, 2),
                 dy = random_f32(tokens, hidden, 3);
    const Tensor y = filled_f32(tokens, hidden, 0), r = random_f32(tokens, 0);
    plain::rms_norm(y, x, w, 1e-6f, r);
    const double scale = max_abs(r) * max_abs(w) * max_abs(dy);
    for (const bool accumulate : {true, false}) {
      const Tensor dx = random_f32(tokens, hidden, 4, stride + 2), want = copy_of(dx);
      rms_norm_backward_input(ctx(), dx, dy, x, w, r, accumulate);
      plain::rms_norm_backward_input(want, dy, x, w, r, accumulate);
      EXPECT_LT(max_abs_error(dx, want), 1e-6 * scale);
      EXPECT_TRUE(gaps_untouched(dx));
    }
    const Tensor dw = random_f32(hidden, 5), want = copy_of(dw);
    rms_norm_backward_weight(ctx(), dw, dy, x, r);
    plain::rms_norm_backward_weight(want, dy, x, r);
    EXPECT_LT(max_relative_error(dw, want), 2e-6);
  }
}

TEST(RmsNorm, GradientsAreThoseOfTheFunction) {
  const Tensor x = random_f32(5, 33, 1), w = random_f32(33, 2), dy = random_f32(5, 33, 3);
  const Tensor y = zeros_like(x), r = random_f32(5, 0), dx = zeros_like(x), dw = zeros_like(w);
  const auto loss = [&] {
    plain::rms_norm(y, x, w, 1e-2f, r);
    return dot(y, dy);
  };
  loss();
  rms_norm_backward_input(ctx(), dx, dy, x, w, r);
  rms_norm_backward_weight(ctx(), dw, dy, x, r);
  EXPECT_LT(gradient_error(loss, x, dx), 1e-3);
  EXPECT_LT(gradient_error(loss, w, dw), 1e-3);
}

TEST(RmsNorm, BitsDoNotDependOnThreads) {
  const Tensor x = random_f32(1000, 200, 1), w = random_f32(200, 2), dy = random_f32(1000, 200, 3);
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 5}) {
    ThreadedContext c(threads);
    const Tensor y = zeros_like(x), r = random_f32(1000, 0), dx = zeros_like(x), dw = zeros_like(w);
    rms_norm(c.ctx, y, x, w, 1e-6f, r);
    rms_norm_backward_input(c.ctx, dx, dy, x, w, r);
    rms_norm_backward_weight(c.ctx, dw, dy, x, r);
    if (first.empty()) first = {y, dx, dw};
    EXPECT_TRUE(same_bits(y, first[0]));
    EXPECT_TRUE(same_bits(dx, first[1]));
    EXPECT_TRUE(same_bits(dw, first[2]));
  }
}

TEST(RmsNorm, NoTokensIsNoWork) {
  const Tensor none = filled_f32(0, 8, 0), w = random_f32(8, 2), dw = copy_of(w);
  rms_norm(ctx(), none, none, w, 1e-6f);
  rms_norm_backward_weight(ctx(), dw, none, none, Tensor(none.data, Format::f32, {0}));
  EXPECT_TRUE(same_bits(dw, w));
}

}  // namespace
}  // namespace fathom
