#include "ops/attention.h"
namespace fathom {
void mla_attention(Context&, Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor so, const MlaDims& d, float scale,
                   Tensor lse) {
  plain::mla_attention(o, q, kv, k_rope, so, d, scale, lse);
}
void mla_attention_backward(Context&, Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q, Tensor kv,
                            Tensor k_rope, Tensor lse, Tensor so, const MlaDims& d, float scale) {
  plain::mla_attention_backward(dq, dkv, dk_rope, d_o, o, q, kv, k_rope, lse, so, d, scale);
}
void mla_attention_absorbed(Context&, Tensor o, Tensor q, Tensor kv_b, std::span<const LatentCacheView> s,
                            const MlaDims& d, float scale) {
  plain::mla_attention_absorbed(o, q, kv_b, s, d, scale);
}
}  // namespace fathom
