#include "ops/embedding.h"

namespace fathom::plain {

void embedding(Tensor y, Tensor ids, Tensor table) {
  for (int64_t t = 0; t < y.rows(); ++t) {
    for (int64_t d = 0; d < y.cols(); ++d) y.f32(t, d) = table.f32(ids.i32()[t], d);
  }
}

void embedding_backward_weight(Tensor dtable, Tensor dy, Tensor ids) {
  for (int64_t t = 0; t < dy.rows(); ++t) {
    for (int64_t d = 0; d < dy.cols(); ++d) dtable.f32(ids.i32()[t], d) += dy.f32(t, d);
  }
}

}  // namespace fathom::plain
