#include "number/panels.h"

#include <algorithm>
#include <cstring>

#include "base/arithmetic.h"
#include "number/blocks.h"
#include "number/formats.h"

namespace fathom {
namespace {

constexpr int kRows = static_cast<int>(kPanelRows);

// Codes of 32 columns of 8 rows, and where their parts stand in the vectors of the header's table.
using Codes = uint8_t[kRows][32];

void add_nibbles(Codes& codes, const uint8_t* vectors) {
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 32; ++k) codes[r][k] |= vectors[k % 16 / 4 * 32 + r * 4 + k % 4] >> k / 16 * 4 & 15;
  }
}

void add_fifth_bits(Codes& codes, const uint8_t* vector) {
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 32; ++k) codes[r][k] |= static_cast<uint8_t>((vector[r * 4 + k % 4] >> k / 4 & 1) << 4);
  }
}

void add_upper_bits(Codes& codes, const uint8_t* vectors) {
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 32; ++k) {
      codes[r][k] |= static_cast<uint8_t>((vectors[k / 16 * 32 + r * 4 + k % 4] >> k % 16 / 4 * 2 & 3) << 4);
    }
  }
}

constexpr int64_t kScaleBytes = 96;  // 6-bit scales and mins of 8 rows

ScaleAndMin get_scale(const uint8_t* in, int s, int r) {
  const int low = in[s * kRows + r], high = in[64 + s / 2 * kRows + r] >> s % 2 * 2;
  return {static_cast<uint8_t>((low & 15) | (high & 3) << 4), static_cast<uint8_t>(low >> 4 | (high >> 4 & 3) << 4)};
}

float read_f16(const uint8_t* in) {
  uint16_t code;
  std::memcpy(&code, in, 2);
  return f16_to_f32(code);
}

// 32 columns of the 8 rows: out[r * stride + k] = scale[r] * (code - offset) - min[r]
void write(float* out, int64_t stride, const Codes& codes, const float* scale, const float* min, int offset) {
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 32; ++k) {
      out[r * stride + k] = scale[r] * static_cast<float>(codes[r][k] - offset) - min[r];
    }
  }
}

// Block `in` of a format whose blocks have 32 columns.
void unpack_32(float* out, int64_t stride, const uint8_t* in, Format format) {
  float d[kRows];
  constexpr float kNoMin[kRows] = {};
  for (int r = 0; r < kRows; ++r) d[r] = read_f16(in + r * 2);
  in += 16;
  Codes codes = {};
  if (format == Format::q8_0) {
    for (int r = 0; r < kRows; ++r) {
      for (int k = 0; k < 32; ++k) codes[r][k] = static_cast<uint8_t>(in[k / 4 * 32 + r * 4 + k % 4] ^ 128);
    }
    return write(out, stride, codes, d, kNoMin, 128);
  }
  add_nibbles(codes, in);
  if (format == Format::q5_0) add_fifth_bits(codes, in + 128);
  write(out, stride, codes, d, kNoMin, format == Format::q5_0 ? 16 : 8);
}

// Block `in` of q4_k or q5_k.
void unpack_k(float* out, int64_t stride, const uint8_t* in, Format format) {
  const uint8_t* scales = in + 32;
  const uint8_t* vectors = scales + kScaleBytes;
  for (int s = 0; s < 8; ++s) {
    float scale[kRows], min[kRows];
    for (int r = 0; r < kRows; ++r) {
      const ScaleAndMin both = get_scale(scales, s, r);
      scale[r] = read_f16(in + r * 2) * both.scale;
      min[r] = read_f16(in + 16 + r * 2) * both.min;
    }
    Codes codes = {};
    add_nibbles(codes, vectors);
    if (format == Format::q5_k) add_fifth_bits(codes, vectors + 128);
    vectors += format == Format::q5_k ? 160 : 128;
    write(out + s * 32, stride, codes, scale, min, 0);
  }
}

void unpack_q6_k(float* out, int64_t stride, const uint8_t* in) {
  const uint8_t* scales = in + 16;
  const uint8_t* vectors = scales + 128;
  for (int s = 0; s < 8; ++s, vectors += 192) {
    Codes codes = {};
    add_nibbles(codes, vectors);
    add_upper_bits(codes, vectors + 128);
    for (int r = 0; r < kRows; ++r) {
      for (int k = 0; k < 32; ++k) {
        const auto sc = static_cast<int8_t>(scales[(s * 2 + k / 16) * kRows + r]);
        out[r * stride + s * 32 + k] = read_f16(in + r * 2) * static_cast<float>(sc * (codes[r][k] - 32));
      }
    }
  }
}

}  // namespace

void unpack_panel(float* out, const void* panel, Format format, int64_t cols) {
  const auto* in = static_cast<const uint8_t*>(panel);
  const FormatTraits traits = format_traits(format);
  if (is_block_format(format)) {
    for (int64_t k = 0; k < cols; k += traits.block, in += kRows * traits.block_bytes) {
      if (traits.block == 32) {
        unpack_32(out + k, cols, in, format);
      } else if (format == Format::q6_k) {
        unpack_q6_k(out + k, cols, in);
      } else {
        unpack_k(out + k, cols, in, format);
      }
    }
    return;
  }
  const uint8_t* scales = in;
  if (format == Format::f8_e4m3) in += ceil_div(cols, kFp8PanelBlock) * 4;
  for (int64_t k = 0; k < cols; ++k) {
    float column[kRows], scale = 1;
    to_f32(column, in + k * kRows * traits.block_bytes, format, kRows);
    if (format == Format::f8_e4m3) std::memcpy(&scale, scales + k / kFp8PanelBlock * 4, 4);
    for (int r = 0; r < kRows; ++r) out[r * cols + k] = column[r] * scale;
  }
}

}  // namespace fathom
