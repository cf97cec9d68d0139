// Scoring of given tokens: log-probabilities, hidden states, routing and gradients, under the names of the fixtures'
// files (docs/score.md).
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/forward.h"
#include "model/loss.h"

namespace fathom {

struct ScoreOptions {
  bool tensors =
      false;         // collect input_ids, seq_offsets, logits, final_hidden, router.i.topk_ids, router.i.topk_weights
  bool all = false;  // and hidden.i, attn_out.i, mlp_out.i, router.i.logits
  bool mtp = false;  // and mtp_hidden, mtp_logits
  double mtp_weight = 0;              // the loss (and gradients) with this much of the MTP loss
  ModelWeights* gradients = nullptr;  // when given, += gradient of the loss
};

// One output over all tokens, in order. Elements are floats unless ids is filled.
struct ScoreTensor {
  std::string name;
  Format format = Format::f32;
  std::vector<int64_t> row_shape;  // behind the first dimension: {vocab}, or nothing
  std::vector<float> values;
  std::vector<int64_t> ids;
};

struct ScoreResult {
  LossResult loss;  // mean over all predictions of all sequences
  std::vector<ScoreTensor> tensors;
};

// Error naming sequence and position unless each has at least one id, all inside the vocabulary and the context.
void check_sequences(const ModelConfig& config, std::span<const std::vector<int32_t>> sequences);

// Called with the tokens that are done; may throw to give up.
using OnTokens = std::function<void(int64_t done)>;

// Calls `use` with the sequences packed in groups, of as many as have max_tokens together, at least one. What it takes
// from the arena is free again behind it.
void for_each_group(Context& ctx, std::span<const std::vector<int32_t>> sequences, int64_t max_tokens,
                    const std::function<void(const Batch& batch)>& use, const OnTokens& on_tokens = {});

// A text as windows of tokens; one begins with the last token of the one before, so that every token but the first is
// predicted once.
std::vector<std::vector<int32_t>> cut_windows(std::span<const int32_t> ids, int64_t window);

// sequences: as check_sequences wants them. They run packed in groups, so memory grows with the outputs alone.
ScoreResult score(Context& ctx, const Model& model, std::span<const std::vector<int32_t>> sequences,
                  const ScoreOptions& options);

}  // namespace fathom
