#include "ops/cuda/linear_floats.h"

namespace fathom::cuda {
namespace {

template <class Format>
void launch_tiles(Context& ctx, std::span<const PanelCall> calls) {
  int64_t most = 0;
  for (const PanelCall& call : calls) most = std::max(most, usual_tokens(call));
  const auto run = [&]<class Shape>(Shape) {
    launch_over<Shape>(ctx, linear_bf16_kernel<Format, Shape>, calls, Shape::kThreads, Shape::kSharedBytes);
  };
  if (most <= 8) return run(TileShape8());
  if (most <= 16) return run(TileShape16());
  if (most <= 32) return run(TileShape32());
  run(TileShape64Narrow());
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
