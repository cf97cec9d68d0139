// The backward pass: the blocks of forward.cc in reverse. Each has its input gradient and its weight gradient apart
// (what passes between them is kept in a struct), so that pipeline schedules can place the two freely.
#pragma once

#include "model/forward.h"

namespace fathom {

// What a block's input gradient leaves for its weight gradient: the gradients of its inner values, shaped as those.
struct MlaGrads {
  Tensor out, o, q, q_latent, q_a, kv, latent, kv_a;  // grouped-query attention has out, o, q and kv
};
struct MlpGrads {
  Tensor out, gate_up;
  Tensor activated;  // no gradient: the second matrix' input as the backward pass knows it
};
struct MoeGrads {
  Tensor out, y_sorted, gate_up, logits;
  Tensor activated;  // as above
  MlpGrads shared;
};
struct LayerGrads {
  MlaGrads attention;
  MlpGrads mlp;
  MoeGrads moe;
  Tensor mlp_normed, attention_normed;  // gradients of the two norms' outputs
};
struct MtpGrads {
  Tensor hidden;  // of the module's output
  LayerGrads layer;
  Tensor projected, concatenated, embedded;  // of what enters the layer, eh_proj and enorm
};

// Extra gradient of the router's scores in one MoE layer, for balance losses: called with the layer's saved values,
// returns [tokens, experts] or an absent tensor.
using ScoreGradient = std::function<Tensor(const MoeSaved&)>;

// dx = dL/d(layer input) from d_out = dL/d(layer output), overwritten (another buffer than d_out). Memory from
// ctx.arena.
void layer_backward_input(Context& ctx, const Model& model, const LayerWeights& w, const Batch& batch,
                          const LayerSaved& saved, Tensor dx, Tensor d_out, LayerGrads& inner,
                          const ScoreGradient& score_gradient);
// grads += dL/d(layer weights).
void layer_backward_weight(Context& ctx, const Model& model, LayerWeights& grads, const Batch& batch,
                           const LayerSaved& saved, const LayerGrads& inner);

// The whole trunk: grads += gradient of everything below final_hidden, from d_final_hidden.
void backward(Context& ctx, const Model& model, ModelWeights& grads, const Batch& batch, const ForwardSaved& saved,
              Tensor d_final_hidden, const ScoreGradient& score_gradient = {});

// An MTP module: d_hidden_before += dL/d(its input) from d_hidden = dL/d(its output). Memory from ctx.arena.
void mtp_backward_input(Context& ctx, const Model& model, const MtpWeights& w, const MtpSaved& saved,
                        Tensor d_hidden_before, Tensor d_hidden, MtpGrads& inner,
                        const ScoreGradient& score_gradient = {});
// grads += dL/d(the module's weights), d_embed += its part of the embedding's gradient.
void mtp_backward_weight(Context& ctx, const Model& model, MtpWeights& grads, Tensor d_embed, const MtpSaved& saved,
                         const MtpGrads& inner);

}  // namespace fathom
