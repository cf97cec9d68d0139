// Rows of activations as products with panels take them (panel_kernels.h): codes of 8 bits with a scale for each block.
#pragma once

#include "ops/cpu/panel_kernels.h"
#include "ops/cpu/panel_vec.h"

namespace fathom::cpu::FATHOM_ISA_NAMESPACE {

// Codes of n numbers (a multiple of 32) and the scale; sums[i] of 16 codes each.
static inline float quantize(int8_t* codes, const float* x, int n, int16_t* sums) {
  Floats largest = {};
  for (int i = 0; i < n; i += 8) {
    largest = larger(as<Floats>(load_as<Ints>(x + i) & 0x7FFFFFFF), largest);
  }
  typedef float Half __attribute__((vector_size(16)));
  Half halves[2];
  memcpy(halves, &largest, sizeof largest);
  const Half half = halves[0] > halves[1] ? halves[0] : halves[1];
  float amax = 0;
  for (int i = 0; i < 4; ++i) amax = half[i] > amax ? half[i] : amax;
  // Below that the inverse is no number; such activations are nothing.
  const float inverse = amax > 1e-30f ? 127 / amax : 0;
  const Floats factor = splat_float(inverse), magic = splat_float(12582912.0f);  // 1.5 * 2^23: rounds to an integer
  for (int i = 0; i < n; i += 32) {
    Ints rounded[4];
    for (int j = 0; j < 4; ++j) {
      rounded[j] = as<Ints>(multiply_add(load_as<Floats>(x + i + j * 8), factor, magic)) - as<Ints>(magic);
    }
    store_codes(codes + i, sums + i / 16, rounded);
  }
  return amax / 127;
}

static inline void quantize_32(uint8_t* out, const float* x, int64_t cols) {
  auto* codes = reinterpret_cast<int8_t*>(out);
  auto* scales = reinterpret_cast<float*>(out + cols);
  auto* offsets = reinterpret_cast<uint32_t*>(scales + cols / 32);
  for (int64_t b = 0; b < cols / 32; ++b) {
    int16_t sums[2];
    scales[b] = quantize(codes + b * 32, x + b * 32, 32, sums);
    offsets[b] = static_cast<uint16_t>(-8 * (sums[0] + sums[1]));
  }
}

static inline void quantize_256(uint8_t* out, const float* x, int64_t cols) {
  auto* codes = reinterpret_cast<int8_t*>(out);
  auto* scales = reinterpret_cast<float*>(out + cols);
  auto* sums_32 = reinterpret_cast<int16_t*>(scales + cols / 256);
  int16_t* sums_16 = sums_32 + cols / 32;
  for (int64_t b = 0; b < cols / 256; ++b) {
    scales[b] = quantize(codes + b * 256, x + b * 256, 256, sums_16 + b * 16);
    for (int64_t s = b * 8; s < b * 8 + 8; ++s) {
      sums_32[s] = static_cast<int16_t>(sums_16[2 * s] + sums_16[2 * s + 1]);
    }
  }
}

static inline void lift_f8(uint8_t* out, const float* x, int64_t cols) {
  for (int64_t k = 0; k < cols; ++k) reinterpret_cast<float*>(out)[k] = x[k] * kF8Lift;
}

}  // namespace fathom::cpu::FATHOM_ISA_NAMESPACE
