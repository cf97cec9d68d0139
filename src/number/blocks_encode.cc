// Encoders for GGUF's block formats by weighted least squares. Numbers that share a scale try several; the codes that
// one gives have a best scale in closed form. Where scales are small integers with a scale of their own, the integers
// are chosen by the error that they leave, and the common scale is fitted to them once more.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "number/blocks.h"
#include "number/formats.h"

namespace fathom {
namespace {

// Where the search looks. Much more finds little: twice the steps lower the root mean square error by under 1%.
struct Steps {
  int n;
  float begin, end;  // the largest number's code is by this part less or more than the last code that there is
  float operator[](int k) const {
    return 1 + begin + (end - begin) * static_cast<float>(k) / static_cast<float>(n - 1);
  }
};
// Importance makes it worth while to cut large numbers that have little of it.
struct Search {
  Steps scales, scales_with_mins;
};
constexpr Search kEqualWeights = {{8, -0.16f, 0.12f}, {12, -0.1f, 0.065f}};
constexpr Search kImportance = {{16, -0.16f, 0.44f}, {16, -0.1f, 0.4f}};
constexpr int kRefits = 2;       // after the search: codes from the best scale, scale from the codes
constexpr int kBlockRefits = 2;  // of the scale that integer scales share
constexpr int kScaleBox = 2;     // integers tried on either side of the nearest one
constexpr int kMinBox = 1;       // the same for pairs of scale and min

constexpr float kF16Max = 65504;
constexpr float kF16Tiny = 0x1p-24f;
constexpr float kNothing = kF16Tiny / 2;  // numbers below it are nearest to zero in every format
constexpr float kMuch = 3e38f;

// Four runs of numbers side by side: one vector on every machine.
typedef float Vec __attribute__((vector_size(16)));
constexpr int kRuns = 4;

inline Vec splat(float x) { return Vec{x, x, x, x}; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec clamp(Vec x, Vec low, Vec high) { return min(max(x, low), high); }
inline float sum(Vec v) { return (v[0] + v[1]) + (v[2] + v[3]); }
inline float max_of(Vec v) { return std::max(std::max(v[0], v[1]), std::max(v[2], v[3])); }
// To the nearest integer, ties to even, for |x| < 2^22: the sum has no bits left for a fraction.
inline Vec nearest(Vec x) { return x + splat(0x1.8p23f) - splat(0x1.8p23f); }
inline Vec inverse_or_zero(Vec x) { return max(x, -x) > 0x1p-126f ? 1 / x : splat(0); }
inline float inverse_or_zero(float x) { return inverse_or_zero(splat(x))[0]; }

template <int N>
struct Runs {
  Vec x[N], w[N];  // w: weights of squared errors
};

// Numbers beyond what the largest scale reaches are cut to `bound`, so that their squares stay finite. Weights are made
// relative to the largest; none is zero, for the activations of another text may differ.
template <int N>
void gather(Runs<N>& runs, int run, const float* in, const float* importance, int at, float max_importance,
            float bound) {
  constexpr float kLeastWeight = 1e-5f;
  for (int i = 0; i < N; ++i) {
    runs.x[i][run] = std::min(std::max(in[at + i], -bound), bound);
    runs.w[i][run] = max_importance > 0 ? importance[at + i] / max_importance + kLeastWeight : 1;
  }
}

const Search& search_for(const float* importance) { return importance != nullptr ? kImportance : kEqualWeights; }

float max_importance_of(const float* importance, int n) {
  return importance != nullptr ? *std::max_element(importance, importance + n) : 0;
}

// As f16 holds it: cut at the largest, and what is not zero stays so.
float f16_scale(float x) {
  const float magnitude = std::min(std::max(std::fabs(x), x == 0 ? 0 : kF16Tiny), kF16Max);
  return f16_to_f32(f32_to_f16(std::copysign(magnitude, x)));
}

// The same, no nearer to zero than x: for scales of integers that have a largest value.
float f16_scale_reaching(float x) {
  const float d = f16_scale(x);
  if (std::fabs(d) >= std::min(std::fabs(x), kF16Max)) return d;
  return f16_to_f32(static_cast<uint16_t>(f32_to_f16(d) + 1));
}

// ---- Scales alone: q4_0, q5_0, q6_k. Codes are -half .. half - 1.

inline Vec code(Vec x, Vec inverse, float half) { return nearest(clamp(x * inverse, splat(-half), splat(half - 1))); }

struct ScaleFit {
  Vec scale, gain;  // gain: how much less than that of all zeros the squared error is
};

template <int N>
void try_scale(ScaleFit& best, const Runs<N>& runs, float half, Vec inverse) {
  Vec qx = {}, qq = {};
  for (int i = 0; i < N; ++i) {
    const Vec q = code(runs.x[i], inverse, half);
    const Vec wq = runs.w[i] * q;
    qx += wq * runs.x[i];
    qq += wq * q;
  }
  const Vec scale = qx * inverse_or_zero(qq);
  const Vec gain = scale * qx;
  best.scale = gain > best.gain ? scale : best.scale;
  best.gain = max(gain, best.gain);
}

template <int N>
Vec fit_scales(const Runs<N>& runs, float half, const Steps& steps) {
  Vec low = {}, high = {};
  for (int i = 0; i < N; ++i) {
    low = min(low, runs.x[i]);
    high = max(high, runs.x[i]);
  }
  const Vec extreme = -low > high ? low : high;
  const Vec unit = max(-low, high) >= kNothing ? inverse_or_zero(extreme) : splat(0);
  ScaleFit best = {};
  for (int k = 0; k < steps.n; ++k) {
    try_scale(best, runs, half, unit * -half * steps[k]);
    try_scale(best, runs, half, unit * (half - 1) * steps[k]);
  }
  for (int k = 0; k < kRefits; ++k) try_scale(best, runs, half, inverse_or_zero(best.scale));
  return best.scale;
}

void pack(BlockQ4_0& block, const uint8_t (&q)[32]) {
  for (int i = 0; i < 16; ++i) block.q[i] = static_cast<uint8_t>(q[i] | q[i + 16] << 4);
}

void pack(BlockQ5_0& block, const uint8_t (&q)[32]) {
  for (int i = 0; i < 16; ++i) block.q[i] = static_cast<uint8_t>((q[i] & 15) | q[i + 16] << 4);
  for (int i = 0; i < 32; ++i) block.high[i / 8] = static_cast<uint8_t>(block.high[i / 8] | q[i] >> 4 << i % 8);
}

template <class Block>
void encode_four(Block* blocks, const Runs<32>& runs, float half, const Steps& steps) {
  Vec d = fit_scales(runs, half, steps);
  for (int l = 0; l < kRuns; ++l) d[l] = f16_scale(d[l]);
  const Vec inverse = inverse_or_zero(d);
  uint8_t q[kRuns][32];
  for (int i = 0; i < 32; ++i) {
    const Vec codes = code(runs.x[i], inverse, half) + half;
    for (int l = 0; l < kRuns; ++l) q[l][i] = static_cast<uint8_t>(codes[l]);
  }
  for (int l = 0; l < kRuns; ++l) {
    blocks[l] = {.d = f32_to_f16(d[l])};
    pack(blocks[l], q[l]);
  }
}

// As the reference does: d = amax / 127, halves away from zero; but no d beyond f16.
BlockQ8_0 encode_q8_0(const float* in) {
  float amax = 0;
  for (int i = 0; i < 32; ++i) amax = std::max(amax, std::fabs(in[i]));
  const float d = std::min(amax / 127, kF16Max);
  const float twice_inverse = d > 0x1p-126f ? 1 / d * 2 : 0;
  BlockQ8_0 block = {.d = f32_to_f16(d)};
  for (int i = 0; i < 32; ++i) {
    // Rounded in integers: no compiler fuses that with the product.
    const auto twice = static_cast<int>(std::min(std::max(in[i] * twice_inverse, -254.0f), 254.0f));
    block.q[i] = static_cast<int8_t>((twice + (twice < 0 ? -1 : 1)) / 2);
  }
  return block;
}

// q6_k: sixteen runs, their scales integers times d.
struct IntegerScales {
  float d;
  Vec scale[4];
  float error, qx, qq;  // of all; sums with q = scale * code, for the next d
};

// Integers near scale / d.
IntegerScales choose_scales(const Runs<16> (&runs)[4], float d, const Vec (&scale)[4]) {
  IntegerScales chosen = {.d = d};
  const float inverse_d = inverse_or_zero(d);
  for (int g = 0; g < 4; ++g) {
    const Vec middle = nearest(clamp(scale[g] * inverse_d, splat(-128), splat(127)));
    Vec best_error = splat(kMuch), best_qx = {}, best_qq = {};
    for (int k = -kScaleBox; k <= kScaleBox; ++k) {
      const Vec integer = clamp(middle + static_cast<float>(k), splat(-128), splat(127));
      const Vec s = integer * d, inverse = inverse_or_zero(s);
      Vec error = {}, qx = {}, qq = {};
      for (int i = 0; i < 16; ++i) {
        const Vec q = code(runs[g].x[i], inverse, 32), wq = runs[g].w[i] * q;
        const Vec e = runs[g].x[i] - s * q;
        error += runs[g].w[i] * e * e;
        qx += wq * runs[g].x[i];
        qq += wq * q;
      }
      const auto better = error < best_error;
      chosen.scale[g] = better ? integer : chosen.scale[g];
      best_qx = better ? qx * integer : best_qx;
      best_qq = better ? qq * integer * integer : best_qq;
      best_error = better ? error : best_error;
    }
    chosen.error += sum(best_error);
    chosen.qx += sum(best_qx);
    chosen.qq += sum(best_qq);
  }
  return chosen;
}

BlockQ6K encode_q6_k(const float* in, const float* importance) {
  Runs<16> runs[4];
  const float max_importance = max_importance_of(importance, 256);
  for (int r = 0; r < 16; ++r) gather(runs[r / 4], r % 4, in, importance, r * 16, max_importance, kF16Max * 128 * 32);
  Vec scale[4];
  float extreme = 0;
  for (int g = 0; g < 4; ++g) {
    scale[g] = fit_scales(runs[g], 32, search_for(importance).scales);
    for (int l = 0; l < kRuns; ++l) {
      if (std::fabs(scale[g][l]) > std::fabs(extreme)) extreme = scale[g][l];
    }
  }
  IntegerScales best = choose_scales(runs, f16_scale_reaching(extreme / -128), scale);
  for (int k = 0; k < kBlockRefits && best.qq > 0; ++k) {
    for (int g = 0; g < 4; ++g) scale[g] = best.scale[g] * best.d;
    const IntegerScales next = choose_scales(runs, f16_scale(best.qx / best.qq), scale);
    if (!(next.error < best.error)) break;
    best = next;
  }
  BlockQ6K block = {.d = f32_to_f16(best.d)};
  for (int g = 0; g < 4; ++g) {
    const Vec inverse = inverse_or_zero(best.scale[g] * best.d);
    for (int l = 0; l < kRuns; ++l) block.scales[g * 4 + l] = static_cast<int8_t>(best.scale[g][l]);
    for (int i = 0; i < 16; ++i) {
      const Vec codes = code(runs[g].x[i], inverse, 32) + 32;
      for (int l = 0; l < kRuns; ++l) {
        const int half = g / 2, at = g % 2 * 64 + l * 16 + i, q = static_cast<int>(codes[l]);
        uint8_t& low = block.low[half * 64 + at % 64];
        uint8_t& high = block.high[half * 32 + at % 32];
        low = static_cast<uint8_t>(low | (q & 15) << at / 64 * 4);
        high = static_cast<uint8_t>(high | q >> 4 << at / 32 * 2);
      }
    }
  }
  return block;
}

// ---- Scales and mins: q4_k, q5_k. Codes are 0 .. top, x = scale * code - min; a min is taken off, never added.

struct MinFit {
  Vec scale, min, error;
};

// Codes of x * inverse + offset, x counted from `low` <= 0.
void try_scale_and_min(MinFit& best, const Runs<32>& runs, Vec low, float top, Vec inverse, Vec offset) {
  Vec w = {}, wq = {}, wx = {}, qq = {}, qx = {}, xx = {};
  for (int i = 0; i < 32; ++i) {
    const Vec x = runs.x[i] - low;
    const Vec q = nearest(clamp(x * inverse + offset, splat(0), splat(top)));
    const Vec w_q = runs.w[i] * q, w_x = runs.w[i] * x;
    w += runs.w[i];
    wq += w_q;
    wx += w_x;
    qq += w_q * q;
    qx += w_x * q;
    xx += w_x * x;
  }
  // x = scale * code + c: both by least squares, or the scale alone where c would add a min, and where codes are all
  // but equal.
  const Vec determinant = w * qq - wq * wq;
  const Vec slope = (w * qx - wx * wq) * inverse_or_zero(determinant);
  const Vec free = (wx - slope * wq) / w;
  const auto solved = determinant > 1e-4f * w * qq;
  const Vec c = min(solved ? free : splat(0), -low);
  const Vec scale = (solved & (free <= -low)) ? slope : (qx - c * wq) * inverse_or_zero(qq);
  const Vec error = xx + scale * (scale * qq + 2 * (c * wq - qx)) + c * (c * w - 2 * wx);
  const auto better = (scale >= 0) & (error < best.error);
  best.scale = better ? scale : best.scale;
  best.min = better ? -(low + c) : best.min;
  best.error = better ? error : best.error;
}

MinFit fit_scales_and_mins(const Runs<32>& runs, float top, const Steps& steps) {
  Vec low = {}, high = runs.x[0];
  for (int i = 0; i < 32; ++i) {
    low = min(low, runs.x[i]);
    high = max(high, runs.x[i]);
  }
  const Vec span = high - low;
  const Vec unit = span >= kNothing ? inverse_or_zero(span) : splat(0);
  MinFit best = {.scale = span / top, .min = -low, .error = splat(kMuch)};
  for (int k = 0; k < steps.n; ++k) try_scale_and_min(best, runs, low, top, unit * top * steps[k], splat(0));
  for (int k = 0; k < kRefits; ++k) {
    const Vec inverse = inverse_or_zero(best.scale);
    try_scale_and_min(best, runs, low, top, inverse, (best.min + low) * inverse);
  }
  return best;
}

// A block's eight runs in two groups, their scales and mins integers times d and dmin.
struct IntegerMins {
  float d, dmin;
  Vec scale[2], min[2], error[2];
  float total_error() const { return sum(error[0] + error[1]); }
};

IntegerMins choose_scales_and_mins(const Runs<32> (&runs)[2], float top, float d, float dmin, const Vec (&scale)[2],
                                   const Vec (&min)[2]) {
  constexpr int kSide = 2 * kMinBox + 1;
  IntegerMins chosen = {.d = d, .dmin = dmin, .error = {splat(kMuch), splat(kMuch)}};
  const float inverse_d = inverse_or_zero(d), inverse_dmin = inverse_or_zero(dmin);
  for (int g = 0; g < 2; ++g) {
    const Vec middle_scale = nearest(clamp(scale[g] * inverse_d, splat(0), splat(63)));
    const Vec middle_min = nearest(clamp(min[g] * inverse_dmin, splat(0), splat(63)));
    for (int k = 0; k < kSide * kSide; ++k) {
      const int scale_step = k / kSide - kMinBox, min_step = k % kSide - kMinBox;
      const Vec integer_scale = clamp(middle_scale + static_cast<float>(scale_step), splat(0), splat(63));
      const Vec integer_min = clamp(middle_min + static_cast<float>(min_step), splat(0), splat(63));
      const Vec s = integer_scale * d, m = integer_min * dmin, inverse = inverse_or_zero(s);
      Vec error = {};
      for (int i = 0; i < 32; ++i) {
        const Vec x = runs[g].x[i] + m;
        const Vec e = x - s * nearest(clamp(x * inverse, splat(0), splat(top)));
        error += runs[g].w[i] * e * e;
      }
      const auto better = error < chosen.error[g];
      chosen.scale[g] = better ? integer_scale : chosen.scale[g];
      chosen.min[g] = better ? integer_min : chosen.min[g];
      chosen.error[g] = better ? error : chosen.error[g];
    }
  }
  return chosen;
}

// Least squares for d and dmin, the integers and codes given; false where they have no one solution.
bool refit(float& d, float& dmin, const Runs<32> (&runs)[2], float top, const IntegerMins& at) {
  Vec uu = {}, uv = {}, vv = {}, ux = {}, vx = {};  // x = d * u - dmin * v
  for (int g = 0; g < 2; ++g) {
    const Vec v = at.min[g], m = v * at.dmin, inverse = inverse_or_zero(at.scale[g] * at.d);
    for (int i = 0; i < 32; ++i) {
      const Vec x = runs[g].x[i], w = runs[g].w[i];
      const Vec u = at.scale[g] * nearest(clamp((x + m) * inverse, splat(0), splat(top)));
      uu += w * u * u;
      uv += w * u * v;
      vv += w * v * v;
      ux += w * u * x;
      vx += w * v * x;
    }
  }
  const double a = sum(uu), b = sum(uv), c = sum(vv), x = sum(ux), y = sum(vx);
  if (c == 0) {
    if (a == 0) return false;
    d = f16_scale(static_cast<float>(x / a));
    return d > 0;
  }
  const double determinant = a * c - b * b;
  if (!(determinant > 1e-5 * a * c)) return false;
  d = f16_scale(static_cast<float>((x * c - b * y) / determinant));
  dmin = f16_scale(static_cast<float>((x * b - a * y) / determinant));
  return d > 0 && dmin >= 0;
}

IntegerMins fit_block(const Runs<32> (&runs)[2], float top, const Steps& steps) {
  Vec scale[2], min[2];
  for (int g = 0; g < 2; ++g) {
    const MinFit fit = fit_scales_and_mins(runs[g], top, steps);
    scale[g] = fit.scale;
    min[g] = fit.min;
  }
  float d = f16_scale_reaching(max_of(max(scale[0], scale[1])) / 63);
  float dmin = f16_scale_reaching(max_of(max(min[0], min[1])) / 63);
  IntegerMins best = choose_scales_and_mins(runs, top, d, dmin, scale, min);
  for (int k = 0; k < kBlockRefits && refit(d, dmin, runs, top, best); ++k) {
    for (int g = 0; g < 2; ++g) {
      scale[g] = best.scale[g] * best.d;
      min[g] = best.min[g] * best.dmin;
    }
    const IntegerMins next = choose_scales_and_mins(runs, top, d, dmin, scale, min);
    if (!(next.total_error() < best.total_error())) break;
    best = next;
  }
  return best;
}

// The inverse of scale_and_min.
void pack_scales_and_mins(uint8_t (&scales)[12], const IntegerMins& chosen) {
  for (int j = 0; j < 4; ++j) {
    const auto scale = static_cast<int>(chosen.scale[0][j]), scale_4 = static_cast<int>(chosen.scale[1][j]);
    const auto min = static_cast<int>(chosen.min[0][j]), min_4 = static_cast<int>(chosen.min[1][j]);
    scales[j] = static_cast<uint8_t>(scale | scale_4 >> 4 << 6);
    scales[j + 4] = static_cast<uint8_t>(min | min_4 >> 4 << 6);
    scales[j + 8] = static_cast<uint8_t>((scale_4 & 15) | (min_4 & 15) << 4);
  }
}

void pack(BlockQ4K& block, const uint8_t (&q)[8][32]) {
  for (int i = 0; i < 128; ++i)
    block.q[i] = static_cast<uint8_t>(q[i / 32 * 2][i % 32] | q[i / 32 * 2 + 1][i % 32] << 4);
}

void pack(BlockQ5K& block, const uint8_t (&q)[8][32]) {
  for (int i = 0; i < 128; ++i)
    block.q[i] = static_cast<uint8_t>((q[i / 32 * 2][i % 32] & 15) | q[i / 32 * 2 + 1][i % 32] << 4);
  for (int s = 0; s < 8; ++s) {
    for (int i = 0; i < 32; ++i) block.high[i] = static_cast<uint8_t>(block.high[i] | q[s][i] >> 4 << s);
  }
}

template <class Block>
Block encode_k(const float* in, float top, const float* importance) {
  Runs<32> runs[2];
  const float max_importance = max_importance_of(importance, 256);
  for (int s = 0; s < 8; ++s) gather(runs[s / 4], s % 4, in, importance, s * 32, max_importance, kF16Max * 63 * top);
  const IntegerMins chosen = fit_block(runs, top, search_for(importance).scales_with_mins);
  Block block = {.d = f32_to_f16(chosen.d), .dmin = f32_to_f16(chosen.dmin)};
  pack_scales_and_mins(block.scales, chosen);
  uint8_t q[8][32];
  for (int g = 0; g < 2; ++g) {
    const Vec m = chosen.min[g] * chosen.dmin, inverse = inverse_or_zero(chosen.scale[g] * chosen.d);
    for (int i = 0; i < 32; ++i) {
      const Vec codes = nearest(clamp((runs[g].x[i] + m) * inverse, splat(0), splat(top)));
      for (int l = 0; l < kRuns; ++l) q[g * 4 + l][i] = static_cast<uint8_t>(codes[l]);
    }
  }
  pack(block, q);
  return block;
}

template <class Block>
void store(std::byte* out, int64_t at, const Block& block) {
  std::memcpy(out + at * static_cast<int64_t>(sizeof block), &block, sizeof block);
}

}  // namespace

void encode_blocks(void* out, const float* in, Format format, int64_t rows, int64_t cols, const float* importance) {
  const int64_t size = format_traits(format).block, n = rows * cols / size;
  FATHOM_CHECK(cols % size == 0);
  auto* to = static_cast<std::byte*>(out);
  const auto weights = [&](int64_t b) { return importance != nullptr ? importance + b * size % cols : nullptr; };
  const auto four_at_once = [&]<class Block>(Block, float half) {
    for (int64_t first = 0; first < n; first += kRuns) {
      const int64_t count = std::min<int64_t>(kRuns, n - first);
      Runs<32> runs = {};
      for (int64_t b = first; b < first + count; ++b) {
        gather(runs, static_cast<int>(b - first), in + b * size, weights(b), 0, max_importance_of(weights(b), 32),
               kF16Max * half);
      }
      Block blocks[kRuns];
      encode_four(blocks, runs, half, search_for(importance).scales);
      for (int64_t b = first; b < first + count; ++b) store(to, b, blocks[b - first]);
    }
  };
  const auto one_by_one = [&](const auto& encode) {
    for (int64_t b = 0; b < n; ++b) store(to, b, encode(b));
  };
  switch (format) {
    case Format::q8_0:
      return one_by_one([&](int64_t b) { return encode_q8_0(in + b * size); });
    case Format::q4_0:
      return four_at_once(BlockQ4_0{}, 8);
    case Format::q5_0:
      return four_at_once(BlockQ5_0{}, 16);
    case Format::q4_k:
      return one_by_one([&](int64_t b) { return encode_k<BlockQ4K>(in + b * size, 15, weights(b)); });
    case Format::q5_k:
      return one_by_one([&](int64_t b) { return encode_k<BlockQ5K>(in + b * size, 31, weights(b)); });
    case Format::q6_k:
      return one_by_one([&](int64_t b) { return encode_q6_k(in + b * size, weights(b)); });
    default:
      break;
  }
  FATHOM_CHECK(false, "format {} has no blocks", format_traits(format).name);
}

}  // namespace fathom
