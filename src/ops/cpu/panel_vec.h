// Vectors of 32 bytes for products with panels: 8 rows, 4 columns each (bytes) or 8 rows (floats, integers).
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef FATHOM_ISA_NAMESPACE
#error "kernel files are compiled per instruction set, see src/ops/CMakeLists.txt"
#endif

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
static inline Ints splat_int(int32_t x) { return x - Ints{}; }
static inline Floats splat_float(float x) { return x - Floats{}; }
static inline float read_float(const void* p) { return load_as<float>(p); }
// The same 4 bytes for every row.
static inline Ints splat_4_bytes(const void* p) { return splat_int(load_as<int32_t>(p)); }

#if defined(__AVX2__)
// sum[i] + u[2 i] s[2 i] + u[2 i + 1] s[2 i + 1], unsigned times signed; the caller sees to it that nothing overflows.
static inline Shorts add_products(Shorts sum, Bytes u, Ints s) {
  const auto product = _mm256_maddubs_epi16(reinterpret_cast<__m256i>(u), reinterpret_cast<__m256i>(s));
  return sum + reinterpret_cast<Shorts>(product);
}
// a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]
static inline Ints dot_pairs(Shorts a, Shorts b) {
  return reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
// sum over 4 columns of w s, both signed; w may be -128, s not
static inline Ints dot_signed(SignedBytes w, Ints s) {
  const auto bytes = reinterpret_cast<__m256i>(w);
  const auto products =
      _mm256_maddubs_epi16(_mm256_abs_epi8(bytes), _mm256_sign_epi8(reinterpret_cast<__m256i>(s), bytes));
  return reinterpret_cast<Ints>(_mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}
static inline Floats from_f16(const void* p) {
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
static inline float from_f16_one(const void* p) { return _cvtsh_ss(load_as<uint16_t>(p)); }
// 8 numbers of FP8 e4m3 / 256: with an exponent that is 8 less they are f16 numbers, subnormal ones too.
static inline Floats from_f8_over_256(const void* p) {
  const __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(p))), 7);
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_and_si128(wide, _mm_set1_epi16(static_cast<int16_t>(0xBF80)))));
}
static inline Floats from_i8(const void* p) {
  const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  return reinterpret_cast<Floats>(_mm256_cvtepi32_ps(wide));
}
// 8 bytes, one a row, in both i16 of the row: without sign, and with.
static inline Shorts in_both(uint64_t bytes) {
  const __m256i places =
      _mm256_setr_epi64x(0x8001800180008000, 0x8003800380028002, 0x8005800580048004, 0x8007800780068006);
  return reinterpret_cast<Shorts>(_mm256_shuffle_epi8(_mm256_set1_epi64x(static_cast<int64_t>(bytes)), places));
}
static inline Shorts in_both_signed(uint64_t bytes) {
  return reinterpret_cast<Shorts>(
      _mm256_srai_epi16(_mm256_slli_epi16(reinterpret_cast<__m256i>(in_both(bytes)), 8), 8));
}
#else
static inline Shorts add_products(Shorts sum, Bytes u, Ints s) {
  const auto bytes = reinterpret_cast<SignedBytes>(s);
  for (int i = 0; i < 16; ++i) sum[i] += u[2 * i] * bytes[2 * i] + u[2 * i + 1] * bytes[2 * i + 1];
  return sum;
}
static inline Ints dot_pairs(Shorts a, Shorts b) {
  Ints out;
  for (int i = 0; i < 8; ++i) out[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
  return out;
}
static inline Ints dot_signed(SignedBytes w, Ints s) {
  const auto bytes = reinterpret_cast<SignedBytes>(s);
  Ints out = {};
  for (int i = 0; i < 32; ++i) out[i / 4] += w[i] * bytes[i];
  return out;
}
static inline Floats from_f16(const void* p) {
  typedef uint16_t Codes __attribute__((vector_size(16)));
  const Ints codes = __builtin_convertvector(load_as<Codes>(p), Ints);
  const Floats magnitude = reinterpret_cast<Floats>((codes & 0x7FFF) << 13) * splat_float(0x1p112f);
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(magnitude) | (codes & 0x8000) << 16);
}
static inline float from_f16_one(const void* p) {
  uint16_t codes[8] = {load_as<uint16_t>(p)};
  return from_f16(codes)[0];
}
static inline Floats from_f8_over_256(const void* p) {
  typedef uint8_t Codes __attribute__((vector_size(8)));
  const Ints codes = __builtin_convertvector(load_as<Codes>(p), Ints);
  return reinterpret_cast<Floats>((codes & 0x7F) << 20 | (codes & 0x80) << 24) * splat_float(0x1p112f);
}
static inline Floats from_i8(const void* p) {
  typedef int8_t Codes __attribute__((vector_size(8)));
  return __builtin_convertvector(__builtin_convertvector(load_as<Codes>(p), Ints), Floats);
}
static inline Shorts in_both(uint64_t bytes) {
  Ints wide;
  for (int r = 0; r < 8; ++r) wide[r] = static_cast<int32_t>(bytes >> 8 * r & 0xFF);
  return reinterpret_cast<Shorts>(wide | wide << 16);
}
static inline Shorts in_both_signed(uint64_t bytes) { return in_both(bytes) << 8 >> 8; }
#endif

// Sums of the two i16 of each row.
static inline Ints sum_pairs(Shorts a) {
  Shorts ones = 1 - Shorts{};
#if defined(__AVX2__)
  asm volatile("" : "+x"(ones));  // made where it is needed: kept over a loop it would cost a sum its register
#endif
  return dot_pairs(a, ones);
}
static inline Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
