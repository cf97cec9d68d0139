#include "ops/distillation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/cpu/cross_entropy_kernels.h"
#include "ops/cpu/isa.h"
#include "ops/cross_entropy.h"
#include "ops/grain.h"
#include "ops/head_blocks.h"

namespace fathom {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

const cpu::CrossEntropyKernels& chosen_kernels() {
  return cpu::choose(cpu::baseline::cross_entropy_kernels, cpu::avx2::cross_entropy_kernels,
                     cpu::avx512::cross_entropy_kernels);
}

struct Distillation {
  HeadBlocks head;
  Tensor loss, divergences, targets;
  const TeacherRows& teacher;
  double weight = 0;
  float gradient_scale = 0;
  Tensor row_scales{};
  bool backward() const { return head.dx || head.dw; }
};

// The tokens of a row, as it lies in `teacher`.
std::span<const int32_t> ids_of(const TeacherRows& teacher, int64_t token) {
  const int32_t* ids = teacher.ids.i32() + token * teacher.ids.cols();
  return {ids, static_cast<size_t>(std::find(ids, ids + teacher.ids.cols(), kNoTarget) - ids)};
}

// log(e^a + e^b)
double log_add(double a, double b) {
  const double largest = std::max(a, b);
  return std::isinf(largest) && largest < 0 ? largest
                                            : largest + std::log(std::exp(a - largest) + std::exp(b - largest));
}

// temperature^2 KL of one row of logits, which become the gradient of `scale` times it. ids: not empty.
double diverge(float* row, int64_t vocab, std::span<const int32_t> ids, const float* logprobs, double temperature,
               double scale) {
  if (temperature != 1) {
    const auto factor = static_cast<float>(1 / temperature);
    for (int64_t v = 0; v < vocab; ++v) row[v] *= factor;
  }
  // The row's tokens are taken out: the kernel then normalizes what is left.
  std::vector<double> p(ids.size()), log_q(ids.size());
  double p_sum = 0, log_known = kNothing;
  for (size_t i = 0; i < ids.size(); ++i) {
    float& logit = row[ids[i]];
    log_q[i] = logit;
    logit = kNothing;
    log_known = log_add(log_known, log_q[i]);
    p[i] = std::exp(static_cast<double>(logprobs[i]));
    p_sum += p[i];
  }
  const bool all_known = std::ssize(ids) == vocab;
  if (p_sum > 1 || all_known) {
    for (double& x : p) x /= p_sum;
    p_sum = 1;
  }
  const double p_rest = 1 - p_sum, log_rest = all_known ? kNothing : chosen_kernels().softmax(row, vocab, 1);
  const double log_all = log_add(log_known, log_rest);
  double kl = p_rest > 0 ? p_rest * (std::log(p_rest) - (log_rest - log_all)) : 0;
  const double factor = scale * temperature;  // temperature^2, and 1 / temperature for the logits
  if (!all_known) {
    const auto of_rest = static_cast<float>(factor * (std::exp(log_rest - log_all) - p_rest));
    for (int64_t v = 0; v < vocab; ++v) row[v] *= of_rest;
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    const double log_q_i = log_q[i] - log_all;
    kl += p[i] > 0 ? p[i] * (std::log(p[i]) - log_q_i) : 0 * log_q_i;  // what is not finite shows
    row[ids[i]] = static_cast<float>(factor * (std::exp(log_q_i) - p[i]));
  }
  return temperature * temperature * kl;
}

void check_shapes(const Distillation& d) {
  const int64_t tokens = d.head.x.rows();
  FATHOM_CHECK(d.loss.size() == tokens && d.divergences.size() == tokens && d.targets.size() == tokens);
  FATHOM_CHECK(d.teacher.ids.rank == 2 && d.teacher.logprobs.rank == 2 && d.teacher.ids.rows() == tokens);
  FATHOM_CHECK(d.teacher.logprobs.rows() == tokens && d.teacher.logprobs.cols() == d.teacher.ids.cols());
  FATHOM_CHECK(!d.row_scales || d.row_scales.size() == tokens);
  FATHOM_CHECK(d.teacher.temperature > 0 && d.weight >= 0 && d.weight <= 1);
}

// One row of logits, which become the gradient where that is wanted. scratch: of the same size.
void distill_row(const Distillation& d, int64_t token, float* row, std::vector<float>& scratch) {
  const auto& kernels = chosen_kernels();
  const int64_t vocab = d.head.w.rows();
  const std::span<const int32_t> ids = ids_of(d.teacher, token);
  const int32_t target = d.targets.i32()[token];
  const float target_logit = row[target];
  const double weight = ids.empty() ? 0 : d.weight;
  // Of the hard target, whose gradient is made beside the other.
  const double of_row = d.gradient_scale * (d.row_scales ? static_cast<double>(d.row_scales.f32()[token]) : 1);
  const auto scale = static_cast<float>(of_row * (1 - weight));
  const bool both = d.backward() && weight < 1 && !ids.empty();
  float* hard = row;
  if (both) {
    std::copy_n(row, vocab, scratch.data());
    hard = scratch.data();
  }
  const bool softmax = d.backward() && weight < 1;
  d.loss.f32()[token] =
      (softmax ? kernels.softmax(hard, vocab, scale) : kernels.log_sum_exp(hard, vocab)) - target_logit;
  if (softmax) hard[target] -= scale;
  d.divergences.f32()[token] = 0;
  if (ids.empty()) return;
  const float* logprobs = d.teacher.logprobs.f32_row(token);
  const double kl = diverge(row, vocab, ids, logprobs, d.teacher.temperature, of_row * weight);
  d.divergences.f32()[token] = static_cast<float>(kl);
  for (int64_t v = 0; both && v < vocab; ++v) row[v] += hard[v];
}

void run(Context& ctx, const Distillation& d) {
  FATHOM_CHECK(ctx.device == nullptr);
  check_shapes(d);
  const int64_t vocab = d.head.w.rows();
  std::vector<int32_t> tokens;
  for (int32_t t = 0; t < d.head.x.rows(); ++t) {
    const int32_t target = d.targets.i32()[t];
    if (target == kNoTarget) {
      d.loss.f32()[t] = d.divergences.f32()[t] = 0;
      continue;
    }
    FATHOM_CHECK(target >= 0 && target < vocab, "target {} of token {}, vocab {}", target, t, vocab);
    for (const int32_t id : ids_of(d.teacher, t)) {
      FATHOM_CHECK(id >= 0 && id < vocab, "teacher's token {} for token {}, vocab {}", id, t, vocab);
    }
    tokens.push_back(t);
  }
  for_each_head_block(ctx, d.head, tokens, [&](std::span<const int32_t> block, Tensor rows) {
    ctx.pool.parallel_for(0, rows.rows(), row_grain(vocab), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<size_t>(d.backward() ? vocab : 0));
      for (int64_t i = begin; i < end; ++i) distill_row(d, block[static_cast<size_t>(i)], rows.f32_row(i), scratch);
    });
  });
}

// The k largest of a row, the largest first, of equal ones the lower index.
void largest_of(const float* row, int64_t n, std::span<int32_t> ids) {
  const auto before = [&](int32_t a, int32_t b) { return row[a] > row[b] || (row[a] == row[b] && a < b); };
  const int64_t k = std::ssize(ids);
  for (int32_t v = 0; v < n; ++v) {  // a heap of the best so far, the worst of them on top
    if (v < k) {
      ids[static_cast<size_t>(v)] = v;
      std::push_heap(ids.begin(), ids.begin() + v + 1, before);
    } else if (row[v] > row[ids[0]]) {
      std::pop_heap(ids.begin(), ids.end(), before);
      ids.back() = v;
      std::push_heap(ids.begin(), ids.end(), before);
    }
  }
  std::sort_heap(ids.begin(), ids.end(), before);
}

}  // namespace

void head_distillation(Context& ctx, Tensor loss, Tensor divergences, Tensor x, Tensor w, Tensor targets,
                       const TeacherRows& teacher) {
  run(ctx, {{x, w, {}, {}}, loss, divergences, targets, teacher});
}

void head_distillation_backward(Context& ctx, Tensor loss, Tensor divergences, Tensor dx, Tensor dw, Tensor x, Tensor w,
                                Tensor targets, const TeacherRows& teacher, double weight, float gradient_scale,
                                Tensor row_scales) {
  FATHOM_CHECK(dx || dw);
  run(ctx, {{x, w, dx, dw}, loss, divergences, targets, teacher, weight, gradient_scale, row_scales});
}

void head_top_logprobs(Context& ctx, Tensor ids, Tensor logprobs, Tensor log_norms, Tensor x, Tensor w,
                       std::span<const int32_t> tokens, std::span<const double> temperatures) {
  FATHOM_CHECK(ctx.device == nullptr);
  const int64_t n = std::ssize(tokens), k = ids.cols(), vocab = w.rows();
  FATHOM_CHECK(ids.rows() == n && logprobs.rows() == n && logprobs.cols() == k && k > 0 && k <= vocab);
  FATHOM_CHECK(log_norms.size() == n * std::ssize(temperatures));
  const auto& kernels = chosen_kernels();
  int64_t done = 0;
  for_each_head_block(ctx, {x, w, {}, {}}, tokens, [&](std::span<const int32_t>, Tensor rows) {
    ctx.pool.parallel_for(0, rows.rows(), row_grain(vocab), [&](int64_t begin, int64_t end) {
      std::vector<float> scaled(static_cast<size_t>(vocab));
      for (int64_t i = begin; i < end; ++i) {
        const float* row = rows.f32_row(i);
        const int64_t to = done + i;
        const std::span<int32_t> best(ids.i32() + to * k, static_cast<size_t>(k));
        largest_of(row, vocab, best);
        const float lse = kernels.log_sum_exp(row, vocab);
        for (int64_t j = 0; j < k; ++j) logprobs.f32(to, j) = std::min(row[best[static_cast<size_t>(j)]] - lse, 0.0f);
        for (size_t at = 0; at < temperatures.size(); ++at) {
          const double temperature = temperatures[at];
          double norm = 0;  // of temperature 1
          if (temperature != 1) {
            for (int64_t v = 0; v < vocab; ++v) {
              scaled[static_cast<size_t>(v)] = static_cast<float>((static_cast<double>(row[v]) - lse) / temperature);
            }
            norm = kernels.log_sum_exp(scaled.data(), vocab);
          }
          log_norms.f32()[to * std::ssize(temperatures) + static_cast<int64_t>(at)] = static_cast<float>(norm);
        }
      }
    });
    done += rows.rows();
  });
}

}  // namespace fathom
