#include "ops/cuda/linear_blocks.h"

namespace fathom::cuda {
namespace {

template <class Format>
void launch_32(Context& ctx, std::span<const PanelCall> calls) {
  if (takes_staged(ctx, calls)) {
    return launch_over<Staged64>(ctx, linear_32_staged_kernel<Format, Staged64>, calls, Staged64::kThreads,
                                 kStaged32Bytes);
  }
  choose_shape(ctx, calls, [&]<class Shape>(Shape) {
    launch_over<Shape>(ctx, linear_32_kernel<Format, Shape>, calls, Shape::kThreads, Shape::kSharedBytes);
  });
}

}  // namespace

void launch_q4_0(Context& ctx, std::span<const PanelCall> calls) { launch_32<Q4_0>(ctx, calls); }
void launch_q5_0(Context& ctx, std::span<const PanelCall> calls) { launch_32<Q5_0>(ctx, calls); }
void launch_q8_0(Context& ctx, std::span<const PanelCall> calls) { launch_32<Q8_0>(ctx, calls); }

}  // namespace fathom::cuda
