#include "ops/cuda/linear_blocks.h"

namespace fathom::cuda {
namespace {

template <class Format>
void launch_256(Context& ctx, std::span<const PanelCall> calls) {
  int64_t most = 0;
  for (const PanelCall& call : calls) most = std::max(most, usual_tokens(call));
  const auto run = [&]<class Shape>(Shape) {
    launch_over<Shape>(ctx, linear_256_kernel<Format, Shape>, calls, Shape::kThreads, Shape::kSharedBytes);
  };
  if (most <= 8) return run(TileShape8());
  if (most <= 16) return run(TileShape16());
  if (most <= 32) return run(TileShape32());
  run(TileShape64Narrow());
}

}  // namespace

void launch_q4_k(Context& ctx, std::span<const PanelCall> calls) { launch_256<Q4K>(ctx, calls); }
void launch_q5_k(Context& ctx, std::span<const PanelCall> calls) { launch_256<Q5K>(ctx, calls); }
void launch_q6_k(Context& ctx, std::span<const PanelCall> calls) { launch_256<Q6K>(ctx, calls); }

}  // namespace fathom::cuda
