// Auxiliary-loss-free load balancing (V3 section 2.1.2, arXiv 2408.15664).
#pragma once

#include <array>

#include "model/loss.h"

namespace fathom {

// After a step: b_e += speed * sign(mean - load_e) in every MoE layer, from the loads of the step's whole batch (the
// MTP layer's row last, when it took part). The new biases choose from the next step on.
void update_biases(ModelWeights& weights, const ExpertLoad& load, double speed);

// Of each layer max_e load_e / mean - 1 (MaxVio), and the largest of them: 0 without MoE layers. Of one batch, or of a
// whole text.
std::vector<double> max_violations(const ExpertLoad& load);
double max_violation(const ExpertLoad& load);

bool biases_are_finite(const ModelWeights& weights);

// The least and the greatest correction bias of each MoE layer, the MTP layer's last. Empty where there are none.
std::vector<std::array<float, 2>> bias_ranges(const ModelWeights& weights);

}  // namespace fathom
