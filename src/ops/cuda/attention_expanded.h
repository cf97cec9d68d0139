// Expanded attention: what its kernels are given, in f32 (attention_expanded.cu) and on tensor cores
// (attention_training_bf16.cu).
#pragma once

#include "ops/cuda/kernel.h"

namespace fathom::cuda {

struct Expanded {
  float* o;
  const float* q;
  const float* kv;
  const float* k_rope;
  float* lse;  // or null
  const int32_t* seq_offsets;
  int64_t o_stride, q_stride, kv_stride, k_rope_stride, lse_stride;
  int tokens, n_sequences, nope, rope, v;
  float scale;
};

// With products in bf16.
void attention_expanded_bf16(Context& ctx, const Expanded& call, int64_t n_heads);

}  // namespace fathom::cuda
