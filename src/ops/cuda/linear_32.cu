#include "ops/cuda/linear_blocks.h"

namespace fathom::cuda {
namespace {

template <class Format>
void launch_32(Context& ctx, std::span<const PanelCall> calls) {
  int64_t most = 0;
  for (const PanelCall& call : calls) most = std::max(most, usual_tokens(call));
  const auto run = [&]<class Shape>(Shape) {
    launch_over<Shape>(ctx, linear_32_kernel<Format, Shape>, calls, Shape::kThreads, Shape::kSharedBytes);
  };
  if (most <= 8) return run(TileShape8());
  if (most <= 16) return run(TileShape16());
  if (most <= 32) return run(TileShape32());
  run(TileShape64());
}

}  // namespace

void launch_q4_0(Context& ctx, std::span<const PanelCall> calls) { launch_32<Q4_0>(ctx, calls); }
void launch_q5_0(Context& ctx, std::span<const PanelCall> calls) { launch_32<Q5_0>(ctx, calls); }
void launch_q8_0(Context& ctx, std::span<const PanelCall> calls) { launch_32<Q8_0>(ctx, calls); }

}  // namespace fathom::cuda
