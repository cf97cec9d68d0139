// A model without a checkpoint: random weights in the shapes and formats that one would have, to measure speed with.
#pragma once

#include "checkpoint/packed_model.h"

namespace fathom {

struct Device;

// In the memory of `device`, where it is not null. Matrices are N(0, initializer_range), encoded as `recipe` says;
// large ones repeat themselves. Error where the memory does not hold them.
PackedModel random_model(const ModelConfig& config, const Recipe& recipe, uint64_t seed, const Device* device);

}  // namespace fathom
