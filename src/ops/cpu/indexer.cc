#include "ops/cpu/indexer_kernels.h"
#include "ops/cpu/vec.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

constexpr int kTile = 16, kBlock = 64, kQuad = 4;  // keys, keys, elements

// A tile of sums in registers: so many vectors of keys, so many heads.
#if defined(__AVX512F__)
constexpr int kVectors = 4, kHeads = 4;
#else
constexpr int kVectors = 2, kHeads = 4;
#endif
constexpr int kKeys = kVectors * kWidth;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
IntVec splat_bits(int32_t x) { return x - IntVec{}; }
IntVec bits_of(Vec v) { return reinterpret_cast<IntVec>(v); }
Vec float_of(IntVec v) { return reinterpret_cast<Vec>(v); }
IntVec load_ints(const void* p) {
  IntVec v;
  memcpy(&v, p, sizeof v);
  return v;
}

// ---- Products of bytes. Integers, so that every instruction set gives the same sums.

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
typedef IntVec KeyQuads;
typedef IntVec QueryQuad;
constexpr bool kAddsOffset = true;
KeyQuads key_quads(IntVec codes) { return codes; }
QueryQuad query_quad(int32_t codes) { return splat_bits(codes); }
IntVec add_products(IntVec sum, KeyQuads k, QueryQuad q) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<IntVec>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(k), reinterpret_cast<__m512i>(q)));
#else
  return reinterpret_cast<IntVec>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(k),
                                                          reinterpret_cast<__m256i>(q)));
#endif
}
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int8x16_t KeyQuads;
typedef int8x16_t QueryQuad;
constexpr bool kAddsOffset = false;
KeyQuads key_quads(IntVec codes) {
  return reinterpret_cast<int8x16_t>(codes ^ splat_bits(static_cast<int32_t>(0x80808080)));
}
QueryQuad query_quad(int32_t codes) { return reinterpret_cast<int8x16_t>(splat_bits(codes)); }
IntVec add_products(IntVec sum, KeyQuads k, QueryQuad q) {
  return reinterpret_cast<IntVec>(vdotq_s32(reinterpret_cast<int32x4_t>(sum), k, q));
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
// The instruction takes one side without sign and sums pairs of products in 16 bits, which those of codes with sign
// fit into: the sign of a key goes to the query.
struct KeyQuads {
  __m256i codes, magnitudes;
};
typedef __m256i QueryQuad;
constexpr bool kAddsOffset = false;
KeyQuads key_quads(IntVec codes) {
  const auto with_sign = reinterpret_cast<__m256i>(codes ^ splat_bits(static_cast<int32_t>(0x80808080)));
  return {with_sign, _mm256_abs_epi8(with_sign)};
}
QueryQuad query_quad(int32_t codes) { return reinterpret_cast<__m256i>(splat_bits(codes)); }
IntVec add_products(IntVec sum, const KeyQuads& k, QueryQuad q) {
  const __m256i pairs = _mm256_maddubs_epi16(k.magnitudes, _mm256_sign_epi8(q, k.codes));
  return sum + reinterpret_cast<IntVec>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#else
// Elements 0 and 2 of a quad, and 1 and 3, in 16 bits.
typedef int16_t ShortVec __attribute__((vector_size(kWidth * 4)));
struct KeyQuads {
  IntVec even, odd;
};
typedef KeyQuads QueryQuad;
constexpr bool kAddsOffset = true;
IntVec dot_pairs(IntVec a, IntVec b) {
#if defined(__AVX512BW__)
  return reinterpret_cast<IntVec>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<IntVec>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}
KeyQuads key_quads(IntVec codes) {
  const IntVec low = splat_bits(0x00FF00FF);
  return {codes & low, (codes >> 8) & low};
}
QueryQuad query_quad(int32_t codes) {
  const auto both = reinterpret_cast<ShortVec>(splat_bits(codes));
  return {reinterpret_cast<IntVec>(both << 8 >> 8), reinterpret_cast<IntVec>(both >> 8)};
}
IntVec add_products(IntVec sum, const KeyQuads& k, const QueryQuad& q) {
  return sum + dot_pairs(k.even, q.even) + dot_pairs(k.odd, q.odd);
}
#endif

// ---- Scores

// Fetches a share of what comes next with every group of heads.
struct Ahead {
  const char *at, *end;
  int64_t bytes;  // of a share
  void fetch() {
    const char* const stop = at + smaller(bytes, end - at);
    for (; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// Where a vector's keys begin in a block of tiles, whose rows hold 16 numbers of 4 bytes.
const char* first_of_vector(const IndexProduct& p, int64_t key) {
  return static_cast<const char*>(p.keys) + (key / kTile * p.dim * kTile + key % kTile) * 4;
}

// total += sum_j w_j relu(sum_j) in order of j
template <int kN, class Sums>
void add_heads(Vec (&total)[kVectors], const Sums& sums, const float* weights) {
#pragma GCC unroll 8
  for (int j = 0; j < kN; ++j) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      total[v] = multiply_add(sums[j][v], splat(weights[j]), total[v]);
    }
  }
}

struct Floats {
  template <int kN>
  static void add(const IndexProduct& p, Vec (&total)[kVectors], int64_t key, int64_t query, int64_t head) {
    const char* keys[kVectors];
    for (int v = 0; v < kVectors; ++v) keys[v] = first_of_vector(p, key + v * kWidth);
    const char* const q = static_cast<const char*>(p.queries) + query * p.query_stride + head * p.head_stride;
    Vec sums[kN][kVectors] = {};
    for (int64_t d = 0; d < p.dim; ++d) {
      Vec k[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) k[v] = load(reinterpret_cast<const float*>(keys[v]) + d * kTile);
#pragma GCC unroll 8
      for (int j = 0; j < kN; ++j) {
        const Vec x = splat(reinterpret_cast<const float*>(q + j * p.head_stride)[d]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[j][v] = multiply_add(k[v], x, sums[j][v]);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < kN; ++j) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[j][v] = max(Vec{}, sums[j][v]);  // NaN stays
    }
    add_heads<kN>(total, sums, p.weights + query * p.weight_stride + head);
  }
};

struct Codes {
  template <int kN>
  static void add(const IndexProduct& p, Vec (&total)[kVectors], int64_t key, int64_t query, int64_t head) {
    const char* keys[kVectors];
    for (int v = 0; v < kVectors; ++v) keys[v] = first_of_vector(p, key + v * kWidth);
    const char* const q = static_cast<const char*>(p.queries) + query * p.query_stride + head * p.head_stride;
    IntVec sums[kN][kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kN; ++j) {
      const IntVec begin = kAddsOffset ? splat_bits(p.offsets[query * p.n_heads + head + j]) : IntVec{};
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[j][v] = begin;
    }
    for (int64_t quad = 0; quad < p.dim; ++quad) {
      KeyQuads k[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) k[v] = key_quads(load_ints(keys[v] + quad * kTile * kQuad));
#pragma GCC unroll 8
      for (int j = 0; j < kN; ++j) {
        int32_t codes;
        memcpy(&codes, q + j * p.head_stride + quad * kQuad, sizeof codes);
        const QueryQuad x = query_quad(codes);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[j][v] = add_products(sums[j][v], k[v], x);
      }
    }
    Vec positive[kN][kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kN; ++j) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        positive[j][v] = __builtin_convertvector(sums[j][v] > 0 ? sums[j][v] : IntVec{}, Vec);
      }
    }
    add_heads<kN>(total, positive, p.weights + query * p.weight_stride + head);
  }
};

template <class Kind>
void score(const IndexProduct& p) {
  const int64_t groups = p.n_queries * (kBlock / kKeys) * ((p.n_heads + kHeads - 1) / kHeads);
  Ahead ahead = {p.ahead, p.ahead + p.ahead_bytes, (p.ahead_bytes / groups + 63) / 64 * 64};
  for (int64_t query = 0; query < p.n_queries; ++query) {
    for (int64_t key = 0; key < kBlock; key += kKeys) {
      Vec total[kVectors] = {};
      int64_t head = 0;
      for (; head + kHeads <= p.n_heads; head += kHeads) {
        ahead.fetch();
        Kind::template add<kHeads>(p, total, key, query, head);
      }
      for (; head < p.n_heads; ++head) {
        ahead.fetch();
        Kind::template add<1>(p, total, key, query, head);
      }
      for (int v = 0; v < kVectors; ++v) {
        if (p.scales != nullptr)
          total[v] *= float_of(load_ints(static_cast<const char*>(p.scales) + (key + v * kWidth) * 4));
        store(p.scores + query * kBlock + key + v * kWidth, total[v]);
      }
    }
  }
}

void score_f32(const IndexProduct& p) { score<Floats>(p); }
void score_i8(const IndexProduct& p) { score<Codes>(p); }

// ---- Rounding

alignas(64) constexpr int32_t kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Lane i becomes lane i ^ distance.
Vec exchange(Vec v, int distance) {
  const IntVec places = load_ints(kLanes) ^ splat_bits(distance);
#if defined(__AVX512F__)
  // With a mask of all lanes, since GCC 12 takes what the plain form leaves open for uninitialized.
  return reinterpret_cast<Vec>(
      _mm512_maskz_permutexvar_ps(0xFFFF, reinterpret_cast<__m512i>(places), reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(
      _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(v), reinterpret_cast<__m256i>(places)));
#else
  Vec exchanged;
  for (int i = 0; i < kWidth; ++i) exchanged[i] = v[places[i]];
  return exchanged;
#endif
}

// Stages in order of their distance: the same bits for vectors of any width.
void hadamard(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t here = smaller(kWidth, n - i);
    Vec v = here == kWidth ? load(x + i) : load_part(x + i, here);
    for (int distance = 1; distance < here; distance *= 2) {
      const IntVec upper = (load_ints(kLanes) & splat_bits(distance)) != 0;
      v = exchange(v, distance) + float_of(bits_of(v) ^ (upper & splat_bits(INT32_MIN)));
    }
    if (n <= kWidth) v *= splat(factor);
    here == kWidth ? store(x + i, v) : store_part(x + i, v, here);
  }
  for (int64_t half = kWidth; half < n; half *= 2) {
    const Vec scale = splat(half * 2 == n ? factor : 1.0f);
    for (int64_t begin = 0; begin < n; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; i += kWidth) {
        const Vec a = load(x + i), b = load(x + i + half);
        store(x + i, (a + b) * scale);
        store(x + i + half, (a - b) * scale);
      }
    }
  }
}

Vec load_some(const float* x, int64_t n) { return n >= kWidth ? load(x) : load_part(x, n); }

float largest(const float* x, int64_t n) {
  IntVec found = {};  // bits of magnitudes: those of infinity and NaN are above all others
  for (int64_t i = 0; i < n; i += kWidth) {
    const IntVec bits = bits_of(load_some(x + i, n - i)) & splat_bits(INT32_MAX);
    found = bits > found ? bits : found;
  }
  int32_t bits = 0;
  for (int lane = 0; lane < kWidth; ++lane) bits = found[lane] > bits ? found[lane] : bits;
  float magnitude;
  memcpy(&magnitude, &bits, sizeof magnitude);
  return bits < 0x7F800000 ? magnitude : __builtin_nanf("");
}

float round_i8(int8_t* codes, int32_t* sum, const float* x, int64_t n) {
  const float magnitude = largest(x, n), inverse = 127 / magnitude;
  *sum = 0;
  if (!(inverse <= 0x1.fffffep127F)) {  // NaN, or too small to be told from zero
    for (int64_t i = 0; i < (n + kQuad - 1) / kQuad * kQuad; ++i) codes[i] = 0;
    return magnitude == magnitude ? 0 : magnitude;
  }
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: the rounded integer is left in the low bits
  IntVec total = {};
  for (int64_t i = 0; i < n; i += kWidth) {
    const Vec scaled = load_some(x + i, n - i) * splat(inverse);
    const IntVec rounded = bits_of(scaled + magic) - bits_of(magic);
    total += rounded;
    typedef int8_t Bytes __attribute__((vector_size(kWidth)));
    const Bytes narrow = __builtin_convertvector(rounded, Bytes);
    const int64_t room = (n - i + kQuad - 1) / kQuad * kQuad;
    memcpy(codes + i, &narrow, static_cast<size_t>(smaller(kWidth, room)));
  }
  for (int i = 0; i < kWidth; ++i) *sum += total[i];
  return magnitude / 127;
}

// A row of a tile of floats from each element of a row of quads. Codes become numbers / 2^120: their bits where a float
// has its sign, the last of its exponent and the first of its mantissa.
void widen_quad(float* rows, IntVec quads, int64_t n, Vec range, Vec scale) {
#pragma GCC unroll 4
  for (int element = 0; element < kQuad; ++element) {
    if (element == n) return;
    const IntVec bits = (quads << (24 - 8 * element)) >> 4 & splat_bits(static_cast<int32_t>(0x87F00000));
    store(rows + element * kTile, float_of(bits) * range * scale);
  }
}

void widen_f8(float* tiles, const uint8_t* codes, const uint8_t* scales, int64_t dim) {
  const int64_t quads = (dim + kQuad - 1) / kQuad;
  for (int64_t key = 0; key < kBlock; key += kWidth) {
    const uint8_t* const from = codes + (key / kTile * quads * kTile + key % kTile) * kQuad;
    float* const to = tiles + key / kTile * dim * kTile + key % kTile;
    const Vec range = splat(0x1p120f), scale = float_of(load_ints(scales + key * 4));
    int64_t quad = 0;
    for (; quad < dim / kQuad; ++quad) {
      widen_quad(to + quad * kQuad * kTile, load_ints(from + quad * kTile * kQuad), kQuad, range, scale);
    }
    if (quad == quads) continue;
    widen_quad(to + quad * kQuad * kTile, load_ints(from + quad * kTile * kQuad), dim % kQuad, range, scale);
  }
}

// ---- The largest of many

IntVec order_of(Vec score) {
  const IntVec not_nan = score == score;
  const IntVec bits = bits_of(score + Vec{});  // -0 + 0 = +0
  const IntVec order = bits ^ ((bits >> 31) & splat_bits(INT32_MAX));
  return not_nan ? order : splat_bits(INT32_MAX);
}

#if defined(__AVX512F__)
// Those of v that the mask names, side by side; returns how many. The rest of the 16 places is overwritten too.
int64_t put(int32_t* to, IntVec v, uint32_t mask) {
  const __m512i together = _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), reinterpret_cast<__m512i>(v));
  memcpy(to, &together, sizeof together);
  return __builtin_popcount(mask);
}
uint32_t mask_above(IntVec v, int32_t bound) {
  return _mm512_cmpgt_epi32_mask(reinterpret_cast<__m512i>(v), reinterpret_cast<__m512i>(splat_bits(bound)));
}
uint32_t mask_equal(IntVec v, int32_t bound) {
  return _mm512_cmpeq_epi32_mask(reinterpret_cast<__m512i>(v), reinterpret_cast<__m512i>(splat_bits(bound)));
}
uint32_t first_lanes(int64_t n) { return n >= kWidth ? 0xFFFF : (1u << n) - 1; }
#endif

// Whether none of 64 scores is above; most blocks have none. May say no without need.
bool none_above([[maybe_unused]] const float* scores, [[maybe_unused]] int32_t bound) {
#if defined(__AVX2__)
  const int32_t bits = bound < 0 ? bound ^ INT32_MAX : bound;
  float least;  // NaN for those bounds that are no score's order: no comparison holds
  memcpy(&least, &bits, sizeof least);
  uint32_t above = 0;
  for (int i = 0; i < kBlock; i += kWidth) {
#if defined(__AVX512F__)
    above |= _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i), _mm512_set1_ps(least), _CMP_NLE_UQ);
#else
    above |= static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(scores + i), _mm256_set1_ps(least), _CMP_NLE_UQ)));
#endif
  }
  return above == 0;
#else
  return false;
#endif
}

int64_t append(int32_t* orders, int32_t* rows, int64_t count, const float* scores, int64_t n, int32_t first_row,
               int32_t bound) {
  if (none_above(scores, bound)) return count;
  for (int64_t i = 0; i < n; i += kWidth) {
    const IntVec order = order_of(load(scores + i));
#if defined(__AVX512F__)
    const uint32_t above = mask_above(order, bound) & first_lanes(n - i);
    if (above == 0) continue;
    put(rows + count, load_ints(kLanes) + splat_bits(first_row + static_cast<int32_t>(i)), above);
    count += put(orders + count, order, above);
#else
    for (int lane = 0; lane < smaller(kWidth, n - i); ++lane) {
      orders[count] = order[lane];
      rows[count] = first_row + static_cast<int32_t>(i) + lane;
      count += order[lane] > bound;
    }
#endif
  }
  return count;
}

void range(const int32_t* orders, int64_t n, int32_t* least, int32_t* largest) {
  IntVec low = splat_bits(orders[0]), high = low;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const IntVec v = load_ints(orders + i);
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  *least = low[0];
  *largest = high[0];
  for (int lane = 1; lane < kWidth; ++lane) {
    *least = low[lane] < *least ? low[lane] : *least;
    *largest = high[lane] > *largest ? high[lane] : *largest;
  }
  for (; i < n; ++i) {
    *least = orders[i] < *least ? orders[i] : *least;
    *largest = orders[i] > *largest ? orders[i] : *largest;
  }
}

int64_t count_above(const int32_t* orders, int64_t n, int32_t bound) {
  const IntVec limit = splat_bits(bound);
  IntVec counts[2] = {};
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    counts[0] -= load_ints(orders + i) > limit;
    counts[1] -= load_ints(orders + i + kWidth) > limit;
  }
  int64_t count = 0;
  for (int lane = 0; lane < kWidth; ++lane) count += counts[0][lane] + counts[1][lane];
  for (; i < n; ++i) count += orders[i] > bound;
  return count;
}

int64_t pick(int32_t* picked, const int32_t* orders, int64_t n, int32_t low, int32_t high) {
  int64_t count = 0, i = 0;
#if defined(__AVX512F__)
  for (; i + kWidth <= n; i += kWidth) {
    const IntVec v = load_ints(orders + i);
    count += put(picked + count, v, mask_above(v, low) & ~mask_above(v, high));
  }
#endif
  for (; i < n; ++i) {
    const int32_t order = orders[i];
    picked[count] = order;
    count += order > low && order <= high;
  }
  return count;
}

int64_t keep(int32_t* orders, int32_t* rows, int64_t n, int32_t bound, int64_t n_equal) {
  int64_t count = 0, i = 0;
#if defined(__AVX512F__)
  for (; i + kWidth <= n; i += kWidth) {
    const IntVec v = load_ints(orders + i);
    uint32_t equal = mask_equal(v, bound);
    if (equal != 0) {
      if (n_equal < kWidth) equal = _pdep_u32((1u << n_equal) - 1, equal);  // the first of them
      n_equal -= __builtin_popcount(equal);
    }
    const uint32_t kept = mask_above(v, bound) | equal;
    if (kept == 0) continue;
    put(rows + count, load_ints(rows + i), kept);
    count += put(orders + count, v, kept);
  }
#endif
  for (; i < n; ++i) {
    const int32_t order = orders[i], row = rows[i];
    const bool takes_equal = order == bound && n_equal > 0;
    n_equal -= takes_equal;
    orders[count] = order;
    rows[count] = row;
    count += order > bound || takes_equal;
  }
  return count;
}

}  // namespace

const IndexerKernels indexer_kernels = {hadamard, largest, round_i8,    widen_f8, score_f32, score_i8,
                                        append,   range,   count_above, pick,     keep};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
