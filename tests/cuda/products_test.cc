// Products of training on a device against the CPU's: sums of k products are off by 1e-6 of the largest number at most
// in f32, and by 1e-5 in bf16, whose operands both round alike.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda/device_context.h"
#include "ops/experts.h"
#include "ops/linear.h"

namespace fathom {
namespace {

struct Sizes {
  int64_t tokens, in, out;
};

class CudaProducts : public testing::TestWithParam<Precision> {
 protected:
  void SetUp() override {
    if (cuda_ctx().device == nullptr) GTEST_SKIP() << "there is no GPU";
  }
  Rounding rounding() const { return {GetParam()}; }
  double tolerance() const { return GetParam() == Precision::bf16 ? 1e-5 : 2e-6; }
  // And nothing between rows is written.
  void expect_near(Tensor got, Tensor want, const Sizes& s) const {
    const Tensor here = download(got);
    EXPECT_LE(max_relative_error(here, want), tolerance()) << s.tokens << " x " << s.in << " x " << s.out;
    EXPECT_TRUE(gaps_untouched(here));
  }
};

Tensor nans(int64_t rows, int64_t cols, int64_t stride = 0) { return upload(filled_f32(rows, cols, NAN, stride)); }

// The last ones: sums that blocks share.
constexpr Sizes kSizes[] = {{0, 3, 2}, {1, 1, 1}, {7, 33, 65}, {65, 7, 130}, {33, 130, 1}, {3, 900, 5}, {700, 3, 6}};

TEST_P(CudaProducts, Forwards) {
  for (const Sizes& s : kSizes) {
    const Tensor x = random_f32(s.tokens, s.in, 1, s.in + 3), w = random_f32(s.out, s.in, 2);
    const Tensor want = filled_f32(s.tokens, s.out, 0), got = nans(s.tokens, s.out, s.out + 1);
    linear(ctx(), {{want, x, w, {}, {}, rounding()}});
    linear(cuda_ctx(), {{got, upload(x), upload(w), {}, {}, rounding()}});
    expect_near(got, want, s);
  }
}

TEST_P(CudaProducts, GradientOfTheInput) {
  for (const Sizes& s : kSizes) {
    const Tensor dy = random_f32(s.tokens, s.out, 1, s.out + 2), w = random_f32(s.out, s.in, 2);
    for (const bool accumulate : {false, true}) {
      const Tensor dx = random_f32(s.tokens, s.in, 3, s.in + 1), got = upload(dx);
      linear_backward_input(cuda_ctx(), got, upload(dy), upload(w), accumulate, rounding());
      linear_backward_input(ctx(), dx, dy, w, accumulate, rounding());
      expect_near(got, dx, s);
    }
  }
}

TEST_P(CudaProducts, GradientOfTheWeight) {
  for (const Sizes& s : kSizes) {
    const Tensor dy = random_f32(s.tokens, s.out, 1, s.out + 2), x = random_f32(s.tokens, s.in, 2, s.in + 5);
    const Tensor dw = random_f32(s.out, s.in, 3), got = upload(dw), again = upload(dw);
    for (const Tensor& to : {got, again}) {
      linear_backward_weight(cuda_ctx(), {{to, upload(dy), upload(x), {}, rounding()}, {{}, {}, {}, {}, rounding()}});
    }
    linear_backward_weight(ctx(), {{dw, dy, x, {}, rounding()}});
    expect_near(got, dw, s);
    EXPECT_TRUE(same_bits(download(got), download(again)));
  }
}

// Experts with many rows, few and none.
TEST_P(CudaProducts, OfExperts) {
  const int64_t k = 2, experts = 5, in = 37, out = 70;
  for (const int64_t tokens : {0, 1, 6, 90}) {
    const Sizes s{tokens, in, out};
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < tokens; ++t) ids.insert(ids.end(), {t % 9 == 8 ? 1 : 0, t % 3 == 0 ? 2 : 4});
    const Tensor chosen(i32_tensor(ids).data, Format::i32, {tokens, k});
    const Dispatch here = make_dispatch(ctx(), chosen, experts),
                   there = make_dispatch(cuda_ctx(), upload(chosen), experts);
    const int64_t slots = tokens * k;
    const Tensor x = random_f32(tokens, in, 1, in + 1);
    const auto matrices = [&](uint64_t seed) {
      Tensor w = random_f32(experts * out, in, seed);
      return Tensor(w.data, Format::f32, {experts, out, in});
    };
    const auto there_too = [&](Tensor w) {
      const Tensor flat = upload(Tensor(w.data, Format::f32, {experts * out, in}));
      return Tensor(flat.data, Format::f32, {experts, out, in});
    };
    const Tensor w = matrices(2), w_there = there_too(w);
    const Tensor want = filled_f32(slots, out, 0), got = nans(slots, out, out + 1);
    const LinearInput sorted = dispatch(ctx(), make_linear_input(ctx(), x, {w}), here, w);
    const LinearInput rows = dispatch(cuda_ctx(), make_linear_input(cuda_ctx(), upload(x), {w_there}), there, w_there);
    linear(ctx(), {{want, sorted, w, here.offsets, {}, rounding()}});
    linear(cuda_ctx(), {{got, rows, w_there, there.offsets, there.experts, rounding()}});
    expect_near(got, want, s);

    const Tensor dy = random_f32(slots, out, 3, out + 2);
    for (const bool accumulate : {false, true}) {
      const Tensor dx = random_f32(slots, in, 4, in + 1), got_dx = upload(dx);
      grouped_linear_backward_input(cuda_ctx(), got_dx, upload(dy), w_there, there.offsets, accumulate, rounding());
      grouped_linear_backward_input(ctx(), dx, dy, w, here.offsets, accumulate, rounding());
      expect_near(got_dx, dx, s);
    }
    const Tensor dw = matrices(5), dw_there = there_too(dw);
    linear_backward_weight(cuda_ctx(), {{dw_there, upload(dy), upload(sorted.x), there.offsets, rounding()}});
    linear_backward_weight(ctx(), {{dw, dy, sorted.x, here.offsets, rounding()}});
    const auto flat = [&](Tensor t) { return Tensor(t.data, Format::f32, {experts * out, in}); };
    expect_near(flat(dw_there), flat(dw), s);
  }
}

INSTANTIATE_TEST_SUITE_P(In, CudaProducts, testing::Values(Precision::f32, Precision::bf16),
                         [](const auto& of) { return of.param == Precision::f32 ? "F32" : "Bf16"; });

}  // namespace
}  // namespace fathom
