// The output head and the cross-entropy of its logits, together and in blocks of tokens, so that no tokens x vocab
// matrix of the whole batch is ever stored.
//   loss[t] = logsumexp_v(x[t] . w[v]) - x[t] . w[target[t]]
#pragma once

#include <span>

#include "ops/context.h"

namespace fathom {

inline constexpr int32_t kNoTarget = -1;  // a token without a target has loss 0 and passes no gradient

// Probabilities as a sampler made them: softmax(logits / temperature) over the tokens that its top-k and top-p left
// (V3.2 section 3.1, "keep sampling mask"). Those of row t are kept[begins[t]] up to kept[begins[t + 1]], ascending,
// its target among them; without `begins`, or where a row has none, they are all.
struct SamplingMask {
  double temperature = 1;
  std::span<const int64_t> begins{};  // [tokens + 1]
  std::span<const int32_t> kept{};
  std::span<const int32_t> of(int64_t t) const {
    if (begins.empty()) return {};
    const auto begin = static_cast<size_t>(begins[static_cast<size_t>(t)]);
    return kept.subspan(begin, static_cast<size_t>(begins[static_cast<size_t>(t) + 1]) - begin);
  }
};

// x: [tokens, hidden] (after the final norm); w: [vocab, hidden]; targets: [tokens] i32, in [0, vocab) or kNoTarget.
// loss: [tokens] f32, overwritten (natural log).
void head_cross_entropy(Context& ctx, Tensor loss, Tensor x, Tensor w, Tensor targets);

// logprobs[t] = -loss[t] in the very bits that generation tells of a token (ops/log_softmax.h); 0 without a target.
// entropies (optional): [tokens], of the distribution, in nats. mask (optional): by what distribution.
void head_logprobs(Context& ctx, Tensor logprobs, Tensor x, Tensor w, Tensor targets, Tensor entropies = {},
                   const SamplingMask* mask = nullptr);

// The same as the first, and in the same sweep the gradient of gradient_scale * sum_t row_scales[t] loss[t] (without
// row_scales, [tokens], they are 1):
//   dx = dL/dx, overwritten (may not be x);  dw += dL/dw.
// One of the two may be absent: made apart they have the same bits, but each makes the logits again. mask (optional):
// by what distribution the losses are.
void head_cross_entropy_backward(Context& ctx, Tensor loss, Tensor dx, Tensor dw, Tensor x, Tensor w, Tensor targets,
                                 float gradient_scale, Tensor row_scales = {}, const SamplingMask* mask = nullptr);

namespace plain {
void head_cross_entropy(Tensor loss, Tensor x, Tensor w, Tensor targets);
void head_cross_entropy_backward(Tensor loss, Tensor dx, Tensor dw, Tensor x, Tensor w, Tensor targets,
                                 float gradient_scale, Tensor row_scales = {}, const SamplingMask* mask = nullptr);
}  // namespace plain

}  // namespace fathom
