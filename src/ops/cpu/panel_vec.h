// Vectors of 32 bytes for products with panels: 8 rows, 4 columns each (bytes) or 8 rows (floats, integers).
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef FATHOM_ISA_NAMESPACE
#error "kernel files are compiled per instruction set, see cmake/options.cmake"
#endif

// Products of codes w and activations s of 4 columns and 8 rows are added in partial sums: two of i16 a row, or, where
// the CPU adds four products at once, one of i32, which holds whatever comes. Multipliers of partial sums lie as these.
// For every set stand here (for NEON with dot products in panel_vec_neon.h)
//   add_products(sum, w, s)        codes without sign; in i16 the caller sees to it that nothing overflows
//   partial_from(x)                the sum to begin with, from an i32 that is an i16 and zero
//   total(sum), scaled(sum, scale) a row's sum, and that times the row's scale
//   spread(bytes), spread_signed   eight bytes, a scale for each row
//   stored_signed(w)               codes with sign, from -128 up, as add_signed wants them
//   signed_from(x)                 what sums of those begin with; x: minus 8 times the sum of s, an i16 and zero
//   add_signed(sum, w, s)          s from -127 up
//   split_signs, add_split         the same for weights prepared once for many activations, if kSignsApart

#if defined(__ARM_FEATURE_DOTPROD)
#include "ops/cpu/panel_vec_neon.h"
#else

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {

typedef uint8_t Bytes __attribute__((vector_size(32)));
typedef int8_t SignedBytes __attribute__((vector_size(32)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

template <class V>
static inline V load_as(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
static inline void store_as(void* p, V v) {
  memcpy(p, &v, sizeof v);
}
// The same bits.
template <class To, class From>
static inline To as(From v) {
  return reinterpret_cast<To>(v);
}
static inline Ints splat_int(int32_t x) { return x - Ints{}; }
static inline Floats splat_float(float x) { return x - Floats{}; }
static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }
// a b + c, as in vec.h.
static inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX2__)
  return as<Floats>(_mm256_fmadd_ps(as<__m256>(a), as<__m256>(b), as<__m256>(c)));
#elif defined(__aarch64__)
  for (int i = 0; i < 8; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

// a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]
static inline Ints dot_pairs(Shorts a, Shorts b) {
#if defined(__AVX2__)
  return as<Ints>(_mm256_madd_epi16(as<__m256i>(a), as<__m256i>(b)));
#else
  const auto c = as<Ints>(a), d = as<Ints>(b);
  return (c << 16 >> 16) * (d << 16 >> 16) + (c >> 16) * (d >> 16);
#endif
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool kWidePartial = true;
typedef Ints Partial;
static inline Partial partial_from(int32_t x) { return splat_int(x) << 16 >> 16; }
static inline Ints total(Partial sum) { return sum; }
static inline Ints scaled(Partial sum, Partial scale) { return sum * scale; }
static inline Partial spread(uint64_t bytes) {
  return as<Partial>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes))));
}
static inline Partial spread_signed(uint64_t bytes) {
  return as<Partial>(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes))));
}
#else
constexpr bool kWidePartial = false;
typedef Shorts Partial;
static inline Partial partial_from(int32_t x) { return as<Partial>(splat_int(x)); }
static inline Ints scaled(Partial sum, Partial scale) { return dot_pairs(sum, scale); }
#if defined(__AVX2__)
alignas(32) constexpr int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
static inline Ints total(Partial sum) {
  const int16_t* ones = kOnes;
  asm volatile("" : "+r"(ones));  // read where it is needed: kept over a loop it would cost a sum its register
  return dot_pairs(sum, load_as<Shorts>(ones));
}
static inline Partial spread(uint64_t bytes) {
  const __m256i places =
      _mm256_setr_epi64x(0x8001800180008000, 0x8003800380028002, 0x8005800580048004, 0x8007800780068006);
  return as<Partial>(_mm256_shuffle_epi8(_mm256_set1_epi64x(static_cast<int64_t>(bytes)), places));
}
static inline Partial spread_signed(uint64_t bytes) {
  return as<Partial>(_mm256_srai_epi16(_mm256_slli_epi16(as<__m256i>(spread(bytes)), 8), 8));
}
#else
static inline Ints total(Partial sum) {
  const auto both = as<Ints>(sum);
  return (both << 16 >> 16) + (both >> 16);
}
static inline Partial spread(uint64_t bytes) {
  Ints wide;
  for (int r = 0; r < 8; ++r) wide[r] = static_cast<int32_t>(bytes >> 8 * r & 0xFF);
  return as<Partial>(wide | wide << 16);
}
static inline Partial spread_signed(uint64_t bytes) { return spread(bytes) << 8 >> 8; }
#endif
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
static inline Partial add_products(Partial sum, Bytes w, Ints s) {
  const auto c = as<__m256i>(sum), a = as<__m256i>(w), b = as<__m256i>(s);
#if defined(__AVX512VNNI__)
  return as<Partial>(_mm256_dpbusd_epi32(c, a, b));
#else
  return as<Partial>(_mm256_dpbusd_avx_epi32(c, a, b));
#endif
}
// The instruction takes codes without sign: they are made larger by 128, which the sum has to begin without.
static inline Bytes stored_signed(Bytes w) { return w ^ 128; }
static inline Ints signed_from(int32_t x) { return splat_int(x) << 16 >> 12; }
static inline Ints add_signed(Ints sum, Bytes w, Ints s) { return add_products(sum, w, s); }
#else
static inline Bytes stored_signed(Bytes w) { return w; }
static inline Ints signed_from(int32_t) { return Ints{}; }
#if defined(__AVX2__)
static inline Partial add_products(Partial sum, Bytes w, Ints s) {
  const auto products = _mm256_maddubs_epi16(as<__m256i>(w), as<__m256i>(s));
  return sum + as<Partial>(products);
}
static inline Bytes magnitudes(Bytes w) { return as<Bytes>(_mm256_abs_epi8(as<__m256i>(w))); }
static inline Ints add_widened(Ints sum, Bytes magnitudes, Ints s) {
  const auto products = _mm256_maddubs_epi16(as<__m256i>(magnitudes), as<__m256i>(s));
  return sum + as<Ints>(_mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}
static inline Ints add_signed(Ints sum, Bytes w, Ints s) {
  return add_widened(sum, magnitudes(w), as<Ints>(_mm256_sign_epi8(as<__m256i>(s), as<__m256i>(w))));
}
#else
static inline Partial add_products(Partial sum, Bytes w, Ints s) {
  const auto bytes = as<SignedBytes>(s);
  for (int i = 0; i < 16; ++i) sum[i] += w[2 * i] * bytes[2 * i] + w[2 * i + 1] * bytes[2 * i + 1];
  return sum;
}
static inline Ints add_signed(Ints sum, Bytes w, Ints s) {
  const auto codes = as<SignedBytes>(w), bytes = as<SignedBytes>(s);
  for (int i = 0; i < 32; ++i) sum[i / 4] += codes[i] * bytes[i];
  return sum;
}
#endif
#endif

#if defined(__AVX2__)
static inline Floats from_bf16(const void* p) {
  return as<Floats>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))), 16));
}
static inline Floats from_f16(const void* p) {
  return as<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
static inline float from_f16_one(const void* p) { return _cvtsh_ss(load_as<uint16_t>(p)); }
// 8 numbers of FP8 e4m3 / 2^120: their bits where a float has the sign, the last of the exponent and the first of the
// mantissa. Subnormal numbers become subnormal ones.
static inline Floats from_f8_bits(const void* p) {
  const __m256i to_the_top =
      _mm256_setr_epi32(0x00808080, 0x01808080, 0x02808080, 0x03808080, 0x04808080, 0x05808080, 0x06808080, 0x07808080);
  const __m256i codes = _mm256_shuffle_epi8(_mm256_set1_epi64x(load_as<int64_t>(p)), to_the_top);
  return as<Floats>(as<Ints>(_mm256_srai_epi32(codes, 4)) & static_cast<int32_t>(0x87F00000));
}
static inline Floats from_i8(const void* p) {
  const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  return as<Floats>(_mm256_cvtepi32_ps(wide));
}
#else
static inline Floats from_bf16(const void* p) {
  typedef uint16_t Codes __attribute__((vector_size(16)));
  return as<Floats>(__builtin_convertvector(load_as<Codes>(p), Ints) << 16);
}
static inline Floats from_f16(const void* p) {
  typedef uint16_t Codes __attribute__((vector_size(16)));
  const Ints codes = __builtin_convertvector(load_as<Codes>(p), Ints);
  const Floats magnitude = as<Floats>((codes & 0x7FFF) << 13) * splat_float(0x1p112f);
  return as<Floats>(as<Ints>(magnitude) | (codes & 0x8000) << 16);
}
static inline float from_f16_one(const void* p) {
  uint16_t codes[8] = {load_as<uint16_t>(p)};
  return from_f16(codes)[0];
}
static inline Floats from_f8_bits(const void* p) {
  typedef uint8_t Codes __attribute__((vector_size(8)));
  const Ints codes = __builtin_convertvector(load_as<Codes>(p), Ints);
  return as<Floats>((codes & 0x7F) << 20 | (codes & 0x80) << 24);
}
static inline Floats from_i8(const void* p) {
  typedef int8_t Codes __attribute__((vector_size(8)));
  return __builtin_convertvector(__builtin_convertvector(load_as<Codes>(p), Ints), Floats);
}
#endif

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE

#endif

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
// With signs apart activations get them by an exclusive or, where add_signed's instruction takes a multiplier's place.
// -s is ~s + 1: all these ones, each times its weight, are a sum of the weights alone, with which add_split's begins.
constexpr bool kSignsApart = true;
static inline void split_signs(Bytes& w, Bytes& signs, Partial& ones) {
  signs = as<Bytes>(as<SignedBytes>(w) < 0);
  w = magnitudes(w);
  ones = add_products(ones, w, as<Ints>(signs & 1));
}
static inline Ints add_split(Ints sum, Bytes w, Bytes signs, Ints s) {
  return add_widened(sum, w, s ^ as<Ints>(signs));
}
#else
constexpr bool kSignsApart = false;
static inline void split_signs(Bytes&, Bytes&, Partial&) {}
static inline Ints add_split(Ints sum, Bytes w, Bytes, Ints s) { return add_signed(sum, w, s); }
#endif

static inline float read_float(const void* p) { return load_as<float>(p); }
// The same 4 bytes for every row.
static inline Ints splat_4_bytes(const void* p) { return splat_int(load_as<int32_t>(p)); }

// 32 integers from -127 to 127 as bytes, and the sums of the first and the last 16.
static inline void store_codes(int8_t* codes, int16_t* sums, const Ints* x) {
#if defined(__AVX2__)
  const auto wide = [&](int i) { return as<__m256i>(x[i]); };
  // Packing works in halves of vectors, so that groups of four come out in another order.
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(wide(0), wide(1)), _mm256_packs_epi32(wide(2), wide(3)));
  store_as(codes, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  const __m256i pairs = _mm256_hadd_epi32(_mm256_add_epi32(wide(0), wide(1)), _mm256_add_epi32(wide(2), wide(3)));
  const __m256i fours = _mm256_hadd_epi32(pairs, pairs);
  const __m128i both = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
  sums[0] = static_cast<int16_t>(_mm_extract_epi32(both, 0));
  sums[1] = static_cast<int16_t>(_mm_extract_epi32(both, 1));
#else
  for (int half = 0; half < 2; ++half) {
    int sum = 0;
    for (int i = half * 16; i < half * 16 + 16; ++i) {
      codes[i] = static_cast<int8_t>(x[i / 8][i % 8]);
      sum += codes[i];
    }
    sums[half] = static_cast<int16_t>(sum);
  }
#endif
}

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
