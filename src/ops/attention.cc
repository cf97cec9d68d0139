#include "ops/attention.h"

namespace fathom {

void mla_attention(Context&, Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor seq_offsets, const MlaDims& dims,
                   float scale, Tensor lse) {
  plain::mla_attention(o, q, kv, k_rope, seq_offsets, dims, scale, lse);
}

void mla_attention_backward(Context&, Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q, Tensor kv,
                            Tensor k_rope, Tensor lse, Tensor seq_offsets, const MlaDims& dims, float scale) {
  plain::mla_attention_backward(dq, dkv, dk_rope, d_o, o, q, kv, k_rope, lse, seq_offsets, dims, scale);
}

void mla_attention_absorbed(Context&, Tensor o, Tensor q, Tensor kv_b, std::span<const LatentCacheView> sequences,
                            const MlaDims& dims, float scale) {
  plain::mla_attention_absorbed(o, q, kv_b, sequences, dims, scale);
}

}  // namespace fathom
