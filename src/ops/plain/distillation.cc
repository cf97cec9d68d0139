#include "ops/distillation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/cross_entropy.h"

namespace fathom::plain {
namespace {

std::vector<double> logits_of(const float* x, Tensor w) {
  std::vector<double> logits(static_cast<size_t>(w.rows()));
  for (int64_t v = 0; v < w.rows(); ++v) {
    for (int64_t i = 0; i < w.cols(); ++i) logits[static_cast<size_t>(v)] += static_cast<double>(x[i]) * w.f32(v, i);
  }
  return logits;
}

std::vector<double> softmax(std::vector<double> logits, double temperature) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double& x : logits) sum += x = std::exp((x - largest) / temperature);
  for (double& x : logits) x /= sum;
  return logits;
}

// KL over the row's tokens and the rest, and its gradient by the logits divided by the temperature.
double kl(const std::vector<double>& q, const TeacherRows& teacher, int64_t token, std::vector<double>& gradient) {
  std::vector<bool> known(q.size());
  double p_sum = 0, kl = 0;
  const auto p_of = [&](int64_t i) { return std::exp(static_cast<double>(teacher.logprobs.f32(token, i))); };
  const int32_t* ids = teacher.ids.i32() + token * teacher.ids.cols();
  int64_t k = 0;
  for (; k < teacher.ids.cols() && ids[k] != kNoTarget; ++k) {
    known[static_cast<size_t>(ids[k])] = true;
    p_sum += p_of(k);
  }
  gradient.assign(q.size(), 0);
  if (k == 0) return 0;
  const double norm = p_sum > 1 || k == static_cast<int64_t>(q.size()) ? p_sum : 1;
  const double p_rest = 1 - p_sum / norm;
  double q_rest = 0;
  for (size_t v = 0; v < q.size(); ++v) q_rest += known[v] ? 0 : q[v];
  if (p_rest > 0) kl += p_rest * std::log(p_rest / q_rest);
  for (size_t v = 0; v < q.size(); ++v) gradient[v] = q_rest > 0 ? q[v] * (1 - p_rest / q_rest) : 0;
  for (int64_t i = 0; i < k; ++i) {
    const double p = p_of(i) / norm, q_i = q[static_cast<size_t>(ids[i])];
    if (p > 0) kl += p * std::log(p / q_i);
    gradient[static_cast<size_t>(ids[i])] = q_i - p;
  }
  return kl;
}

void run(Tensor loss, Tensor divergences, Tensor dx, Tensor dw, Tensor x, Tensor w, Tensor targets,
         const TeacherRows& teacher, double weight, double gradient_scale, Tensor row_scales) {
  for (int64_t t = 0; t < x.rows(); ++t) {
    const int32_t target = targets.i32()[t];
    loss.f32()[t] = divergences.f32()[t] = 0;
    for (int64_t i = 0; dx && i < x.cols(); ++i) dx.f32(t, i) = 0;
    if (target == kNoTarget) continue;
    const std::vector<double> logits = logits_of(x.f32_row(t), w), q1 = softmax(logits, 1);
    loss.f32()[t] = static_cast<float>(-std::log(q1[static_cast<size_t>(target)]));
    const double temperature = teacher.temperature;
    std::vector<double> d_soft;
    const double divergence = kl(softmax(logits, temperature), teacher, t, d_soft);
    divergences.f32()[t] = static_cast<float>(temperature * temperature * divergence);
    const bool has_row = teacher.ids.i32()[t * teacher.ids.cols()] != kNoTarget;
    const double scale = gradient_scale * (row_scales ? row_scales.f32()[t] : 1.0);
    const double soft = has_row ? weight : 0;
    std::vector<double> dx_row(static_cast<size_t>(x.cols()));
    for (int64_t v = 0; v < w.rows(); ++v) {
      const auto at = static_cast<size_t>(v);
      const double d_logit = scale * ((1 - soft) * (q1[at] - (v == target ? 1 : 0)) + soft * temperature * d_soft[at]);
      for (int64_t i = 0; i < x.cols(); ++i) {
        dx_row[static_cast<size_t>(i)] += d_logit * w.f32(v, i);
        if (dw) dw.f32(v, i) += static_cast<float>(d_logit * x.f32(t, i));
      }
    }
    for (int64_t i = 0; dx && i < x.cols(); ++i) dx.f32(t, i) = static_cast<float>(dx_row[static_cast<size_t>(i)]);
  }
}

}  // namespace

void head_distillation(Tensor loss, Tensor divergences, Tensor x, Tensor w, Tensor targets,
                       const TeacherRows& teacher) {
  run(loss, divergences, {}, {}, x, w, targets, teacher, 0, 0, {});
}

void head_distillation_backward(Tensor loss, Tensor divergences, Tensor dx, Tensor dw, Tensor x, Tensor w,
                                Tensor targets, const TeacherRows& teacher, double weight, float gradient_scale,
                                Tensor row_scales) {
  run(loss, divergences, dx, dw, x, w, targets, teacher, weight, gradient_scale, row_scales);
}

void head_top_logprobs(Tensor ids, Tensor logprobs, Tensor log_norms, Tensor x, Tensor w,
                       std::span<const int32_t> tokens, std::span<const double> temperatures) {
  const int64_t k = ids.cols();
  for (size_t row = 0; row < tokens.size(); ++row) {
    const auto r = static_cast<int64_t>(row);
    const std::vector<double> p = softmax(logits_of(x.f32_row(tokens[row]), w), 1);
    std::vector<int32_t> order(p.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return p[static_cast<size_t>(a)] > p[static_cast<size_t>(b)]; });
    for (int64_t i = 0; i < k; ++i) {
      ids.i32()[r * k + i] = order[static_cast<size_t>(i)];
      logprobs.f32(r, i) = static_cast<float>(std::log(p[static_cast<size_t>(order[static_cast<size_t>(i)])]));
    }
    for (size_t at = 0; at < temperatures.size(); ++at) {
      double sum = 0;
      for (const double x_v : p) sum += std::pow(x_v, 1 / temperatures[at]);
      log_norms.f32()[r * std::ssize(temperatures) + static_cast<int64_t>(at)] = static_cast<float>(std::log(sum));
    }
  }
}

}  // namespace fathom::plain
