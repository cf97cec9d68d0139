// The core of absorbed MLA decoding on Hopper's tensor cores, at DeepSeek-V3's shape:
//   out[t, h] = sum_j softmax_j(scale * q[t, h] . row_j) row_j[0 .. 512], j over rows 0 .. positions[t] of t's sequence
#pragma once

#include "ops/context.h"
#include "ops/device.h"

namespace fathom::cuda {

struct HopperDecode {
  Tensor out;           // [tokens, heads, 512] f32 or bf16
  Tensor q;             // [tokens, heads, 576] bf16: queries in the latent's space, and their rotated part
  DeviceCaches caches;  // bf16 rows of 576, each sequence's and each layer's at a multiple of 16 bytes
  float scale;
};

// False, and nothing done, where this build, device, shape or format has no such kernel: heads come in multiples of 64.
bool mla_decode_hopper(Context& ctx, const HopperDecode& call);

}  // namespace fathom::cuda
