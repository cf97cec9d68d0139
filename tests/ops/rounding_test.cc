#include "ops/rounding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "number/formats.h"
#include "ops/cpu/rounding_kernels.h"
#include "ops/each_isa.h"
#include "ops/linear.h"
#include "ops/test_tensors.h"

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

// The three products of a linear layer as V3 section 3.3 has them, value by value: codes, a scale for each tile of
// either operand, sums of 128 products in f32, each scaled and added up. at(operand, i, k): code * scale.
struct Operand {
  Tensor codes, scales;  // [rows, K] and [rows, K / 128], K the dimension that is summed over
};
Operand quantize_rows(Tensor x) {  // [rows, K] in tiles of 1 x 128
  const int64_t tiles = (x.cols() + 127) / 128;
  const Operand o{zeros_like(x), filled_f32(x.rows(), tiles, 0)};
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t t = 0; t < tiles; ++t) {
      float largest = 0;
      for (int64_t k = t * 128; k < std::min(x.cols(), t * 128 + 128); ++k) {
        largest = std::max(largest, std::fabs(x.f32(r, k)));
      }
      const float scale = o.scales.f32(r, t) = std::max(largest / 448, 0x1p-126F);
      for (int64_t k = t * 128; k < std::min(x.cols(), t * 128 + 128); ++k) {
        o.codes.f32(r, k) = f8_e4m3_to_f32(f32_to_f8_e4m3(x.f32(r, k) / scale));
      }
    }
  }
  return o;
}
Operand quantize_blocks(Tensor w) {  // [rows, K] in blocks of 128 x 128
  const Operand o{zeros_like(w), filled_f32(w.rows(), (w.cols() + 127) / 128, 0)};
  for (int64_t top = 0; top < w.rows(); top += 128) {
    for (int64_t left = 0; left < w.cols(); left += 128) {
      const int64_t bottom = std::min(w.rows(), top + 128), right = std::min(w.cols(), left + 128);
      float largest = 0;
      for (int64_t r = top; r < bottom; ++r) {
        for (int64_t k = left; k < right; ++k) largest = std::max(largest, std::fabs(w.f32(r, k)));
      }
      const float scale = std::max(largest / 448, 0x1p-126F);
      for (int64_t r = top; r < bottom; ++r) {
        o.scales.f32(r, left / 128) = scale;
        for (int64_t k = left; k < right; ++k) {
          o.codes.f32(r, k) = f8_e4m3_to_f32(f32_to_f8_e4m3(w.f32(r, k) / scale));
        }
      }
    }
  }
  return o;
}
Tensor transposed(Tensor x) {
  const Tensor t = filled_f32(x.cols(), x.rows(), 0);
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t c = 0; c < x.cols(); ++c) t.f32(c, r) = x.f32(r, c);
  }
  return t;
}
Tensor transposed_rows_dequantized(Tensor x) {
  const Operand o = quantize_rows(x);
  const Tensor t = filled_f32(x.cols(), x.rows(), 0);
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t c = 0; c < x.cols(); ++c) t.f32(c, r) = o.codes.f32(r, c) * o.scales.f32(r, c / 128);
  }
  return t;
}
// y[i, j] += sum_k a[i, k] b[j, k]
void add_products(Tensor y, const Operand& a, const Operand& b) {
  const int64_t k_end = a.codes.cols();
  for (int64_t i = 0; i < y.rows(); ++i) {
    for (int64_t j = 0; j < y.cols(); ++j) {
      float total = 0;
      for (int64_t first = 0; first < k_end; first += 128) {
        float part = 0;
        for (int64_t k = first; k < std::min(k_end, first + 128); ++k) part += a.codes.f32(i, k) * b.codes.f32(j, k);
        total += part * a.scales.f32(i, first / 128) * b.scales.f32(j, first / 128);
      }
      y.f32(i, j) += total;
    }
  }
}
// W read along its other dimension has the same blocks.
Operand other_way(const Operand& w) {
  const Operand t{transposed(w.codes), filled_f32(w.codes.cols(), (w.codes.rows() + 127) / 128, 0)};
  for (int64_t r = 0; r < t.codes.rows(); ++r) {
    for (int64_t k = 0; k < t.scales.cols(); ++k) t.scales.f32(r, k) = w.scales.f32(k * 128, r / 128);
  }
  return t;
}

TEST(Fp8Linear, ItsThreeProductsAreThoseOfCodesAndScales) {
  struct Sizes {
    int64_t tokens, in, out;
  };
  constexpr double kTolerance = 2e-6;
  for (const auto& [tokens, in, out] : {Sizes{1, 1, 1}, {5, 130, 7}, {130, 257, 140}, {150, 64, 129}}) {
    const Tensor x = spread_f32(tokens, in, 1, in + 2), w = spread_f32(out, in, 2), dy = spread_f32(tokens, out, 3);
    const Rounding fp8{Precision::fp8};
    const Tensor y = filled_f32(tokens, out, 0), want_y = zeros_like(y);
    linear(ctx(), {{y, x, w, {}, {}, fp8}});
    add_products(want_y, quantize_rows(x), quantize_blocks(w));
    EXPECT_LT(max_relative_error(y, want_y), kTolerance) << tokens;

    const Tensor dx = random_f32(tokens, in, 4), want_dx = copy_of(dx);
    linear_backward_input(ctx(), dx, dy, w, /*accumulate=*/true, fp8);
    add_products(want_dx, quantize_rows(dy), other_way(quantize_blocks(w)));
    EXPECT_LT(max_relative_error(dx, want_dx), kTolerance) << tokens;

    const Tensor dw = random_f32(out, in, 5), want_dw = copy_of(dw);
    linear_backward_weight(ctx(), {{dw, dy, x, {}, fp8}});
    add_products(want_dw, quantize_rows(transposed(dy)), quantize_rows(transposed_rows_dequantized(x)));
    EXPECT_LT(max_relative_error(dw, want_dw), kTolerance) << tokens;
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
