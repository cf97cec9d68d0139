// The parts of a layer one by one, for who runs layers on its own and has something to do between their parts: stages
// of a pipeline, whose experts are on other processes (parallel/stage.h). forward() and backward() put the same parts
// together. Memory comes from ctx.arena, and what the backward pass makes again where --recompute is selective, with
// recompute_layer(), from made_again's: ctx itself, where nothing is.
#pragma once

#include "model/backward.h"

namespace fathom {

// What the second half of a layer reads: norm(x'), also as its matrices read it.
struct MlpInput {
  Tensor normed;  // [tokens, hidden]
  LinearInput matrix;
};

// x' = x + Attention(norm(x)), kept as s.mid. Returns norm(x').
MlpInput layer_attention(Context& ctx, const Model& model, const LayerWeights& w, const Batch& batch, Tensor x,
                         LayerSaved& s, Context& made_again);
// out = W_down(silu(W_gate x) * W_up x): of a dense layer, or a shared expert.
void layer_mlp(Context& ctx, const Model& model, const MlpWeights& w, Tensor out, const MlpInput& input, MlpSaved& s,
               Context& made_again);
// The router's choice for every token: s.topk_ids, s.topk_weights, s.dispatch. Appends a row to `load` where it is
// given.
void layer_route(Context& ctx, const Model& model, const LayerWeights& w, const MlpInput& input, MoeSaved& s,
                 ExpertLoad* load, Context& made_again);
// out += sum of the weighted outputs of s.dispatch's experts for s.input's rows; w: the matrices of these experts.
void layer_experts(Context& ctx, const Model& model, const MoeWeights& w, Tensor out, MoeSaved& s, Context& made_again);
// y_sorted [slots of s.dispatch, hidden] = the same outputs, each by itself and unweighted.
void layer_expert_outputs(Context& ctx, const Model& model, const MoeWeights& w, Tensor y_sorted, MoeSaved& s);

// And back. d_input = dL/d(input) of an MLP.
void layer_mlp_backward_input(Context& ctx, const Model& model, const MlpWeights& w, const MlpSaved& s, Tensor d_input,
                              Tensor d_out, MlpGrads& g);
void layer_mlp_backward_weight(Context& ctx, const Model& model, MlpWeights& dw, const MlpSaved& s, const MlpGrads& g);
// d_input += what comes through the experts; d_weights [tokens, k] = dL/d(s.topk_weights).
void layer_experts_backward_input(Context& ctx, const Model& model, const MoeWeights& w, const MoeSaved& s,
                                  Tensor d_input, Tensor d_weights, Tensor d_out, MoeGrads& g);
void layer_experts_backward_weight(Context& ctx, const Model& model, MoeWeights& dw, const MoeSaved& s,
                                   const MoeGrads& g);
// d_input += what comes through the router.
void layer_route_backward_input(Context& ctx, const Model& model, const MoeWeights& w, const MoeSaved& s,
                                Tensor d_input, Tensor d_weights, MoeGrads& g, const ScoreGradient& score_gradient);
void layer_route_backward_weight(Context& ctx, MoeWeights& dw, const MoeSaved& s, const MoeGrads& g);
// dx = dL/d(layer input) from g.mlp_normed, the gradient of what layer_attention returned, and d_out.
void layer_attention_backward_input(Context& ctx, const Model& model, const LayerWeights& w, const Batch& batch,
                                    const LayerSaved& s, Tensor dx, Tensor d_out, LayerGrads& g);
// Of attention and both norms.
void layer_attention_backward_weight(Context& ctx, const Model& model, LayerWeights& dw, const LayerSaved& s,
                                     const LayerGrads& g);

// What an MTP module does in front of its layer, x [mtp_tokens, hidden] of that, and behind it, where s.x is what the
// layer gave.
Tensor mtp_begin(Context& ctx, const Model& model, const MtpWeights& w, const MtpInput& input, Tensor hidden_before,
                 MtpSaved& s);
Tensor mtp_end(Context& ctx, const Model& model, const MtpWeights& w, MtpSaved& s);
// And back: the gradient of the layer's output; then, from that of its input, g.projected, d_hidden_before += and
// d_embed +=.
Tensor mtp_end_backward_input(Context& ctx, const MtpWeights& w, const MtpSaved& s, Tensor d_hidden, MtpGrads& g);
void mtp_begin_backward_input(Context& ctx, const Model& model, const MtpWeights& w, const MtpSaved& s,
                              Tensor d_hidden_before, MtpGrads& g);
void mtp_ends_backward_weight(Context& ctx, const Model& model, MtpWeights& dw, Tensor d_embed, const MtpSaved& s,
                              const MtpGrads& g);

}  // namespace fathom
