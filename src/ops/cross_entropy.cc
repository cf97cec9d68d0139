#include "ops/cross_entropy.h"

#include <algorithm>
#include <vector>

#include "ops/cpu/cross_entropy_kernels.h"
#include "ops/cpu/isa.h"
#include "ops/device.h"
#include "ops/gemm.h"
#include "ops/grain.h"
#include "ops/linear.h"
#include "ops/log_softmax.h"
#include "ops/rows.h"

namespace fathom {
namespace {

constexpr int64_t kLogitsFloats = int64_t{4} << 20;  // a block of logits takes about so many,
constexpr int64_t kMinTokens = 64;                   // but has no fewer tokens than this: every block reads all of w
constexpr int64_t kMaxTokens = 512;

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
  const Tensor &loss = head.loss, &dx = head.dx, &dw = head.dw, &x = head.x, &w = head.w, &targets = head.targets;
  FATHOM_CHECK(x.rank == 2 && w.rank == 2 && x.cols() == w.cols() && w.rows() > 0);
  FATHOM_CHECK(loss.size() == x.rows() && targets.size() == x.rows());
  FATHOM_CHECK(!dx || (dx.data != x.data && dx.rows() == x.rows() && dx.cols() == x.cols()));
  FATHOM_CHECK(!head.row_scales || head.row_scales.size() == x.rows());
  FATHOM_CHECK(!dw || (dw.rows() == w.rows() && dw.cols() == w.cols()));
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

// The block's tokens all have a target.
void run_block(Context& ctx, const Head& head, const std::vector<int32_t>& tokens) {
  const ArenaScope scope(ctx.arena);
  const int64_t n = static_cast<int64_t>(tokens.size()), hidden = head.x.cols(), vocab = head.w.rows();
  const bool in_place = tokens.back() - tokens.front() == n - 1;
  const bool backward = head.dx || head.dw;
  const Tensor x = in_place ? head.x.slice(tokens[0], n) : new_f32(ctx, {n, hidden});
  if (!in_place) gather_rows(ctx, x, head.x, tokens);

  const Tensor logits = new_f32(ctx, {n, vocab});
  linear(ctx, logits, make_linear_input(ctx, x, {head.w}), head.w);

  const auto& kernels = cpu::choose(cpu::baseline::cross_entropy_kernels, cpu::avx2::cross_entropy_kernels,
                                    cpu::avx512::cross_entropy_kernels);
  ctx.pool.parallel_for(0, n, row_grain(vocab), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = tokens[static_cast<size_t>(i)];
      float* row = logits.f32_row(i);
      const int32_t target = head.targets.i32()[token];
      const auto kept = head.mask != nullptr ? head.mask->of(token) : std::span<const int32_t>();
      if (head.as_generated) {
        const std::span<const float> all(row, static_cast<size_t>(vocab));
        const LogSoftmax of_row =
            head.mask != nullptr ? LogSoftmax(all, head.mask->temperature, kept) : LogSoftmax(all);
        head.loss.f32()[token] = -static_cast<float>(of_row[target]);
        if (head.entropies) head.entropies.f32()[token] = static_cast<float>(of_row.entropy(vocab));
        continue;
      }
      const float scale = head.gradient_scale * (head.row_scales ? head.row_scales.f32()[token] : 1);
      if (head.mask != nullptr && (head.mask->temperature != 1 || !kept.empty())) {
        head.loss.f32()[token] = static_cast<float>(
            masked_gradient(std::span(row, static_cast<size_t>(vocab)), target, scale, head.mask->temperature, kept));
        continue;
      }
      float& at_target = row[target];
      const float target_logit = at_target;
      const float lse = backward ? kernels.softmax(row, vocab, scale) : kernels.log_sum_exp(row, vocab);
      head.loss.f32()[token] = lse - target_logit;
      if (backward) at_target -= scale;
    }
  });
  if (!backward) return;

  if (head.dx) {
    const Tensor dx = in_place ? head.dx.slice(tokens[0], n) : new_f32(ctx, {n, hidden});
    gemm(ctx, {n, hidden, vocab, false, false, vocab, head.w.row_stride, dx.row_stride}, logits.f32(), head.w.f32(),
         dx.f32(), false);
    if (!in_place) scatter_rows(ctx, head.dx, dx, tokens);
  }
  if (!head.dw) return;
  gemm(ctx, {vocab, hidden, n, true, false, vocab, x.row_stride, head.dw.row_stride}, logits.f32(), x.f32(),
       head.dw.f32(), true);
}

void run_on_device(Context& ctx, Tensor loss, Tensor x, Tensor w, Tensor targets) {
  for (int64_t begin = 0; begin < x.rows(); begin += kMaxTokens) {
    const ArenaScope scope(ctx.arena);
    const int64_t n = std::min(kMaxTokens, x.rows() - begin);
    const Tensor rows = x.slice(begin, n), logits = new_f32(ctx, {n, w.rows()});
    linear(ctx, logits, make_linear_input(ctx, rows, {w}), w);
    ctx.device->operators.cross_entropy(ctx, loss.slice(begin, n), logits, targets.slice(begin, n));
  }
}

void run(Context& ctx, const Head& head) {
  check_shapes(head);
  const int64_t vocab = head.w.rows();
  const size_t block = static_cast<size_t>(std::clamp(kLogitsFloats / vocab, kMinTokens, kMaxTokens));
  // Tokens without a target are left out of the blocks: they cost nothing but their zeros.
  std::vector<int32_t> tokens;
  for (int32_t t = 0; t < head.x.rows(); ++t) {
    const int32_t target = head.targets.i32()[t];
    if (target == kNoTarget) {
      head.loss.f32()[t] = 0;
      if (head.entropies) head.entropies.f32()[t] = 0;
      if (head.dx) std::fill_n(head.dx.f32_row(t), head.dx.cols(), 0.0f);
      continue;
    }
    FATHOM_CHECK(target >= 0 && target < vocab, "target {} of token {}, vocab {}", target, t, vocab);
    if (const auto kept = head.mask != nullptr ? head.mask->of(t) : std::span<const int32_t>(); !kept.empty()) {
      FATHOM_CHECK(std::ranges::binary_search(kept, target) && kept.front() >= 0 && kept.back() < vocab,
                   "target {} of token {} is not kept", target, t);
    }
    tokens.push_back(t);
    if (tokens.size() == block) {
      run_block(ctx, head, tokens);
      tokens.clear();
    }
  }
  if (!tokens.empty()) run_block(ctx, head, tokens);
}

}  // namespace

void head_cross_entropy(Context& ctx, Tensor loss, Tensor x, Tensor w, Tensor targets) {
  if (ctx.device != nullptr) {
    check_shapes({loss, {}, {}, x, w, targets});
    return run_on_device(ctx, loss, x, w, targets);
  }
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
