// From logits to the next token. In this order:
//   0. logit_bias, added to a token's logit
//   1. repetition_penalty r, for each token that stands in prompt or output: logit > 0 ? logit / r : logit * r
//   2. presence and frequency penalty, for each token that stands n > 0 times in the output: logit -= presence + n *
//   frequency
//   3. temperature: p = softmax(logit / temperature); 0 takes the largest logit and ends here
//   4. top_k: the k most likely tokens stay
//   5. top_p: of those the fewest, most likely first, whose share of what is left reaches top_p (one at least)
//   6. min_p: of those the ones at least min_p times as likely as the most likely
//   7. one draw from what is left
// Equal logits: the lower id comes first.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/rng.h"

namespace fathom {

// From which no token can be chosen, since one is NaN or infinite.
struct BrokenLogits : Error {
  using Error::Error;
};

struct SamplerOptions {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0: off
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  double presence_penalty = 0, frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias{};  // of tokens; ids beyond the logits say nothing
};

// Throws UsageError, naming the option, for values outside their range.
void check_sampler(const SamplerOptions& options);

struct Candidate {
  int32_t id;
  double weight;  // above 0
};
// What steps 1 to 6 leave, ids ascending. A token's probability is its share of all weights.
using Distribution = std::vector<Candidate>;

// logits: [vocab], changed in place by the penalties; -inf excludes a token. Throws BrokenLogits when one is NaN or
// +inf, Error when all are -inf: no token can be chosen from a broken model. previous: prompt and output so far, of
// which the last n_generated are output. Greedy leaves one candidate.
Distribution distribution(std::span<float> logits, std::span<const int32_t> previous, int64_t n_generated,
                          const SamplerOptions& options);

double total_weight(const Distribution& candidates);

// One token; takes one number from rng.
int32_t draw(const Distribution& candidates, Rng& rng);

// All steps. Greedy takes nothing from rng.
int32_t sample(std::span<float> logits, std::span<const int32_t> previous, int64_t n_generated,
               const SamplerOptions& options, Rng& rng);

}  // namespace fathom
