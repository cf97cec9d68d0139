// What the router's kernels share, in which a thread has an expert.
#pragma once

#include <math.h>

#include "ops/cuda/kernel.h"

namespace fathom::cuda {

inline constexpr int kMaxExperts = 1024;  // a thread each

// An expert's score of its logit, -inf for a thread without one. reduced: a float for each of the block's n_warps.
__device__ __forceinline__ float score_of(float logit, bool softmax, bool is_expert, float* reduced, int n_warps) {
  if (!softmax) return is_expert ? 1 / (1 + expf(-logit)) : 0;
  const float largest = block_max(logit, reduced, n_warps);
  const float power = is_expert ? expf(logit - largest) : 0;
  return power / block_sum(power, reduced, n_warps);
}

inline unsigned whole_warps(int64_t n) { return static_cast<unsigned>((n + kWarp - 1) / kWarp * kWarp); }

}  // namespace fathom::cuda
