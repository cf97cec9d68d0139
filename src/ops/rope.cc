#include "ops/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ops/cpu/isa.h"
#include "ops/cpu/rotation_kernels.h"
#include "ops/device.h"
#include "ops/grain.h"

namespace fathom {
namespace {

const cpu::RotationKernels& kernels() {
  return cpu::choose(cpu::baseline::rotation_kernels, cpu::avx2::rotation_kernels, cpu::avx512::rotation_kernels);
}

// YaRN's magnitude for a stretch by `factor`.
double magnitude(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1; }

// The pair whose wave turns `rotations` times in the original context.
double pair_of_rotations(double rotations, int64_t dim, double theta, int64_t context) {
  return static_cast<double>(dim) * std::log(static_cast<double>(context) / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(theta));
}

void check_shapes(const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout) {
  FATHOM_CHECK(positions.size() == x.rows() && positions.contiguous());
  FATHOM_CHECK(static_cast<int64_t>(rope.inv_freq.size()) == rope.dim / 2);
  FATHOM_CHECK(layout.n_heads >= 1 && layout.offset >= 0 &&
               (layout.n_heads - 1) * layout.head_stride + layout.offset + rope.dim <= x.cols());
}

// Rotates by the positions' angles (direction 1) or their opposites (-1).
void rotate(Context& ctx, const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout, float direction) {
  const int64_t tokens = x.rows(), half = rope.dim / 2;
  check_shapes(rope, x, positions, layout);
  const auto rotate_head = rope.interleaved ? kernels().rotate_interleaved : kernels().rotate_halves;
  // An angle costs about as much as ten rotations.
  ctx.pool.parallel_for(0, tokens, row_grain((layout.n_heads + 10) * rope.dim), [&](int64_t begin, int64_t end) {
    std::vector<float> cos(half), sin(half);
    for (int64_t t = begin; t < end; ++t) {
      const auto position = static_cast<float>(positions.i32()[t]);
      for (int64_t i = 0; i < half; ++i) {
        const float angle = position * rope.inv_freq[i];
        cos[i] = std::cos(angle) * rope.attention_scaling;
        sin[i] = std::sin(angle) * rope.attention_scaling * direction;
      }
      float* head = x.f32_row(t) + layout.offset;
      for (int64_t h = 0; h < layout.n_heads; ++h, head += layout.head_stride) {
        rotate_head(head, cos.data(), sin.data(), half);
      }
    }
  });
}

}  // namespace

Rope make_rope(int64_t dim, double theta, bool interleaved, const std::optional<YarnScaling>& yarn) {
  FATHOM_CHECK(dim > 0 && dim % 2 == 0);
  Rope rope{.dim = dim, .interleaved = interleaved};
  rope.inv_freq.resize(dim / 2);
  double low = 0, high = 0;
  if (yarn) {
    const int64_t context = yarn->original_max_position_embeddings;
    low = std::max(std::floor(pair_of_rotations(yarn->beta_fast, dim, theta, context)), 0.0);
    high = std::min(std::ceil(pair_of_rotations(yarn->beta_slow, dim, theta, context)), static_cast<double>(dim - 1));
    if (low == high) high += 0.001;
    rope.attention_scaling =
        static_cast<float>(yarn->mscale != 0 && yarn->mscale_all_dim != 0
                               ? magnitude(yarn->factor, yarn->mscale) / magnitude(yarn->factor, yarn->mscale_all_dim)
                               : magnitude(yarn->factor, 1));
    if (yarn->mscale_all_dim != 0) {
      const double g = magnitude(yarn->factor, yarn->mscale_all_dim);
      rope.softmax_scale_factor = static_cast<float>(g * g);
    }
  }
  // In f32, as transformers computes them: long positions magnify the difference.
  for (int64_t i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    const auto wave = static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
    float frequency = 1.0f / wave;
    if (yarn) {
      const auto ramp = static_cast<float>(std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
      const float stretched = 1.0f / (static_cast<float>(yarn->factor) * wave);
      frequency = stretched * ramp + frequency * (1 - ramp);
    }
    rope.inv_freq[i] = frequency;
  }
  return rope;
}

void scale_as_llama3(Rope& rope, const Llama3Scaling& s) {
  // In f32, as transformers computes them.
  const auto context = static_cast<float>(s.original_max_position_embeddings);
  const auto factor = static_cast<float>(s.factor);
  const auto low = static_cast<float>(s.low_freq_factor), high = static_cast<float>(s.high_freq_factor);
  const auto turn = static_cast<float>(2 * std::numbers::pi);
  for (float& frequency : rope.inv_freq) {
    const float wave = turn / frequency;
    if (wave > context / low) {
      frequency /= factor;
    } else if (wave >= context / high) {
      const float smooth = (context / wave - low) / (high - low);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

void rope(Context& ctx, const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout) {
  check_shapes(rope, x, positions, layout);
  if (ctx.device != nullptr) return ctx.device->operators.rope(ctx, rope, x, positions, layout);
  rotate(ctx, rope, x, positions, layout, 1);
}
void rope_backward(Context& ctx, const Rope& rope, Tensor dx, Tensor positions, const RopeLayout& layout) {
  check_shapes(rope, dx, positions, layout);
  if (ctx.device != nullptr) return ctx.device->operators.rope_backward(ctx, rope, dx, positions, layout);
  rotate(ctx, rope, dx, positions, layout, -1);
}

}  // namespace fathom
