#include "ops/cpu/panel_kernels.h"
#include "ops/cpu/panel_rows.h"
#include "ops/cpu/panel_wide.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

#if defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
constexpr bool kWide = true;
#else
constexpr bool kWide = false;  // the loops that stand for vectors here gain nothing from tiles
#endif
constexpr int64_t kTokens = 128;  // at most, whose columns of a strip lie in the cache while panels go by
constexpr int64_t kSums = 4096 / kPanelsOfVector;  // vectors of them that do so too
constexpr bool kRoom = kPanelsOfVector == 2;       // 32 registers, as these have, hold the sums of 8 tokens
constexpr float kF8Range = 0x1p120f;               // what from_f8_bits() is too small by
constexpr int kAhead = 2048;                       // bytes of a panel fetched before they are used

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

Bytes low_halves(Bytes v) { return v & 15; }
Bytes high_halves(Bytes v) { return as<Bytes>(as<Shorts>(v) >> 4) & 15; }

// ---- Formats with blocks of 32

// Some blocks of a vector's panels, as bytes.
struct Blocks32 {
  static constexpr int64_t kCols = 256;
  WideBytes codes[kCols / 4];
  WideFloats d[kCols / 32];
  // Of signed codes, where kSignsApart; codes are magnitudes then.
  WideBytes signs[kCols / 4];
  WideInts ones[kCols / 32];
};

// One token's columns of a chunk, as tiles read them.
struct Packed32 {
  uint8_t codes[256];
  float scales[8];
  int32_t offsets[8];
};

template <int kN, int kV>
using Partials = WidePartial[kN][kV];

// sums += products of a tile at 4 columns. codes: of each vector of panels, x: of each token.
template <class Chunk, int kV, int kN, class Packed>
void add_group(Partials<kN, kV>& sums, const Chunk* chunk, const Packed* x, int64_t group) {
#pragma GCC unroll 8
  for (int t = 0; t < kN; ++t) {
    const auto a = splat_4<WideInts>(x[t].codes + group * 4);
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) sums[t][v] = add_products(sums[t][v], chunk[v].codes[group], a);
  }
}

void unpack_nibbles(Bytes* codes, const uint8_t* vectors) {
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const auto both = load_as<Bytes>(vectors + v * 32);
    codes[v] = low_halves(both);
    codes[v + 4] = high_halves(both);
  }
}

void add_fifth_bits(Bytes* codes, const uint8_t* vector) {
  const auto bits = load_as<Shorts>(vector);
  // Whole i16 are shifted: what comes from the neighbouring byte is masked away.
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) codes[g] |= as<Bytes>(bits << (4 - g)) & 16;
#pragma GCC unroll 4
  for (int g = 4; g < 8; ++g) codes[g] |= as<Bytes>(bits >> (g - 4)) & 16;
}

void prefetch(const uint8_t* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + kAhead + i);
}

// Of each format: how a block becomes bytes, its product with one token in registers (dot_one), and with a tile of kN
// tokens, whose sums the registers hold (dot).
struct Q4_0 {
  static Ints dot_one(const Bytes* codes, const uint8_t* x, int32_t offset) {
    auto sum = partial_from(offset);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) sum = add_products(sum, codes[g], splat_4_bytes(x + g * 4));
    return total(sum);
  }
  static constexpr bool kSigned = false;
  static constexpr int kT = kRoom ? 8 : 6;
  static constexpr int64_t kBlockBytes = 144;
  static void unpack(Bytes* codes, const uint8_t* in) { unpack_nibbles(codes, in); }
  // 15 * 127 * 32 in an i16 at most, and what is taken off to begin with is of the other sign or as small.
  template <int kV, int kN>
  static void dot(WideInts (&sums)[kN][kV], const Blocks32* chunk, const Packed32* x, int64_t block) {
    Partials<kN, kV> partial;
#pragma GCC unroll 8
    for (int t = 0; t < kN; ++t) {
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) partial[t][v] = wide_partial_from(x[t].offsets[block]);
    }
#pragma GCC unroll 1
    for (int g = 0; g < 8; ++g) add_group(partial, chunk, x, block * 8 + g);
#pragma GCC unroll 8
    for (int t = 0; t < kN; ++t) {
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) sums[t][v] = total(partial[t][v]);
    }
  }
};

struct Q5_0 {
  static Ints dot_one(const Bytes* codes, const uint8_t* x, int32_t offset) {
    Partial first = {}, second = {};
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      first = add_products(first, codes[g], splat_4_bytes(x + g * 4));
      second = add_products(second, codes[g + 4], splat_4_bytes(x + g * 4 + 16));
    }
    return (splat_int(offset) << 16 >> 15) + total(first) + total(second);
  }
  static constexpr bool kSigned = false;
  static constexpr int kT = kRoom ? 8 : 4;
  static constexpr int64_t kBlockBytes = 176;
  static void unpack(Bytes* codes, const uint8_t* in) {
    unpack_nibbles(codes, in);
    add_fifth_bits(codes, in + 128);
  }
  template <int kV, int kN>
  static void dot(WideInts (&sums)[kN][kV], const Blocks32* chunk, const Packed32* x, int64_t block) {
#pragma GCC unroll 8
    for (int t = 0; t < kN; ++t) {
      const WideInts minus_16_sums = wide_int(x[t].offsets[block]) << 16 >> 15;
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) sums[t][v] = minus_16_sums;
    }
#pragma GCC unroll 2
    for (int half = 0; half < 8; half += 4) {  // 31 * 127 * 8 is all that an i16 holds
      Partials<kN, kV> partial = {};
#pragma GCC unroll 1
      for (int g = half; g < half + 4; ++g) add_group(partial, chunk, x, block * 8 + g);
#pragma GCC unroll 8
      for (int t = 0; t < kN; ++t) {
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) sums[t][v] += total(partial[t][v]);
      }
    }
  }
};

struct Q8_0 {
  static Ints dot_one(const Bytes* codes, const uint8_t* x, int32_t offset) {
    Ints sum = signed_from(offset);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) sum = add_signed(sum, codes[g], splat_4_bytes(x + g * 4));
    return sum;
  }
  static constexpr bool kSigned = true;
  static constexpr int kT = kRoom ? 8 : 4;
  static constexpr int64_t kBlockBytes = 272;
  static void unpack(Bytes* codes, const uint8_t* in) {
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) codes[g] = stored_signed(load_as<Bytes>(in + g * 32));
  }
  template <int kV, int kN>
  static void dot(WideInts (&sums)[kN][kV], const Blocks32* chunk, const Packed32* x, int64_t block) {
#pragma GCC unroll 8
    for (int t = 0; t < kN; ++t) {
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) {
        sums[t][v] = kSignsApart ? chunk[v].ones[block] : wide_signed_from(x[t].offsets[block]);
      }
    }
#pragma GCC unroll 1
    for (int64_t g = block * 8; g < block * 8 + 8; ++g) {
#pragma GCC unroll 8
      for (int t = 0; t < kN; ++t) {
        const auto a = splat_4<WideInts>(x[t].codes + g * 4);
#pragma GCC unroll 2
        for (int v = 0; v < kV; ++v) sums[t][v] = add_split(sums[t][v], chunk[v].codes[g], chunk[v].signs[g], a);
      }
    }
  }
};

// Not part of its caller, whose constants would take registers from the sums.
template <class Format, int kV, int kN>
[[gnu::noinline]] void tile_32(const Blocks32* chunk, int64_t n_blocks, const Packed32* x,
                               WideFloats* __restrict totals) {
  for (int64_t b = 0; b < n_blocks; ++b) {
    WideInts sums[kN][kV];
    Format::dot(sums, chunk, x, b);
#pragma GCC unroll 8
    for (int t = 0; t < kN; ++t) {
      const WideFloats scale = wide_float(x[t].scales[b]);
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) {
        WideFloats& total = totals[t * kV + v];
        total = multiply_add(to_floats(sums[t][v]), chunk[v].d[b] * scale, total);
      }
    }
  }
}

// ---- Formats with blocks of 256

template <class PartialV, class ShortsV, class FloatsV>
struct HeaderOf {
  PartialV scales[16];   // of 32 columns (q6_k: 16)
  ShortsV offsets[8];    // mins (q6_k: scales) of two neighbours in the two i16 of a row
  FloatsV d, minus_min;  // what the offsets' sum is multiplied by
};
using Header256 = HeaderOf<Partial, Shorts, Floats>;

// Of a vector's panels.
struct Block256 {
  static constexpr int64_t kCols = 256;
  WideBytes codes[64];
  HeaderOf<WidePartial, WideShorts, WideFloats> header;
};

struct alignas(64) Packed256 {
  uint8_t codes[256];
  float scale;
  int16_t sums_32[8], sums_16[16];
};

Shorts in_pairs(Partial first, Partial second) {
  return as<Shorts>((as<Ints>(first) & 0xFFFF) | as<Ints>(second) << 16);
}

// The 6-bit scales and mins of q4_k and q5_k: eight bytes of a word at once.
void unpack_scales(Header256& header, const uint8_t* in) {
  constexpr uint64_t kLow = 0x0F0F0F0F0F0F0F0F, kTwo = 0x0303030303030303;
  Partial mins[8];
#pragma GCC unroll 8
  for (int s = 0; s < 8; ++s) {
    const auto low = load_as<uint64_t>(in + s * 8);
    const uint64_t high = load_as<uint64_t>(in + 64 + s / 2 * 8) >> s % 2 * 2;
    header.scales[s] = spread((low & kLow) | (high & kTwo) << 4);
    mins[s] = spread((low >> 4 & kLow) | (high >> 4 & kTwo) << 4);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) header.offsets[j] = in_pairs(mins[2 * j], mins[2 * j + 1]);
}

// sums += scale * partial
template <int kV, int kN>
void add_scaled(WideInts (&sums)[kN][kV], const Partials<kN, kV>& partial, const Block256* block, int scale) {
#pragma GCC unroll 8
  for (int t = 0; t < kN; ++t) {
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) sums[t][v] += scaled(partial[t][v], block[v].header.scales[scale]);
  }
}

// Of each format: what stands before the codes (scales), the codes of 32 columns (codes), how many groups of 4 columns
// have a scale of their own, and how many of these a partial sum has room for.
struct Q4K {
  static constexpr int kT = 6;
  static constexpr int64_t kBlockBytes = 1152, kHeaderBytes = 128, kSubBytes = 128;
  static constexpr int kScales = 8, kOffsets = 4, kGroupsOfScale = 8, kGroupsOfSum = 8;
  static void scales(Header256& header, const uint8_t* in) {
    header.d = from_f16(in);
    header.minus_min = -from_f16(in + 16);
    unpack_scales(header, in + 32);
  }
  static void codes(Bytes* out, const uint8_t* in) { unpack_nibbles(out, in); }
};

struct Q5K {
  static constexpr int kT = 6;
  static constexpr int64_t kBlockBytes = 1408, kHeaderBytes = 128, kSubBytes = 160;
  static constexpr int kScales = 8, kOffsets = 4, kGroupsOfScale = 8, kGroupsOfSum = kWidePartial ? 8 : 4;
  static void scales(Header256& header, const uint8_t* in) { Q4K::scales(header, in); }
  static void codes(Bytes* out, const uint8_t* in) {
    unpack_nibbles(out, in);
    add_fifth_bits(out, in + 128);
  }
};

struct Q6K {
  static constexpr int kT = kWidePartial ? 6 : 4;
  static constexpr int64_t kBlockBytes = 1680, kHeaderBytes = 144, kSubBytes = 192;
  static constexpr int kScales = 16, kOffsets = 8, kGroupsOfScale = 4, kGroupsOfSum = kWidePartial ? 4 : 2;
  static void scales(Header256& header, const uint8_t* in) {
    header.d = from_f16(in);
    header.minus_min = header.d * splat_float(-32);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) header.scales[j] = spread_signed(load_as<uint64_t>(in + 16 + j * 8));
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) header.offsets[j] = in_pairs(header.scales[2 * j], header.scales[2 * j + 1]);
  }
  static void codes(Bytes* out, const uint8_t* in) {
    unpack_nibbles(out, in);
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      const auto bits = load_as<Shorts>(in + 128 + u * 32);
      out[u * 4] |= as<Bytes>(bits << 4) & 48;
      out[u * 4 + 1] |= as<Bytes>(bits << 2) & 48;
      out[u * 4 + 2] |= as<Bytes>(bits) & 48;
      out[u * 4 + 3] |= as<Bytes>(bits >> 2) & 48;
    }
  }
};

// What the mins (q6_k: the 32 that codes are too large by) take off, before its factor.
template <class Format, class IntsV, class PartialV, class ShortsV, class FloatsV>
IntsV sum_offsets(const HeaderOf<PartialV, ShortsV, FloatsV>& header, const void* sums_of_codes) {
  const auto* sums = static_cast<const uint8_t*>(sums_of_codes);  // i16
  IntsV offset = {};
#pragma GCC unroll 8
  for (int j = 0; j < Format::kOffsets; ++j) {
    offset += dot_pairs(header.offsets[j], as<ShortsV>(splat_4<IntsV>(sums + 4 * j)));
  }
  return offset;
}

template <class Format, int kV, int kN>
void tile_256(const Block256* block, const Packed256* x, WideFloats* totals) {
  WideInts sums[kN][kV] = {};
  for (int group = 0; group < 64; group += Format::kGroupsOfSum) {
    Partials<kN, kV> partial = {};
#pragma GCC unroll 1
    for (int g = group; g < group + Format::kGroupsOfSum; ++g) add_group(partial, block, x, g);
    add_scaled(sums, partial, block, group / Format::kGroupsOfScale);
  }
#pragma GCC unroll 8
  for (int t = 0; t < kN; ++t) {
    const int16_t* of_codes = Format::kOffsets == 4 ? x[t].sums_32 : x[t].sums_16;
    const WideFloats scale = wide_float(x[t].scale);
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) {
      WideFloats& total = totals[t * kV + v];
      const auto& header = block[v].header;
      total = multiply_add(to_floats(sums[t][v]), header.d * scale, total);
      const auto offsets = sum_offsets<Format, WideInts>(header, of_codes);
      total = multiply_add(to_floats(offsets), header.minus_min * scale, total);
    }
  }
}

// ---- Float formats

struct FloatColumns {
  static constexpr int64_t kCols = 128;
  WideFloats w[kCols];
  WideFloats scale;
};

struct PackedFloats {
  float x[FloatColumns::kCols];
};

template <class Element>
Floats widen(const uint8_t* in);
struct F32 {};
struct Bf16 {};
struct F16 {};
struct F8 {};
template <>
Floats widen<F32>(const uint8_t* in) {
  return load_as<Floats>(in);
}
template <>
Floats widen<Bf16>(const uint8_t* in) {
  return from_bf16(in);
}
template <>
Floats widen<F16>(const uint8_t* in) {
  return from_f16(in);
}
template <>
Floats widen<F8>(const uint8_t* in) {
  return from_f8_bits(in);
}
template <class Element>
constexpr int64_t kElementBytes = 2;
template <>
constexpr int64_t kElementBytes<F32> = 4;
template <>
constexpr int64_t kElementBytes<F8> = 1;

template <int kV, int kN>
void tile_floats(const FloatColumns* chunk, int64_t n_cols, const PackedFloats* x, WideFloats* totals) {
  WideFloats sums[kN][kV] = {};
  for (int64_t k = 0; k < n_cols; ++k) {
#pragma GCC unroll 8
    for (int t = 0; t < kN; ++t) {
      const WideFloats a = wide_float(x[t].x[k]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sums[t][v] = multiply_add(a, chunk[v].w[k], sums[t][v]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kN; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) totals[t * kV + v] = multiply_add(sums[t][v], chunk[v].scale, totals[t * kV + v]);
  }
}

// ---- What all formats share

// A chunk of columns of some panels, made ready once, meets all tokens, kT of them at a time. Few tokens (kFew at most)
// meet it block by block in registers: y is [kPanelsOfFew<kN>, kN].
constexpr int kFew = 4;
template <class Format>
struct Of32 {
  using Chunk = Blocks32;
  using Packed = Packed32;
  static constexpr int kT = Format::kT;
  static constexpr int kVectors = 2;
  static constexpr int64_t kChunksOfStrip = 4;
  template <int kN>
  static constexpr int kPanelsOfFew = 1;
  static void pack(Packed& out, const PanelProduct& c, const uint8_t* row, int64_t col, int64_t n_cols) {
    const uint8_t* scales = row + c.cols + col / 32 * 4;
    const auto copy = [&](size_t n) __attribute__((always_inline)) {
      memcpy(out.codes, row + col, n);
      memcpy(out.scales, scales, n / 8);
      memcpy(out.offsets, scales + c.cols / 32 * 4, n / 8);
    };
    if (n_cols == Chunk::kCols) {
      copy(Chunk::kCols);  // a length that the compiler knows
    } else {
      copy(static_cast<size_t>(n_cols));
    }
  }
  static void unpack(Chunk& chunk, int p, const PanelProduct&, const uint8_t* panel, int64_t col, int64_t n_cols) {
    panel += col / 32 * Format::kBlockBytes;
    for (int64_t b = 0; b < n_cols / 32; ++b, panel += Format::kBlockBytes) {
      prefetch(panel, Format::kBlockBytes);
      put(chunk.d[b], p, from_f16(panel));
      Bytes codes[8];
      Format::unpack(codes, panel + 16);
      Partial ones = {};
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) {
        if constexpr (kSignsApart && Format::kSigned) {
          Bytes signs;
          split_signs(codes[g], signs, ones);
          put(chunk.signs[b * 8 + g], p, signs);
        }
        put(chunk.codes[b * 8 + g], p, codes[g]);
      }
      if constexpr (kSignsApart && Format::kSigned) put(chunk.ones[b], p, total(ones));
    }
  }
  template <int kV, int kN>
  static void tile(const Chunk* chunk, int64_t n_cols, const Packed* x, WideFloats* totals) {
    tile_32<Format, kV, kN>(chunk, n_cols / 32, x, totals);
  }
  template <int kN>
  static void few(const PanelProduct& c, const uint8_t* panel, Floats* y) {
    const int64_t scales_at = c.cols, offsets_at = c.cols + c.cols / 32 * 4;
    const uint8_t* x[kN];
    for (int t = 0; t < kN; ++t) x[t] = c.x + t * c.x_stride;
    Floats totals[kN] = {};
    for (int64_t b = 0; b < c.cols / 32; ++b, panel += Format::kBlockBytes) {
      prefetch(panel, Format::kBlockBytes);
      Bytes codes[8];
      Format::unpack(codes, panel + 16);
      const Floats d = from_f16(panel);
#pragma GCC unroll 4
      for (int t = 0; t < kN; ++t) {
        const Ints sum = Format::dot_one(codes, x[t] + b * 32, load_as<int32_t>(x[t] + offsets_at + b * 4));
        totals[t] = multiply_add(to_floats(sum), d * splat_float(read_float(x[t] + scales_at + b * 4)), totals[t]);
      }
    }
    memcpy(y, totals, sizeof totals);
  }
};

template <class Format>
struct Of256 {
  using Chunk = Block256;
  using Packed = Packed256;
  static constexpr int kT = Format::kT;
  static constexpr int kVectors = 2;
  static constexpr int64_t kChunksOfStrip = 4;
  template <int kN>
  static constexpr int kPanelsOfFew = 1;
  static void pack(Packed& out, const PanelProduct& c, const uint8_t* row, int64_t col, int64_t) {
    const uint8_t* sums_32 = row + c.cols + c.cols / 256 * 4;
    memcpy(out.codes, row + col, sizeof out.codes);
    out.scale = read_float(row + c.cols + col / 256 * 4);
    memcpy(out.sums_32, sums_32 + col / 32 * 2, sizeof out.sums_32);
    memcpy(out.sums_16, sums_32 + c.cols / 32 * 2 + col / 16 * 2, sizeof out.sums_16);
  }
  static void unpack(Chunk& chunk, int p, const PanelProduct&, const uint8_t* panel, int64_t col, int64_t) {
    panel += col / 256 * Format::kBlockBytes;
    prefetch(panel, Format::kBlockBytes);
    Header256 header;
    Format::scales(header, panel);
#pragma GCC unroll 16
    for (int s = 0; s < Format::kScales; ++s) put(chunk.header.scales[s], p, header.scales[s]);
#pragma GCC unroll 8
    for (int j = 0; j < Format::kOffsets; ++j) put(chunk.header.offsets[j], p, header.offsets[j]);
    put(chunk.header.d, p, header.d);
    put(chunk.header.minus_min, p, header.minus_min);
    panel += Format::kHeaderBytes;
    for (int s = 0; s < 8; ++s, panel += Format::kSubBytes) {
      Bytes codes[8];
      Format::codes(codes, panel);
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) put(chunk.codes[s * 8 + g], p, codes[g]);
    }
  }
  template <int kV, int kN>
  static void tile(const Chunk* chunk, int64_t, const Packed* x, WideFloats* totals) {
    tile_256<Format, kV, kN>(chunk, x, totals);
  }
  template <int kN>
  static void few(const PanelProduct& c, const uint8_t* panel, Floats* y) {
    const int64_t scales_at = c.cols;
    const int64_t sums_at = scales_at + c.cols / 256 * 4 + (Format::kOffsets == 4 ? 0 : c.cols / 32 * 2);
    const uint8_t* x[kN];
    for (int t = 0; t < kN; ++t) x[t] = c.x + t * c.x_stride;
    Floats totals[kN] = {};
    for (int64_t col = 0; col < c.cols; col += 256, panel += Format::kBlockBytes) {
      prefetch(panel, Format::kBlockBytes);
      Header256 header;
      Format::scales(header, panel);
      Ints sums[kN] = {};
      const uint8_t* sub = panel + Format::kHeaderBytes;
#pragma GCC unroll 1
      for (int s = 0; s < 8; ++s, sub += Format::kSubBytes) {
        Bytes codes[8];
        Format::codes(codes, sub);
#pragma GCC unroll 4
        for (int group = 0; group < 8; group += Format::kGroupsOfSum) {
#pragma GCC unroll 4
          for (int t = 0; t < kN; ++t) {
            Partial partial = {};
#pragma GCC unroll 8
            for (int g = group; g < group + Format::kGroupsOfSum; ++g) {
              partial = add_products(partial, codes[g], splat_4_bytes(x[t] + col + (s * 8 + g) * 4));
            }
            sums[t] += scaled(partial, header.scales[(s * 8 + group) / Format::kGroupsOfScale]);
          }
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < kN; ++t) {
        const Floats scale = splat_float(read_float(x[t] + scales_at + col / 256 * 4));
        const uint8_t* of_codes = x[t] + sums_at + col / 256 * (Format::kOffsets * 4);
        totals[t] = multiply_add(to_floats(sums[t]), header.d * scale, totals[t]);
        const auto offsets = sum_offsets<Format, Ints>(header, of_codes);
        totals[t] = multiply_add(to_floats(offsets), header.minus_min * scale, totals[t]);
      }
    }
    memcpy(y, totals, sizeof totals);
  }
};

template <class Element>
struct OfFloats {
  using Chunk = FloatColumns;
  using Packed = PackedFloats;
  static constexpr int kT = 6;
  static constexpr int kVectors = 2;
  static constexpr int64_t kChunksOfStrip = 2;
  // One token has no more sums than panels: four of them keep the adders busy.
  template <int kN>
  static constexpr int kPanelsOfFew = kFew / kN;
  static constexpr bool kScaled = kElementBytes<Element> == 1;
  static float scale(const uint8_t* panel, int64_t col) {
    return kScaled ? kF8Range / kF8Lift * read_float(panel + col / Chunk::kCols * 4) : 1;
  }
  static void pack(Packed& out, const PanelProduct&, const uint8_t* row, int64_t col, int64_t n_cols) {
    if (n_cols == Chunk::kCols) {
      memcpy(out.x, row + col * 4, sizeof out.x);
    } else {
      memcpy(out.x, row + col * 4, static_cast<size_t>(n_cols) * 4);
    }
  }
  static void unpack(Chunk& chunk, int p, const PanelProduct& c, const uint8_t* panel, int64_t col, int64_t n_cols) {
    put(chunk.scale, p, splat_float(scale(panel, col)));
    if (kScaled) panel += (c.cols + Chunk::kCols - 1) / Chunk::kCols * 4;
    constexpr int64_t kBytes = 8 * kElementBytes<Element>;
    for (int64_t k = 0; k < n_cols; ++k) put(chunk.w[k], p, widen<Element>(panel + (col + k) * kBytes));
  }
  template <int kV, int kN>
  static void tile(const Chunk* chunk, int64_t n_cols, const Packed* x, WideFloats* totals) {
    tile_floats<kV, kN>(chunk, n_cols, x, totals);
  }
  template <int kP, int kN>
  static void add_column(Floats (&sums)[kP][kN], const uint8_t* w, int64_t panel_stride, const float* const (&x)[kN],
                         int64_t col) {
#pragma GCC unroll 4
    for (int p = 0; p < kP; ++p) {
      const Floats numbers = widen<Element>(w + p * panel_stride);
#pragma GCC unroll 4
      for (int t = 0; t < kN; ++t) sums[p][t] = multiply_add(splat_float(x[t][col]), numbers, sums[p][t]);
    }
  }
  template <int kN>
  static void few(const PanelProduct& c, const uint8_t* panel, Floats* y) {
    constexpr int64_t kBytes = 8 * kElementBytes<Element>;
    constexpr int64_t kStep = 64 / kBytes > 1 ? 64 / kBytes : 1;
    constexpr int kP = kPanelsOfFew<kN>;
    const float* x[kN];
    for (int t = 0; t < kN; ++t) x[t] = reinterpret_cast<const float*>(c.x + t * c.x_stride);
    const int64_t scale_bytes = kScaled ? (c.cols + Chunk::kCols - 1) / Chunk::kCols * 4 : 0;
    Floats totals[kP][kN] = {};
    for (int64_t col = 0; col < c.cols; col += Chunk::kCols) {
      Floats sums[kP][kN] = {};
      const uint8_t* w = panel + scale_bytes + col * kBytes;
      const int64_t n_cols = smaller(Chunk::kCols, c.cols - col);
      int64_t k = 0;
      for (; k + kStep <= n_cols; k += kStep, w += kStep * kBytes) {
        // Behind these panels' ends come the next step's.
        const bool last = w + kAhead >= panel + c.panel_stride;
        const uint8_t* ahead = w + kAhead + (last ? (kP - 1) * c.panel_stride : 0);
        for (int p = 0; p < kP; ++p) __builtin_prefetch(ahead + p * c.panel_stride);
#pragma GCC unroll 8
        for (int64_t i = 0; i < kStep; ++i) add_column<kP, kN>(sums, w + i * kBytes, c.panel_stride, x, col + k + i);
      }
      for (; k < n_cols; ++k, w += kBytes) add_column<kP, kN>(sums, w, c.panel_stride, x, col + k);
#pragma GCC unroll 4
      for (int p = 0; p < kP; ++p) {
        const Floats factor = splat_float(scale(panel + p * c.panel_stride, col));
#pragma GCC unroll 4
        for (int t = 0; t < kN; ++t) totals[p][t] = multiply_add(sums[p][t], factor, totals[p][t]);
      }
    }
    memcpy(y, totals, sizeof totals);
  }
};

template <class Kind, int kV, int kN>
void tiles(const typename Kind::Chunk* chunk, int64_t n_cols, const typename Kind::Packed* x, int64_t n,
           WideFloats* totals) {
  for (; n >= kN; n -= kN, x += kN, totals += kN * kV) Kind::template tile<kV, kN>(chunk, n_cols, x, totals);
  if constexpr (kN > 1) {
    if (n > 0) tiles<Kind, kV, (kN > 4 ? 4 : kN / 2)>(chunk, n_cols, x, n, totals);
  }
}

// Panels begin .. end, whose sums with n tokens are at most kSums, n at most kTokens. Strip by strip the tokens'
// columns go to where tiles read them one behind the other, and meet all panels there: rows of many columns do not fit
// in the cache, and those a multiple of 4 KiB apart (16384 columns) fall on the same few lines of it.
template <class Kind, int kV, int kN>
void multiply_group(const PanelProduct& c, int64_t begin, int64_t end, int64_t first, int64_t n) {
  using Chunk = typename Kind::Chunk;
  constexpr int kP = kV * kPanelsOfVector;
  WideFloats totals[kSums];
  const int64_t n_vectors = (end - begin + kPanelsOfVector - 1) / kPanelsOfVector;
  memset(totals, 0, static_cast<size_t>(n_vectors * n) * sizeof(WideFloats));
  typename Kind::Packed x[Kind::kChunksOfStrip * kTokens];
  const int64_t strip_cols = Kind::kChunksOfStrip * kTokens / n * Chunk::kCols;
  for (int64_t strip = 0; strip < c.cols; strip += strip_cols) {
    const int64_t strip_end = smaller(strip + strip_cols, c.cols);
    auto* packed = x;
    for (int64_t col = strip; col < strip_end; col += Chunk::kCols) {
      const int64_t n_cols = smaller(Chunk::kCols, c.cols - col);
      for (int64_t t = 0; t < n; ++t) Kind::pack(*packed++, c, c.x + (first + t) * c.x_stride, col, n_cols);
    }
    for (int64_t panel = begin; panel < end; panel += kP) {
      packed = x;
      for (int64_t col = strip; col < strip_end; col += Chunk::kCols, packed += n) {
        const int64_t n_cols = smaller(Chunk::kCols, c.cols - col);
        Chunk chunk[kV];
        const int n_of_vector = static_cast<int>(smaller(kP, end - panel));
        if (n_of_vector < kP) memset(chunk, 0, sizeof chunk);  // the last panel, alone in its vector
        for (int p = 0; p < n_of_vector; ++p) {
          const uint8_t* from = c.panels + (panel + p) * c.panel_stride;
          Kind::unpack(chunk[p / kPanelsOfVector], p % kPanelsOfVector, c, from, col, n_cols);
        }
        tiles<Kind, kV, kN>(chunk, n_cols, packed, n, totals + (panel - begin) / kPanelsOfVector * n);
      }
    }
  }
  for (int64_t panel = begin; panel < end; panel += kP) {
    const int64_t row = panel * 8, rows = smaller(kP * 8, c.n_rows - row);
    for (int64_t t = 0; t < n; ++t) {
      memcpy(c.y + (first + t) * c.y_stride + row, totals + (panel - begin) / kPanelsOfVector * n + t * kV,
             static_cast<size_t>(rows) * sizeof(float));
    }
  }
}

template <class Kind, int kV, int kN>
void multiply_panels(const PanelProduct& c, int64_t begin, int64_t end) {
  constexpr int kP = kV * kPanelsOfVector;
  const int64_t group = kSums * kPanelsOfVector / smaller(kTokens, c.n_tokens) / kP * kP;
  for (int64_t panel = begin; panel < end; panel += group) {
    for (int64_t first = 0; first < c.n_tokens; first += kTokens) {
      multiply_group<Kind, kV, kN>(c, panel, smaller(panel + group, end), first, smaller(kTokens, c.n_tokens - first));
    }
  }
}

// Panels 0 .. of kN tokens, as far as they make whole steps; returns how many.
template <class Kind, int kN>
int64_t multiply_few(const PanelProduct& c, int64_t n_panels) {
  if constexpr (kN > 1) {
    if (c.n_tokens < kN) return multiply_few<Kind, kN - 1>(c, n_panels);
  }
  constexpr int kP = Kind::template kPanelsOfFew<kN>;
  int64_t panel = 0;
  for (; panel + kP <= n_panels; panel += kP) {
    Floats y[kP][kN];
    Kind::template few<kN>(c, c.panels + panel * c.panel_stride, y[0]);
    for (int64_t first = panel * 8, p = 0; p < kP; ++p, first += 8) {
      const auto bytes = static_cast<size_t>(smaller(8, c.n_rows - first)) * sizeof(float);
      for (int t = 0; t < kN; ++t) memcpy(c.y + t * c.y_stride + first, &y[p][t], bytes);
    }
  }
  return panel;
}

// In how many parts of kFew more tokens are multiplied in registers: to make a chunk ready pays for more of them.
template <class Kind>
constexpr int kFewParts = kWidePartial ? 1 : 2;
template <>
constexpr int kFewParts<Of32<Q8_0>> = kWidePartial ? 1 : 3;
template <class Format>
constexpr int kFewParts<Of256<Format>> = 1;
template <class Element>
constexpr int kFewParts<OfFloats<Element>> = 2;

// Panels 0 .. , kFew tokens at a time, as far as they make whole steps; returns how many.
template <class Kind>
int64_t multiply_in_parts(const PanelProduct& c, int64_t n_panels) {
  constexpr int64_t kStep = Kind::template kPanelsOfFew<1>;  // the others' whole steps too
  int64_t panel = 0;
  for (; panel + kStep <= n_panels; panel += kStep) {
    for (int64_t first = 0; first < c.n_tokens; first += kFew) {
      const PanelProduct part = {smaller(kFew, c.n_tokens - first),
                                 c.cols,
                                 c.x + first * c.x_stride,
                                 c.x_stride,
                                 c.panels + panel * c.panel_stride,
                                 c.panel_stride,
                                 smaller(kStep * 8, c.n_rows - panel * 8),
                                 c.y + first * c.y_stride + panel * 8,
                                 c.y_stride};
      multiply_few<Kind, kFew>(part, kStep);
    }
  }
  return panel;
}

template <class Kind>
void multiply(const PanelProduct& c) {
  const int64_t n_panels = (c.n_rows + 7) / 8;
  int64_t panel = 0;
  if (c.n_tokens <= (kWide ? kFew : 1)) {
    panel = multiply_few < Kind, kWide ? kFew : 1 > (c, n_panels);
  } else if (kWide && c.n_tokens <= kFewParts<Kind> * kFew) {
    panel = multiply_in_parts<Kind>(c, n_panels);
  } else if (kWide) {
    constexpr int64_t kStep = Kind::kVectors * kPanelsOfVector;
    panel = n_panels / kStep * kStep;
    multiply_panels<Kind, Kind::kVectors, Kind::kT>(c, 0, panel);
  }
  multiply_panels<Kind, 1, 1>(c, panel, n_panels);
}

}  // namespace

const PanelKernels panel_kernels = {
    quantize_32,
    quantize_256,
    lift_f8,
    multiply<Of32<Q8_0>>,
    multiply<Of32<Q4_0>>,
    multiply<Of32<Q5_0>>,
    multiply<Of256<Q4K>>,
    multiply<Of256<Q5K>>,
    multiply<Of256<Q6K>>,
    multiply<OfFloats<F32>>,
    multiply<OfFloats<Bf16>>,
    multiply<OfFloats<F16>>,
    multiply<OfFloats<F8>>,
};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
