#include "ops/cpu/gemm_kernels.h"
#include "ops/cpu/gemm_transpose.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

// As large as the registers allow: kMr x kVecs accumulators, kVecs of B, one of A.
constexpr int kVecs = 2;
#if defined(__AVX512F__)
constexpr int kMr = 12;
#elif defined(__AVX2__)
constexpr int kMr = 6;
#else
constexpr int kMr = 4;
#endif
constexpr int kNr = kVecs * kWidth;
// Training's operands come from memory, where their rows are too short for the hardware to fetch ahead: packing fetches
// what it packs so many rows later.
constexpr int64_t kRowsAhead = 16;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

void pack_b(float* panel, const float* b, int64_t ldb, bool transposed, int64_t k, int64_t n) {
  if (!transposed) {
    if (n == kNr) {
      for (int64_t p = 0; p < k; ++p) {
        __builtin_prefetch(b + smaller(p + kRowsAhead, k - 1) * ldb);
        for (int v = 0; v < kVecs; ++v) store(panel + p * kNr + v * kWidth, load(b + p * ldb + v * kWidth));
      }
      return;
    }
    for (int64_t p = 0; p < k; ++p) {
      memcpy(panel + p * kNr, b + p * ldb, static_cast<size_t>(n) * sizeof(float));
      memset(panel + p * kNr + n, 0, static_cast<size_t>(kNr - n) * sizeof(float));
    }
    return;
  }
  for (int64_t p = 0; p < k; p += kWidth) {
    const int64_t depth = smaller(kWidth, k - p);
    for (int v = 0; v < kVecs; ++v) {
      Vec rows[kWidth];
      const float* source = b + v * kWidth * ldb + p;
      if (depth == kWidth && n >= (v + 1) * kWidth) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) rows[i] = load(source + i * ldb);
      } else {
        for (int i = 0; i < kWidth; ++i) rows[i] = v * kWidth + i < n ? load_part(source + i * ldb, depth) : Vec{};
      }
      transpose(rows);
      float* target = panel + p * kNr + v * kWidth;
      if (depth == kWidth) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) store(target + i * kNr, rows[i]);
      } else {
        for (int i = 0; i < depth; ++i) store(target + i * kNr, rows[i]);
      }
    }
  }
}

void pack_a(float* panels, const float* a, int64_t lda, int64_t k, int64_t m) {
  // Some rows of the stored A at a time, so that their lines stay near while panel after panel takes its columns.
  // Whole vectors where they fit: what one writes beyond its mr floats the next row overwrites, and the last row writes
  // no more than its own.
  for (int64_t begin = 0; begin < k; begin += kRowsAhead) {
    const int64_t end = smaller(begin + kRowsAhead, k);
    for (int64_t i = 0; i < m; i += kMr) {
      float* panel = panels + i * k;
      for (int64_t p = end; p < smaller(end + kRowsAhead, k); ++p) __builtin_prefetch(a + p * lda + i);
      int64_t p = begin;
      for (; p < smaller(end, k - 1) && i + kWidth <= m; ++p) store(panel + p * kMr, load(a + p * lda + i));
      const auto n = static_cast<size_t>(smaller(kMr, m - i));
      for (; p < end; ++p) memcpy(panel + p * kMr, a + p * lda + i, n * sizeof(float));
    }
  }
}

// One tile of C: kRows x (kVectors vectors, of which the first n floats count).
template <int kRows, int kVectors, bool kPackedA>
void multiply_tile(int64_t k, const float* a, int64_t lda, const float* b, float* c, int64_t ldc, int64_t n,
                   bool accumulate) {
  for (int i = 0; i < kRows; ++i) __builtin_prefetch(c + i * ldc, 1);  // its lines come in while the sums are made
  Vec sums[kRows][kVectors] = {};
  for (int64_t p = 0; p < k; ++p) {
    Vec columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) columns[v] = load(b + p * kNr + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec row = splat(kPackedA ? a[p * kMr + i] : a[i * lda + p]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[i][v] = multiply_add(row, columns[v], sums[i][v]);
    }
  }
  if (n == kVectors * kWidth) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* target = c + i * ldc + v * kWidth;
        store(target, accumulate ? load(target) + sums[i][v] : sums[i][v]);
      }
    }
    return;
  }
  float edge[kRows][kVectors * kWidth];
  memcpy(edge, sums, sizeof edge);
  for (int i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = accumulate ? c[i * ldc + j] + edge[i][j] : edge[i][j];
  }
}

using Tile = void (*)(int64_t k, const float* a, int64_t lda, const float* b, float* c, int64_t ldc, int64_t n,
                      bool accumulate);

// tile_of<kVectors, kPackedA>(rows)
template <int kVectors, bool kPackedA, int kRows = kMr>
Tile tile_of(int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<kVectors, kPackedA, kRows - 1>(rows);
  }
  return multiply_tile<kRows, kVectors, kPackedA>;
}

template <bool kPackedA>
void multiply_with(const GemmBlock& block) {
  const auto& [m, n, k, a, lda, a_packed, b, b_stride, c, ldc, accumulate] = block;
  const Tile wide = tile_of<kVecs, kPackedA>(kMr), wide_last = tile_of<kVecs, kPackedA>(m % kMr);
  const Tile narrow = tile_of<1, kPackedA>(kMr), narrow_last = tile_of<1, kPackedA>(m % kMr);
  for (int64_t j = 0; j < n; j += kNr) {
    const float* panel = b + j / kNr * b_stride;
    const int64_t cols = smaller(kNr, n - j);
    const Tile full = cols > kWidth ? wide : narrow, last = cols > kWidth ? wide_last : narrow_last;
    for (int64_t i = 0; i < m; i += kMr) {
      const float* rows = kPackedA ? a + i * k : a + i * lda;
      if (!kPackedA && j == 0) {  // the first use of these rows: the next ones' lines come in meanwhile
        for (int64_t r = i + kMr; r < smaller(i + 2 * kMr, m); ++r) {
          for (int64_t p = 0; p < k; p += 16) __builtin_prefetch(a + r * lda + p);
        }
      }
      (i + kMr <= m ? full : last)(k, rows, lda, panel, c + i * ldc + j, ldc, cols, accumulate);
    }
  }
}

void multiply(const GemmBlock& block) { block.a_packed ? multiply_with<true>(block) : multiply_with<false>(block); }

}  // namespace

const GemmKernels gemm_kernels = {kMr, kNr, pack_b, pack_a, multiply};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
