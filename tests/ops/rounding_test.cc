#include "ops/rounding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "number/formats.h"
#include "ops/cpu/rounding_kernels.h"
#include "ops/each_isa.h"
#include "ops/fp8_twin.h"
#include "ops/linear.h"
#include "ops/test_tensors.h"
#include "sanitized.h"

namespace fathom {
namespace {

struct Shape {
  int64_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 1}, {3, 7}, {1, 128}, {128, 1}, {129, 130}, {300, 257}, {5, 1000}, {257, 64}, {0, 5}};

// Magnitudes over many binades, so that the small ones of a tile fall among e4m3's subnormals and to zero.
Tensor spread_f32(int64_t rows, int64_t cols, uint64_t seed, int64_t stride = 0) {
  const Tensor t = random_f32(rows, cols, seed, stride);
  Rng rng(seed + 100);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) t.f32(r, c) *= std::exp2(static_cast<float>(-24 * rng.uniform()));
  }
  return t;
}

TEST(Rounding, RowsEqualTheirPlainTwin) {
  for (const auto& [rows, cols] : kShapes) {
    for (const bool power_of_two : {false, true}) {
      const Tensor x = spread_f32(rows, cols, 1, cols + 3), want = zeros_like(x);
      plain::round_rows(want, x, power_of_two);
      EXPECT_TRUE(same_bits(round_rows(ctx(), x, Precision::fp8, power_of_two), want)) << rows << " " << cols;
    }
  }
}

// As the activations of an FP8 model are rounded when it is used.
TEST(Rounding, RowsWithAFloorAreThoseOfTheFormat) {
  for (const auto& [rows, cols] : kShapes) {
    for (const bool power_of_two : {false, true}) {
      const Tensor x = spread_f32(rows, cols, 7), want = zeros_like(x);
      for (int64_t i = 0; i < x.size() / 2; ++i) x.f32()[i] *= 1e-6F;
      std::vector<uint8_t> codes(static_cast<size_t>(x.size()));
      std::vector<float> scales(static_cast<size_t>(rows * (cols / 128 + 1)));
      quantize_f8_blocks(codes.data(), scales.data(), x.f32(), rows, cols, {1, 128}, power_of_two,
                         kActivationAmaxFloor);
      dequantize_f8_blocks(want.f32(), codes.data(), scales.data(), 0, rows, cols, {1, 128});
      const Tensor rounded = round_rows(ctx(), x, Precision::fp8, power_of_two, kActivationAmaxFloor);
      EXPECT_TRUE(same_bits(rounded, want)) << rows << " " << cols;
    }
  }
}

TEST(Rounding, ColumnsEqualTheirPlainTwinGroupByGroup) {
  for (const auto& [rows, cols] : kShapes) {
    const auto n = static_cast<int32_t>(rows);
    for (const Tensor offsets : {Tensor(), i32_tensor({0, n / 3, n / 3, n}), i32_tensor({0, 0, n})}) {
      const Tensor x = spread_f32(rows, cols, 2, cols + 1), want = zeros_like(x);
      for (const bool power_of_two : {false, true}) {
        plain::round_columns(want, x, offsets, power_of_two);
        EXPECT_TRUE(same_bits(round_columns(ctx(), x, offsets, Precision::fp8, power_of_two), want))
            << rows << " " << cols;
      }
    }
  }
}

TEST(Rounding, BlocksEqualTheirPlainTwinMatrixByMatrix) {
  for (const auto& [rows, cols] : kShapes) {
    Tensor w = spread_f32(3 * rows, cols, 3);
    if (rows % 2 == 0) {
      w.rank = 3;
      w.shape[0] = 3, w.shape[1] = rows, w.shape[2] = cols;
    }
    const Tensor want = zeros_like(w);
    plain::round_blocks(want, w);
    const Tensor rounded = round_blocks(ctx(), w, Precision::fp8);
    EXPECT_EQ(rounded.rank, w.rank);
    EXPECT_TRUE(same_bits(rounded, want)) << rows << " " << cols;
  }
}

TEST(Rounding, TwelveBitsEqualTheirPlainTwin) {
  for (const auto& [rows, cols] : kShapes) {
    const Tensor x = spread_f32(rows, cols, 4, cols + 2), want = copy_of(x);
    plain::round_to_e5m6(want);
    round_to_e5m6(ctx(), x);
    EXPECT_TRUE(same_bits(x, want)) << rows << " " << cols;
    EXPECT_TRUE(gaps_untouched(x));
  }
}

TEST(Rounding, Bf16IsThatOfTheFormat) {
  const Tensor x = spread_f32(3, 1001, 5), want = copy_of(x);
  for (int64_t i = 0; i < x.size(); ++i) want.f32()[i] = bf16_to_f32(f32_to_bf16(x.f32()[i]));
  EXPECT_TRUE(same_bits(round_rows(ctx(), x, Precision::bf16), want));
  EXPECT_TRUE(same_bits(round_columns(ctx(), x, {}, Precision::bf16), want));
  EXPECT_TRUE(same_bits(round_blocks(ctx(), x, Precision::bf16), want));
}

TEST(Rounding, F32IsLeftWhereItIs) {
  const Tensor x = random_f32(3, 5, 6);
  for (const Tensor t : {round_rows(ctx(), x, Precision::f32), round_columns(ctx(), x, {}, Precision::f32),
                         round_blocks(ctx(), x, Precision::f32)}) {
    EXPECT_EQ(t.data, x.data);
  }
}

// Every instruction set, every value that e4m3 has, the ties between them, and what is no number.
TEST(Rounding, EverySetRoundsToTheNearest) {
  std::vector<float> values;
  for (int code = 0; code < 256; ++code) {
    const float x = f8_e4m3_to_f32(static_cast<uint8_t>(code)), next = f8_e4m3_to_f32(static_cast<uint8_t>(code + 1));
    for (const float v :
         {x, (x + next) / 2, std::nextafter((x + next) / 2, 0.0F), std::nextafter((x + next) / 2, 1e9F)})
      if (std::fabs(v) <= 448) values.push_back(v);
  }
  const auto n = static_cast<int64_t>(values.size());
  for (const auto& [isa, kernels] :
       each_isa(cpu::baseline::rounding_kernels, cpu::avx2::rounding_kernels, cpu::avx512::rounding_kernels)) {
    std::vector<float> out(values.size());
    kernels.scaled(out.data(), values.data(), n, 1, cpu::kE4m3);
    for (size_t i = 0; i < values.size(); ++i) {
      const float want = f8_e4m3_to_f32(f32_to_f8_e4m3(values[i]));
      EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(want)) << isa << " " << values[i];
    }
    const float nan = std::bit_cast<float>(0x7FFFFFFFu);
    std::vector<float> x(37, 1.0F), y(37);
    x[3] = nan, x[36] = -nan, x[11] = std::numeric_limits<float>::infinity();
    EXPECT_EQ(kernels.largest(x.data(), 11), 1) << isa;
    kernels.scaled(y.data(), x.data(), 37, 1, cpu::kE4m3);
    EXPECT_TRUE(std::isnan(y[3]) && std::isnan(y[36]) && y[5] == 1) << isa;
    kernels.bf16(y.data(), x.data(), 37);
    EXPECT_TRUE(std::isnan(y[3]) && std::isnan(y[36]) && std::isinf(y[11]) && y[5] == 1) << isa;
    kernels.columns(y.data(), 1, x.data(), 1, 37, 1, false, cpu::kE4m3);
    EXPECT_TRUE(std::isnan(y[3]) && std::isnan(y[36])) << isa;
  }
}

TEST(Fp8Linear, ItsThreeProductsAreThoseOfCodesAndScales) {
  struct Sizes {
    int64_t tokens, in, out;
  };
  constexpr double kTolerance = 2e-6;
  for (const auto& [tokens, in, out] : {Sizes{1, 1, 2}, {5, 130, 6}, {130, 257, 140}, {150, 64, 258}, {9, 70, 300}}) {
    const Tensor x = spread_f32(tokens, in, 1, in + 2), w = spread_f32(out, in, 2), dy = spread_f32(tokens, out, 3);
    for (int flags = 0; flags < 16; flags += test::kSanitized ? 5 : 1) {
      const Rounding fp8{Precision::fp8, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0,
                         (flags & 8) != 0 ? 2 : 1};
      const Tensor y = filled_f32(tokens, out, 0), want_y = zeros_like(y);
      linear(ctx(), {{y, x, w, {}, {}, fp8}});
      fp8_forward(want_y, x, w, fp8);
      EXPECT_LT(max_relative_error(y, want_y), kTolerance) << tokens << " " << flags;

      const Tensor dx = random_f32(tokens, in, 4), want_dx = copy_of(dx);
      linear_backward_input(ctx(), dx, dy, w, /*accumulate=*/true, fp8);
      fp8_backward_input(want_dx, dy, w, fp8);
      EXPECT_LT(max_relative_error(dx, want_dx), kTolerance) << tokens << " " << flags;

      const Tensor dw = random_f32(out, in, 5), want_dw = copy_of(dw);
      linear_backward_weight(ctx(), {{dw, dy, x, {}, fp8}});
      fp8_backward_weight(want_dw, dy, x, fp8);
      EXPECT_LT(max_relative_error(dw, want_dw), kTolerance) << tokens << " " << flags;
    }
  }
}

// A large product among the first 128, and small ones behind them, which are lost unless their sum is made apart.
TEST(Fp8Linear, SumsOf128ProductsAreAddedUp) {
  const Tensor x = filled_f32(3, 256, 0), w = filled_f32(5, 256, 0);
  for (int64_t k = 128; k < 256; ++k) {
    for (int64_t r = 0; r < 3; ++r) x.f32(r, k) = 1;
    for (int64_t r = 0; r < 5; ++r) w.f32(r, k) = 1;
  }
  for (int64_t r = 0; r < 3; ++r) x.f32(r, 7) = 4096;
  for (int64_t r = 0; r < 5; ++r) w.f32(r, 7) = 4096;
  const Rounding fp8{Precision::fp8, /*x_power_of_two=*/true, /*dy_power_of_two=*/true};
  const Tensor y = filled_f32(3, 5, 0), dx = filled_f32(3, 5, 0);
  linear(ctx(), {{y, x, w, {}, {}, fp8}});
  linear_backward_input(ctx(), dx, x, transposed(w), false, fp8);
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t c = 0; c < 5; ++c) {
      EXPECT_NEAR(y.f32(r, c), 0x1p24 + 128, 4) << "the large product alone is 2^24";
      EXPECT_NEAR(dx.f32(r, c), 0x1p24 + 128, 4);
    }
  }
}

TEST(Fp8Linear, ExpertsRoundTheirOwnRowsAndWeights) {
  const Tensor offsets = i32_tensor({0, 3, 3, 140, 141});
  const int64_t rows = 141, in = 150, out = 33, n = 4;
  for (const Precision precision : {Precision::bf16, Precision::fp8}) {
    const Rounding rounding{precision, true, true};
    const Tensor x = spread_f32(rows, in, 1), dy = spread_f32(rows, out, 2);
    Tensor w = random_f32(n * out, in, 3), dw = zeros_like(w);
    for (Tensor* t : {&w, &dw}) t->rank = 3, t->shape[0] = n, t->shape[1] = out, t->shape[2] = in;
    const Tensor y = filled_f32(rows, out, 0), dx = filled_f32(rows, in, 0);
    linear(ctx(), {{y, x, w, offsets, {}, rounding}});
    grouped_linear_backward_input(ctx(), dx, dy, w, offsets, false, rounding);
    linear_backward_weight(ctx(), {{dw, dy, x, offsets, rounding}});
    for (int64_t e = 0; e < n; ++e) {
      const int64_t begin = offsets.i32()[e], count = offsets.i32()[e + 1] - begin;
      const Tensor own_y = filled_f32(count, out, 0), own_dx = filled_f32(count, in, 0),
                   own_dw = filled_f32(out, in, 0);
      linear(ctx(), {{own_y, x.slice(begin, count), w[e], {}, {}, rounding}});
      linear_backward_input(ctx(), own_dx, dy.slice(begin, count), w[e], false, rounding);
      linear_backward_weight(ctx(), {{own_dw, dy.slice(begin, count), x.slice(begin, count), {}, rounding}});
      EXPECT_TRUE(same_bits(own_y, y.slice(begin, count))) << e;
      EXPECT_TRUE(same_bits(own_dx, dx.slice(begin, count))) << e;
      EXPECT_TRUE(same_bits(own_dw, dw[e])) << e;
    }
  }
}

// Else a step whose activations or gradients overflowed would be taken.
TEST(Rounding, NothingThatIsNotFiniteIsHidden) {
  const Tensor x = spread_f32(131, 261, 9);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Rng rng(9);
  for (int i = 0; i < 300; ++i) {
    const auto r = static_cast<int64_t>(rng.below(131)), c = static_cast<int64_t>(rng.below(261));
    const float before = x.f32(r, c);
    for (const float value : {kInfinity, -kInfinity, std::nanf("")}) {
      x.f32(r, c) = value;
      const auto expect_seen = [&](const char* what, Tensor rounded) {
        EXPECT_FALSE(std::isfinite(rounded.f32(r, c))) << what << ": " << value << " at " << r << ", " << c;
      };
      for (const Precision precision : {Precision::bf16, Precision::fp8, Precision::fp8_per_tensor}) {
        const ArenaScope scope(ctx().arena);
        for (const bool power_of_two : {false, true}) {
          expect_seen("rows", round_rows(ctx(), x, precision, power_of_two));
          expect_seen("columns", round_columns(ctx(), x, {}, precision, power_of_two));
        }
        expect_seen("blocks", round_blocks(ctx(), x, precision));
      }
      const Tensor twelve_bits = zeros_like(x), plain = zeros_like(x);
      std::copy_n(x.f32(), x.size(), twelve_bits.f32());
      round_to_e5m6(ctx(), twelve_bits);
      expect_seen("twelve bits", twelve_bits);
      plain::round_rows(plain, x);
      expect_seen("plain rows", plain);
      plain::round_columns(plain, x, {});
      expect_seen("plain columns", plain);
      plain::round_blocks(plain, x);
      expect_seen("plain blocks", plain);
    }
    x.f32(r, c) = before;
  }
}

TEST(Rounding, AnyNumberOfThreadsGivesTheSameBits) {
  const Tensor x = spread_f32(300, 515, 1);
  ThreadedContext one(1), four(4);
  EXPECT_TRUE(same_bits(round_rows(one.ctx, x, Precision::fp8), round_rows(four.ctx, x, Precision::fp8)));
  EXPECT_TRUE(same_bits(round_columns(one.ctx, x, {}, Precision::fp8), round_columns(four.ctx, x, {}, Precision::fp8)));
  EXPECT_TRUE(same_bits(round_blocks(one.ctx, x, Precision::fp8), round_blocks(four.ctx, x, Precision::fp8)));
}

}  // namespace
}  // namespace fathom
