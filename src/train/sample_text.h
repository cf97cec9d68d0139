// Text from a model in training: plain temperature sampling through the latent cache.
#pragma once

#include <span>
#include <vector>

#include "base/rng.h"
#include "model/forward.h"

namespace fathom {

// Up to n new ids behind the prompt (at least one id), fewer when an end token or the model's context ends it.
// Temperature 0 takes the likeliest.
std::vector<int32_t> sample_ids(Context& ctx, const Model& model, std::span<const int32_t> prompt, int64_t n,
                                double temperature, Rng& rng);

}  // namespace fathom
