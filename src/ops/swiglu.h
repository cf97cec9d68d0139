// SwiGLU (Shazeer 2020), the activation of every MLP of the family:
//   y[t, i] = silu(gate[t, i]) * up[t, i],  silu(z) = z * sigmoid(z)
#pragma once

#include "ops/linear.h"

namespace fathom {

// gate_up: [tokens, 2 * inter], gate in the first half of a row, up in the second; y: [tokens, inter].
void swiglu(Context& ctx, Tensor y, Tensor gate_up);

// y in the forms that `weights` read. On a device y itself may stay unwritten where none reads it.
LinearInput swiglu_input(Context& ctx, Tensor y, Tensor gate_up, std::initializer_list<Tensor> weights);

// d_gate_up = dL/d(gate_up), overwritten; may be gate_up itself.
void swiglu_backward(Context& ctx, Tensor d_gate_up, Tensor dy, Tensor gate_up);

namespace plain {
void swiglu(Tensor y, Tensor gate_up);
void swiglu_backward(Tensor d_gate_up, Tensor dy, Tensor gate_up);
}  // namespace plain

}  // namespace fathom
