// The vector functions, as this file's own instruction set has them and through the kernels of every set.
#define FATHOM_ISA_NAMESPACE vec_test
#include "ops/cpu/vec.h"

#include "each_isa.h"
#include "ops/cpu/activation_kernels.h"
#include "test_tensors.h"

namespace fathom {
namespace {

namespace vec = cpu::vec_test;

// Distance of a float from the exact value in units of its last place.
double ulps(float got, double want) {
  const double place = std::ldexp(1.0, std::max(std::ilogb(want), -126) - 23);
  return std::abs(got - want) / place;
}

float exp_of(float x) {
  float y[vec::kWidth];
  vec::store(y, vec::exp(vec::splat(x)));
  return y[vec::kWidth - 1];
}

TEST(Vec, ExpIsAccurateOverItsRange) {
  double worst = 0;
  float worst_at = 0;
  for (double x = -87.3; x < 88.3; x += 0.000377) {
    const auto value = static_cast<float>(x);
    const double error = ulps(exp_of(value), std::exp(static_cast<double>(value)));
    if (error > worst) {
      worst = error;
      worst_at = value;
    }
  }
  EXPECT_LT(worst, 1.5) << "at " << worst_at;
  RecordProperty("worst_ulps", std::to_string(worst));
}

TEST(Vec, ExpBeyondItsRange) {
  EXPECT_EQ(exp_of(0), 1);
  EXPECT_EQ(exp_of(-0.0f), 1);
  EXPECT_EQ(exp_of(-88), 0);
  EXPECT_EQ(exp_of(-1e30f), 0);
  EXPECT_EQ(exp_of(-INFINITY), 0);
  EXPECT_GT(exp_of(89), 2e38f);
  EXPECT_GT(exp_of(INFINITY), 2e38f);
  EXPECT_TRUE(std::isnan(exp_of(NAN)));
  EXPECT_TRUE(std::isnan(exp_of(-NAN)));
}

TEST(Vec, PartsTouchNothingBeyond) {
  for (int64_t n = 0; n < vec::kWidth; ++n) {
    const Tensor in = random_f32(n, 1), out = zeros_like(in);  // exactly n floats of memory
    const vec::Vec v = vec::load_part(in.f32(), n);
    for (int64_t i = n; i < vec::kWidth; ++i) EXPECT_EQ(v[i], 0);
    vec::store_part(out.f32(), v, n);
    EXPECT_TRUE(same_bits(in, out));
  }
}

TEST(Vec, SumAndMaximumSeeEveryLane) {
  for (int lane = 0; lane < vec::kWidth; ++lane) {
    vec::Vec v = vec::splat(-1);
    v[lane] = 100;
    EXPECT_EQ(vec::sum(v), 101 - vec::kWidth);
    EXPECT_EQ(vec::max_of(v), 100);
  }
}

TEST(Sigmoid, IsAccurateInEveryInstructionSet) {
  const int64_t n = 20001;
  const Tensor x = random_f32(n, 1), y = zeros_like(x);
  for (int64_t i = 0; i < n; ++i) x.f32()[i] = static_cast<float>(i - n / 2) * 0.008f;  // [-80, 80]
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::activation_kernels, cpu::avx2::activation_kernels, cpu::avx512::activation_kernels)) {
    kernels.sigmoid(y.f32(), x.f32(), n);
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
      worst = std::max(worst, ulps(y.f32()[i], 1 / (1 + std::exp(-static_cast<double>(x.f32()[i])))));
    }
    EXPECT_LT(worst, 3.5) << isa;
  }
}

TEST(Sigmoid, ExtremesAndNan) {
  const float inputs[] = {-1e4f, 1e4f, 0, -INFINITY, INFINITY, NAN, -3e38f, 3e38f};
  const Tensor x = random_f32(8, 1), y = zeros_like(x);
  std::copy_n(inputs, 8, x.f32());
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::activation_kernels, cpu::avx2::activation_kernels, cpu::avx512::activation_kernels)) {
    kernels.sigmoid(y.f32(), x.f32(), 8);
    for (int64_t i = 0; i < 8; ++i) {
      if (std::isnan(inputs[i])) {
        EXPECT_TRUE(std::isnan(y.f32()[i])) << isa;
      } else {
        EXPECT_NEAR(y.f32()[i], 1 / (1 + std::exp(-static_cast<double>(inputs[i]))), 1e-37) << isa << " " << inputs[i];
      }
    }
  }
}

TEST(SoftmaxRow, SumsToOneAndMatchesDouble) {
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::activation_kernels, cpu::avx2::activation_kernels, cpu::avx512::activation_kernels)) {
    for (const int64_t n : {1, 3, 7, 16, 17, 64, 65, 160, 257}) {
      const Tensor x = random_f32(n, 1), y = zeros_like(x);
      for (int64_t i = 0; i < n; ++i) x.f32()[i] = 10 * x.f32()[i] + 1000;
      kernels.softmax(y.f32(), x.f32(), n);
      double total = 0, sum = 0;
      const double highest = *std::max_element(x.f32(), x.f32() + n);
      for (int64_t i = 0; i < n; ++i) total += std::exp(x.f32()[i] - highest);
      for (int64_t i = 0; i < n; ++i) {
        sum += y.f32()[i];
        EXPECT_NEAR(y.f32()[i], std::exp(x.f32()[i] - highest) / total, 3e-7) << isa << " " << n;
      }
      EXPECT_NEAR(sum, 1, 1e-6) << isa << " " << n;
    }
  }
}

}  // namespace
}  // namespace fathom
