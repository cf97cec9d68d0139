// Which weights of a model to infer with lie in a device's memory.
#pragma once

#include <memory>

#include "checkpoint/packed_model.h"
#include "model/host_experts.h"

namespace fathom {

// Copies weights to the device, in `budget` bytes of it. Where these do not hold all, routed experts stay in the
// machine's memory, and the device has as many of each layer as there is room for; null where all are there. Error
// where the budget does not hold the rest. n_threads: for what the host computes then.
std::unique_ptr<HostExperts> place_on_device(PackedModel& model, const Device& device, int64_t budget, int n_threads);

}  // namespace fathom
