#include "ops/experts.h"

namespace fathom::plain {
namespace {

int64_t slot_of(const Dispatch& d, int64_t token, int64_t choice) {
  return d.slot_of.i32()[token * d.slot_of.row_stride + choice];
}

}  // namespace

void dispatch(Tensor x_sorted, Tensor x, const Dispatch& d) {
  for (int64_t slot = 0; slot < x_sorted.rows(); ++slot) {
    for (int64_t i = 0; i < x.cols(); ++i) x_sorted.f32(slot, i) = x.f32(d.token_of.i32()[slot], i);
  }
}

void dispatch_backward(Tensor dx, Tensor dx_sorted, const Dispatch& d) {
  for (int64_t t = 0; t < dx.rows(); ++t) {
    for (int64_t choice = 0; choice < d.slot_of.cols(); ++choice) {
      const int64_t slot = slot_of(d, t, choice);
      for (int64_t i = 0; i < dx.cols(); ++i) dx.f32(t, i) += dx_sorted.f32(slot, i);
    }
  }
}

void combine(Tensor y, Tensor y_sorted, Tensor topk_weights, const Dispatch& d) {
  for (int64_t t = 0; t < y.rows(); ++t) {
    for (int64_t choice = 0; choice < d.slot_of.cols(); ++choice) {
      const int64_t slot = slot_of(d, t, choice);
      for (int64_t i = 0; i < y.cols(); ++i) y.f32(t, i) += topk_weights.f32(t, choice) * y_sorted.f32(slot, i);
    }
  }
}

void combine_backward(Tensor dy_sorted, Tensor dy, Tensor topk_weights, const Dispatch& d) {
  for (int64_t t = 0; t < dy.rows(); ++t) {
    for (int64_t choice = 0; choice < d.slot_of.cols(); ++choice) {
      const int64_t slot = slot_of(d, t, choice);
      for (int64_t i = 0; i < dy.cols(); ++i) dy_sorted.f32(slot, i) = topk_weights.f32(t, choice) * dy.f32(t, i);
    }
  }
}

void combine_backward_weights(Tensor d_weights, Tensor d_inner, Tensor inner, Tensor topk_weights, const Dispatch& d) {
  for (int64_t t = 0; t < d_weights.rows(); ++t) {
    for (int64_t choice = 0; choice < d_weights.cols(); ++choice) {
      const int64_t slot = slot_of(d, t, choice);
      const float weight = topk_weights.f32(t, choice);
      double dot = 0;
      for (int64_t i = 0; i < inner.cols(); ++i) dot += static_cast<double>(inner.f32(slot, i)) * d_inner.f32(slot, i);
      d_weights.f32(t, choice) = weight != 0 ? static_cast<float>(dot / weight) : 0;
    }
  }
}

}  // namespace fathom::plain
