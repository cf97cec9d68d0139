#include "ops/cuda/operators.h"

namespace fathom::cuda {

DeviceOperators cuda_operators() {
  DeviceOperators operators{};
  operators.embedding = embedding;
  operators.add = add;
  operators.rms_norm = rms_norm;
  operators.rope = rope;
  operators.swiglu = swiglu;
  operators.add_norm_input = add_norm_input;
  operators.swiglu_input = swiglu_input;
  operators.norm_and_rotate = norm_and_rotate;
  operators.make_linear_input = make_linear_input;
  operators.linear = linear;
  operators.route = route;
  operators.place_experts = place_experts;
  operators.make_dispatch = make_dispatch;
  operators.dispatch = dispatch;
  operators.cross_entropy = cross_entropy;
  operators.combine = combine;
  operators.write_cache = write_cache;
  operators.mla_attention = mla_attention;
  operators.mla_attention_absorbed = mla_attention_absorbed;
  operators.embedding_backward_weight = embedding_backward_weight;
  operators.rms_norm_backward_input = rms_norm_backward_input;
  operators.rms_norm_backward_weight = rms_norm_backward_weight;
  operators.rope_backward = rope_backward;
  operators.swiglu_backward = swiglu_backward;
  operators.linear_backward_input = linear_backward_input;
  operators.linear_backward_weight = linear_backward_weight;
  operators.mla_attention_backward = mla_attention_backward;
  operators.weigh_chosen = weigh_chosen;
  operators.route_backward = route_backward;
  operators.dispatch_backward = dispatch_backward;
  operators.combine_backward = combine_backward;
  operators.combine_backward_weights = combine_backward_weights;
  operators.cross_entropy_backward = cross_entropy_backward;
  operators.adamw_step = adamw_step;
  operators.move_average = move_average;
  operators.sum_of_squares = sum_of_squares;
  return operators;
}

}  // namespace fathom::cuda
