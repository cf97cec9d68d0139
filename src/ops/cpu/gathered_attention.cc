#include "ops/cpu/gathered_attention_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

// A step takes 8 bytes of a row, two floats or four of bf16, and as much of each query of a panel.
constexpr int64_t kStepBytes = 8, kPanelStep = kStepBytes * kQueryPanel;
constexpr int kQueriesOfVector = kWidth / 2;  // in a vector of a panel
constexpr int64_t kLine = 64;
constexpr int64_t kStepsOfFetch = 16;  // of the loops, of as many products each
#if defined(__AVX512F__)
constexpr int kTile = 8;  // rows or queries: 16 sums in registers
#else
constexpr int kTile = 4;
#endif

typedef int64_t Wide __attribute__((vector_size(kWidth * 4)));
typedef uint64_t UnsignedWide __attribute__((vector_size(kWidth * 4)));
typedef uint32_t HalfInts __attribute__((vector_size(kWidth * 2)));
typedef float Half __attribute__((vector_size(kWidth * 2)));

Vec load_bits(const char* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class Number, class Numbers>
Vec splat_bits(const char* p) {
  Number bits;
  memcpy(&bits, p, sizeof bits);
  return reinterpret_cast<Vec>(bits + Numbers{});
}

// Fetches what is read next, bit by bit: of the next rows each whole one after the other, as the processor's own
// prefetchers like it.
class Fetcher {
 public:
  explicit Fetcher(const GatheredRows& g, int64_t n_calls)
      : row_(g.ahead), end_(g.ahead + g.n_ahead), bytes_(g.ahead_bytes) {
    const int64_t n_lines = g.n_ahead * ((g.ahead_bytes + kLine - 1) / kLine);
    lines_of_call_ = (n_lines + n_calls - 1) / n_calls;
  }
  void fetch() {
    for (int64_t i = 0; i < lines_of_call_ && row_ != end_; ++i) {
      __builtin_prefetch(*row_ + at_, 0, 2);
      at_ += kLine;
      if (at_ < bytes_) continue;
      at_ = 0;
      ++row_;
    }
  }

 private:
  const char* const* row_;
  const char* const* end_;
  int64_t at_ = 0, bytes_, lines_of_call_;
};

struct Floats {
  static constexpr int64_t kBytes = 4;
  static Vec add_products(Vec a, Vec b, Vec c) { return multiply_add(a, b, c); }
};

#if defined(__AVX512BF16__)
struct Pairs {
  static constexpr int64_t kBytes = 2;
  static Vec add_products(Vec a, Vec b, Vec c) {
    return reinterpret_cast<Vec>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(c), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
  }
};

typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));

// Numbers rounded to bf16, in the lower halves of 32 bits.
IntVec round_bf16(Vec x) {
  const auto rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(x));
  Halves bits;
  memcpy(&bits, &rounded, sizeof bits);
  return __builtin_convertvector(bits, IntVec);
}
#endif

// Scores of kTile rows with the queries of two vectors. Sums of the first and the second half of each step lie side by
// side until the end.
template <class Arithmetic>
void score_tile(const GatheredRows& g, int64_t n_steps, int64_t row, const char* queries, float* scores,
                Fetcher& ahead) {
  const char* x[kTile];
  for (int i = 0; i < kTile; ++i) x[i] = g.rows[row + i];
  Vec sum[kTile][2] = {};
  int64_t at = 0;
  const auto add_steps = [&](int64_t n) {
    for (const int64_t end = at + n * kStepBytes; at < end; at += kStepBytes, queries += kPanelStep) {
      const Vec q[2] = {load_bits(queries), load_bits(queries + sizeof(Vec))};
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i) {
        const Vec a = splat_bits<int64_t, Wide>(x[i] + at);
        for (int v = 0; v < 2; ++v) sum[i][v] = Arithmetic::add_products(a, q[v], sum[i][v]);
      }
    }
  };
  int64_t step = 0;
  for (; step + kStepsOfFetch <= n_steps; step += kStepsOfFetch) {
    ahead.fetch();
    add_steps(kStepsOfFetch);
  }
  add_steps(n_steps - step);
  for (int i = 0; i < kTile; ++i) {
    for (int v = 0; v < 2; ++v) {
      const auto both = reinterpret_cast<UnsignedWide>(sum[i][v]);
      const Half score = reinterpret_cast<Half>(__builtin_convertvector(both, HalfInts)) +
                         reinterpret_cast<Half>(__builtin_convertvector(both >> 32, HalfInts));
      memcpy(scores + (row + i) * kQueryPanel + v * kQueriesOfVector, &score, sizeof score);
    }
  }
}

template <class Arithmetic>
void score(const GatheredRows& g, Fetcher& ahead) {
  const int64_t n_steps = g.row_dim * Arithmetic::kBytes / kStepBytes;
  for (int64_t q = 0; q < g.n_queries; q += 2 * kQueriesOfVector) {
    const int64_t panel = q / kQueryPanel, place = q % kQueryPanel;
    const char* const queries = g.queries + panel * n_steps * kPanelStep + place * kStepBytes;
    float* const scores = g.scores + panel * kGatheredRows * kQueryPanel + place;
    for (int64_t row = 0; row < g.n; row += kTile) score_tile<Arithmetic>(g, n_steps, row, queries, scores, ahead);
  }
}

Vec largest_of(const float* s, int64_t n) {
  const Vec lowest = splat(-__FLT_MAX__);
  Vec highest[4] = {lowest, lowest, lowest, lowest};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int j = 0; j < 4; ++j) highest[j] = max(highest[j], load(s + (i + j) * kQueryPanel));
  }
  for (; i < n; ++i) highest[0] = max(highest[0], load(s + i * kQueryPanel));
  return max(max(highest[0], highest[1]), max(highest[2], highest[3]));
}

// Scores become exp(s - largest); returns the sum.
Vec weigh(Floats, float* s, int64_t n, Vec highest) {
  Vec total = {};
  for (int64_t i = 0; i < n; ++i) {
    const Vec p = exp(load(s + i * kQueryPanel) - highest);
    store(s + i * kQueryPanel, p);
    total += p;
  }
  return total;
}

#if defined(__AVX512BF16__)
// Those of rows 2 i and 2 i + 1 become pair i.
Vec weigh(Pairs, float* s, int64_t n, Vec highest) {
  Vec total = {};
  for (int64_t i = 0; i < n; i += 2) {
    const float* const from = s + i * kQueryPanel;
    const IntVec even = round_bf16(exp(load(from) - highest));
    const IntVec odd = (i + 1 < n ? round_bf16(exp(load(from + kQueryPanel) - highest)) : IntVec{}) << 16;
    total += reinterpret_cast<Vec>(even << 16) + reinterpret_cast<Vec>(odd);
    store(s + i / 2 * kQueryPanel, reinterpret_cast<Vec>(even | odd));
  }
  return total;
}
#endif

template <class Arithmetic>
void softmax(const GatheredRows& g) {
  for (int64_t q = 0; q < g.n_queries; q += kWidth) {
    float* const s = g.scores + q / kQueryPanel * kGatheredRows * kQueryPanel + q % kQueryPanel;
    const Vec highest = largest_of(s, g.n);
    store(g.largest + q, highest);
    store(g.sum + q, weigh(Arithmetic{}, s, g.n, highest));
  }
}

// Two vectors of values, of a row or of a pair of rows.
struct Values {
  Vec v[2];
};

// Values of some queries in two vectors of columns, over all rows. values(i): those that go with weights i.
template <class Arithmetic, int kQueries, class ValuesAt>
void value_tile(const float* weights, int64_t n, const ValuesAt& values, Vec (&sum)[kTile][2], Fetcher& ahead) {
  Vec total[kQueries][2] = {};
  int64_t i = 0;
  const auto add_until = [&](int64_t end) {
    for (; i < end; ++i) {
      const Values x = values(i);
      const char* const w = reinterpret_cast<const char*>(weights + i * kQueryPanel);
#pragma GCC unroll 8
      for (int q = 0; q < kQueries; ++q) {
        const Vec p = splat_bits<int32_t, IntVec>(w + 4 * q);
        for (int v = 0; v < 2; ++v) total[q][v] = Arithmetic::add_products(p, x.v[v], total[q][v]);
      }
    }
  };
  while (i + kStepsOfFetch <= n) {
    ahead.fetch();
    add_until(i + kStepsOfFetch);
  }
  add_until(n);
  for (int q = 0; q < kQueries; ++q) {
    for (int v = 0; v < 2; ++v) sum[q][v] = total[q][v];
  }
}

template <class Arithmetic, int kQueries, class ValuesAt>
void value_tile_of(int64_t n_queries, const float* weights, int64_t n, const ValuesAt& values, Vec (&sum)[kTile][2],
                   Fetcher& ahead) {
  if constexpr (kQueries > 0) {
    if (n_queries >= kQueries) return value_tile<Arithmetic, kQueries>(weights, n, values, sum, ahead);
    value_tile_of<Arithmetic, kQueries - 1>(n_queries, weights, n, values, sum, ahead);
  }
}

// One strip of columns for all queries. store_sums(query, sums of its two vectors)
template <class Arithmetic, class ValuesAt, class Store>
void value_strip(const GatheredRows& g, int64_t n, const ValuesAt& values, const Store& store_sums, Fetcher& ahead) {
  for (int64_t q = 0; q < g.n_queries; q += kTile) {
    const float* const weights = g.scores + q / kQueryPanel * kGatheredRows * kQueryPanel + q % kQueryPanel;
    const int64_t n_queries = g.n_queries - q < kTile ? g.n_queries - q : kTile;
    Vec sum[kTile][2];
    value_tile_of<Arithmetic, kTile>(n_queries, weights, n, values, sum, ahead);
    for (int64_t i = 0; i < n_queries; ++i) store_sums(q + i, sum[i]);
  }
}

// How often all that follows fetches what is ahead.
template <class Arithmetic>
int64_t n_fetches(const GatheredRows& g, int64_t n_values) {
  const int64_t n_steps = g.row_dim * Arithmetic::kBytes / kStepBytes;
  const int64_t scores = (g.n_queries + 2 * kQueriesOfVector - 1) / (2 * kQueriesOfVector) *
                         ((g.n + kTile - 1) / kTile) * (n_steps / kStepsOfFetch);
  constexpr int64_t kColumns = 2 * kWidth;  // of a strip
  return scores + g.rank / kColumns * ((g.n_queries + kTile - 1) / kTile) * (n_values / kStepsOfFetch) + 1;
}

// Halves of the steps of kWidth queries in two vectors as they lie in a panel.
void put_side_by_side(char* to, IntVec first, IntVec second) {
  uint32_t halves[2][kWidth], both[2 * kWidth];
  memcpy(halves[0], &first, sizeof first);
  memcpy(halves[1], &second, sizeof second);
  for (int i = 0; i < kWidth; ++i) {
    both[2 * i] = halves[0][i];
    both[2 * i + 1] = halves[1][i];
  }
  memcpy(to, both, sizeof both);
}

void pack_f32(float* panel, int64_t dim) {
  auto* to = reinterpret_cast<char*>(panel);
  for (int64_t i = 0; i < dim; i += 2, to += kPanelStep) {
    float step[2][kQueryPanel];
    memcpy(step, panel + i * kQueryPanel, sizeof step);
    for (int64_t q = 0; q < kQueryPanel; q += kWidth) {
      put_side_by_side(to + q * kStepBytes, reinterpret_cast<IntVec>(load(step[0] + q)),
                       reinterpret_cast<IntVec>(load(step[1] + q)));
    }
  }
}

void attend_f32(const GatheredRows& g) {
  Fetcher ahead(g, n_fetches<Floats>(g, g.n));
  score<Floats>(g, ahead);
  softmax<Floats>(g);
  for (int64_t column = 0; column < g.rank; column += 2 * kWidth) {
    const auto values = [&g, column](int64_t i) {
      const char* const row = g.rows[i] + 4 * column;
      return Values{{load_bits(row), load_bits(row + 4 * kWidth)}};
    };
    value_strip<Floats>(
        g, g.n, values,
        [&](int64_t q, const Vec(&sum)[2]) {
          for (int v = 0; v < 2; ++v) store(g.out + q * g.rank + column + v * kWidth, sum[v]);
        },
        ahead);
  }
}

#if defined(__AVX512BF16__)
// 32 columns of two rows side by side, as pairs: 4 of every 8 columns in each vector.
Values interleave(const char* even, const char* odd) {
  const auto a = reinterpret_cast<__m512i>(load_bits(even)), b = reinterpret_cast<__m512i>(load_bits(odd));
  return {{reinterpret_cast<Vec>(_mm512_unpacklo_epi16(a, b)), reinterpret_cast<Vec>(_mm512_unpackhi_epi16(a, b))}};
}

void attend_bf16(const GatheredRows& g) {
  const int64_t n_pairs = (g.n + 1) / 2;
  Fetcher ahead(g, n_fetches<Pairs>(g, n_pairs));
  score<Pairs>(g, ahead);
  softmax<Pairs>(g);
  for (int64_t column = 0; column < g.rank; column += 32) {
    const auto in_rows = [&g, column](int64_t i) {
      return interleave(g.rows[2 * i] + 2 * column, g.rows[2 * i + 1] + 2 * column);
    };
    const auto store_sums = [&](int64_t q, const Vec(&sum)[2]) {
      float* const out = g.out + q * g.rank + column;
      store(out, __builtin_shufflevector(sum[0], sum[1], 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
      store(out + 16,
            __builtin_shufflevector(sum[0], sum[1], 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31));
    };
    if (g.n_queries <= 2 * kTile) {
      value_strip<Pairs>(g, n_pairs, in_rows, store_sums, ahead);
      continue;
    }
    for (int64_t i = 0; i < n_pairs; ++i) {
      const Values x = in_rows(i);
      memcpy(g.strip + i * 2 * kLine, &x, sizeof x);
    }
    const auto in_strip = [&g](int64_t i) {
      const char* const pair = g.strip + i * 2 * kLine;
      return Values{{load_bits(pair), load_bits(pair + kLine)}};
    };
    value_strip<Pairs>(g, n_pairs, in_strip, store_sums, ahead);
  }
}

void pack_bf16(float* panel, int64_t dim) {
  auto* to = reinterpret_cast<char*>(panel);
  for (int64_t i = 0; i < dim; i += 4, to += kPanelStep) {
    IntVec x[4];
    for (int j = 0; j < 4; ++j) x[j] = round_bf16(load(panel + (i + j) * kQueryPanel));
    put_side_by_side(to, x[0] | x[1] << 16, x[2] | x[3] << 16);
  }
}

void narrow_row(char* to, const float* from, int64_t dim) {
  for (int64_t i = 0; i < dim; i += kWidth) {
    const int64_t n = dim - i < kWidth ? dim - i : kWidth;
    const auto rounded =
        _mm512_cvtneps_pbh(reinterpret_cast<__m512>(n == kWidth ? load(from + i) : load_part(from + i, n)));
    if (n == kWidth) {
      memcpy(to + 2 * i, &rounded, sizeof rounded);
    } else {
      memcpy(to + 2 * i, &rounded, static_cast<size_t>(2 * n));
    }
  }
}
#endif

}  // namespace

#if defined(__AVX512BF16__)
const GatheredAttentionKernels gathered_attention_kernels = {attend_f32, pack_f32, attend_bf16, pack_bf16, narrow_row};
#else
const GatheredAttentionKernels gathered_attention_kernels = {attend_f32, pack_f32, nullptr, nullptr, nullptr};
#endif

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
