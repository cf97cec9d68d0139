// The backward pass of expanded attention: what its sweeps are given, in f32 (attention_backward.cu) and on tensor
// cores (attention_training_bf16.cu).
#pragma once

#include "ops/cuda/kernel.h"

namespace fathom::cuda {

inline constexpr int kBackwardTile = 64;  // queries or keys of a block

struct Backward {
  float *dq, *dkv;
  float* dk_rope_of_head;  // [heads_at_once, tokens, rope]
  const float *q, *kv, *k_rope, *d_o, *o, *lse;
  const int32_t* seq_offsets;
  float* delta;            // [tokens, heads]: d_o . o
  int32_t *begins, *ends;  // [tokens]: of the token's sequence
  int64_t dq_stride, dkv_stride, q_stride, kv_stride, k_rope_stride, d_o_stride, o_stride, lse_stride;
  int tokens, n_sequences, n_heads, nope, rope, v;
  int first_head, heads_at_once;  // of this launch
  float scale;
  bool in_fours;  // all of it can be read and written as float4

  __host__ __device__ int nope_slices() const { return (nope + kBackwardTile - 1) / kBackwardTile; }
  __host__ __device__ int key_slices() const { return nope_slices() + (rope + kBackwardTile - 1) / kBackwardTile; }
  __host__ __device__ int value_slices() const { return (v + kBackwardTile - 1) / kBackwardTile; }
};

// dq, dkv and dk_rope_of_head of the call's heads, with products in bf16, behind what prepares delta, begins and ends.
void attention_backward_bf16(Context& ctx, const Backward& call);

}  // namespace fathom::cuda
