#include "ops/cpu/rounding_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

IntVec bits_of(Vec v) { return reinterpret_cast<IntVec>(v); }
Vec float_of(IntVec v) { return reinterpret_cast<Vec>(v); }
IntVec splat_bits(int32_t x) { return x - IntVec{}; }
Vec magnitude(Vec v) { return float_of(bits_of(v) & splat_bits(0x7FFFFFFF)); }

// To so many bits less; what carries goes into the exponent. NaN stays NaN.
Vec drop_bits(Vec v, int n) {
  const IntVec bits = bits_of(v), odd = (bits >> n) & 1;
  const IntVec rounded = (bits + splat_bits((1 << (n - 1)) - 1) + odd) & splat_bits(-(1 << n));
  return v == v ? float_of(rounded) : v;
}

Vec nearest(Vec v, const FloatGrid& grid) {
  const Vec shift = splat(grid.subnormal_shift), largest = splat(grid.largest);
  const Vec normal = drop_bits(v, grid.dropped_bits), subnormal = (v + shift) - shift;
  Vec rounded = magnitude(v) < splat(grid.least_normal) ? subnormal : normal;
  rounded = magnitude(rounded) > largest ? largest : magnitude(rounded);
  return float_of(bits_of(rounded) | (bits_of(v) & splat_bits(INT32_MIN)));
}

void bf16(float* out, const float* in, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, drop_bits(load(in + i), 16));
  if (i < n) store_part(out + i, drop_bits(load_part(in + i, n - i), 16), n - i);
}

float largest(const float* in, int64_t n) {
  Vec found = {};
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) found = max(magnitude(load(in + i)), found);
  if (i < n) found = max(magnitude(load_part(in + i, n - i)), found);
  return max_of(found);
}

void scaled(float* out, const float* in, int64_t n, float scale, const FloatGrid& given) {
  const FloatGrid grid = given;
  const Vec s = splat(scale);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, s * nearest(load(in + i) / s, grid));
  if (i < n) store_part(out + i, s * nearest(load_part(in + i, n - i) / s, grid), n - i);
}

Vec tile_scales(Vec largest, bool power_of_two, const FloatGrid& grid) {
  const Vec scale = max(largest / splat(grid.largest), splat(0x1p-126F));
  const IntVec up = (bits_of(scale) + splat_bits(0x7FFFFF)) & splat_bits(0x7F800000);
  return power_of_two ? float_of(up) : scale;
}

void columns(float* out, int64_t out_stride, const float* in, int64_t in_stride, int64_t rows, int64_t cols,
             bool power_of_two, const FloatGrid& given) {
  const FloatGrid grid = given;
  for (int64_t c = 0; c < cols; c += kWidth) {
    const int64_t n = cols - c < kWidth ? cols - c : kWidth;
    const auto row = [&](int64_t r) {
      const float* at = in + r * in_stride + c;
      return n == kWidth ? load(at) : load_part(at, n);
    };
    Vec found = {};
    for (int64_t r = 0; r < rows; ++r) found = max(magnitude(row(r)), found);
    const Vec scale = tile_scales(found, power_of_two, grid);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec rounded = scale * nearest(row(r) / scale, grid);
      float* at = out + r * out_stride + c;
      n == kWidth ? store(at, rounded) : store_part(at, rounded, n);
    }
  }
}

}  // namespace

const RoundingKernels rounding_kernels = {bf16, largest, scaled, columns};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
