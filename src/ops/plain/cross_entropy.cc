#include "ops/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace fathom::plain {
namespace {

// Logits of one token in `logits`, over the temperature, -inf where one is not kept; returns their log-sum-exp.
double head_logits(std::vector<double>& logits, const float* x, Tensor w, double temperature = 1,
                   std::span<const int32_t> kept = {}) {
  double largest = -INFINITY;
  for (int64_t v = 0; v < w.rows(); ++v) {
    double sum = 0;
    for (int64_t i = 0; i < w.cols(); ++i) sum += static_cast<double>(x[i]) * w.f32(v, i);
    if (!kept.empty() && std::ranges::find(kept, v) == kept.end()) sum = -INFINITY;
    logits[static_cast<size_t>(v)] = sum /= temperature;
    largest = std::max(largest, sum);
  }
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

}  // namespace

void head_cross_entropy(Tensor loss, Tensor x, Tensor w, Tensor targets) {
  std::vector<double> logits(static_cast<size_t>(w.rows()));
  for (int64_t t = 0; t < x.rows(); ++t) {
    const int32_t target = targets.i32()[t];
    loss.f32()[t] = 0;
    if (target == kNoTarget) continue;
    const double lse = head_logits(logits, x.f32_row(t), w);
    loss.f32()[t] = static_cast<float>(lse - logits[static_cast<size_t>(target)]);
  }
}

void head_cross_entropy_backward(Tensor loss, Tensor dx, Tensor dw, Tensor x, Tensor w, Tensor targets,
                                 float gradient_scale, Tensor row_scales, const SamplingMask* mask) {
  std::vector<double> logits(static_cast<size_t>(w.rows()));
  for (int64_t t = 0; t < x.rows(); ++t) {
    const int32_t target = targets.i32()[t];
    loss.f32()[t] = 0;
    for (int64_t i = 0; dx && i < x.cols(); ++i) dx.f32(t, i) = 0;
    if (target == kNoTarget) continue;
    std::vector<double> dx_row(static_cast<size_t>(x.cols()));
    const double temperature = mask != nullptr ? mask->temperature : 1;
    const double lse =
        head_logits(logits, x.f32_row(t), w, temperature, mask != nullptr ? mask->of(t) : std::span<const int32_t>());
    loss.f32()[t] = static_cast<float>(lse - logits[static_cast<size_t>(target)]);
    const double scale = gradient_scale * (row_scales ? row_scales.f32()[t] : 1.0) / temperature;
    for (int64_t v = 0; v < w.rows(); ++v) {
      const double d_logit = scale * (std::exp(logits[static_cast<size_t>(v)] - lse) - (v == target ? 1 : 0));
      for (int64_t i = 0; i < x.cols(); ++i) {
        dx_row[static_cast<size_t>(i)] += d_logit * w.f32(v, i);
        if (dw) dw.f32(v, i) += static_cast<float>(d_logit * x.f32(t, i));
      }
    }
    for (int64_t i = 0; dx && i < x.cols(); ++i) dx.f32(t, i) = static_cast<float>(dx_row[static_cast<size_t>(i)]);
  }
}

}  // namespace fathom::plain
