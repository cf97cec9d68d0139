#include "ops/cuda/linear_floats.h"

namespace fathom::cuda {
namespace {

template <class Format>
void launch_tiles(Context& ctx, std::span<const PanelCall> calls) {
  if (takes_staged(ctx, calls)) {
    return launch_over<Staged64>(ctx, linear_bf16_staged_kernel<Format, Staged64>, calls, Staged64::kThreads,
                                 kStaged16Bytes);
  }
  choose_shape(ctx, calls, [&]<class Shape>(Shape) {
    launch_over<Shape>(ctx, linear_bf16_kernel<Format, Shape>, calls, Shape::kThreads, Shape::kSharedBytes);
  });
}

template <class Format>
void launch_floats(Context& ctx, std::span<const PanelCall> calls) {
  launch_over<FloatShape>(ctx, linear_float_kernel<Format>, calls, kFloatThreads, 0);
}

}  // namespace

void launch_bf16(Context& ctx, std::span<const PanelCall> calls) { launch_tiles<Bf16>(ctx, calls); }
void launch_f8_e4m3(Context& ctx, std::span<const PanelCall> calls) { launch_tiles<F8E4M3>(ctx, calls); }
void launch_f32(Context& ctx, std::span<const PanelCall> calls) { launch_floats<F32>(ctx, calls); }
void launch_f16(Context& ctx, std::span<const PanelCall> calls) { launch_floats<F16>(ctx, calls); }

}  // namespace fathom::cuda
