// Runs a model over text and sums the squares of what goes into every matrix, column by column: its importance matrix.
#pragma once

#include <span>
#include <vector>

#include "checkpoint/imatrix.h"
#include "infer/score.h"

namespace fathom {

// sequences: as check_sequences wants them. The MTP module is run too, where there is one. Of kv_b_proj there is what
// both its forms read: the latents, and each head's queries (for its half k_b).
Imatrix measure_importance(Context& ctx, const Model& model, std::span<const std::vector<int32_t>> sequences,
                           const OnTokens& on_tokens = {});

// The tokens that each expert saw, of every MoE layer in order.
struct ExpertCoverage {
  int64_t layer;
  std::vector<int64_t> tokens;  // [experts]
};
std::vector<ExpertCoverage> expert_coverage(const Imatrix& imatrix, const ModelConfig& config);

}  // namespace fathom
