#include "ops/cross_entropy.h"

#include <algorithm>
#include <vector>

#include "ops/cpu/cross_entropy_kernels.h"
#include "ops/cpu/isa.h"
#include "ops/device.h"
#include "ops/grain.h"
#include "ops/head_blocks.h"
#include "ops/linear.h"
#include "ops/log_softmax.h"

namespace fathom {
namespace {

constexpr int64_t kDeviceTokens = 512;  // whose logits a device makes at once

// What is absent of dx and dw is not wanted.
struct Head {
  Tensor loss, dx, dw, x, w, targets;
  float gradient_scale = 0;
  Tensor row_scales{};
  bool as_generated = false;  // loss[t]: minus the log probability as ops/log_softmax.h has it
  Tensor entropies{};         // with that
  const SamplingMask* mask = nullptr;
};

void check_shapes(const Head& head) {
  const Tensor &loss = head.loss, &x = head.x, &targets = head.targets;
  FATHOM_CHECK(x.rank == 2 && head.w.rank == 2 && x.cols() == head.w.cols() && head.w.rows() > 0);
  FATHOM_CHECK(loss.size() == x.rows() && targets.size() == x.rows());
  FATHOM_CHECK(!head.row_scales || head.row_scales.size() == x.rows());
}

// Of a row of logits, which becomes the gradient's: scale (softmax - 1 at the target) / temperature where a token is
// kept, 0 elsewhere. Returns the loss.
double masked_gradient(std::span<float> row, int32_t target, double scale, double temperature,
                       std::span<const int32_t> kept) {
  const LogSoftmax of_row(row, temperature, kept);
  const double loss = -of_row[target];
  const double of_logit = scale / temperature;
  if (kept.empty()) {
    for (size_t v = 0; v < row.size(); ++v) {
      row[v] = static_cast<float>(of_logit * std::exp(of_row[static_cast<int64_t>(v)]));
    }
  } else {
    std::vector<float> of_kept(kept.size());
    for (size_t i = 0; i < kept.size(); ++i) of_kept[i] = static_cast<float>(of_logit * std::exp(of_row[kept[i]]));
    std::ranges::fill(row, 0.0f);
    for (size_t i = 0; i < kept.size(); ++i) row[static_cast<size_t>(kept[i])] = of_kept[i];
  }
  row[static_cast<size_t>(target)] -= static_cast<float>(of_logit);
  return loss;
}

// The loss of one row of logits, which becomes the gradient's where that is wanted.
void row_loss(const Head& head, const cpu::CrossEntropyKernels& kernels, int64_t token, std::span<float> row) {
  const bool backward = head.dx || head.dw;
  const auto vocab = std::ssize(row);
  const int32_t target = head.targets.i32()[token];
  const auto kept = head.mask != nullptr ? head.mask->of(token) : std::span<const int32_t>();
  if (head.as_generated) {
    const LogSoftmax of_row = head.mask != nullptr ? LogSoftmax(row, head.mask->temperature, kept) : LogSoftmax(row);
    head.loss.f32()[token] = -static_cast<float>(of_row[target]);
    if (head.entropies) head.entropies.f32()[token] = static_cast<float>(of_row.entropy(vocab));
    return;
  }
  const float scale = head.gradient_scale * (head.row_scales ? head.row_scales.f32()[token] : 1);
  if (head.mask != nullptr && (head.mask->temperature != 1 || !kept.empty())) {
    head.loss.f32()[token] = static_cast<float>(masked_gradient(row, target, scale, head.mask->temperature, kept));
    return;
  }
  float& at_target = row[static_cast<size_t>(target)];
  const float target_logit = at_target;
  const float lse = backward ? kernels.softmax(row.data(), vocab, scale) : kernels.log_sum_exp(row.data(), vocab);
  head.loss.f32()[token] = lse - target_logit;
  if (backward) at_target -= scale;
}

Tensor part_of(Tensor t, int64_t begin, int64_t n) { return t ? t.slice(begin, n) : t; }

void run_on_device(Context& ctx, const Head& head) {
  check_shapes(head);
  FATHOM_CHECK(!head.as_generated && head.mask == nullptr);
  const auto& operators = ctx.device->operators;
  const Tensor w = head.w;
  for (int64_t begin = 0; begin < head.x.rows(); begin += kDeviceTokens) {
    const ArenaScope scope(ctx.arena);
    const int64_t n = std::min(kDeviceTokens, head.x.rows() - begin);
    const Tensor x = head.x.slice(begin, n), logits = new_f32(ctx, {n, w.rows()});
    const Tensor loss = head.loss.slice(begin, n), targets = head.targets.slice(begin, n);
    linear(ctx, logits, make_linear_input(ctx, x, {w}), w);
    if (!head.dx && !head.dw) {
      operators.cross_entropy(ctx, loss, logits, targets);
      continue;
    }
    operators.cross_entropy_backward(ctx, loss, logits, targets, head.gradient_scale,
                                     part_of(head.row_scales, begin, n));
    if (head.dx) linear_backward_input(ctx, head.dx.slice(begin, n), logits, w);
    linear_backward_weight(ctx, {{head.dw, logits, x}});
  }
}

void run(Context& ctx, const Head& head) {
  if (ctx.device != nullptr) return run_on_device(ctx, head);
  check_shapes(head);
  const int64_t vocab = head.w.rows();
  // Tokens without a target are left out of the blocks: they cost nothing but their zeros.
  std::vector<int32_t> tokens;
  for (int32_t t = 0; t < head.x.rows(); ++t) {
    const int32_t target = head.targets.i32()[t];
    if (target == kNoTarget) {
      head.loss.f32()[t] = 0;
      if (head.entropies) head.entropies.f32()[t] = 0;
      continue;
    }
    FATHOM_CHECK(target >= 0 && target < vocab, "target {} of token {}, vocab {}", target, t, vocab);
    if (const auto kept = head.mask != nullptr ? head.mask->of(t) : std::span<const int32_t>(); !kept.empty()) {
      FATHOM_CHECK(std::ranges::binary_search(kept, target) && kept.front() >= 0 && kept.back() < vocab,
                   "target {} of token {} is not kept", target, t);
    }
    tokens.push_back(t);
  }
  const auto& kernels = cpu::choose(cpu::baseline::cross_entropy_kernels, cpu::avx2::cross_entropy_kernels,
                                    cpu::avx512::cross_entropy_kernels);
  const auto use = [&](std::span<const int32_t> block, Tensor rows) {
    ctx.pool.parallel_for(0, rows.rows(), row_grain(vocab), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        row_loss(head, kernels, block[static_cast<size_t>(i)], {rows.f32_row(i), static_cast<size_t>(vocab)});
      }
    });
  };
  for_each_head_block(ctx, {head.x, head.w, head.dx, head.dw}, tokens, use);
}

}  // namespace

void head_cross_entropy(Context& ctx, Tensor loss, Tensor x, Tensor w, Tensor targets) {
  run(ctx, {loss, {}, {}, x, w, targets});
}

void head_logprobs(Context& ctx, Tensor logprobs, Tensor x, Tensor w, Tensor targets, Tensor entropies,
                   const SamplingMask* mask) {
  FATHOM_CHECK(ctx.device == nullptr);
  run(ctx, {.loss = logprobs,
            .x = x,
            .w = w,
            .targets = targets,
            .as_generated = true,
            .entropies = entropies,
            .mask = mask});
  for (float& value : std::span(logprobs.f32(), static_cast<size_t>(logprobs.size()))) value = -value;
}

void head_cross_entropy_backward(Context& ctx, Tensor loss, Tensor dx, Tensor dw, Tensor x, Tensor w, Tensor targets,
                                 float gradient_scale, Tensor row_scales, const SamplingMask* mask) {
  FATHOM_CHECK(dx || dw);
  run(ctx, {.loss = loss,
            .dx = dx,
            .dw = dw,
            .x = x,
            .w = w,
            .targets = targets,
            .gradient_scale = gradient_scale,
            .row_scales = row_scales,
            .mask = mask});
}

}  // namespace fathom
