#include "ops/rope.h"

#include <cmath>

namespace fathom::plain {
namespace {

void rotate(const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout, float direction) {
  const int64_t half = rope.dim / 2;
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t h = 0; h < layout.n_heads; ++h) {
      float* head = x.f32_row(t) + h * layout.head_stride + layout.offset;
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(positions.i32()[t]) * rope.inv_freq[i];
        const float c = std::cos(angle) * rope.attention_scaling;
        const float s = std::sin(angle) * rope.attention_scaling * direction;
        float& x0 = head[rope.interleaved ? 2 * i : i];
        float& x1 = head[rope.interleaved ? 2 * i + 1 : i + half];
        const float rotated = x0 * c - x1 * s;
        x1 = x1 * c + x0 * s;
        x0 = rotated;
      }
    }
  }
}

}  // namespace

void rope(const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout) {
  rotate(rope, x, positions, layout, 1);
}
void rope_backward(const Rope& rope, Tensor dx, Tensor positions, const RopeLayout& layout) {
  rotate(rope, dx, positions, layout, -1);
}

}  // namespace fathom::plain
