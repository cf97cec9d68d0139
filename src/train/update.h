// One step of the optimizer over all parameters, on one process.
#pragma once

#include <cmath>

#include "model/loss.h"
#include "train/decay.h"
#include "train/options.h"
#include "train/saved_state.h"

namespace fathom {

// The stretches of what trains, indexers apart from all else.
struct TrainedRuns {
  std::vector<DecayRun> main, indexers;
};
TrainedRuns trained_runs(const Parameters& parameters, const ModelConfig& config, const LossOptions& loss);

// Norms of the gradient: of the indexers, which learn from a loss of their own, and of all else.
struct GradientNorms {
  double main, indexers;
  double all() const { return std::hypot(main, indexers); }
};
GradientNorms gradient_norms(Context& ctx, const Parameters& gradients);

// AdamW's update number `update` (from 1) with a gradient of these norms, cut to --clip. Returns whether weights and
// moments are finite behind it.
bool update_parameters(Context& ctx, const TrainOptions& options, TrainedState& state, const Parameters& gradients,
                       const TrainedRuns& runs, int64_t update, double lr, const GradientNorms& norms);

}  // namespace fathom
