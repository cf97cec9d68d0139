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

void add_bias(Tensor x, Tensor bias) {
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t i = 0; i < x.cols(); ++i) x.f32(t, i) += bias.f32(0, i);
  }
}

void add_bias_backward(Tensor d_bias, Tensor dx) {
  for (int64_t t = 0; t < dx.rows(); ++t) {
    for (int64_t i = 0; i < dx.cols(); ++i) d_bias.f32(0, i) += dx.f32(t, i);
  }
}

}  // namespace fathom::plain
