// Vectors of floats for kernel files (see isa.h): compiler vector extensions, so that one text serves every width.
// Everything is static, in the namespace of its instruction set.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef FATHOM_ISA_NAMESPACE
#error "kernel files are compiled per instruction set, see cmake/options.cmake"
#endif

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kWidth = 16;  // floats in a vector
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t IntVec __attribute__((vector_size(kWidth * 4)));

static inline Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
static inline Vec splat(float x) { return x - Vec{}; }  // not Vec{} + x: that would have to turn -0 into +0

// a b + c. Rounded once where the instruction set can: said here, not left to the compiler (which fuses within a basic
// block, wherever it made these end), so that an element has the same bits in every tile that it may be computed in.
static inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// The first n < kWidth floats; the others are zero.
static inline Vec load_part(const float* p, int64_t n) {
  Vec v = {};
  memcpy(&v, p, static_cast<size_t>(n) * 4);
  return v;
}
static inline void store_part(float* p, Vec v, int64_t n) { memcpy(p, &v, static_cast<size_t>(n) * 4); }

// Where one is NaN: b.
static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
static inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

// Sum and maximum of the elements, in a fixed tree.
static inline float sum(Vec v) {
  float x[kWidth];
  memcpy(x, &v, sizeof v);
  for (int n = kWidth / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) x[i] += x[i + n];
  }
  return x[0];
}
static inline float max_of(Vec v) {
  float x[kWidth];
  memcpy(x, &v, sizeof v);
  for (int n = kWidth / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) x[i] = x[i] > x[i + n] ? x[i] : x[i + n];
  }
  return x[0];
}

// e^x to about 1 ulp over [-87.3, 88.3]; below that range 0, above it clamped, NaN for NaN. Cephes' split of ln 2 and
// minimax polynomial of degree 6.
static inline Vec exp(Vec x) {
  const Vec low = splat(-87.33654f), high = splat(88.37626f);
  const IntVec underflow = x < low;
  const IntVec not_nan = x == x;
  const Vec before = x;
  x = min(max(x, low), high);
  // n = round(x / ln 2): adding 1.5 * 2^23 leaves the rounded integer in the low bits.
  const Vec magic = splat(12582912.0f);
  const Vec shifted = multiply_add(x, splat(1.44269504f), magic);
  const Vec n = shifted - magic;
  Vec r = multiply_add(n, splat(-0.693359375f), x);
  r = multiply_add(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = multiply_add(p, r, splat(1.3981999507e-3f));
  p = multiply_add(p, r, splat(8.3334519073e-3f));
  p = multiply_add(p, r, splat(4.1665795894e-2f));
  p = multiply_add(p, r, splat(1.6666665459e-1f));
  p = multiply_add(p, r, splat(5.0000001201e-1f));
  p = multiply_add(p * r, r, r) + splat(1.0f);
  const IntVec exponent = (reinterpret_cast<IntVec>(shifted) - reinterpret_cast<IntVec>(magic)) << 23;
  const IntVec bits = reinterpret_cast<IntVec>(p) + exponent;
  const Vec y = reinterpret_cast<Vec>(bits);
  return underflow ? Vec{} : (not_nan ? y : before);
}

static inline Vec sigmoid(Vec x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
