#include "ops/rms_norm.h"

#include <algorithm>

#include "ops/cpu/isa.h"
#include "ops/cpu/norm_kernels.h"
#include "ops/cpu/row_kernels.h"
#include "ops/device.h"
#include "ops/embedding.h"
#include "ops/grain.h"

namespace fathom {
namespace {

const cpu::NormKernels& kernels() {
  return cpu::choose(cpu::baseline::norm_kernels, cpu::avx2::norm_kernels, cpu::avx512::norm_kernels);
}
const cpu::RowKernels& row_kernels() {
  return cpu::choose(cpu::baseline::row_kernels, cpu::avx2::row_kernels, cpu::avx512::row_kernels);
}

constexpr int64_t kTokenBlock = 64;  // tokens summed in one go by the gradient of the weight

}  // namespace

void rms_norm(Context& ctx, Tensor y, Tensor x, Tensor w, float eps, Tensor inv_rms) {
  const int64_t tokens = x.rows(), hidden = x.cols();
  FATHOM_CHECK(y.rows() == tokens && y.cols() == hidden && w.size() == hidden && w.contiguous());
  FATHOM_CHECK(!inv_rms || (inv_rms.size() == tokens && inv_rms.contiguous()));
  if (ctx.device != nullptr) return ctx.device->operators.rms_norm(ctx, y, x, w, eps, inv_rms);
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, tokens, row_grain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float r = kernel.rms_norm(y.f32_row(t), x.f32_row(t), w.f32(), hidden, eps);
      if (inv_rms) inv_rms.f32()[t] = r;
    }
  });
}

LinearInput add_norm_input(Context& ctx, Tensor y, Tensor sum, Tensor a, Tensor b, Tensor w, float eps, Tensor inv_rms,
                           std::initializer_list<Tensor> weights) {
  if (ctx.device != nullptr) {
    return ctx.device->operators.add_norm_input(ctx, y, sum, a, b, w, eps, inv_rms, weights);
  }
  if (b) add(ctx, sum, a, b);
  rms_norm(ctx, y, b ? sum : a, w, eps, inv_rms);
  return make_linear_input(ctx, y, weights);
}

void rms_norm_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor inv_rms, bool accumulate) {
  const int64_t tokens = x.rows(), hidden = x.cols();
  FATHOM_CHECK(dx.rows() == tokens && dx.cols() == hidden && dy.rows() == tokens && dy.cols() == hidden);
  FATHOM_CHECK(w.size() == hidden && w.contiguous() && inv_rms.size() == tokens && inv_rms.contiguous());
  if (ctx.device != nullptr) {
    return ctx.device->operators.rms_norm_backward_input(ctx, dx, dy, x, w, inv_rms, accumulate);
  }
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, tokens, row_grain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernel.rms_norm_backward_input(dx.f32_row(t), dy.f32_row(t), x.f32_row(t), w.f32(), inv_rms.f32()[t], hidden,
                                     accumulate);
    }
  });
}

void rms_norm_backward_weight(Context& ctx, Tensor dw, Tensor dy, Tensor x, Tensor inv_rms) {
  const int64_t tokens = x.rows(), hidden = x.cols();
  FATHOM_CHECK(dy.rows() == tokens && dy.cols() == hidden && dw.size() == hidden && dw.contiguous());
  FATHOM_CHECK(inv_rms.size() == tokens && inv_rms.contiguous());
  if (tokens == 0) return;
  if (ctx.device != nullptr) return ctx.device->operators.rms_norm_backward_weight(ctx, dw, dy, x, inv_rms);
  const auto& kernel = kernels();
  const ArenaScope scope(ctx.arena);
  const int64_t blocks = (tokens + kTokenBlock - 1) / kTokenBlock;
  const Tensor sums = new_f32(ctx, {blocks, hidden});
  ctx.pool.parallel_for(0, blocks, row_grain(kTokenBlock * hidden), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* sum = sums.f32_row(block);
      std::fill_n(sum, hidden, 0.0f);
      for (int64_t t = block * kTokenBlock; t < std::min(tokens, (block + 1) * kTokenBlock); ++t) {
        kernel.rms_norm_backward_weight(sum, dy.f32_row(t), x.f32_row(t), inv_rms.f32()[t], hidden);
      }
    }
  });
  ctx.pool.parallel_for(0, hidden, column_grain(blocks), [&](int64_t begin, int64_t end) {
    float* total = dw.f32() + begin;
    for (int64_t block = 0; block < blocks; ++block) {
      row_kernels().add(total, total, sums.f32_row(block) + begin, end - begin);
    }
  });
}

}  // namespace fathom
