#include "model/layer.h"
#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/gqa_attention.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/swiglu.h"

namespace fathom {
namespace {

Tensor new_like(Context& ctx, Tensor t) { return new_f32(ctx, {t.rows(), t.cols()}); }

void attention_backward_input(Context& ctx, const Model& model, const MlaWeights& w, const Batch& batch,
                              const MlaSaved& s, Tensor d_input, Tensor d_out, MlaGrads& g) {
  const MlaDims dims = model.config.mla();
  const int64_t rank = dims.kv_lora_rank, rope_dim = dims.qk_rope_head_dim;
  const int64_t qk = dims.qk_nope_head_dim + rope_dim;
  g.out = d_out;
  g.o = new_like(ctx, s.o);
  const Rounding rounding{model.precision};
  linear_backward_input(ctx, g.o, d_out, w.o, /*accumulate=*/false, attention_out_rounding(model));

  g.q = new_like(ctx, s.q);
  g.kv = new_like(ctx, s.kv);
  g.kv_a = new_like(ctx, s.kv_a);
  const Tensor d_k_rope = g.kv_a.columns(rank, rope_dim);
  mla_attention_backward(ctx, g.q, g.kv, d_k_rope, g.o, s.o, s.q, s.kv, s.kv_a.columns(rank, rope_dim), s.lse,
                         batch.seq_offsets, dims, model.softmax_scale, s.indexer.selected, model.precision);

  g.latent = new_like(ctx, s.latent);
  linear_backward_input(ctx, g.latent, g.kv, w.kv_b, /*accumulate=*/false, rounding);
  rms_norm_backward_input(ctx, g.kv_a.columns(0, rank), g.latent, s.kv_a.columns(0, rank), w.kv_a_norm, s.kv_a_rms,
                          /*accumulate=*/false);
  rope_backward(ctx, model.rope, g.kv_a, batch.positions, {1, rank + rope_dim, rank});
  linear_backward_input(ctx, d_input, g.kv_a, w.kv_a, /*accumulate=*/false, rounding);

  rope_backward(ctx, model.rope, g.q, batch.positions, {dims.n_heads, qk, dims.qk_nope_head_dim});
  if (!w.q_a) {
    linear_backward_input(ctx, d_input, g.q, w.q_b, /*accumulate=*/true, rounding);
    return;
  }
  g.q_latent = new_like(ctx, s.q_latent);
  g.q_a = new_like(ctx, s.q_a);
  linear_backward_input(ctx, g.q_latent, g.q, w.q_b, /*accumulate=*/false, rounding);
  rms_norm_backward_input(ctx, g.q_a, g.q_latent, s.q_a, w.q_a_norm, s.q_a_rms, /*accumulate=*/false);
  linear_backward_input(ctx, d_input, g.q_a, w.q_a, /*accumulate=*/true, rounding);
}

void attention_backward_weight(Context& ctx, const Model& model, MlaWeights& dw, const MlaSaved& s, const MlaGrads& g) {
  const int64_t rank = s.latent.cols();
  const Rounding rounding{model.precision};
  linear_backward_weight(ctx, {{dw.o, g.out, s.o, {}, attention_out_rounding(model)},
                               {dw.kv_b, g.kv, s.latent, {}, rounding},
                               {dw.kv_a, g.kv_a, s.input, {}, rounding},
                               {dw.q_b, g.q, dw.q_a ? s.q_latent : s.input, {}, rounding},
                               {dw.q_a, g.q_a, s.input, {}, rounding}});
  rms_norm_backward_weight(ctx, dw.kv_a_norm, g.latent, s.kv_a.columns(0, rank), s.kv_a_rms);
  if (dw.q_a) rms_norm_backward_weight(ctx, dw.q_a_norm, g.q_latent, s.q_a, s.q_a_rms);
}

void gqa_backward_input(Context& ctx, const Model& model, const GqaWeights& w, const Batch& batch, const MlaSaved& s,
                        Tensor d_input, Tensor d_out, MlaGrads& g) {
  const GqaDims dims = model.config.gqa();
  const int64_t kv_columns = dims.n_kv_heads * dims.head_dim;
  const Rounding rounding{model.precision};
  g.out = d_out;
  g.o = new_like(ctx, s.o);
  linear_backward_input(ctx, g.o, d_out, w.o, /*accumulate=*/false, attention_out_rounding(model));
  g.q = new_like(ctx, s.q);
  g.kv = new_like(ctx, s.kv);
  gqa_attention_backward(ctx, g.q, g.kv, g.o, s.o, s.q, s.kv, s.lse, batch.seq_offsets, dims, model.softmax_scale);
  const Tensor d_k = g.kv.columns(0, kv_columns), d_v = g.kv.columns(kv_columns, kv_columns);
  rope_backward(ctx, model.rope, g.q, batch.positions, {dims.n_heads, dims.head_dim, 0});
  rope_backward(ctx, model.rope, d_k, batch.positions, {dims.n_kv_heads, dims.head_dim, 0});
  linear_backward_input(ctx, d_input, g.q, w.q, /*accumulate=*/false, rounding);
  linear_backward_input(ctx, d_input, d_k, w.k, /*accumulate=*/true, rounding);
  linear_backward_input(ctx, d_input, d_v, w.v, /*accumulate=*/true, rounding);
}

void gqa_backward_weight(Context& ctx, const Model& model, GqaWeights& dw, const MlaSaved& s, const MlaGrads& g) {
  const int64_t kv_columns = dw.k.rows();
  const Tensor d_k = g.kv.columns(0, kv_columns), d_v = g.kv.columns(kv_columns, kv_columns);
  const Rounding rounding{model.precision};
  linear_backward_weight(ctx, {{dw.o, g.out, s.o, {}, attention_out_rounding(model)},
                               {dw.q, g.q, s.input, {}, rounding},
                               {dw.k, d_k, s.input, {}, rounding},
                               {dw.v, d_v, s.input, {}, rounding}});
  if (!dw.q_bias) return;
  add_bias_backward(ctx, dw.q_bias, g.q);
  add_bias_backward(ctx, dw.k_bias, d_k);
  add_bias_backward(ctx, dw.v_bias, d_v);
}

// What SwiGLU's backward pass reads, and the second matrix' input, made again where it was not kept: FP8 knows the
// first alone, in tiles of 1 x 128 of gate and of up (V3 section 3.3.3).
struct Activation {
  Tensor gate_up, activated;
};
Activation kept_activation(Context& ctx, const Model& model, Tensor gate_up, Tensor activated) {
  if (activated) return {gate_up, activated};
  const Tensor kept = is_fp8(model.precision) ? round_rows(ctx, gate_up, model.precision, false, 0, 2) : gate_up;
  activated = new_f32(ctx, {gate_up.rows(), gate_up.cols() / 2});
  swiglu(ctx, activated, kept);
  return {kept, activated};
}

}  // namespace

void layer_mlp_backward_input(Context& ctx, const Model& model, const MlpWeights& w, const MlpSaved& s, Tensor d_input,
                              Tensor d_out, MlpGrads& g) {
  const Rounding rounding{model.precision};
  g.out = d_out;
  g.gate_up = new_like(ctx, s.gate_up);
  const Activation kept = kept_activation(ctx, model, s.gate_up, s.activated);
  g.activated = kept.activated;
  const ArenaScope scope(ctx.arena);
  const Tensor d_activated = new_like(ctx, g.activated);
  linear_backward_input(ctx, d_activated, d_out, w.down, /*accumulate=*/false, rounding);
  swiglu_backward(ctx, g.gate_up, d_activated, kept.gate_up);
  linear_backward_input(ctx, d_input, g.gate_up, w.gate_up, /*accumulate=*/false, gate_up_rounding(model));
}

void layer_mlp_backward_weight(Context& ctx, const Model& model, MlpWeights& dw, const MlpSaved& s, const MlpGrads& g) {
  const Rounding rounding{model.precision};
  linear_backward_weight(ctx,
                         {{dw.down, g.out, g.activated, {}, rounding}, {dw.gate_up, g.gate_up, s.input, {}, rounding}});
}

// What comes through the experts: d_input += dx, d_weights = dL/d(topk_weights).
void layer_experts_backward_input(Context& ctx, const Model& model, const MoeWeights& w, const MoeSaved& s,
                                  Tensor d_input, Tensor d_weights, Tensor d_out, MoeGrads& g) {
  g.out = d_out;
  g.y_sorted = new_f32(ctx, {s.gate_up.rows(), d_out.cols()});
  g.gate_up = new_like(ctx, s.gate_up);
  const Activation kept = kept_activation(ctx, model, s.gate_up, s.activated);
  g.activated = kept.activated;
  const ArenaScope scope(ctx.arena);
  const Tensor d_activated = new_like(ctx, g.activated);
  combine_backward(ctx, g.y_sorted, d_out, s.topk_weights, s.dispatch);
  grouped_linear_backward_input(ctx, d_activated, g.y_sorted, w.down, s.dispatch.offsets, /*accumulate=*/false,
                                experts_down_rounding(model));
  combine_backward_weights(ctx, d_weights, d_activated, g.activated, s.topk_weights, s.dispatch);
  swiglu_backward(ctx, g.gate_up, d_activated, kept.gate_up);
  const Tensor d_x_sorted = new_like(ctx, g.y_sorted);
  grouped_linear_backward_input(ctx, d_x_sorted, g.gate_up, w.gate_up, s.dispatch.offsets, /*accumulate=*/false,
                                experts_up_rounding(model));
  dispatch_backward(ctx, d_input, d_x_sorted, s.dispatch);
}

// What comes through the router: d_input +=.
void layer_route_backward_input(Context& ctx, const Model& model, const MoeWeights& w, const MoeSaved& s,
                                Tensor d_input, Tensor d_weights, MoeGrads& g, const ScoreGradient& score_gradient) {
  g.logits = new_like(ctx, s.logits);
  const ArenaScope scope(ctx.arena);
  route_backward(ctx, model.config.router, g.logits, d_weights, s.topk_ids, s.scores,
                 score_gradient ? score_gradient(s) : Tensor());
  linear_backward_input(ctx, d_input, g.logits, w.gate, /*accumulate=*/true);
}

namespace {

void moe_backward_input(Context& ctx, const Model& model, const MoeWeights& w, const MoeSaved& s, Tensor d_input,
                        Tensor d_out, MoeGrads& g, const ScoreGradient& score_gradient) {
  if (w.shared.gate_up) {
    layer_mlp_backward_input(ctx, model, w.shared, s.shared, d_input, d_out, g.shared);
  } else {
    fill_zero(ctx, d_input);
  }
  const Tensor d_weights = new_like(ctx, s.topk_weights);
  layer_experts_backward_input(ctx, model, w, s, d_input, d_weights, d_out, g);
  layer_route_backward_input(ctx, model, w, s, d_input, d_weights, g, score_gradient);
}

// Of what is there in dw: router, experts, shared expert.
void moe_backward_weight(Context& ctx, const Model& model, MoeWeights& dw, const MoeSaved& s, const MoeGrads& g) {
  const Tensor offsets = s.dispatch.offsets;
  const Rounding shared{model.precision};
  const ArenaScope scope(ctx.arena);
  Tensor x_sorted;
  if (dw.gate_up) {
    x_sorted = new_like(ctx, g.y_sorted);
    dispatch(ctx, x_sorted, s.input, s.dispatch);
  }
  linear_backward_weight(ctx, {{dw.gate, g.logits, s.input},
                               {dw.down, g.y_sorted, g.activated, offsets, experts_down_rounding(model)},
                               {dw.gate_up, g.gate_up, x_sorted, offsets, experts_up_rounding(model)},
                               {dw.shared.down, g.shared.out, g.shared.activated, {}, shared},
                               {dw.shared.gate_up, g.shared.gate_up, s.shared.input, {}, shared}});
}

}  // namespace

// From the gradient of the second half's norm, g.mlp_normed, to that of the layer's input.
void layer_attention_backward_input(Context& ctx, const Model& model, const LayerWeights& w, const Batch& batch,
                                    const LayerSaved& s, Tensor dx, Tensor d_out, LayerGrads& g) {
  const Tensor d_mid = new_like(ctx, s.x);
  rms_norm_backward_input(ctx, d_mid, g.mlp_normed, s.mid, w.post_attention_norm, s.mid_rms, /*accumulate=*/false);
  add(ctx, d_mid, d_mid, d_out);

  g.attention_normed = new_like(ctx, s.x);
  if (w.gqa.q) {
    gqa_backward_input(ctx, model, w.gqa, batch, s.attention, g.attention_normed, d_mid, g.attention);
  } else {
    attention_backward_input(ctx, model, w.attention, batch, s.attention, g.attention_normed, d_mid, g.attention);
  }
  rms_norm_backward_input(ctx, dx, g.attention_normed, s.x, w.input_norm, s.x_rms, /*accumulate=*/false);
  add(ctx, dx, dx, d_mid);
}

void layer_attention_backward_weight(Context& ctx, const Model& model, LayerWeights& dw, const LayerSaved& s,
                                     const LayerGrads& g) {
  rms_norm_backward_weight(ctx, dw.post_attention_norm, g.mlp_normed, s.mid, s.mid_rms);
  if (dw.gqa.q) {
    gqa_backward_weight(ctx, model, dw.gqa, s.attention, g.attention);
  } else {
    attention_backward_weight(ctx, model, dw.attention, s.attention, g.attention);
  }
  rms_norm_backward_weight(ctx, dw.input_norm, g.attention_normed, s.x, s.x_rms);
}

void layer_experts_backward_weight(Context& ctx, const Model& model, MoeWeights& dw, const MoeSaved& s,
                                   const MoeGrads& g) {
  MoeWeights experts{.gate_up = dw.gate_up, .down = dw.down};
  moe_backward_weight(ctx, model, experts, s, g);
}

void layer_route_backward_weight(Context& ctx, MoeWeights& dw, const MoeSaved& s, const MoeGrads& g) {
  linear_backward_weight(ctx, {{dw.gate, g.logits, s.input}});
}

void layer_backward_input(Context& ctx, const Model& model, const LayerWeights& w, const Batch& batch,
                          const LayerSaved& s, Tensor dx, Tensor d_out, LayerGrads& g,
                          const ScoreGradient& score_gradient) {
  g.mlp_normed = new_like(ctx, s.x);
  if (w.moe.gate) {
    moe_backward_input(ctx, model, w.moe, s.moe, g.mlp_normed, d_out, g.moe, score_gradient);
  } else {
    layer_mlp_backward_input(ctx, model, w.mlp, s.mlp, g.mlp_normed, d_out, g.mlp);
  }
  layer_attention_backward_input(ctx, model, w, batch, s, dx, d_out, g);
}

void layer_backward_weight(Context& ctx, const Model& model, LayerWeights& dw, const Batch&, const LayerSaved& s,
                           const LayerGrads& g) {
  if (dw.moe.gate) {
    moe_backward_weight(ctx, model, dw.moe, s.moe, g.moe);
  } else {
    layer_mlp_backward_weight(ctx, model, dw.mlp, s.mlp, g.mlp);
  }
  layer_attention_backward_weight(ctx, model, dw, s, g);
}

void backward(Context& ctx, const Model& model, ModelWeights& dw, const Batch& batch, const ForwardSaved& s,
              Tensor d_final_hidden, const ScoreGradient& score_gradient) {
  const ArenaScope scope(ctx.arena);
  Tensor d_out = new_like(ctx, s.x), dx = new_like(ctx, s.x);
  rms_norm_backward_weight(ctx, dw.norm, d_final_hidden, s.x, s.x_rms);
  rms_norm_backward_input(ctx, d_out, d_final_hidden, s.x, model.weights.norm, s.x_rms, /*accumulate=*/false);
  for (size_t l = s.layers.size(); l-- > 0;) {
    const ArenaScope layer_scope(ctx.arena);
    LayerSaved layer = s.layers[l];
    recompute_layer(ctx, model, model.weights.layers[l], batch, s.recompute, layer);
    LayerGrads inner;
    layer_backward_input(ctx, model, model.weights.layers[l], batch, layer, dx, d_out, inner, score_gradient);
    layer_backward_weight(ctx, model, dw.layers[l], batch, layer, inner);
    std::swap(dx, d_out);
  }
  embedding_backward_weight(ctx, dw.embed, d_out, batch.ids);
}

Tensor mtp_end_backward_input(Context& ctx, const MtpWeights& w, const MtpSaved& s, Tensor d_hidden, MtpGrads& g) {
  g.hidden = d_hidden;
  const Tensor d_out = new_like(ctx, s.x);
  rms_norm_backward_input(ctx, d_out, d_hidden, s.x, w.norm, s.x_rms, /*accumulate=*/false);
  g.projected = new_like(ctx, s.x);
  return d_out;
}

void mtp_begin_backward_input(Context& ctx, const Model& model, const MtpWeights& w, const MtpSaved& s,
                              Tensor d_hidden_before, MtpGrads& g) {
  const int64_t hidden = model.config.hidden_size;
  g.concatenated = new_like(ctx, s.concatenated);
  linear_backward_input(ctx, g.concatenated, g.projected, w.eh_proj, /*accumulate=*/false, {model.precision});
  const Tensor d_e = g.concatenated.columns(0, hidden), d_h = g.concatenated.columns(hidden, hidden);
  g.embedded = new_like(ctx, s.embedded);
  rms_norm_backward_input(ctx, g.embedded, d_e, s.embedded, w.enorm, s.e_rms, /*accumulate=*/false);
  const ArenaScope scope(ctx.arena);
  const Tensor d_hidden_in = new_like(ctx, s.hidden_in);
  rms_norm_backward_input(ctx, d_hidden_in, d_h, s.hidden_in, w.hnorm, s.h_rms, /*accumulate=*/false);
  embedding_backward_weight(ctx, d_hidden_before, d_hidden_in, s.input.rows);  // scatters rows back
}

void mtp_ends_backward_weight(Context& ctx, const Model& model, MtpWeights& dw, Tensor d_embed, const MtpSaved& s,
                              const MtpGrads& g) {
  const int64_t hidden = model.config.hidden_size;
  rms_norm_backward_weight(ctx, dw.norm, g.hidden, s.x, s.x_rms);
  linear_backward_weight(ctx, {{dw.eh_proj, g.projected, s.concatenated, {}, {model.precision}}});
  rms_norm_backward_weight(ctx, dw.enorm, g.concatenated.columns(0, hidden), s.embedded, s.e_rms);
  rms_norm_backward_weight(ctx, dw.hnorm, g.concatenated.columns(hidden, hidden), s.hidden_in, s.h_rms);
  embedding_backward_weight(ctx, d_embed, g.embedded, s.input.next.ids);
}

void mtp_backward_input(Context& ctx, const Model& model, const MtpWeights& w, const MtpSaved& s,
                        Tensor d_hidden_before, Tensor d_hidden, MtpGrads& g, const ScoreGradient& score_gradient) {
  const Tensor d_out = mtp_end_backward_input(ctx, w, s, d_hidden, g);
  layer_backward_input(ctx, model, w.layer, s.input.next, s.layer, g.projected, d_out, g.layer, score_gradient);
  mtp_begin_backward_input(ctx, model, w, s, d_hidden_before, g);
}

void mtp_backward_weight(Context& ctx, const Model& model, MtpWeights& dw, Tensor d_embed, const MtpSaved& s,
                         const MtpGrads& g) {
  layer_backward_weight(ctx, model, dw.layer, s.input.next, s.layer, g.layer);
  mtp_ends_backward_weight(ctx, model, dw, d_embed, s, g);
}

}  // namespace fathom
