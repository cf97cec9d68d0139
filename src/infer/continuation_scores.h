// Log probabilities of given continuations behind given contexts: what multiple choice is judged by. Contexts that
// begin alike (few-shot examples, a subject's questions) are read once as far as they do.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/forward.h"

namespace fathom {

struct ScoredContinuations {
  std::vector<int32_t> context;                     // one token at least
  std::vector<std::vector<int32_t>> continuations;  // of the same context, each of one token at least
};

struct ContinuationScore {
  double logprob = 0;   // of all its tokens together, natural logarithm
  bool greedy = false;  // each of its tokens is the likeliest in its place
};

// Calls `tell` once for each element, in any order, with a score for each continuation. Bits depend on what is scored
// together in their last places alone. `interrupted` (may be empty) is asked between passes; true ends the work early.
// Error for an empty context or continuation, ids outside the vocabulary, or more tokens than the model's context, and
// for logits that are not finite.
void score_continuations(Context& ctx, const Model& model, std::span<const ScoredContinuations> elements,
                         const std::function<void(size_t element, std::span<const ContinuationScore> scores)>& tell,
                         const std::function<bool()>& interrupted = {});

}  // namespace fathom
