#include "number/formats.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/arithmetic.h"
#include "number/blocks.h"

namespace fathom {
namespace {

template <class T>
T load_unaligned(const void* base, int64_t i) {
  T value;
  std::memcpy(&value, static_cast<const char*>(base) + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void store_unaligned(void* base, int64_t i, T value) {
  std::memcpy(static_cast<char*>(base) + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

// A small float's exponent and mantissa, put where those of an f32 stand, are off by a factor of two to the difference
// of the biases; the product also makes subnormals right. No branches: the loops over these become vectors.
inline float widen_f16(uint16_t code) {
  const uint32_t magnitude = static_cast<uint32_t>(code & 0x7FFF) << 13;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7F800000;  // infinity and NaN
  const uint32_t sign = static_cast<uint32_t>(code & 0x8000) << 16;
  return std::bit_cast<float>((magnitude >= (0x7C00u << 13) ? special : finite) | sign);
}

inline float widen_f8(uint8_t code) {
  const uint32_t magnitude = static_cast<uint32_t>(code & 0x7F) << 20;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p120f);
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
  return std::bit_cast<float>((magnitude == (0x7Fu << 20) ? 0x7FC00000u : finite) | sign);
}

}  // namespace

float f16_to_f32(uint16_t code) { return widen_f16(code); }
float f8_e4m3_to_f32(uint8_t code) { return widen_f8(code); }

uint16_t f32_to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // 65520 and above
  if (magnitude < 0x38800000) {
    // Subnormal, below 2^-14: adding 0.5 leaves the number in steps of 2^-24, rounded by the addition.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000));
  }
  const uint32_t rounded = magnitude + 0xFFF + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

uint8_t f32_to_f8_e4m3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 24) & 0x80;
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint8_t>(sign | 0x7F);
  if (magnitude >= 0x43E00000) return static_cast<uint8_t>(sign | 0x7E);  // 448 and above
  if (magnitude < 0x3C800000) {
    // Subnormal, below 2^-6: adding 2^14 leaves the number in steps of 2^-9.
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x46800000));
  }
  const uint32_t rounded = magnitude + 0x7FFFF + ((magnitude >> 20) & 1);
  return static_cast<uint8_t>(sign | ((rounded - 0x3C000000) >> 20));
}

void to_f32(float* out, const void* in, Format format, int64_t n) {
  if (n == 0) return;  // from or to nowhere, perhaps
  if (is_block_format(format)) return decode_blocks(out, in, format, n);
  switch (format) {
    case Format::f32:
      std::memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
      return;
    case Format::bf16:
      for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(load_unaligned<uint16_t>(in, i));
      return;
    case Format::f16:
      for (int64_t i = 0; i < n; ++i) out[i] = widen_f16(load_unaligned<uint16_t>(in, i));
      return;
    case Format::f8_e4m3:
      for (int64_t i = 0; i < n; ++i) out[i] = widen_f8(load_unaligned<uint8_t>(in, i));
      return;
    default:
      break;
  }
  FATHOM_CHECK(false, "format {} holds no floats", format_traits(format).name);
}

void from_f32(void* out, const float* in, Format format, int64_t n) {
  if (n == 0) return;
  if (is_block_format(format)) return encode_blocks(out, in, format, 1, n);
  switch (format) {
    case Format::f32:
      std::memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
      return;
    case Format::bf16:
      for (int64_t i = 0; i < n; ++i) store_unaligned(out, i, f32_to_bf16(in[i]));
      return;
    case Format::f16:
      for (int64_t i = 0; i < n; ++i) store_unaligned(out, i, f32_to_f16(in[i]));
      return;
    case Format::f8_e4m3:
      for (int64_t i = 0; i < n; ++i) store_unaligned(out, i, f32_to_f8_e4m3(in[i]));
      return;
    default:
      break;
  }
  FATHOM_CHECK(false, "format {} holds no floats", format_traits(format).name);
}

void encode_rows(void* out, const float* in, Format format, int64_t rows, int64_t cols, const float* importance) {
  if (is_block_format(format)) return encode_blocks(out, in, format, rows, cols, importance);
  from_f32(out, in, format, rows * cols);
}

void dequantize_f8_blocks(float* out, const uint8_t* codes, const float* scales, int64_t first_row, int64_t n_rows,
                          int64_t cols, BlockShape block) {
  const int64_t blocks_per_row = ceil_div(cols, block.cols);
  for (int64_t row = 0; row < n_rows; ++row) {
    const float* row_scales = scales + (first_row + row) / block.rows * blocks_per_row;
    for (int64_t begin = 0; begin < cols; begin += block.cols) {
      const int64_t end = std::min(cols, begin + block.cols);
      const float scale = row_scales[begin / block.cols];
      const uint8_t* from = codes + row * cols;
      float* to = out + row * cols;
      for (int64_t col = begin; col < end; ++col) to[col] = widen_f8(from[col]) * scale;
    }
  }
}

void quantize_f8_blocks(uint8_t* codes, float* scales, const float* in, int64_t rows, int64_t cols, BlockShape block,
                        bool ue8m0, float amax_floor) {
  for (int64_t top = 0; top < rows; top += block.rows) {
    const int64_t bottom = std::min(rows, top + block.rows);
    for (int64_t left = 0; left < cols; left += block.cols) {
      const int64_t right = std::min(cols, left + block.cols);
      float amax = amax_floor;
      for (int64_t row = top; row < bottom; ++row) {
        for (int64_t col = left; col < right; ++col) amax = std::max(amax, std::fabs(in[row * cols + col]));
      }
      float scale = amax / kF8Max;
      if (ue8m0 && scale > 0) {
        int exponent;  // scale = fraction * 2^exponent, fraction in [0.5, 1)
        const float fraction = std::frexp(scale, &exponent);
        scale = std::ldexp(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
      }
      if (scale == 0) scale = 1;
      *scales++ = scale;
      for (int64_t row = top; row < bottom; ++row) {
        for (int64_t col = left; col < right; ++col)
          codes[row * cols + col] = f32_to_f8_e4m3(in[row * cols + col] / scale);
      }
    }
  }
}

}  // namespace fathom
