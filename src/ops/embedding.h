// Token embedding: y[t] = table[ids[t]]; and what is added to rows as they are: the residual stream, biases.
#pragma once

#include "ops/context.h"

namespace fathom {

// ids: [tokens] i32, each in [0, vocab) (checked, but on a device); table: [vocab, hidden]; y: [tokens, hidden].
void embedding(Context& ctx, Tensor y, Tensor ids, Tensor table);

// dtable[ids[t]] += dy[t], in order of t for every row.
void embedding_backward_weight(Context& ctx, Tensor dtable, Tensor dy, Tensor ids);

// out = a + b, elementwise; out may be a or b. All [rows, cols], rows may be strided. The residual stream.
void add(Context& ctx, Tensor out, Tensor a, Tensor b);

// x[t, i] += bias[i]; bias: [n], x: [tokens, n], rows may be strided.
void add_bias(Context& ctx, Tensor x, Tensor bias);

// d_bias[i] += sum_t dx[t, i], in order of t.
void add_bias_backward(Context& ctx, Tensor d_bias, Tensor dx);

// x = 0; x is contiguous.
void fill_zero(Context& ctx, Tensor x);

namespace plain {
void embedding(Tensor y, Tensor ids, Tensor table);
void embedding_backward_weight(Tensor dtable, Tensor dy, Tensor ids);
void add_bias(Tensor x, Tensor bias);
void add_bias_backward(Tensor d_bias, Tensor dx);
}  // namespace plain

}  // namespace fathom
