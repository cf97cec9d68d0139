#include "ops/linear.h"

namespace fathom::plain {
namespace {

// dst = value, or dst += value.
void put(float& dst, double value, bool accumulate) {
  dst = accumulate ? dst + static_cast<float>(value) : static_cast<float>(value);
}

// Calls body(rows' begin, their number, expert) for every expert.
template <class Body>
void for_each_expert(Tensor offsets, const Body& body) {
  for (int64_t e = 0; e + 1 < offsets.size(); ++e) {
    body(offsets.i32()[e], offsets.i32()[e + 1] - offsets.i32()[e], e);
  }
}

}  // namespace

void linear(Tensor y, Tensor x, Tensor w, bool accumulate) {
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t o = 0; o < w.rows(); ++o) {
      double sum = 0;
      for (int64_t i = 0; i < w.cols(); ++i) sum += static_cast<double>(x.f32(t, i)) * w.f32(o, i);
      put(y.f32(t, o), sum, accumulate);
    }
  }
}

void linear_backward_input(Tensor dx, Tensor dy, Tensor w, bool accumulate) {
  for (int64_t t = 0; t < dx.rows(); ++t) {
    for (int64_t i = 0; i < w.cols(); ++i) {
      double sum = 0;
      for (int64_t o = 0; o < w.rows(); ++o) sum += static_cast<double>(dy.f32(t, o)) * w.f32(o, i);
      put(dx.f32(t, i), sum, accumulate);
    }
  }
}

void linear_backward_weight(Tensor dw, Tensor dy, Tensor x) {
  for (int64_t o = 0; o < dw.rows(); ++o) {
    for (int64_t i = 0; i < dw.cols(); ++i) {
      double sum = 0;
      for (int64_t t = 0; t < x.rows(); ++t) sum += static_cast<double>(dy.f32(t, o)) * x.f32(t, i);
      put(dw.f32(o, i), sum, true);
    }
  }
}

void grouped_linear(Tensor y, Tensor x, Tensor w, Tensor offsets, bool accumulate) {
  for_each_expert(offsets, [&](int64_t begin, int64_t n, int64_t e) {
    linear(y.slice(begin, n), x.slice(begin, n), w[e], accumulate);
  });
}

void grouped_linear_backward_input(Tensor dx, Tensor dy, Tensor w, Tensor offsets, bool accumulate) {
  for_each_expert(offsets, [&](int64_t begin, int64_t n, int64_t e) {
    linear_backward_input(dx.slice(begin, n), dy.slice(begin, n), w[e], accumulate);
  });
}

void grouped_linear_backward_weight(Tensor dw, Tensor dy, Tensor x, Tensor offsets) {
  for_each_expert(offsets, [&](int64_t begin, int64_t n, int64_t e) {
    linear_backward_weight(dw[e], dy.slice(begin, n), x.slice(begin, n));
  });
}

}  // namespace fathom::plain
