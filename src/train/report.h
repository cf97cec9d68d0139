// The report of a run: one HTML file that needs nothing else.
#pragma once

#include <string>
#include <vector>

#include "train/metrics.h"
#include "train/saved_state.h"

namespace fathom {

std::string training_report(const std::vector<StepMetrics>& metrics, const ModelConfig& config,
                            const Settings& settings);

}  // namespace fathom
