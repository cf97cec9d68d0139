#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 8;  // with 2 vectors: 16 sums in registers
#else
constexpr int kTileRows = 6;  // with 2 vectors: 12 sums in registers
#endif

constexpr int64_t kStepsOfFetch = 16;  // of k, with which the fetching keeps up for as few queries as 16
constexpr int64_t kBytesOfFetch = 64 * (kWidth / 2);

struct BlockProduct {
  int64_t m, n, k;
  BlockIn a, b;
  BlockOut c;
  bool accumulate;
  Ahead* ahead;
};

void fetch(Ahead& ahead) {
  if (ahead.next >= ahead.end) return;
  for (int64_t i = 0; i < kBytesOfFetch; i += 64) __builtin_prefetch(ahead.next + i, 0, 2);
  ahead.next += kBytesOfFetch;
}

// Rows x (Vectors * kWidth) elements of C; with kPart only the first `part` elements of one vector.
template <int kRows, int kVectors, bool kPart, bool kFetch>
void multiply_tile(const BlockProduct& p, int64_t row, int64_t column, int64_t part) {
  // Every third row has a pointer: the rows between lie one and two times the distance behind it, which an address
  // says without a register of its own.
  constexpr int kPointers = (kRows + 2) / 3;
  const float* a[kPointers];
  for (int i = 0; i < kPointers; ++i) a[i] = p.a.data + (row + 3 * i) * p.a.row;
  const float* b = p.b.data + column;
  const int64_t a_row = p.a.row, a_col = p.a.col, b_row = p.b.row;
  Vec sum[kRows][kVectors] = {};
  const auto add_steps = [&](int64_t n) {
    for (const float* const end = b + n * b_row; b != end; b += b_row) {
      Vec b_k[kVectors];
      for (int v = 0; v < kVectors; ++v) b_k[v] = kPart ? load_part(b, part) : load(b + v * kWidth);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Vec a_i = splat(a[i / 3][i % 3 * a_row]);
        for (int v = 0; v < kVectors; ++v) sum[i][v] = multiply_add(a_i, b_k[v], sum[i][v]);
      }
      for (int i = 0; i < kPointers; ++i) a[i] += a_col;
    }
  };
  int64_t k = 0;
  if constexpr (kFetch) {
    for (; k + kStepsOfFetch <= p.k; k += kStepsOfFetch) {
      fetch(*p.ahead);
      add_steps(kStepsOfFetch);
    }
  }
  add_steps(p.k - k);
  for (int i = 0; i < kRows; ++i) {
    float* c = p.c.data + (row + i) * p.c.row + column;
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kPart) {
        store_part(c, p.accumulate ? load_part(c, part) + sum[i][v] : sum[i][v], part);
      } else {
        store(c + v * kWidth, p.accumulate ? load(c + v * kWidth) + sum[i][v] : sum[i][v]);
      }
    }
  }
}

// The last rows of a panel, fewer than kTileRows.
template <int kRows, int kVectors, bool kPart, bool kFetch>
void multiply_last_rows(const BlockProduct& p, int64_t row, int64_t column, int64_t part) {
  if constexpr (kRows > 0) {
    if (p.m - row == kRows) return multiply_tile<kRows, kVectors, kPart, kFetch>(p, row, column, part);
    multiply_last_rows<kRows - 1, kVectors, kPart, kFetch>(p, row, column, part);
  }
}

template <int kVectors, bool kFetch, bool kPart = false>
void multiply_panel(const BlockProduct& p, int64_t column, int64_t part = 0) {
  int64_t row = 0;
  for (; row + kTileRows <= p.m; row += kTileRows)
    multiply_tile<kTileRows, kVectors, kPart, kFetch>(p, row, column, part);
  multiply_last_rows<kTileRows - 1, kVectors, kPart, kFetch>(p, row, column, part);
}

template <bool kFetch>
void multiply_blocks(const BlockProduct& p) {
  int64_t column = 0;
  if (p.m == 1) {  // a wide tile, to read long runs of B
    for (; column + 8 * kWidth <= p.n; column += 8 * kWidth) multiply_tile<1, 8, false, kFetch>(p, 0, column, 0);
  }
  for (; column + 2 * kWidth <= p.n; column += 2 * kWidth) multiply_panel<2, kFetch>(p, column);
  for (; column + kWidth <= p.n; column += kWidth) multiply_panel<1, kFetch>(p, column);
  if (column < p.n) multiply_panel<1, kFetch, true>(p, column, p.n - column);
}

void multiply(const ProductSize& size, const BlockIn& a, const BlockIn& b, const BlockOut& c, bool accumulate) {
  multiply_blocks<false>({size.m, size.n, size.k, a, b, c, accumulate, nullptr});
}

void multiply_fetching(const ProductSize& size, const BlockIn& a, const BlockIn& b, const BlockOut& c, bool accumulate,
                       Ahead& ahead) {
  multiply_blocks<true>({size.m, size.n, size.k, a, b, c, accumulate, &ahead});
}

struct Rows {
  int64_t k;
  const float* a;
  int64_t lda;
  const float* b;
  int64_t ldb;
  float* c;
  int64_t ldc;
};

template <int kRows, int kColumns>
void dot_tile(const Rows& r, int64_t row, int64_t column) {
  const float* a = r.a + row * r.lda;
  const float* b = r.b + column * r.ldb;
  Vec total[kRows][kColumns] = {};
  const auto step = [&](auto load_at) {
    Vec x[kRows];
    for (int i = 0; i < kRows; ++i) x[i] = load_at(a + i * r.lda);
    for (int j = 0; j < kColumns; ++j) {
      const Vec y = load_at(b + j * r.ldb);
      for (int i = 0; i < kRows; ++i) total[i][j] = multiply_add(x[i], y, total[i][j]);
    }
  };
  int64_t k = 0;
  for (; k + kWidth <= r.k; k += kWidth) step([k](const float* x) { return load(x + k); });
  if (k < r.k) step([k, &r](const float* x) { return load_part(x + k, r.k - k); });
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) r.c[(row + i) * r.ldc + column + j] = sum(total[i][j]);
  }
}

void multiply_transposed(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                         float* c, int64_t ldc) {
  const Rows rows = {k, a, lda, b, ldb, c, ldc};
  int64_t column = 0;
  for (; column + 4 <= n; column += 4) {
    int64_t row = 0;
    for (; row + 2 <= m; row += 2) dot_tile<2, 4>(rows, row, column);
    if (row < m) dot_tile<1, 4>(rows, row, column);
  }
  for (; column < n; ++column) {
    for (int64_t row = 0; row < m; ++row) dot_tile<1, 1>(rows, row, column);
  }
}

typedef float Four __attribute__((vector_size(16)));

// to[j, i] = factor * from[i, j] for i, j < 4
void transpose_square(float* to, int64_t ld_to, const float* from, int64_t ld_from, float factor) {
  Four row[4];
  for (int i = 0; i < 4; ++i) {
    memcpy(&row[i], from + i * ld_from, sizeof(Four));
    row[i] *= factor;
  }
  const Four low01 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
  const Four high01 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const Four low23 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
  const Four high23 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  const Four column[4] = {
      __builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
      __builtin_shufflevector(high01, high23, 0, 1, 4, 5), __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (int j = 0; j < 4; ++j) memcpy(to + j * ld_to, &column[j], sizeof(Four));
}

void transpose(float* to, int64_t ld_to, const float* from, int64_t ld_from, int64_t rows, int64_t cols, float factor) {
  const int64_t whole_rows = rows / 4 * 4, whole_cols = cols / 4 * 4;
  for (int64_t i = 0; i < whole_rows; i += 4) {
    for (int64_t j = 0; j < whole_cols; j += 4) {
      transpose_square(to + j * ld_to + i, ld_to, from + i * ld_from + j, ld_from, factor);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < whole_rows ? whole_cols : 0; j < cols; ++j) to[j * ld_to + i] = factor * from[i * ld_from + j];
  }
}

void copy(float* to, int64_t ld_to, const float* from, int64_t ld_from, int64_t rows, int64_t cols, float factor) {
  const Vec factors = splat(factor);
  for (int64_t i = 0; i < rows; ++i, to += ld_to, from += ld_from) {
    int64_t j = 0;
    for (; j + kWidth <= cols; j += kWidth) store(to + j, load(from + j) * factors);
    for (; j < cols; ++j) to[j] = from[j] * factor;
  }
}

void mask_keys(float* s, int64_t ld, int64_t n_keys, int64_t n_queries, const uint32_t* words) {
  const Vec none = splat(-INFINITY);
  for (int64_t i = 0; i < n_keys; ++i) {
    const uint32_t* const word = words + i / 32 * n_queries;
    const int32_t bit = static_cast<int32_t>(uint32_t{1} << (i % 32));
    for (int64_t q = 0; q < n_queries; q += kWidth) {
      IntVec w;
      memcpy(&w, word + q, sizeof w);
      float* const x = s + i * ld + q;
      store(x, (w & bit) != 0 ? load(x) : none);
    }
  }
}

void mask_queries(float* s, int64_t ld, int64_t rows, int64_t n, const uint64_t* words, int64_t words_stride) {
  const Vec none = splat(-INFINITY);
  IntVec lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = 1 << i;
  for (int64_t i = 0; i < rows; ++i) {
    const uint64_t word = words[i * words_stride];
    for (int64_t j = 0; j < n; j += kWidth) {
      float* const x = s + i * ld + j;
      store(x, (lane & static_cast<int32_t>(word >> j & 0xFFFF)) != 0 ? load(x) : none);
    }
  }
}

void online_softmax(float* s, int64_t ld, int64_t n_keys, int64_t n_queries, float* largest, float* sum,
                    float* correction) {
  for (int64_t q = 0; q < n_queries; q += kWidth) {
    Vec highest = load(s + q);
    for (int64_t j = 1; j < n_keys; ++j) highest = max(highest, load(s + j * ld + q));
    const Vec before = load(largest + q);
    highest = max(before, highest);
    Vec total = {};
    for (int64_t j = 0; j < n_keys; ++j) {
      const Vec p = exp(load(s + j * ld + q) - highest);
      store(s + j * ld + q, p);
      total += p;
    }
    const Vec factor = exp(before - highest);
    store(largest + q, highest);
    store(sum + q, multiply_add(load(sum + q), factor, total));
    store(correction + q, factor);
  }
}

void probabilities(float* s, int64_t ld, int64_t rows, int64_t n, const float* lse, int64_t lse_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    const Vec shift = splat(lse[i * lse_stride]);
    for (int64_t j = 0; j < n; j += kWidth) {
      float* x = s + i * ld + j;
      store(x, exp(min(load(x) - shift, Vec{})));
    }
  }
}

void score_gradients(float* dp, const float* p, int64_t ld, int64_t rows, int64_t n, const float* delta,
                     int64_t delta_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    const Vec shift = splat(delta[i * delta_stride]);
    for (int64_t j = 0; j < n; j += kWidth) {
      float* x = dp + i * ld + j;
      store(x, load(p + i * ld + j) * (load(x) - shift));
    }
  }
}

void scale_and_add(float* y, float factor, const float* x, float weight, int64_t n) {
  int64_t i = 0;
  if (x == nullptr) {
    for (; i + kWidth <= n; i += kWidth) store(y + i, load(y + i) * splat(factor));
    for (; i < n; ++i) y[i] *= factor;
    return;
  }
  for (; i + kWidth <= n; i += kWidth) {
    store(y + i, multiply_add(load(y + i), splat(factor), load(x + i) * splat(weight)));
  }
  for (; i < n; ++i) y[i] = y[i] * factor + x[i] * weight;
}

}  // namespace

const AttentionKernels attention_kernels = {multiply,      multiply_fetching, multiply_transposed, transpose,
                                            copy,          mask_keys,         mask_queries,        online_softmax,
                                            probabilities, score_gradients,   scale_and_add};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
