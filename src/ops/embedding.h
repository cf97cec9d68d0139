// Token embedding: y[t] = table[ids[t]].
#pragma once

#include "ops/context.h"

namespace fathom {

// ids: [tokens] i32, each in [0, vocab) (checked, but on a device); table: [vocab, hidden]; y: [tokens, hidden].
void embedding(Context& ctx, Tensor y, Tensor ids, Tensor table);

// dtable[ids[t]] += dy[t], in order of t for every row.
void embedding_backward_weight(Context& ctx, Tensor dtable, Tensor dy, Tensor ids);

// out = a + b, elementwise; out may be a or b. All [rows, cols], rows may be strided. The residual stream.
void add(Context& ctx, Tensor out, Tensor a, Tensor b);

// x = 0; x is contiguous.
void fill_zero(Context& ctx, Tensor x);

namespace plain {
void embedding(Tensor y, Tensor ids, Tensor table);
void embedding_backward_weight(Tensor dtable, Tensor dy, Tensor ids);
}  // namespace plain

}  // namespace fathom
