// Grouped-query attention (Ainslie et al. 2023), causal: query head h reads the keys and values of head
// h / (n_heads / n_kv_heads).
//   s[t, j] = scale * q[t, h] . k[j, g],  o[t, h] = sum_j softmax_j(s[t, j]) v[j, g]
// One form for all: a token's result has the same bits in a prompt, generated, or in training, whatever is beside it.
#pragma once

#include <span>

#include "ops/attention.h"

namespace fathom {

struct GqaDims {
  int64_t n_heads, n_kv_heads, head_dim;

  int64_t heads_of_group() const { return n_heads / n_kv_heads; }
  // [k | v], each of all n_kv_heads, the keys rotated: what is kept of a token.
  int64_t row() const { return 2 * n_kv_heads * head_dim; }
  LatentRowLayout cached_row(Format format) const { return {format, head_dim, 0, 2 * n_kv_heads}; }
};

// q, o: [sum of n_new, heads * head_dim], q rotated; sequences: rows of dims.cached_row(their format), those of the
// new tokens among them. lse (optional): [sum of n_new, heads] log-sum-exp of the scaled scores, for the backward pass.
void gqa_attention(Context& ctx, Tensor o, Tensor q, std::span<const LatentCacheView> sequences, const GqaDims& dims,
                   float scale, Tensor lse = {});

// Of packed sequences that begin with their first token. kv: [tokens, dims.row()]; dq, dkv: shaped as q and kv,
// overwritten. Needs o and lse of the forward pass.
void gqa_attention_backward(Context& ctx, Tensor dq, Tensor dkv, Tensor d_o, Tensor o, Tensor q, Tensor kv, Tensor lse,
                            Tensor seq_offsets, const GqaDims& dims, float scale);

namespace plain {
void gqa_attention(Tensor o, Tensor q, std::span<const LatentCacheView> sequences, const GqaDims& dims, float scale,
                   Tensor lse = {});
void gqa_attention_backward(Tensor dq, Tensor dkv, Tensor d_o, Tensor o, Tensor q, Tensor kv, Tensor lse,
                            Tensor seq_offsets, const GqaDims& dims, float scale);
}  // namespace plain

}  // namespace fathom
