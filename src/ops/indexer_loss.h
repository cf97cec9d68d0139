// What the lightning indexer is trained by (V3.2 section 2.1.1): its scores' distribution is drawn to that of the main
// attention.
//   L = sum_t KL(p_t || softmax(I_t)),  p_t = the main attention's probabilities of token t, their mean over heads
// over all tokens up to t, or over those that t attends to. p is a constant: nothing flows into the main attention.
#pragma once

#include "ops/attention.h"
#include "ops/indexer.h"

namespace fathom {

struct IndexerLossInputs {
  // Of the indexer (ops/indexer.h): [tokens, n_heads * head_dim], [tokens, head_dim], [tokens, n_heads]
  Tensor q, k, weights;
  IndexerDims dims;
  // Of the main attention as mla_attention reads and makes it; selected may be absent.
  Tensor main_q, kv, k_rope, lse, seq_offsets, selected;
  MlaDims main_dims;
  float softmax_scale;
};

// kl: [tokens], each token's part of L. recall (optional, [tokens]): how much of the attention that all tokens together
// would get (without `selected`) the topk tokens of the highest score hold, as a part of what the best topk could;
// 1 where no more are visible. dq, dk, d_weights: overwritten with `factor` times the gradient of L.
void indexer_loss(Context& ctx, const IndexerLossInputs& in, float factor, Tensor kl, Tensor recall, Tensor dq,
                  Tensor dk, Tensor d_weights);

namespace plain {
void indexer_loss(const IndexerLossInputs& in, float factor, Tensor kl, Tensor recall, Tensor dq, Tensor dk,
                  Tensor d_weights);
}

}  // namespace fathom
