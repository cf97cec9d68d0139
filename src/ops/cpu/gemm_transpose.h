// Transposes a square of kWidth vectors in registers, for kernel files (see isa.h).
#pragma once

#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {

// rows[i][j] becomes rows[j][i]. First pairs of rows are woven within their 128-bit lanes, by single floats and by
// twos, which transposes every 4 x 4; then whole lanes change places.
static inline void transpose(Vec (&rows)[kWidth]) {
  Vec woven[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i += 4) {
#if defined(__AVX512F__)
    const auto low1 = [](Vec a, Vec b) {
      return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    };
    const auto high1 = [](Vec a, Vec b) {
      return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    };
    const auto low2 = [](Vec a, Vec b) {
      return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    };
    const auto high2 = [](Vec a, Vec b) {
      return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    };
#elif defined(__AVX2__)
    const auto low1 = [](Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13); };
    const auto high1 = [](Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15); };
    const auto low2 = [](Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13); };
    const auto high2 = [](Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15); };
#else
    const auto low1 = [](Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); };
    const auto high1 = [](Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); };
    const auto low2 = [](Vec a, Vec b) { return __builtin_shufflevector(a, b, 0, 1, 4, 5); };
    const auto high2 = [](Vec a, Vec b) { return __builtin_shufflevector(a, b, 2, 3, 6, 7); };
#endif
    const Vec a = low1(rows[i], rows[i + 1]), b = high1(rows[i], rows[i + 1]);
    const Vec c = low1(rows[i + 2], rows[i + 3]), d = high1(rows[i + 2], rows[i + 3]);
    woven[i] = low2(a, c);
    woven[i + 1] = high2(a, c);
    woven[i + 2] = low2(b, d);
    woven[i + 3] = high2(b, d);
  }
  // woven[4 g + j], lane l: column 4 l + j of rows 4 g .. 4 g + 3.
#pragma GCC unroll 16
  for (int j = 0; j < 4; ++j) {
#if defined(__AVX512F__)
    const auto even = [](Vec a, Vec b) {  // lanes 0 and 2 of a, then of b
      return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    };
    const auto odd = [](Vec a, Vec b) {
      return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    };
    const Vec a = even(woven[j], woven[4 + j]), b = odd(woven[j], woven[4 + j]);
    const Vec c = even(woven[8 + j], woven[12 + j]), d = odd(woven[8 + j], woven[12 + j]);
    rows[j] = even(a, c);
    rows[4 + j] = even(b, d);
    rows[8 + j] = odd(a, c);
    rows[12 + j] = odd(b, d);
#elif defined(__AVX2__)
    rows[j] = __builtin_shufflevector(woven[j], woven[4 + j], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[4 + j] = __builtin_shufflevector(woven[j], woven[4 + j], 4, 5, 6, 7, 12, 13, 14, 15);
#else
    rows[j] = woven[j];
#endif
  }
}

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
