// Auxiliary-loss-free load balancing (V3 section 2.1.2, arXiv 2408.15664).
#pragma once

#include "model/loss.h"

namespace fathom {

// After a step: b_e += speed * sign(mean - load_e) in every MoE layer, from the loads of the step's whole batch (the
// MTP layer's row last, when it took part). The new biases choose from the next step on.
void update_biases(ModelWeights& weights, const ExpertLoad& load, double speed);

// max over layers of max_e load_e / mean - 1. 0 without MoE layers.
double max_violation(const ExpertLoad& load);

}  // namespace fathom
