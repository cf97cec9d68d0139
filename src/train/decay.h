// Which parameters weight decay pulls at.
#pragma once

#include <vector>

#include "model/weights.h"

namespace fathom {

// A stretch of the flat parameters that decays or does not: matrices do, norms and the embedding do not.
struct DecayRun {
  size_t begin, size;
  bool decays;
};
// They cover parameters.trained(), in its order.
std::vector<DecayRun> decay_runs(const Parameters& parameters, const ModelConfig& config);

}  // namespace fathom
