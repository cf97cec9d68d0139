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
};

void check_shapes(const Head& head) {
  const Tensor &loss = head.loss, &x = head.x, &targets = head.targets;
  FATHOM_CHECK(x.rank == 2 && head.w.rank == 2 && x.cols() == head.w.cols() && head.w.rows() > 0);
  FATHOM_CHECK(loss.size() == x.rows() && targets.size() == x.rows());
  FATHOM_CHECK(!head.row_scales || head.row_scales.size() == x.rows());
}

void run_on_device(Context& ctx, Tensor loss, Tensor x, Tensor w, Tensor targets) {
  for (int64_t begin = 0; begin < x.rows(); begin += kDeviceTokens) {
    const ArenaScope scope(ctx.arena);
    const int64_t n = std::min(kDeviceTokens, x.rows() - begin);
    const Tensor rows = x.slice(begin, n), logits = new_f32(ctx, {n, w.rows()});
    linear(ctx, logits, make_linear_input(ctx, rows, {w}), w);
    ctx.device->operators.cross_entropy(ctx, loss.slice(begin, n), logits, targets.slice(begin, n));
  }
}

void run(Context& ctx, const Head& head) {
  check_shapes(head);
  const int64_t vocab = head.w.rows();
  const bool backward = head.dx || head.dw;
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
    tokens.push_back(t);
  }
  const auto& kernels = cpu::choose(cpu::baseline::cross_entropy_kernels, cpu::avx2::cross_entropy_kernels,
                                    cpu::avx512::cross_entropy_kernels);
  const auto use = [&](std::span<const int32_t> block, Tensor rows) {
    ctx.pool.parallel_for(0, rows.rows(), row_grain(vocab), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t token = block[static_cast<size_t>(i)];
        float* row = rows.f32_row(i);
        if (head.as_generated) {
          const LogSoftmax of_row(std::span(row, static_cast<size_t>(vocab)));
          head.loss.f32()[token] = -static_cast<float>(of_row[head.targets.i32()[token]]);
          if (head.entropies) head.entropies.f32()[token] = static_cast<float>(of_row.entropy(vocab));
          continue;
        }
        const float scale = head.gradient_scale * (head.row_scales ? head.row_scales.f32()[token] : 1);
        float& at_target = row[head.targets.i32()[token]];
        const float target_logit = at_target;
        const float lse = backward ? kernels.softmax(row, vocab, scale) : kernels.log_sum_exp(row, vocab);
        head.loss.f32()[token] = lse - target_logit;
        if (backward) at_target -= scale;
      }
    });
  };
  for_each_head_block(ctx, {head.x, head.w, head.dx, head.dw}, tokens, use);
}

}  // namespace

void head_cross_entropy(Context& ctx, Tensor loss, Tensor x, Tensor w, Tensor targets) {
  if (ctx.device != nullptr) {
    check_shapes({loss, {}, {}, x, w, targets});
    return run_on_device(ctx, loss, x, w, targets);
  }
  run(ctx, {loss, {}, {}, x, w, targets});
}

void head_logprobs(Context& ctx, Tensor logprobs, Tensor x, Tensor w, Tensor targets, Tensor entropies) {
  FATHOM_CHECK(ctx.device == nullptr);
  run(ctx, {.loss = logprobs, .x = x, .w = w, .targets = targets, .as_generated = true, .entropies = entropies});
  for (float& value : std::span(logprobs.f32(), static_cast<size_t>(logprobs.size()))) value = -value;
}

void head_cross_entropy_backward(Context& ctx, Tensor loss, Tensor dx, Tensor dw, Tensor x, Tensor w, Tensor targets,
                                 float gradient_scale, Tensor row_scales) {
  FATHOM_CHECK(dx || dw);
  run(ctx, {loss, dx, dw, x, w, targets, gradient_scale, row_scales});
}

}  // namespace fathom
