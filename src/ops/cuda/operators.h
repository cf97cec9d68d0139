// The CUDA forms of the operators; what they mean stands where the operator is declared. All tensors lie in the
// device's memory, and nothing here waits for the device but where it is said.
#pragma once

#include "ops/device.h"

namespace fathom::cuda {

// All of them.
DeviceOperators cuda_operators();

// embedding.cu
void embedding(Context& ctx, Tensor y, Tensor ids, Tensor table);
void add(Context& ctx, Tensor out, Tensor a, Tensor b);
void swiglu(Context& ctx, Tensor y, Tensor gate_up);
LinearInput swiglu_input(Context& ctx, Tensor y, Tensor gate_up, std::span<const Tensor> weights);
void cross_entropy(Context& ctx, Tensor loss, Tensor logits, Tensor targets);
// norm.cu
void rms_norm(Context& ctx, Tensor y, Tensor x, Tensor w, float eps, Tensor inv_rms);
LinearInput add_norm_input(Context& ctx, Tensor y, Tensor sum, Tensor a, Tensor b, Tensor w, float eps, Tensor inv_rms,
                           std::span<const Tensor> weights);
void norm_and_rotate(Context& ctx, const Rope& rope, Tensor q, const RopeLayout& layout, Tensor latent, Tensor kv_a,
                     Tensor w, float eps, Tensor inv_rms, Tensor positions);
void rope(Context& ctx, const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout);
// experts.cu
void route(Context& ctx, const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores, Tensor logits,
           Tensor bias);
void place_experts(Context& ctx, Tensor placed, Tensor topk_ids, Tensor places);
Dispatch make_dispatch(Context& ctx, Tensor topk_ids, int64_t n_routed_experts);
void dispatch(Context& ctx, Tensor x_sorted, Tensor x, const Dispatch& d);
void combine(Context& ctx, Tensor y, Tensor y_sorted, Tensor topk_weights, const Dispatch& d);
// linear.cu and its kernels
LinearInput make_linear_input(Context& ctx, Tensor x, std::span<const Tensor> weights);
// The forms that weights read and `input` does not have yet.
void add_forms(Context& ctx, LinearInput& input, std::span<const Tensor> weights);
void linear(Context& ctx, std::span<const LinearCall> calls);
// attention.cu, attention_expanded.cu
void write_cache(Context& ctx, const DeviceCaches& caches, Tensor latent, Tensor k_rope);
void mla_attention(Context& ctx, Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor seq_offsets, const MlaDims& dims,
                   float scale, Tensor lse, Precision precision);
void mla_attention_absorbed(Context& ctx, Tensor o, Tensor q, Tensor kv_b, Tensor k_b, const DeviceCaches& caches,
                            const MlaDims& dims, float scale);

// embedding_backward.cu
void embedding_backward_weight(Context& ctx, Tensor dtable, Tensor dy, Tensor ids);
void swiglu_backward(Context& ctx, Tensor d_gate_up, Tensor dy, Tensor gate_up);
// cross_entropy.cu
void cross_entropy_backward(Context& ctx, Tensor loss, Tensor logits, Tensor targets, float scale, Tensor row_scales);
// norm_backward.cu
void rms_norm_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor inv_rms, bool accumulate);
void rms_norm_backward_weight(Context& ctx, Tensor dw, Tensor dy, Tensor x, Tensor inv_rms);
// norm.cu
void rope_backward(Context& ctx, const Rope& rope, Tensor dx, Tensor positions, const RopeLayout& layout);
// products.cu: linear layers of f32 row by row, as training has them. offsets: of experts, absent for one matrix.
void linear_rows(Context& ctx, std::span<const LinearCall> calls);
void linear_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor w, Tensor offsets, bool accumulate,
                           Precision precision);
void linear_backward_weight(Context& ctx, std::span<const WeightGradientCall> calls);
// attention_backward.cu
void mla_attention_backward(Context& ctx, Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q,
                            Tensor kv, Tensor k_rope, Tensor lse, Tensor seq_offsets, const MlaDims& dims, float scale,
                            Precision precision);
// experts_backward.cu
void weigh_chosen(Context& ctx, const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores,
                  Tensor logits);
void route_backward(Context& ctx, const RouterConfig& config, Tensor d_logits, Tensor d_weights, Tensor topk_ids,
                    Tensor scores, Tensor d_scores);
void dispatch_backward(Context& ctx, Tensor dx, Tensor dx_sorted, const Dispatch& d);
void combine_backward(Context& ctx, Tensor dy_sorted, Tensor dy, Tensor topk_weights, const Dispatch& d);
void combine_backward_weights(Context& ctx, Tensor d_weights, Tensor d_inner, Tensor inner, Tensor topk_weights,
                              const Dispatch& d);
// adamw.cu: these wait for the device where they return a number.
bool adamw_step(Context& ctx, const cpu::AdamwStep& step, std::span<float> params, std::span<const float> grads,
                Tensor m, Tensor v);
void move_average(Context& ctx, std::span<float> average, std::span<const float> values, float decay);
double sum_of_squares(Context& ctx, std::span<const float> values);

// Products of every head with a weight of its own, whose inputs and outputs stand side by side in their rows:
//   y[t, h * y_step + o] = sum_i x[t, h * x_step + i] w_h[o, i]
// x: [tokens, in], y: [tokens, out]: the first head's columns, rows strided; w: [out, in] in panels: the first head's,
// the next one's w_step bytes behind it. Numbers as linear() has them.
struct HeadsLinear {
  Tensor y;
  int64_t y_step;  // floats
  Tensor x;
  int64_t x_step;  // floats
  Tensor w;
  int64_t w_step;  // bytes
  int64_t n_heads;
};
void heads_linear(Context& ctx, const HeadsLinear& call);

}  // namespace fathom::cuda
