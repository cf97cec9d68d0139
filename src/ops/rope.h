// Rotary position embedding with YaRN or Llama 3's scaling, on the rope part of queries and keys (V2 section 3.1.4,
// V3 section 4.3).
#pragma once

#include <optional>
#include <vector>

#include "ops/context.h"

namespace fathom {

struct YarnScaling {
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32, beta_slow = 1;
  double mscale = 0, mscale_all_dim = 0;  // 0: the key is missing
  bool operator==(const YarnScaling&) const = default;
};

// Llama 3.1's: waves longer than original / low_freq_factor positions are stretched by `factor`, those shorter than
// original / high_freq_factor stay, and between the two the frequency changes evenly.
struct Llama3Scaling {
  double factor = 8, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_position_embeddings = 8192;
  bool operator==(const Llama3Scaling&) const = default;
};

struct Rope {
  int64_t dim = 0;                 // qk_rope_head_dim, even
  bool interleaved = true;         // pairs (x0, x1), (x2, x3), ... share an angle; else (x0, x_{d/2}), ...
  std::vector<float> inv_freq;     // [dim / 2], radians a position, YaRN applied
  float attention_scaling = 1;     // cos and sin are multiplied by it
  float softmax_scale_factor = 1;  // the softmax scale is multiplied by it: g(mscale_all_dim)^2
};

// The frequencies f_i = theta^(-2i/dim), stretched by YaRN where given:
//   ramp_i = clamp((i - low) / (high - low), 0, 1),  f_i <- f_i / factor * ramp_i + f_i * (1 - ramp_i)
Rope make_rope(int64_t dim, double theta, bool interleaved, const std::optional<YarnScaling>& yarn);

// rope.inv_freq, before any scaling, by Llama 3.1's rule.
void scale_as_llama3(Rope& rope, const Llama3Scaling& scaling);

// Rotates in place. x: [tokens, heads * head_stride], each head's dim values to rotate begin at h * head_stride +
// offset; positions: [tokens] i32. Angles are position * inv_freq in f32, as transformers has them.
struct RopeLayout {
  int64_t n_heads = 1, head_stride = 0, offset = 0;
};
void rope(Context& ctx, const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout);

// dx: the gradient after the rotation becomes the gradient before it, in place (the transpose: the opposite angle).
void rope_backward(Context& ctx, const Rope& rope, Tensor dx, Tensor positions, const RopeLayout& layout);

namespace plain {
void rope(const Rope& rope, Tensor x, Tensor positions, const RopeLayout& layout);
void rope_backward(const Rope& rope, Tensor dx, Tensor positions, const RopeLayout& layout);
}  // namespace plain

}  // namespace fathom
