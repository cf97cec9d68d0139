// What the policy answers: groups of samples of every question, generated together (infer/batching.h) by the very
// weights that train.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "infer/batching.h"
#include "model/loss.h"
#include "tune/questions.h"

namespace fathom::tune {

struct RolloutOptions {
  SamplerOptions sampler{.temperature = 1};  // temperature, top_k and top_p alone
  int64_t max_tokens = 1024;
  int64_t max_sequences = 128;   // at a time
  Format kv_type = Format::f32;  // of their caches
  int64_t draft_tokens = 0;      // that the MTP module proposes for each pass
};

struct Sample {
  std::vector<int32_t> ids;  // generated, an end token included
  SamplingRecord sampling;   // what they were drawn from
  bool cut = false;          // by max_tokens or the context
  bool ended = false;        // by an end token, the last of ids
};

struct RolloutCounts {
  int64_t tokens = 0;  // generated
  int64_t passes = 0, drafted = 0, accepted = 0;
  double seconds = 0;
};

// One request: a question, and what its randomness follows from.
struct Wanted {
  const Question* question;
  uint64_t seed;
};
// A seed for each sample of each question of each step, whatever runs beside it.
uint64_t sample_seed(uint64_t seed, int64_t step, int64_t question, int64_t sample);

// [wanted]. A sample is the same for any number of threads and any others beside it, with drafts too. Nothing where
// interrupted() was true between two passes. Error where the model's logits are not finite. model.precision is f32.
std::optional<std::vector<Sample>> sample_answers(Context& ctx, const Model& model, std::span<const Wanted> wanted,
                                                  const RolloutOptions& options, RolloutCounts& counts,
                                                  const std::function<bool()>& interrupted = {});

// Samples as passes of training read them: prompt and answer one behind the other, every token of the answers a target.
struct SampleBatch {
  Batch batch;  // ctx.arena
  Targets targets;
  std::vector<int64_t> first_rows;  // [samples]: the row whose target is the answer's first token; the others follow
  std::vector<int64_t> begins;      // [tokens + 1] of the mask, where there is one
  std::vector<int32_t> kept;
  SamplingMask mask;  // refers to these
};
struct Trained {
  const Question* question;
  const Sample* sample;
};
// Probabilities are over what sampling left, by its temperature. Memory of the batch from ctx.arena.
SampleBatch make_sample_batch(Context& ctx, std::span<const Trained> samples, const SamplerOptions& sampler);

// Experts that a sample's tokens were sent to: of each MoE layer [tokens, k], prompt and answer.
using ChosenExperts = std::vector<std::vector<int32_t>>;
std::vector<ChosenExperts> cut_by_sample(const Batch& batch, std::span<const Tensor> chosen);
// And as a batch has them, for samples of it in this order (arena).
std::vector<Tensor> joined(Context& ctx, const Model& model, std::span<const ChosenExperts* const> of);

}  // namespace fathom::tune
