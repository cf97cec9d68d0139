// The plain twin of pack_panel: the table of number/panels.h, number by number.
#pragma once

#include <cstring>

#include "base/arithmetic.h"
#include "number/blocks.h"
#include "number/formats.h"
#include "number/panels.h"

namespace fathom::plain {

constexpr int kRows = static_cast<int>(kPanelRows);
constexpr int64_t kScaleBytes = 96;  // 6-bit scales and mins of 8 rows
using Codes = uint8_t[kRows][32];    // of 32 columns of 8 rows

inline void put_nibbles(uint8_t* vectors, const Codes& codes) {
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 16; ++k) {
      vectors[k / 4 * 32 + r * 4 + k % 4] = static_cast<uint8_t>((codes[r][k] & 15) | (codes[r][k + 16] & 15) << 4);
    }
  }
}
inline void put_fifth_bits(uint8_t* vector, const Codes& codes) {
  std::memset(vector, 0, 32);
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 32; ++k) vector[r * 4 + k % 4] |= static_cast<uint8_t>((codes[r][k] >> 4 & 1) << k / 4);
  }
}
inline void put_upper_bits(uint8_t* vectors, const Codes& codes) {
  std::memset(vectors, 0, 64);
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 32; ++k) {
      vectors[k / 16 * 32 + r * 4 + k % 4] |= static_cast<uint8_t>((codes[r][k] >> 4 & 3) << k % 16 / 4 * 2);
    }
  }
}
inline void put_scales(uint8_t* out, const uint8_t (&scale)[8][kRows], const uint8_t (&min)[8][kRows]) {
  std::memset(out, 0, kScaleBytes);
  for (int s = 0; s < 8; ++s) {
    for (int r = 0; r < kRows; ++r) {
      out[s * kRows + r] = static_cast<uint8_t>((scale[s][r] & 15) | (min[s][r] & 15) << 4);
      out[64 + s / 2 * kRows + r] |= static_cast<uint8_t>((scale[s][r] >> 4 | min[s][r] >> 4 << 4) << s % 2 * 2);
    }
  }
}
// Block b of each row; rows that are absent are zeros.
template <class Block>
struct BlocksOfRows {
  Block of[kRows] = {};
  BlocksOfRows(const void* const* rows, int64_t n_rows, int64_t b) {
    for (int64_t r = 0; r < n_rows; ++r) {
      std::memcpy(&of[r], static_cast<const char*>(rows[r]) + b * static_cast<int64_t>(sizeof(Block)), sizeof(Block));
    }
  }
};

template <class Block>
uint8_t* put_d(uint8_t* out, const BlocksOfRows<Block>& blocks) {
  for (const Block& b : blocks.of) {
    std::memcpy(out, &b.d, 2);
    out += 2;
  }
  return out;
}

inline void pack(uint8_t* out, const BlocksOfRows<BlockQ8_0>& blocks) {
  out = put_d(out, blocks);
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 32; ++k) out[k / 4 * 32 + r * 4 + k % 4] = static_cast<uint8_t>(blocks.of[r].q[k]);
  }
}

inline void pack(uint8_t* out, const BlocksOfRows<BlockQ4_0>& blocks) {
  Codes codes;
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < 32; ++k) codes[r][k] = blocks.of[r].q[k % 16] >> k / 16 * 4 & 15;
  }
  put_nibbles(put_d(out, blocks), codes);
}

inline void pack(uint8_t* out, const BlocksOfRows<BlockQ5_0>& blocks) {
  Codes codes;
  for (int r = 0; r < kRows; ++r) {
    const BlockQ5_0& b = blocks.of[r];
    for (int k = 0; k < 32; ++k) {
      codes[r][k] = static_cast<uint8_t>((b.q[k % 16] >> k / 16 * 4 & 15) | (b.high[k / 8] >> k % 8 & 1) << 4);
    }
  }
  out = put_d(out, blocks);
  put_nibbles(out, codes);
  put_fifth_bits(out + 128, codes);
}

template <class Block>
uint8_t* put_scale_part(uint8_t* out, const BlocksOfRows<Block>& blocks) {
  out = put_d(out, blocks);
  uint8_t scale[8][kRows], min[8][kRows];
  for (int r = 0; r < kRows; ++r) {
    std::memcpy(out + r * 2, &blocks.of[r].dmin, 2);
    for (int s = 0; s < 8; ++s) {
      const ScaleAndMin both = scale_and_min(blocks.of[r].scales, s);
      scale[s][r] = both.scale;
      min[s][r] = both.min;
    }
  }
  put_scales(out + 16, scale, min);
  return out + 16 + kScaleBytes;
}

inline void pack(uint8_t* out, const BlocksOfRows<BlockQ4K>& blocks) {
  out = put_scale_part(out, blocks);
  for (int s = 0; s < 8; ++s, out += 128) {
    Codes codes;
    for (int r = 0; r < kRows; ++r) {
      for (int k = 0; k < 32; ++k) codes[r][k] = blocks.of[r].q[s / 2 * 32 + k] >> s % 2 * 4 & 15;
    }
    put_nibbles(out, codes);
  }
}

inline void pack(uint8_t* out, const BlocksOfRows<BlockQ5K>& blocks) {
  out = put_scale_part(out, blocks);
  for (int s = 0; s < 8; ++s, out += 160) {
    Codes codes;
    for (int r = 0; r < kRows; ++r) {
      const BlockQ5K& b = blocks.of[r];
      for (int k = 0; k < 32; ++k) {
        codes[r][k] = static_cast<uint8_t>((b.q[s / 2 * 32 + k] >> s % 2 * 4 & 15) | (b.high[k] >> s & 1) << 4);
      }
    }
    put_nibbles(out, codes);
    put_fifth_bits(out + 128, codes);
  }
}

inline void pack(uint8_t* out, const BlocksOfRows<BlockQ6K>& blocks) {
  out = put_d(out, blocks);
  for (int j = 0; j < 16; ++j) {
    for (int r = 0; r < kRows; ++r) *out++ = static_cast<uint8_t>(blocks.of[r].scales[j]);
  }
  for (int s = 0; s < 8; ++s, out += 192) {
    Codes codes;
    for (int r = 0; r < kRows; ++r) {
      const BlockQ6K& b = blocks.of[r];
      for (int k = 0; k < 32; ++k) {
        const int half = s / 4, i = s % 4 * 32 + k;  // number i of this half of the block
        const int low = b.low[half * 64 + i % 64] >> i / 64 * 4 & 15, high = b.high[half * 32 + k] >> i / 32 * 2 & 3;
        codes[r][k] = static_cast<uint8_t>(low | high << 4);
      }
    }
    put_nibbles(out, codes);
    put_upper_bits(out + 128, codes);
  }
}

template <class Block>
void pack_blocks(uint8_t* out, const void* const* rows, int64_t n_rows, int64_t n_blocks) {
  for (int64_t b = 0; b < n_blocks; ++b, out += kRows * sizeof(Block)) pack(out, BlocksOfRows<Block>(rows, n_rows, b));
}

// [8 rows, cols] of elements of T into [cols, 8].
template <class T>
void interleave(uint8_t* out, const void* const* rows, int64_t n_rows, int64_t cols) {
  std::memset(out, 0, static_cast<size_t>(cols) * kRows * sizeof(T));
  for (int64_t r = 0; r < n_rows; ++r) {
    const auto* row = static_cast<const uint8_t*>(rows[r]);
    for (int64_t k = 0; k < cols; ++k) std::memcpy(out + (k * kRows + r) * sizeof(T), row + k * sizeof(T), sizeof(T));
  }
}

inline void pack_panel(void* panel, const void* const* rows, int64_t n_rows, Format format, int64_t cols,
                       const float* scales = nullptr) {
  auto* out = static_cast<uint8_t*>(panel);
  const int64_t n_blocks = cols / format_traits(format).block;
  FATHOM_CHECK(n_rows >= 0 && n_rows <= kPanelRows && cols % format_traits(format).block == 0);
  switch (format) {
    case Format::q8_0:
      return pack_blocks<BlockQ8_0>(out, rows, n_rows, n_blocks);
    case Format::q4_0:
      return pack_blocks<BlockQ4_0>(out, rows, n_rows, n_blocks);
    case Format::q5_0:
      return pack_blocks<BlockQ5_0>(out, rows, n_rows, n_blocks);
    case Format::q4_k:
      return pack_blocks<BlockQ4K>(out, rows, n_rows, n_blocks);
    case Format::q5_k:
      return pack_blocks<BlockQ5K>(out, rows, n_rows, n_blocks);
    case Format::q6_k:
      return pack_blocks<BlockQ6K>(out, rows, n_rows, n_blocks);
    case Format::f32:
      return interleave<float>(out, rows, n_rows, cols);
    case Format::bf16:
    case Format::f16:
      return interleave<uint16_t>(out, rows, n_rows, cols);
    case Format::f8_e4m3: {
      const auto scale_bytes = static_cast<size_t>(ceil_div(cols, kFp8PanelBlock)) * sizeof(float);
      std::memcpy(out, scales, scale_bytes);
      return interleave<uint8_t>(out + scale_bytes, rows, n_rows, cols);
    }
    default:
      break;
  }
  FATHOM_CHECK(false, "no panels of {}", format_traits(format).name);
}

}  // namespace fathom::plain
