// Windows of the data -> what a pass of training reads and what it should say.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "model/loss.h"

namespace fathom {

inline constexpr int32_t kNoSeparator = -1;

// What a teacher says of each token's target (ops/distillation.h): ids and logprobs [tokens, k], rows that begin with
// kNoTarget where it says nothing.
struct TaughtTokens {
  int64_t k = 0;
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  double temperature = 1, weight = 0;  // of its divergence in the loss
};

// On the host: packed sequences, and for each of their tokens the one that follows it.
struct Examples {
  std::vector<std::vector<int32_t>> sequences;
  std::vector<int32_t> next;  // [tokens], kNoTarget where none is to be learned
  int64_t n_main = 0;         // targets
  TargetWeights weights{};    // what each counts in the loss; empty: as much as the others of the step
  std::optional<TaughtTokens> taught{};
  int64_t n_sequences() const { return static_cast<int64_t>(sequences.size()); }
};

// Adds a window of n + 1 ids: n tokens, each with the id behind it as its target. With a separator (the id that ends a
// document) each document becomes a sequence of its own, so that attention, positions and MTP stay within it, and what
// follows a separator is no target.
void add_window(Examples& examples, std::span<const int32_t> window, int32_t separator = kNoSeparator);

// Targets of so many MTP modules.
int64_t count_mtp_targets(const Examples& examples, int64_t n_modules);

struct Example {
  Batch batch;
  Targets targets;
};
// Memory from ctx.arena.
Example make_example(Context& ctx, const Examples& examples);

}  // namespace fathom
