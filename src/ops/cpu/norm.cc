#include "ops/cpu/norm_kernels.h"
#include "ops/cpu/vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

// The squares' sum in the order in which PyTorch sums a row with vectors of this width, products rounded before they
// are added. Norms then have the reference's bits, and where an input of an
// FP8 product lies on the midpoint between two codes it is rounded to the same one.
float sum_of_squares(const float* x, int64_t n) {
  constexpr int kSide = 4, kLevels = 4, kLevelBits = 4;
  Vec level[kLevels][kSide] = {};
  const int64_t groups = n / (kSide * kWidth);
  for (int64_t g = 1; g <= groups; ++g) {
    for (int k = 0; k < kSide; ++k, x += kWidth) level[0][k] += load(x) * load(x);
    // 16 sums become one of the level above, so that rounding errors do not grow with the row.
    for (int l = 1; l < kLevels && g % (int64_t{1} << (kLevelBits * l)) == 0; ++l) {
      for (int k = 0; k < kSide; ++k) {
        level[l][k] += level[l - 1][k];
        level[l - 1][k] = Vec{};
      }
    }
  }
  Vec* total = level[0];
  for (int l = 1; l < kLevels; ++l) {
    for (int k = 0; k < kSide; ++k) total[k] += level[l][k];
  }
  n -= groups * kSide * kWidth;
  for (; n >= kWidth; n -= kWidth, x += kWidth) total[0] += load(x) * load(x);
  for (int k = 1; k < kSide; ++k) total[0] += total[k];
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  float lanes[kWidth];
  store(lanes, total[0]);
  for (const float lane : lanes) sum += lane;
  return sum;
}

float rms_norm(float* y, const float* x, const float* w, int64_t n, float eps) {
  const float squares = sum_of_squares(x, n);
  // An overflow must not make zeros of the row.
  const float inv_rms =
      squares <= __FLT_MAX__ ? 1.0f / sqrtf(squares / static_cast<float>(n) + eps) : __builtin_nanf("");
  const Vec r = splat(inv_rms);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, load(x + i) * r * load(w + i));
  if (i < n) store_part(y + i, load_part(x + i, n - i) * r * load_part(w + i, n - i), n - i);
  return inv_rms;
}

float dot3(const float* a, const float* b, const float* c, int64_t n) {
  Vec s0 = {}, s1 = {};
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    s0 += load(a + i) * load(b + i) * load(c + i);
    s1 += load(a + i + kWidth) * load(b + i + kWidth) * load(c + i + kWidth);
  }
  for (; i + kWidth <= n; i += kWidth) s0 += load(a + i) * load(b + i) * load(c + i);
  if (i < n) s1 += load_part(a + i, n - i) * load_part(b + i, n - i) * load_part(c + i, n - i);
  return sum(s0 + s1);
}

void rms_norm_backward_input(float* dx, const float* dy, const float* x, const float* w, float inv_rms, int64_t n,
                             bool accumulate) {
  const Vec r = splat(inv_rms);
  const Vec along = splat(dot3(w, dy, x, n) / static_cast<float>(n) * inv_rms * inv_rms);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Vec d = r * (load(w + i) * load(dy + i) - load(x + i) * along);
    store(dx + i, accumulate ? load(dx + i) + d : d);
  }
  if (const int64_t rest = n - i; rest > 0) {
    const Vec d = r * (load_part(w + i, rest) * load_part(dy + i, rest) - load_part(x + i, rest) * along);
    store_part(dx + i, accumulate ? load_part(dx + i, rest) + d : d, rest);
  }
}

void rms_norm_backward_weight(float* dw, const float* dy, const float* x, float inv_rms, int64_t n) {
  const Vec r = splat(inv_rms);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(dw + i, load(dw + i) + load(dy + i) * (load(x + i) * r));
  if (const int64_t rest = n - i; rest > 0) {
    store_part(dw + i, load_part(dw + i, rest) + load_part(dy + i, rest) * (load_part(x + i, rest) * r), rest);
  }
}

}  // namespace

const NormKernels norm_kernels = {rms_norm, rms_norm_backward_input, rms_norm_backward_weight};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
