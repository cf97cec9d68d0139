// From logits to the next token: penalties, temperature, top-k, top-p, min-p, one seeded draw.
#pragma once

#include <cstdint>
#include <span>

#include "base/rng.h"

namespace fathom {

struct SamplerOptions {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0: off
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  double presence_penalty = 0, frequency_penalty = 0;
};

// Throws UsageError, naming the option, for values outside their range.
void check_sampler(const SamplerOptions& options);

// logits: [vocab], changed in place. previous: prompt and output so far (repetition), of which the last n_generated are output
// (presence, frequency). Equal logits: the lower id.
int32_t sample(std::span<float> logits, std::span<const int32_t> previous, int64_t n_generated,
               const SamplerOptions& options, Rng& rng);

}  // namespace fathom
