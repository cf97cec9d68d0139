#include "ops/adamw.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "ops/cpu/isa.h"
#include "ops/cpu/optimizer_kernels.h"
#include "ops/device.h"

namespace fathom {
namespace {

const cpu::OptimizerKernels& kernels() {
  return cpu::choose(cpu::baseline::optimizer_kernels, cpu::avx2::optimizer_kernels, cpu::avx512::optimizer_kernels);
}

constexpr int64_t kBlock = 16384;  // parameters in one task

}  // namespace

bool adamw_step(Context& ctx, const AdamwConfig& config, int64_t step, std::span<float> params,
                std::span<const float> grads, Tensor m, Tensor v, float gradient_scale) {
  const auto n = static_cast<int64_t>(params.size());
  FATHOM_CHECK(step >= 1 && grads.size() == params.size() && m.size() == n && v.size() == n && m.format == v.format &&
               (m.format == Format::f32 || m.format == Format::bf16));
  const double beta1 = config.beta1, beta2 = config.beta2, lr = config.lr, n_steps = static_cast<double>(step);
  const cpu::AdamwStep constants = {
      .gradient_scale = gradient_scale,
      .decay = static_cast<float>(1 - lr * config.weight_decay),
      .beta1_rest = static_cast<float>(1 - beta1),
      .beta2 = config.beta2,
      .beta2_rest = static_cast<float>(1 - beta2),
      .step_size = static_cast<float>(lr / (1 - std::pow(beta1, n_steps))),
      .root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(beta2, n_steps))),
      .eps = config.eps,
  };
  if (ctx.device != nullptr) return ctx.device->operators.adamw_step(ctx, constants, params, grads, m, v);
  const auto& kernel = kernels();
  std::atomic<bool> finite = true;
  ctx.pool.parallel_for(0, n, kBlock, [&](int64_t begin, int64_t end) {
    float* const p = params.data() + begin;
    const float* const g = grads.data() + begin;
    const bool part_is_finite =
        m.format == Format::f32
            ? kernel.adamw(constants, p, g, m.f32() + begin, v.f32() + begin, end - begin)
            : kernel.adamw_bf16(constants, p, g, m.as<uint16_t>() + begin, v.as<uint16_t>() + begin, end - begin);
    if (!part_is_finite) finite = false;
  });
  return finite;
}

void move_average(Context& ctx, std::span<float> average, std::span<const float> values, float decay) {
  FATHOM_CHECK(average.size() == values.size());
  if (ctx.device != nullptr) return ctx.device->operators.move_average(ctx, average, values, decay);
  const float part = 1 - decay;
  ctx.pool.parallel_for(0, static_cast<int64_t>(values.size()), kBlock, [&](int64_t begin, int64_t end) {
    float* const to = average.data();
    const float* const from = values.data();
    for (int64_t i = begin; i < end; ++i) to[i] += part * (from[i] - to[i]);
  });
}

double sum_of_squares(Context& ctx, std::span<const float> values) {
  if (ctx.device != nullptr) return ctx.device->operators.sum_of_squares(ctx, values);
  const auto n = static_cast<int64_t>(values.size());
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  const ArenaScope scope(ctx.arena);
  auto* sums = static_cast<double*>(ctx.arena.allocate(static_cast<size_t>(blocks) * sizeof(double)));
  const auto& kernel = kernels();
  ctx.pool.run(blocks, [&](int64_t block, int) {
    const int64_t begin = block * kBlock;
    sums[block] = kernel.sum_of_squares(values.data() + begin, std::min(kBlock, n - begin));
  });
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += sums[block];
  return total;
}

}  // namespace fathom
