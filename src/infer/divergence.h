// How far one model's predictions of a text are from another's.
#pragma once

#include <span>
#include <vector>

#include "infer/score.h"

namespace fathom {

// What a model says of every token of a text, in the least memory that keeps it exactly: its last hidden states, and
// its head, which makes the same logits of them again.
struct Predictions {
  ModelConfig config;
  Buffer memory;  // the head's
  Tensor head;
  std::vector<float> hidden;  // [tokens, hidden_size], sequence behind sequence
};
// sequences: as check_sequences wants them.
Predictions predict(Context& ctx, const Model& model, std::span<const std::vector<int32_t>> sequences,
                    const OnTokens& on_tokens = {});

// Over all tokens that have one behind them in their sequence, in nats. KL is the divergence of the second model's
// distribution from the first's, sum_v p(v) log(p(v) / q(v)).
struct Divergence {
  int64_t tokens = 0;
  double kl_mean = 0, kl_median = 0, kl_p99 = 0, kl_max = 0;
  double same_top_1 = 0;            // the part where both like the same token best
  double loss = 0, other_loss = 0;  // mean -log of the token that follows
};
// Runs `other` over the same sequences. Never more than some tokens' logits are in memory.
Divergence diverge(Context& ctx, const Predictions& predictions, const Model& other,
                   std::span<const std::vector<int32_t>> sequences, const OnTokens& on_tokens = {});

}  // namespace fathom
