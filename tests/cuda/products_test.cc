// Products of training on a device against the CPU's: sums of k products are off by 2e-6 of the largest number at most
// in f32, and by 1e-5 in bf16, whose operands both round alike.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/device_context.h"
#include "ops/experts.h"
#include "ops/linear.h"

namespace fathom {
namespace {

struct Sizes {
  int64_t tokens, in, out;
  int64_t gap = 1;  // floats between rows; of 4, where also the sizes are multiples of it, kernels read fours
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

// With 700 and 900 sums that blocks share, and in the last two tiles of 128 x 128, in all three products.
constexpr Sizes kSizes[] = {{0, 3, 2},        {1, 1, 1},       {7, 33, 65},       {65, 7, 130},   {33, 130, 1},
                            {68, 36, 132, 4}, {3, 900, 5},     {700, 3, 6},       {4, 900, 8, 4}, {700, 4, 8, 4},
                            {5, 8, 700, 4},   {259, 257, 385}, {260, 260, 388, 4}};

TEST_P(CudaProducts, Forwards) {
  for (const Sizes& s : kSizes) {
    const Tensor x = random_f32(s.tokens, s.in, 1, s.in + s.gap), w = random_f32(s.out, s.in, 2);
    const Tensor want = filled_f32(s.tokens, s.out, 0), got = nans(s.tokens, s.out, s.out + s.gap);
    linear(ctx(), {{want, x, w, {}, {}, rounding()}});
    linear(cuda_ctx(), {{got, upload(x), upload(w), {}, {}, rounding()}});
    expect_near(got, want, s);
  }
}

TEST_P(CudaProducts, GradientOfTheInput) {
  for (const Sizes& s : kSizes) {
    const Tensor dy = random_f32(s.tokens, s.out, 1, s.out + s.gap), w = random_f32(s.out, s.in, 2);
    for (const bool accumulate : {false, true}) {
      const Tensor dx = random_f32(s.tokens, s.in, 3, s.in + s.gap), got = upload(dx);
      linear_backward_input(cuda_ctx(), got, upload(dy), upload(w), accumulate, rounding());
      linear_backward_input(ctx(), dx, dy, w, accumulate, rounding());
      expect_near(got, dx, s);
    }
  }
}

TEST_P(CudaProducts, GradientOfTheWeight) {
  for (const Sizes& s : kSizes) {
    const Tensor dy = random_f32(s.tokens, s.out, 1, s.out + s.gap), x = random_f32(s.tokens, s.in, 2, s.in + s.gap);
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

// As many experts as V3 has, most without rows, slots that stay empty behind the last one's, and rows that are not in
// order; large: enough for tiles of 128 x 128.
TEST_P(CudaProducts, LeaveEmptySlotsAlone) {
  for (const bool large : {false, true}) {
    const int64_t experts = large ? 2 : 256, in = large ? 260 : 20, out = large ? 516 : 12, x_rows = large ? 300 : 40,
                  gap = 4;
    const int64_t slots = large ? 270 : 70, filled = slots - 7;
    std::vector<int32_t> offsets, order;
    for (int64_t e = 0; e <= experts; ++e) {
      const int64_t before = large ? (e == 0 ? 0 : e == 1 ? 131 : filled) : e <= 3 ? 0 : e <= 200 ? 60 : filled;
      offsets.push_back(static_cast<int32_t>(before));
    }
    for (int64_t t = 0; t < slots; ++t) order.push_back(static_cast<int32_t>(t < filled ? t * 11 % x_rows : 0));
    const Tensor x = random_f32(x_rows, in, 1, in + gap), weights = random_f32(experts * out, in, 2);
    const Tensor w(weights.data, Format::f32, {experts, out, in});
    const auto of_experts = [&](Tensor t) { return Tensor(t.data, Format::f32, {experts, out, in}); };
    const Tensor offsets_here = i32_tensor(offsets), offsets_there = upload(offsets_here);
    const Tensor w_there = of_experts(upload(weights));
    Tensor sorted = filled_f32(filled, in, 0);
    for (int64_t t = 0; t < filled; ++t) std::copy_n(x.f32_row(order[static_cast<size_t>(t)]), in, sorted.f32_row(t));

    const Tensor want = filled_f32(filled, out, 0), got = nans(slots, out, out + gap);
    linear(ctx(), {{want, sorted, w, offsets_here, {}, rounding()}});
    LinearInput gathered = upload(x);
    gathered.x.shape[0] = slots;
    gathered.rows = upload(i32_tensor(order));
    linear(cuda_ctx(), {{got, gathered, w_there, offsets_there, {}, rounding()}});
    const auto expect = [&](Tensor there, Tensor here) {
      const Tensor all = download(there);
      EXPECT_LE(max_relative_error(all.slice(0, filled), here), tolerance()) << experts;
      EXPECT_TRUE(gaps_untouched(all));
      for (int64_t t = filled; t < slots; ++t) EXPECT_TRUE(std::isnan(all.f32(t, 0)) && std::isnan(all.f32(t, 1)));
    };
    expect(got, want);

    // Gradients of what is in empty slots are no numbers, and nobody reads them.
    Tensor dy = filled_f32(slots, out, NAN, out + gap);
    const Tensor random = random_f32(filled, out, 3);
    for (int64_t t = 0; t < filled; ++t) std::copy_n(random.f32_row(t), out, dy.f32_row(t));
    const Tensor dx = filled_f32(filled, in, 0), got_dx = nans(slots, in, in + gap);
    grouped_linear_backward_input(ctx(), dx, random, w, offsets_here, false, rounding());
    grouped_linear_backward_input(cuda_ctx(), got_dx, upload(dy), w_there, offsets_there, false, rounding());
    expect(got_dx, dx);

    const Tensor dw = random_f32(experts * out, in, 4), got_dw = upload(dw), before = copy_of(dw);
    Tensor inputs = filled_f32(slots, in, NAN, in + gap);
    for (int64_t t = 0; t < filled; ++t) std::copy_n(sorted.f32_row(t), in, inputs.f32_row(t));
    linear_backward_weight(ctx(), {{of_experts(dw), random, sorted, offsets_here, rounding()}});
    linear_backward_weight(cuda_ctx(), {{of_experts(got_dw), upload(dy), upload(inputs), offsets_there, rounding()}});
    EXPECT_LE(max_relative_error(download(got_dw), dw), tolerance());
    EXPECT_TRUE(large || same_bits(download(got_dw).slice(0, 3 * out), before.slice(0, 3 * out)));
  }
}

INSTANTIATE_TEST_SUITE_P(In, CudaProducts, testing::Values(Precision::f32, Precision::bf16),
                         [](const auto& of) { return of.param == Precision::f32 ? "F32" : "Bf16"; });

}  // namespace
}  // namespace fathom
