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
  return operators;
}

}  // namespace fathom::cuda
