// A model larger than memory: its weights are a mapping of files, and experts come from the disk when they are chosen.
// The kernel is told which ones as soon as a router has spoken, and for the next layer those that its router would
// choose now, so that they are read while this layer computes. Of these guesses 67 to 72 % were right in a small
// trained model, 13 to 16 % where the experts of the token before were taken for a guess (docs/checkpoints.md).
#pragma once

#include "model/weights.h"
#include "ops/context.h"

namespace fathom {

struct ExpertBytes {
  int64_t chosen = 0;    // of experts, counted once for each pass and layer
  int64_t resident = 0;  // of those, in memory when they were chosen
  double hit_rate() const { return chosen > 0 ? static_cast<double>(resident) / static_cast<double>(chosen) : 1; }
  ExpertBytes operator-(const ExpertBytes& before) const {
    return {chosen - before.chosen, resident - before.resident};
  }
};

struct ExpertReading {
  int64_t max_bytes_ahead = INT64_MAX;  // of one layer: more would push out what has just come
  bool counts = true;                   // false: what is in memory is not known, and all is read ahead
  ExpertBytes seen{};
};

// The router of a layer has chosen: counts, and starts reading what is missing. topk_ids: [tokens, k]
void read_chosen(ExpertReading& reading, const MoeWeights& w, Tensor topk_ids);

// What the router of the layer that comes next would choose for the stream as it is now, x: [tokens, hidden]. Does
// nothing for a dense layer, nor for so many tokens that they will want every expert.
void read_predicted(Context& ctx, ExpertReading& reading, const ModelConfig& config, const LayerWeights& next,
                    Tensor x);

}  // namespace fathom
