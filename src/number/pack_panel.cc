#include <cstddef>
#include <cstring>

#include "base/arithmetic.h"
#include "number/blocks.h"
#include "number/formats.h"
#include "number/panels.h"

namespace fathom {
namespace {

constexpr int kRows = static_cast<int>(kPanelRows);

typedef uint8_t Bytes __attribute__((vector_size(16)));

template <class V = Bytes>
V load(const uint8_t* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Elements of `a` and `b` in turn: those of the lower halves and of the upper ones.
template <class T>
struct Zipped {
  typedef T Lanes __attribute__((vector_size(16)));
  Bytes low, high;
  Zipped(Bytes first, Bytes second) {
    const auto a = reinterpret_cast<Lanes>(first), b = reinterpret_cast<Lanes>(second);
    if constexpr (sizeof(T) == 1) {
      low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    } else if constexpr (sizeof(T) == 2) {
      low = reinterpret_cast<Bytes>(__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11));
      high = reinterpret_cast<Bytes>(__builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15));
    } else {
      low = reinterpret_cast<Bytes>(__builtin_shufflevector(a, b, 0, 4, 1, 5));
      high = reinterpret_cast<Bytes>(__builtin_shufflevector(a, b, 2, 6, 3, 7));
    }
  }
};

// 16 bytes of each row, elements of T, column by column.
template <class T>
void put_columns(uint8_t* out, const Bytes (&rows)[kRows]) {
  Bytes v[kRows];
  std::memcpy(v, rows, sizeof v);
  // A round brings rows that are 4 apart side by side: the row's upper bit becomes the lowest of the place.
  for (int round = 0; round < 3; ++round) {
    Bytes next[kRows];
    for (int i = 0; i < 4; ++i) {
      const Zipped<T> pair(v[i], v[i + 4]);
      next[2 * i] = pair.low;
      next[2 * i + 1] = pair.high;
    }
    std::memcpy(v, next, sizeof v);
  }
  std::memcpy(out, v, sizeof v);
}

// Exchanges the bits of `mask` with those `distance` above: in a word, or between two.
uint64_t swap_bits(uint64_t x, uint64_t mask, int distance) {
  const uint64_t t = (x >> distance ^ x) & mask;
  return x ^ t ^ t << distance;
}
void swap_bits(uint64_t& upper, uint64_t& lower, uint64_t mask, int distance) {
  const uint64_t t = (upper >> distance ^ lower) & mask;
  lower ^= t;
  upper ^= t << distance;
}

// A block of each row, as bytes; of rows that are absent zeros.
template <class Block>
struct BlocksOfRows {
  const uint8_t* of[kRows];
};

void put_f16(uint8_t* out, const uint8_t* const (&blocks)[kRows], size_t place) {
  for (int r = 0; r < kRows; ++r) std::memcpy(out + r * 2, blocks[r] + place, 2);
}

void put_words(uint8_t* out, const uint8_t* const (&blocks)[kRows], size_t place) {
  Bytes codes[kRows];
  for (int r = 0; r < kRows; ++r) codes[r] = load(blocks[r] + place);
  put_columns<uint32_t>(out, codes);
}

// Halves of 32 bytes: the lower ones are the codes of 32 columns, the upper ones those of 32 others.
void put_nibbles(uint8_t* of_lower, uint8_t* of_upper, const uint8_t* const (&blocks)[kRows], size_t place) {
  Bytes lower[kRows], upper[kRows];
  for (int r = 0; r < kRows; ++r) {
    const Bytes first = load(blocks[r] + place), second = load(blocks[r] + place + 16);
    lower[r] = (first & 15) | second << 4;
    upper[r] = first >> 4 | (second & 0xF0);
  }
  put_columns<uint32_t>(of_lower, lower);
  put_columns<uint32_t>(of_upper, upper);
}

void pack(uint8_t* out, const BlocksOfRows<BlockQ8_0>& blocks) {
  put_f16(out, blocks.of, offsetof(BlockQ8_0, d));
  put_words(out + 16, blocks.of, offsetof(BlockQ8_0, q));
  put_words(out + 144, blocks.of, offsetof(BlockQ8_0, q) + 16);
}

void pack(uint8_t* out, const BlocksOfRows<BlockQ4_0>& blocks) {
  put_f16(out, blocks.of, offsetof(BlockQ4_0, d));
  put_words(out + 16, blocks.of, offsetof(BlockQ4_0, q));
}

void pack(uint8_t* out, const BlocksOfRows<BlockQ5_0>& blocks) {
  put_f16(out, blocks.of, offsetof(BlockQ5_0, d));
  put_words(out + 16, blocks.of, offsetof(BlockQ5_0, q));
  // Bit 4 g + i goes to bit g of byte i: the five bits of its number turn by two places. Two rows in a word.
  for (int r = 0; r < kRows; r += 2) {
    const uint64_t low = load<uint32_t>(blocks.of[r] + offsetof(BlockQ5_0, high));
    const uint64_t high = load<uint32_t>(blocks.of[r + 1] + offsetof(BlockQ5_0, high));
    uint64_t bits = low | high << 32;
    bits = swap_bits(bits, 0x0000CCCC0000CCCC, 14);
    bits = swap_bits(bits, 0x00AA00AA00AA00AA, 7);
    bits = swap_bits(bits, 0x0C0C0C0C0C0C0C0C, 2);
    bits = swap_bits(bits, 0x2222222222222222, 1);
    std::memcpy(out + 144 + r * 4, &bits, 8);
  }
}

// d, dmin, and 6-bit scales and mins.
template <class Block>
uint8_t* put_scale_part(uint8_t* out, const BlocksOfRows<Block>& blocks) {
  put_f16(out, blocks.of, offsetof(Block, d));
  put_f16(out + 16, blocks.of, offsetof(Block, dmin));
  out += 32;
  Bytes both[kRows];  // a row's 8 scales and 8 mins
  for (int r = 0; r < kRows; ++r) {
    const uint8_t* scales = blocks.of[r] + offsetof(Block, scales);
    const auto a = load<uint32_t>(scales), b = load<uint32_t>(scales + 4), c = load<uint32_t>(scales + 8);
    const uint32_t parts[] = {a & 0x3F3F3F3F, (c & 0x0F0F0F0F) | (a >> 2 & 0x30303030), b & 0x3F3F3F3F,
                              (c >> 4 & 0x0F0F0F0F) | (b >> 2 & 0x30303030)};
    std::memcpy(&both[r], parts, 16);
  }
  uint64_t of_rows[16];  // a number s of each row
  put_columns<uint8_t>(reinterpret_cast<uint8_t*>(of_rows), both);
  constexpr uint64_t kLow = 0x0F0F0F0F0F0F0F0F, kTwo = 0x0303030303030303;
  uint64_t packed[12] = {};
  for (int s = 0; s < 8; ++s) {
    const uint64_t scale = of_rows[s], min = of_rows[8 + s];
    packed[s] = (scale & kLow) | (min & kLow) << 4;
    packed[8 + s / 2] |= ((scale >> 4 & kTwo) | (min >> 4 & kTwo) << 4) << s % 2 * 2;
  }
  std::memcpy(out, packed, sizeof packed);
  return out + sizeof packed;
}

void pack(uint8_t* out, const BlocksOfRows<BlockQ4K>& blocks) {
  out = put_scale_part(out, blocks);
  for (size_t j = 0; j < 4; ++j, out += 256) put_nibbles(out, out + 128, blocks.of, offsetof(BlockQ4K, q) + j * 32);
}

void pack(uint8_t* out, const BlocksOfRows<BlockQ5K>& blocks) {
  out = put_scale_part(out, blocks);
  for (size_t j = 0; j < 4; ++j) {
    put_nibbles(out + j * 320, out + j * 320 + 160, blocks.of, offsetof(BlockQ5K, q) + j * 32);
  }
  // Bit s of byte 4 g + i goes to word s, bit g of its byte i.
  for (int r = 0; r < kRows; ++r) {
    uint64_t bits[4];
    std::memcpy(bits, blocks.of[r] + offsetof(BlockQ5K, high), 32);
    for (int j = 0; j < 2; ++j) swap_bits(bits[j], bits[j + 2], 0x0F0F0F0F0F0F0F0F, 4);
    for (int j = 0; j < 4; j += 2) swap_bits(bits[j], bits[j + 1], 0x3333333333333333, 2);
    for (uint64_t& word : bits) word = swap_bits(word, 0x00000000AAAAAAAA, 31);
    for (int s = 0; s < 8; ++s) {
      const auto word = static_cast<uint32_t>(bits[s / 2] >> s % 2 * 32);
      std::memcpy(out + s * 160 + 128 + r * 4, &word, 4);
    }
  }
}

void pack(uint8_t* out, const BlocksOfRows<BlockQ6K>& blocks) {
  put_f16(out, blocks.of, offsetof(BlockQ6K, d));
  Bytes scales[kRows];
  for (int r = 0; r < kRows; ++r) scales[r] = load(blocks.of[r] + offsetof(BlockQ6K, scales));
  put_columns<uint8_t>(out + 16, scales);
  out += 144;
  for (size_t half = 0; half < 2; ++half, out += 4 * 192) {
    for (size_t i = 0; i < 2; ++i) {
      put_nibbles(out + i * 192, out + (i + 2) * 192, blocks.of, offsetof(BlockQ6K, low) + half * 64 + i * 32);
    }
    // Bits 2 s of byte 16 u + 4 g + i go to word s, bits 2 g of its byte i.
    for (int r = 0; r < kRows; ++r) {
      for (size_t u = 0; u < 2; ++u) {
        uint64_t bits[2];
        std::memcpy(bits, blocks.of[r] + offsetof(BlockQ6K, high) + half * 32 + u * 16, 16);
        swap_bits(bits[0], bits[1], 0x0F0F0F0F0F0F0F0F, 4);
        for (uint64_t& word : bits) word = swap_bits(word, 0x00000000CCCCCCCC, 30);
        for (size_t s = 0; s < 4; ++s) {
          const auto word = static_cast<uint32_t>(bits[s / 2] >> s % 2 * 32);
          std::memcpy(out + s * 192 + 128 + u * 32 + r * 4, &word, 4);
        }
      }
    }
  }
}

template <class Block>
void pack_blocks(uint8_t* out, const void* const* rows, int64_t n_rows, int64_t n_blocks) {
  static constexpr uint8_t kNone[sizeof(Block)] = {};
  BlocksOfRows<Block> blocks;
  for (int64_t b = 0; b < n_blocks; ++b, out += kRows * sizeof(Block)) {
    for (int64_t r = 0; r < kRows; ++r) {
      blocks.of[r] = r < n_rows ? static_cast<const uint8_t*>(rows[r]) + b * int64_t{sizeof(Block)} : kNone;
    }
    pack(out, blocks);
  }
}

// [8 rows, cols] of elements of T into [cols, 8].
template <class T>
void interleave(uint8_t* out, const void* const* rows, int64_t n_rows, int64_t cols) {
  constexpr int64_t kStep = 16 / sizeof(T);
  for (int64_t k = 0; k < cols; k += kStep, out += sizeof(Bytes) * kRows) {
    Bytes part[kRows] = {};
    const auto at = [&](int64_t r) { return static_cast<const uint8_t*>(rows[r]) + k * int64_t{sizeof(T)}; };
    if (k + kStep <= cols) {
      for (int64_t r = 0; r < kRows; ++r) part[r] = r < n_rows ? load(at(r)) : Bytes{};
      put_columns<T>(out, part);
    } else {
      const auto n = static_cast<size_t>(cols - k);
      for (int64_t r = 0; r < n_rows; ++r) std::memcpy(&part[r], at(r), n * sizeof(T));
      uint8_t columns[sizeof part];
      put_columns<T>(columns, part);
      std::memcpy(out, columns, n * kRows * sizeof(T));
    }
  }
}

}  // namespace

void pack_panel(void* panel, const void* const* rows, int64_t n_rows, Format format, int64_t cols,
                const float* scales) {
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

}  // namespace fathom
