// Rows of linear layers in 8 bits: numbers as on the CPU (ops/cpu/panel_kernels.h) in another order. With blocks of 256
// columns the order is the same; of 32 columns each block has kBlock32 bytes: the codes' words in the order 0, 4, 1, 5,
// 2, 6, 3, 7, so that the two that a lane of a product wants lie together; the scale; minus 8 times the codes' sum, an
// i32.
#pragma once

#include <math.h>

#include "ops/cuda/kernel.h"
#include "ops/cuda/linear_call.h"

namespace fathom::cuda {

__device__ __forceinline__ int rounded(float x, float inverse) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return __float_as_int(fmaf(x, inverse, kMagic)) - __float_as_int(kMagic);
}
__device__ __forceinline__ float inverse_of(float amax) { return amax > 1e-30f ? 127 / amax : 0; }

// Eight neighbouring lanes have a block, four columns each: x of columns k .. k + 3 of the row. All lanes of a warp
// call it; where not `there`, nothing is written.
__device__ __forceinline__ void quantize_four(uint8_t* row, int k, float4 x, bool there) {
  float amax = fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
#pragma unroll
  for (int d = 1; d < 8; d *= 2) amax = fmaxf(amax, __shfl_xor_sync(kAllLanes, amax, d));
  const float inverse = inverse_of(amax);
  const int codes[4] = {rounded(x.x, inverse), rounded(x.y, inverse), rounded(x.z, inverse), rounded(x.w, inverse)};
  int sum = codes[0] + codes[1] + codes[2] + codes[3];
#pragma unroll
  for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(kAllLanes, sum, d);
  if (!there) return;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= (static_cast<uint32_t>(codes[i]) & 255) << 8 * i;
  uint8_t* block = row + k / 32 * kBlock32;
  const int place = k % 32 / 4;
  reinterpret_cast<uint32_t*>(block)[place % 4 * 2 + place / 4] = word;
  if (place != 0) return;
  reinterpret_cast<float*>(block)[8] = amax / 127;
  reinterpret_cast<int*>(block)[9] = -8 * sum;
}

}  // namespace fathom::cuda
