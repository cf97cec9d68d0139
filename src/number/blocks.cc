#include "number/blocks.h"

#include <cstring>

#include "number/formats.h"

namespace fathom {
namespace {

void decode(float* out, const BlockQ8_0& b) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(b.q[i]);
}

void decode(float* out, const BlockQ4_0& b) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((b.q[i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((b.q[i] >> 4) - 8);
  }
}

int code_of_5_bits(const uint8_t* high, const uint8_t* q, int i) {
  const int low = i < 16 ? q[i] & 15 : q[i - 16] >> 4;
  return (high[i / 8] >> i % 8 & 1) << 4 | low;
}

void decode(float* out, const BlockQ5_0& b) {
  const float d = f16_to_f32(b.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(code_of_5_bits(b.high, b.q, i) - 16);
}

void decode(float* out, const BlockQ5_1& b) {
  const float d = f16_to_f32(b.d), m = f16_to_f32(b.m);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(code_of_5_bits(b.high, b.q, i)) + m;
}

void decode(float* out, const BlockQ4K& b) {
  const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
  for (int s = 0; s < 8; ++s) {
    const auto [sc, m] = scale_and_min(b.scales, s);
    for (int i = 0; i < 32; ++i) {
      const int q = b.q[s / 2 * 32 + i] >> s % 2 * 4 & 15;
      out[s * 32 + i] = d * sc * static_cast<float>(q) - dmin * m;
    }
  }
}

void decode(float* out, const BlockQ5K& b) {
  const float d = f16_to_f32(b.d), dmin = f16_to_f32(b.dmin);
  for (int s = 0; s < 8; ++s) {
    const auto [sc, m] = scale_and_min(b.scales, s);
    for (int i = 0; i < 32; ++i) {
      const int q = (b.q[s / 2 * 32 + i] >> s % 2 * 4 & 15) | (b.high[i] >> s & 1) << 4;
      out[s * 32 + i] = d * sc * static_cast<float>(q) - dmin * m;
    }
  }
}

void decode(float* out, const BlockQ6K& b) {
  const float d = f16_to_f32(b.d);
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 128; ++i) {
      const int low = b.low[half * 64 + i % 64] >> i / 64 * 4 & 15;
      const int high = b.high[half * 32 + i % 32] >> i / 32 * 2 & 3;
      const int run = half * 8 + i / 16;
      out[half * 128 + i] = d * static_cast<float>(b.scales[run]) * static_cast<float>((high << 4 | low) - 32);
    }
  }
}

template <class Block>
void decode_all(float* out, const void* blocks, int64_t n_blocks, int64_t block_size) {
  for (int64_t b = 0; b < n_blocks; ++b) {
    Block block;
    std::memcpy(&block, static_cast<const char*>(blocks) + b * static_cast<int64_t>(sizeof block), sizeof block);
    decode(out + b * block_size, block);
  }
}

}  // namespace

void decode_blocks(float* out, const void* blocks, Format format, int64_t n) {
  const int64_t size = format_traits(format).block;
  FATHOM_CHECK(n % size == 0);
  switch (format) {
    case Format::q8_0:
      return decode_all<BlockQ8_0>(out, blocks, n / size, size);
    case Format::q4_0:
      return decode_all<BlockQ4_0>(out, blocks, n / size, size);
    case Format::q5_0:
      return decode_all<BlockQ5_0>(out, blocks, n / size, size);
    case Format::q5_1:
      return decode_all<BlockQ5_1>(out, blocks, n / size, size);
    case Format::q4_k:
      return decode_all<BlockQ4K>(out, blocks, n / size, size);
    case Format::q5_k:
      return decode_all<BlockQ5K>(out, blocks, n / size, size);
    case Format::q6_k:
      return decode_all<BlockQ6K>(out, blocks, n / size, size);
    default:
      break;
  }
  FATHOM_CHECK(false, "format {} has no blocks", format_traits(format).name);
}

}  // namespace fathom
