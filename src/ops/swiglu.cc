#include "ops/swiglu.h"

#include "ops/cpu/activation_kernels.h"
#include "ops/cpu/isa.h"
#include "ops/device.h"
#include "ops/grain.h"

namespace fathom {
namespace {

const cpu::ActivationKernels& kernels() {
  return cpu::choose(cpu::baseline::activation_kernels, cpu::avx2::activation_kernels, cpu::avx512::activation_kernels);
}

}  // namespace

void swiglu(Context& ctx, Tensor y, Tensor gate_up) {
  const int64_t tokens = y.rows(), inter = y.cols();
  FATHOM_CHECK(gate_up.rows() == tokens && gate_up.cols() == 2 * inter);
  if (ctx.device != nullptr) return ctx.device->operators.swiglu(ctx, y, gate_up);
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, tokens, row_grain(2 * inter), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernel.swiglu(y.f32_row(t), gate_up.f32_row(t), gate_up.f32_row(t) + inter, inter);
    }
  });
}

LinearInput swiglu_input(Context& ctx, Tensor y, Tensor gate_up, std::initializer_list<Tensor> weights) {
  if (ctx.device != nullptr) return ctx.device->operators.swiglu_input(ctx, y, gate_up, weights);
  swiglu(ctx, y, gate_up);
  return make_linear_input(ctx, y, weights);
}

void swiglu_backward(Context& ctx, Tensor d_gate_up, Tensor dy, Tensor gate_up) {
  const int64_t tokens = dy.rows(), inter = dy.cols();
  FATHOM_CHECK(gate_up.rows() == tokens && gate_up.cols() == 2 * inter);
  FATHOM_CHECK(d_gate_up.rows() == tokens && d_gate_up.cols() == 2 * inter);
  if (ctx.device != nullptr) return ctx.device->operators.swiglu_backward(ctx, d_gate_up, dy, gate_up);
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, tokens, row_grain(2 * inter), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernel.swiglu_backward(d_gate_up.f32_row(t), d_gate_up.f32_row(t) + inter, dy.f32_row(t), gate_up.f32_row(t),
                             gate_up.f32_row(t) + inter, inter);
    }
  });
}

}  // namespace fathom
