#include "number/formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace fathom {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

// What each code means, from the definition of a float with so many exponent and mantissa bits.
double define(uint32_t code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double mantissa = static_cast<double>(code & ((1u << mantissa_bits) - 1)) / (1 << mantissa_bits);
  const double sign = (code >> (exponent_bits + mantissa_bits)) & 1 ? -1 : 1;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias);
  return sign * std::ldexp(1 + mantissa, exponent - bias);
}

struct Narrow {
  const char* name;
  int exponent_bits, mantissa_bits;
  uint32_t largest;  // positive code of the largest finite number
  Format format;
};
const Narrow kFormats[] = {{"bf16", 8, 7, 0x7F7F, Format::bf16},
                           {"f16", 5, 10, 0x7BFF, Format::f16},
                           {"fp8 e4m3", 4, 3, 0x7E, Format::f8_e4m3}};

float decode(const Narrow& f, uint32_t code) {
  const auto two_bytes = static_cast<uint16_t>(code);
  const auto one_byte = static_cast<uint8_t>(code);
  float x;
  to_f32(&x, f.format == Format::f8_e4m3 ? static_cast<const void*>(&one_byte) : &two_bytes, f.format, 1);
  return x;
}

uint32_t encode(const Narrow& f, float x) {
  uint16_t two_bytes = 0;
  uint8_t one_byte = 0;
  if (f.format == Format::f8_e4m3) {
    from_f32(&one_byte, &x, f.format, 1);
    return one_byte;
  }
  from_f32(&two_bytes, &x, f.format, 1);
  return two_bytes;
}

TEST(Formats, EveryCodeDecodesToItsDefinitionAndBack) {
  for (const Narrow& f : kFormats) {
    const uint32_t sign = 1u << (f.exponent_bits + f.mantissa_bits);
    for (uint32_t code = 0; code <= f.largest; ++code) {
      for (const uint32_t signed_code : {code, code | sign}) {
        const float x = decode(f, signed_code);
        ASSERT_EQ(x, static_cast<float>(define(signed_code, f.exponent_bits, f.mantissa_bits)))
            << f.name << " " << signed_code;
        ASSERT_EQ(std::signbit(x), signed_code >= sign) << f.name << " " << signed_code;
        ASSERT_EQ(encode(f, x), signed_code) << f.name;
      }
    }
  }
}

TEST(Formats, RoundsToTheNearestAndTiesToEven) {
  for (const Narrow& f : kFormats) {
    for (uint32_t code = 0; code < f.largest; ++code) {
      const double low = decode(f, code), high = decode(f, code + 1);
      const auto middle = static_cast<float>((low + high) / 2);
      if (middle != (low + high) / 2) continue;  // bf16's smallest steps lie below what f32 can halve
      const uint32_t even = code % 2 == 0 ? code : code + 1;
      ASSERT_EQ(encode(f, middle), even) << f.name << " between " << low << " and " << high;
      ASSERT_EQ(encode(f, std::nextafter(middle, 0.0f)), code) << f.name << " below " << middle;
      ASSERT_EQ(encode(f, std::nextafter(middle, kInfinity)), code + 1) << f.name << " above " << middle;
    }
  }
}

TEST(Formats, NanStaysNan) {
  const float loud = std::bit_cast<float>(0x7F800001u);
  for (const Narrow& f : kFormats) {
    EXPECT_TRUE(std::isnan(decode(f, encode(f, kNan)))) << f.name;
    EXPECT_TRUE(std::isnan(decode(f, encode(f, -kNan)))) << f.name;
    EXPECT_TRUE(std::isnan(decode(f, encode(f, loud)))) << f.name;
  }
  EXPECT_TRUE(std::isnan(f8_e4m3_to_f32(0x7F)));
  EXPECT_TRUE(std::isnan(f8_e4m3_to_f32(0xFF)));
  for (const uint16_t code : {0x7C01, 0x7E00, 0x7FFF, 0xFC01}) EXPECT_TRUE(std::isnan(f16_to_f32(code))) << code;
}

TEST(Formats, OverflowIsInfiniteForHalvesAndSaturatesForFp8) {
  EXPECT_EQ(f32_to_f16(65519.99f), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(f32_to_f16(-kInfinity), 0xFC00);
  EXPECT_EQ(f16_to_f32(0x7C00), kInfinity);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_EQ(bf16_to_f32(0xFF80), -kInfinity);
  for (const float x : {448.0f, 449.0f, 480.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(f32_to_f8_e4m3(x), 0x7E) << x;
    EXPECT_EQ(f32_to_f8_e4m3(-x), 0xFE) << x;
  }
}

TEST(Formats, BulkConversionTakesMisalignedNumbersOfAnyCount) {
  for (const Narrow& f : kFormats) {
    const int64_t width = format_bytes(f.format);
    for (const int64_t n : {0, 1, 3, 7, 65, 129}) {
      for (const int64_t shift : {0, 1, 3}) {
        std::vector<float> in(static_cast<size_t>(n)), out(static_cast<size_t>(n));
        for (int64_t i = 0; i < n; ++i)
          in[static_cast<size_t>(i)] = decode(f, static_cast<uint32_t>(i * 37 % f.largest));
        std::vector<char> stored(static_cast<size_t>(n * width + shift) + 1, 'x');
        from_f32(stored.data() + shift, in.data(), f.format, n);
        EXPECT_EQ(stored.back(), 'x');
        to_f32(out.data(), stored.data() + shift, f.format, n);
        EXPECT_EQ(in, out) << f.name << " n " << n << " shift " << shift;
      }
    }
  }
}

struct Matrix {
  int64_t rows, cols;
  std::vector<float> values;
};
Matrix some_matrix(int64_t rows, int64_t cols) {
  Matrix m{rows, cols, {}};
  for (int64_t i = 0; i < rows * cols; ++i)
    m.values.push_back(std::ldexp(static_cast<float>(i * 7919 % 2001 - 1000), static_cast<int>(i % 23) - 20));
  return m;
}

TEST(Fp8Blocks, DequantizedNumbersAreWithinHalfAStepOfTheBlock) {
  for (const bool ue8m0 : {false, true}) {
    for (const auto& [rows, cols] :
         {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {127, 129}, {128, 128}, {200, 384}, {65, 1}}) {
      const Matrix m = some_matrix(rows, cols);
      const BlockShape block{128, 128};
      const auto n_scales = static_cast<size_t>((rows + 127) / 128 * ((cols + 127) / 128));
      std::vector<uint8_t> codes(m.values.size());
      std::vector<float> scales(n_scales), back(m.values.size());
      quantize_f8_blocks(codes.data(), scales.data(), m.values.data(), rows, cols, block, ue8m0);
      dequantize_f8_blocks(back.data(), codes.data(), scales.data(), 0, rows, cols, block);
      for (int64_t i = 0; i < rows * cols; ++i) {
        const size_t at = static_cast<size_t>(i);
        const float scale = scales[static_cast<size_t>(i / cols / 128 * ((cols + 127) / 128) + i % cols / 128)];
        // Half a step is 1/16 of a normal number and 2^-10 scales of a subnormal one; a little more for the products'
        // rounding.
        ASSERT_LE(std::fabs(back[at] - m.values[at]),
                  1.0001f * std::max(std::fabs(m.values[at]) / 16, scale * 0x1p-10f))
            << i;
      }
      for (const float scale : scales) {
        int exponent;
        if (ue8m0) {
          EXPECT_EQ(std::frexp(scale, &exponent), 0.5f);
        }
      }
    }
  }
}

TEST(Fp8Blocks, RowsFromTheMiddleUseTheirOwnScales) {
  const int64_t rows = 300, cols = 130;
  const Matrix m = some_matrix(rows, cols);
  std::vector<uint8_t> codes(m.values.size());
  std::vector<float> scales(6), whole(m.values.size()), part(70 * 130);
  quantize_f8_blocks(codes.data(), scales.data(), m.values.data(), rows, cols, {}, false);
  dequantize_f8_blocks(whole.data(), codes.data(), scales.data(), 0, rows, cols, {});
  dequantize_f8_blocks(part.data(), codes.data() + 100 * cols, scales.data(), 100, 70, cols, {});
  EXPECT_EQ(part, std::vector<float>(whole.begin() + 100 * cols, whole.begin() + 170 * cols));
}

TEST(Fp8Blocks, ABlockOfZerosHasScaleOneAndAFloorHolds) {
  const std::vector<float> zeros(256);
  std::vector<uint8_t> codes(256, 0xAA);
  std::vector<float> scales(2);
  quantize_f8_blocks(codes.data(), scales.data(), zeros.data(), 2, 128, {1, 128}, false);
  EXPECT_EQ(scales, (std::vector<float>{1, 1}));
  EXPECT_EQ(codes, std::vector<uint8_t>(256, 0));
  quantize_f8_blocks(codes.data(), scales.data(), zeros.data(), 2, 128, {1, 128}, false, kActivationAmaxFloor);
  EXPECT_EQ(scales, (std::vector<float>{1e-4f / 448, 1e-4f / 448}));
}

}  // namespace
}  // namespace fathom
