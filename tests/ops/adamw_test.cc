#include "ops/adamw.h"

#include "each_isa.h"
#include "number/formats.h"
#include "ops/cpu/optimizer_kernels.h"
#include "test_tensors.h"

namespace fathom {
namespace {

constexpr AdamwConfig kConfig = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f};

std::span<float> all(Tensor t) { return {t.f32(), static_cast<size_t>(t.size())}; }

struct Parameters {
  Tensor p, m, v;
  explicit Parameters(int64_t n) : p(random_f32(n, 1)), m(filled_like(p, 0)), v(filled_like(p, 0)) {}
};

TEST(Adamw, MatchesPlainOverStepsAndSizes) {
  for (const int64_t n : {1, 3, 7, 8, 17, 65, 129, 16384, 50001}) {
    Parameters fast(n), slow(n);
    for (int64_t step = 1; step <= 4; ++step) {
      const Tensor g = random_f32(n, 10 + static_cast<uint64_t>(step));
      adamw_step(ctx(), kConfig, step, all(fast.p), all(g), fast.m, fast.v, 0.5f);
      plain::adamw_step(kConfig, step, all(slow.p), all(g), all(slow.m), all(slow.v), 0.5f);
      EXPECT_LT(max_abs_error(fast.p, slow.p), 2e-6) << n << " step " << step;
      EXPECT_LT(max_abs_error(fast.m, slow.m), 1e-6);
      EXPECT_LT(max_abs_error(fast.v, slow.v), 1e-6);
    }
  }
}

TEST(Adamw, MomentsInBf16AreThoseOfF32Rounded) {
  for (const int64_t n : {1, 7, 64, 65, 50001}) {
    Parameters narrow(n), wide(n);
    const Tensor m(test_memory<uint16_t>(n, 0), Format::bf16, {n}), v(test_memory<uint16_t>(n, 0), Format::bf16, {n});
    for (int64_t step = 1; step <= 4; ++step) {
      const Tensor g = random_f32(n, 10 + static_cast<uint64_t>(step));
      for (int64_t i = 0; i < n; ++i) {
        wide.m.f32()[i] = bf16_to_f32(m.as<uint16_t>()[i]);
        wide.v.f32()[i] = bf16_to_f32(v.as<uint16_t>()[i]);
      }
      adamw_step(ctx(), kConfig, step, all(narrow.p), all(g), m, v, 0.5f);
      adamw_step(ctx(), kConfig, step, all(wide.p), all(g), wide.m, wide.v, 0.5f);
      EXPECT_TRUE(same_bits(narrow.p, wide.p)) << n << " step " << step;
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_EQ(m.as<uint16_t>()[i], f32_to_bf16(wide.m.f32()[i])) << i;
        ASSERT_EQ(v.as<uint16_t>()[i], f32_to_bf16(wide.v.f32()[i])) << i;
      }
    }
  }
}

TEST(Adamw, FirstStepMovesByTheRateAgainstTheGradient) {
  Parameters one(1);
  one.p.f32()[0] = 2;
  const Tensor g = filled_f32(1, 1, -3);
  adamw_step(ctx(), kConfig, 1, all(one.p), all(g), one.m, one.v, 1);
  EXPECT_NEAR(one.p.f32()[0], 2 * (1 - 1e-2 * 0.1) + 1e-2, 1e-6);
  EXPECT_NEAR(one.m.f32()[0], -0.3, 1e-6);
  EXPECT_NEAR(one.v.f32()[0], 0.45, 1e-6);
}

TEST(Adamw, ZeroGradientOnlyDecays) {
  Parameters some(5);
  const Tensor before = copy_of(some.p), g = filled_like(some.p, 0);
  adamw_step(ctx(), kConfig, 1, all(some.p), all(g), some.m, some.v, 1);
  for (int64_t i = 0; i < 5; ++i) EXPECT_FLOAT_EQ(some.p.f32()[i], before.f32()[i] * 0.999f);
}

TEST(Adamw, EveryInstructionSetAgreesWithPlain) {
  const cpu::AdamwStep step = {.gradient_scale = 1,
                               .decay = 1 - 1e-3f,
                               .beta1_rest = 0.1f,
                               .beta2 = 0.95f,
                               .beta2_rest = 0.05f,
                               .step_size = 0.1f,
                               .root_correction2 = std::sqrt(0.05f),
                               .eps = 1e-8f};
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::optimizer_kernels, cpu::avx2::optimizer_kernels, cpu::avx512::optimizer_kernels)) {
    for (int64_t n = 0; n <= 70; ++n) {
      Parameters fast(n), slow(n);
      const Tensor g = random_f32(n, 3);
      kernels.adamw(step, fast.p.f32(), g.f32(), fast.m.f32(), fast.v.f32(), n);
      plain::adamw_step(kConfig, 1, all(slow.p), all(g), all(slow.m), all(slow.v), 1);
      EXPECT_LT(max_abs_error(fast.p, slow.p), 2e-6) << isa << " " << n;
      double want = 0;
      for (int64_t i = 0; i < n; ++i) want += static_cast<double>(g.f32()[i]) * g.f32()[i];
      EXPECT_NEAR(kernels.sum_of_squares(g.f32(), n), want, 1e-12 * std::max(1.0, want)) << isa << " " << n;
    }
  }
}

TEST(Adamw, BitsDoNotDependOnThreads) {
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 5}) {
    ThreadedContext c(threads);
    Parameters some(100003);
    const Tensor g = random_f32(100003, 2);
    for (int64_t step = 1; step <= 3; ++step) {
      adamw_step(c.ctx, kConfig, step, all(some.p), all(g), some.m, some.v, 1);
    }
    first.push_back(some.p);
    EXPECT_TRUE(same_bits(some.p, first[0]));
  }
}

TEST(MoveAverage, GoesItsPartOfTheWay) {
  for (const int64_t n : {1, 7, 16384, 50001}) {
    const Tensor average = random_f32(n, 1), values = random_f32(n, 2);
    const std::vector<float> before(average.f32(), average.f32() + n);
    move_average(ctx(), all(average), all(values), 0.75f);
    for (int64_t i = 0; i < n; ++i) {
      const float b = before[static_cast<size_t>(i)];
      ASSERT_FLOAT_EQ(average.f32()[i], b + 0.25f * (values.f32()[i] - b));
    }
    move_average(ctx(), all(average), all(values), 0);
    EXPECT_LT(max_abs_error(average, values), 1e-6);
  }
}

TEST(SumOfSquares, IsExactInDoubleAndTheSameForAnyThreads) {
  for (const int64_t n : {0, 1, 15, 16, 17, 16384, 16385, 100003}) {
    const Tensor x = random_f32(n, 1);
    double want = 0;
    for (int64_t i = 0; i < n; ++i) want += static_cast<double>(x.f32()[i]) * x.f32()[i];
    const double got = sum_of_squares(ctx(), all(x));
    EXPECT_NEAR(got, want, 1e-12 * want);
    for (const int threads : {1, 2, 5}) {
      ThreadedContext c(threads);
      EXPECT_EQ(sum_of_squares(c.ctx, all(x)), got);
    }
  }
  const Tensor big = filled_f32(1, 3, 1e30f);  // its square is no f32
  EXPECT_NEAR(sum_of_squares(ctx(), all(big)), 3e60, 1e54);
}

TEST(Adamw, TellsWhatIsNotFiniteBehindIt) {
  constexpr int64_t n = 40'000;
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const Format format : {Format::f32, Format::bf16}) {
    const Tensor p = random_f32(1, n, 1), g = random_f32(1, n, 2);
    std::vector<float> wide_m(n, 0.1F), wide_v(n, 0.1F);
    std::vector<uint16_t> narrow_m(n, f32_to_bf16(0.1F)), narrow_v(n, f32_to_bf16(0.1F));
    const bool wide = format == Format::f32;
    const Tensor m(wide ? static_cast<void*>(wide_m.data()) : narrow_m.data(), format, {n});
    const Tensor v(wide ? static_cast<void*>(wide_v.data()) : narrow_v.data(), format, {n});
    const auto step = [&] { return adamw_step(ctx(), kConfig, 3, all(p), all(g), m, v, 1); };
    EXPECT_TRUE(step());
    for (const int64_t i : {int64_t{0}, int64_t{20'003}, n - 1}) {
      for (const float value : {nan, infinity, -infinity}) {
        const auto at = static_cast<size_t>(i);
        const float p_before = p.f32()[i];
        p.f32()[i] = value;
        EXPECT_FALSE(step()) << "weight " << i << " " << value;
        p.f32()[i] = p_before;
        for (auto* moments : {&wide_m, &wide_v}) {
          if (!wide) continue;
          const float before = (*moments)[at];
          (*moments)[at] = value;
          EXPECT_FALSE(step()) << "moment " << i << " " << value;
          (*moments)[at] = before;
          p.f32()[i] = p_before;
          for (auto* mend : {&wide_m, &wide_v}) (*mend)[at] = 0.1F;
        }
        for (auto* moments : {&narrow_m, &narrow_v}) {
          if (wide) continue;
          (*moments)[at] = f32_to_bf16(value);
          EXPECT_FALSE(step()) << "moment " << i << " " << value;
          p.f32()[i] = p_before;
          for (auto* mend : {&narrow_m, &narrow_v}) (*mend)[at] = f32_to_bf16(0.1F);
        }
        p.f32()[i] = p_before;
        EXPECT_TRUE(step());
      }
    }
    g.f32()[7] = 1e20F;  // its square overflows
    EXPECT_FALSE(step());
  }
}

}  // namespace
}  // namespace fathom
