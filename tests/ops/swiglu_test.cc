#include "ops/swiglu.h"

#include "each_isa.h"
#include "ops/cpu/activation_kernels.h"
#include "test_tensors.h"

namespace fathom {
namespace {

struct Shape {
  int64_t tokens, inter, stride;
};
const Shape kShapes[] = {{1, 1, 2},   {3, 3, 7},     {2, 7, 14},    {5, 8, 17},
                         {3, 16, 32}, {129, 17, 34}, {65, 65, 131}, {7, 1408, 2816}};

TEST(Swiglu, MatchesPlainOverShapesAndStrides) {
  for (const auto& [tokens, inter, stride] : kShapes) {
    SCOPED_TRACE(testing::Message() << tokens << "x" << inter << " by " << stride);
    const Tensor gate_up = random_f32(tokens, 2 * inter, 1, stride), dy = random_f32(tokens, inter, 2, inter + 1);
    const Tensor y = filled_f32(tokens, inter, 0, inter + 3), want = filled_f32(tokens, inter, 0);
    swiglu(ctx(), y, gate_up);
    plain::swiglu(want, gate_up);
    EXPECT_LT(max_relative_error(y, want), 5e-7);
    EXPECT_TRUE(gaps_untouched(y));

    const Tensor d = filled_f32(tokens, 2 * inter, 7, stride), want_d = filled_f32(tokens, 2 * inter, 0);
    swiglu_backward(ctx(), d, dy, gate_up);
    plain::swiglu_backward(want_d, dy, gate_up);
    EXPECT_LT(max_relative_error(d, want_d), 1e-6);
    swiglu_backward(ctx(), gate_up, dy, gate_up);
    EXPECT_TRUE(same_bits(gate_up, d)) << "in place";
    EXPECT_TRUE(gaps_untouched(gate_up));
  }
}

TEST(Swiglu, GradientIsThatOfTheFunction) {
  const Tensor gate_up = random_f32(5, 34, 1), dy = random_f32(5, 17, 2), y = zeros_like(dy), d = zeros_like(gate_up);
  swiglu_backward(ctx(), d, dy, gate_up);
  const auto loss = [&] {
    plain::swiglu(y, gate_up);
    return dot(y, dy);
  };
  EXPECT_LT(gradient_error(loss, gate_up, d), 1e-3);
}

TEST(Swiglu, EveryInstructionSetAgreesWithPlain) {
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::activation_kernels, cpu::avx2::activation_kernels, cpu::avx512::activation_kernels)) {
    for (int64_t n = 1; n <= 70; ++n) {
      SCOPED_TRACE(testing::Message() << isa << " " << n);
      const Tensor gate_up = random_f32(1, 2 * n, 1), dy = random_f32(1, n, 2);
      const Tensor y = filled_f32(1, n, 0), want = filled_f32(1, n, 0);
      kernels.swiglu(y.f32(), gate_up.f32(), gate_up.f32() + n, n);
      plain::swiglu(want, gate_up);
      EXPECT_LT(max_relative_error(y, want), 5e-7);
      const Tensor d = zeros_like(gate_up), want_d = zeros_like(gate_up);
      kernels.swiglu_backward(d.f32(), d.f32() + n, dy.f32(), gate_up.f32(), gate_up.f32() + n, n);
      plain::swiglu_backward(want_d, dy, gate_up);
      EXPECT_LT(max_relative_error(d, want_d), 1e-6);
    }
  }
}

TEST(Swiglu, ExtremeGatesStayFinite) {
  const Tensor gate_up = filled_f32(1, 12, 1), dy = filled_f32(1, 6, 1), y = zeros_like(dy), d = zeros_like(gate_up);
  const float gates[] = {-1e4f, 1e4f, -100, 100, -0.0f, 3e38f};
  std::copy_n(gates, 6, gate_up.f32());
  swiglu(ctx(), y, gate_up);
  swiglu_backward(ctx(), d, dy, gate_up);
  for (int64_t i = 0; i < 6; ++i) EXPECT_NEAR(y.f32()[i], std::max(0.0f, gates[i]), 1e-30);
  EXPECT_NEAR(d.f32()[0], 0, 1e-30);
  EXPECT_EQ(d.f32()[1], 1);
  EXPECT_NEAR(d.f32()[2], 0, 1e-30);
  EXPECT_EQ(d.f32()[3], 1);
  EXPECT_EQ(d.f32()[4], 0.5f);
}

TEST(Swiglu, NanIsNotHidden) {
  const Tensor gate_up = filled_f32(1, 34, 1), y = filled_f32(1, 17, 0);
  gate_up.f32()[3] = gate_up.f32()[16] = std::numeric_limits<float>::quiet_NaN();
  swiglu(ctx(), y, gate_up);
  for (int64_t i = 0; i < 17; ++i) EXPECT_EQ(std::isnan(y.f32()[i]), i == 3 || i == 16);
}

TEST(Swiglu, BitsDoNotDependOnThreads) {
  const Tensor gate_up = random_f32(300, 258, 1), dy = random_f32(300, 129, 2);
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 5}) {
    ThreadedContext c(threads);
    const Tensor y = zeros_like(dy), d = zeros_like(gate_up);
    swiglu(c.ctx, y, gate_up);
    swiglu_backward(c.ctx, d, dy, gate_up);
    if (first.empty()) first = {y, d};
    EXPECT_TRUE(same_bits(y, first[0]));
    EXPECT_TRUE(same_bits(d, first[1]));
  }
}

}  // namespace
}  // namespace fathom
