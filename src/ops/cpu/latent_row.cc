#include "ops/cpu/latent_row_kernels.h"
#include "ops/cpu/panel_vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {
namespace {

constexpr int64_t kFloats = 8;  // of a vector

// n numbers, whose codes have kBytes; `widen` makes a vector of them.
template <int64_t kBytes, class Widen>
inline void widen_all(float* out, const uint8_t* in, int64_t n, const Widen& widen) {
  int64_t i = 0;
  for (; i + kFloats <= n; i += kFloats) store_as(out + i, widen(in + i * kBytes));
  if (i == n) return;
  uint8_t last[kFloats * kBytes] = {};
  memcpy(last, in + i * kBytes, static_cast<size_t>((n - i) * kBytes));
  const Floats numbers = widen(last);
  memcpy(out + i, &numbers, static_cast<size_t>(n - i) * sizeof(float));
}

void widen_bf16(float* out, const uint8_t* in, int64_t n) {
  widen_all<2>(out, in, n, [](const uint8_t* codes) { return from_bf16(codes); });
}

void widen_f16(float* out, const uint8_t* in, int64_t n) {
  widen_all<2>(out, in, n, [](const uint8_t* codes) { return from_f16(codes); });
}

void widen_f8(float* out, const uint8_t* in, float scale, int64_t n) {
  const Floats range = splat_float(0x1p120f), factor = splat_float(scale);
  widen_all<1>(out, in, n, [=](const uint8_t* codes) { return from_f8_bits(codes) * range * factor; });
}

void widen_q8_0(float* out, const uint8_t* in, int64_t n) {
  constexpr int64_t kBlock = 32, kScaleBytes = 2;
  for (; n > 0; n -= kBlock, out += kBlock, in += kScaleBytes + kBlock) {
    const Floats factor = splat_float(from_f16_one(in));
    widen_all<1>(out, in + kScaleBytes, n < kBlock ? n : kBlock,
                 [factor](const uint8_t* codes) { return from_i8(codes) * factor; });
  }
}

}  // namespace

const LatentRowKernels latent_row_kernels = {widen_bf16, widen_f16, widen_f8, widen_q8_0};

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
