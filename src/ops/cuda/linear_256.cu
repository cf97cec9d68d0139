#include "ops/cuda/linear_blocks.h"

namespace fathom::cuda {
namespace {

template <class Format>
void launch_256(Context& ctx, std::span<const PanelCall> calls) {
  choose_shape(ctx, calls, [&]<class Shape>(Shape) {
    launch_over<Shape>(ctx, linear_256_kernel<Format, Shape>, calls, Shape::kThreads, Shape::kSharedBytes);
  });
}

}  // namespace

void launch_q4_k(Context& ctx, std::span<const PanelCall> calls) { launch_256<Q4K>(ctx, calls); }
void launch_q5_k(Context& ctx, std::span<const PanelCall> calls) { launch_256<Q5K>(ctx, calls); }
void launch_q6_k(Context& ctx, std::span<const PanelCall> calls) { launch_256<Q6K>(ctx, calls); }

}  // namespace fathom::cuda
