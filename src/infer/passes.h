// Passes of the model over new tokens and what caches hold of the tokens before. On a device, a pass of few tokens is
// recorded when its shape comes a second time, and replayed from then on: the host then starts it with one call.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "model/forward.h"

namespace fathom {

// Longer prompts are read in pieces, whose activations take so much less memory.
inline constexpr int64_t kPrefillTokens = 4096;

struct PassOptions {
  size_t expand_from = kExpandNone;  // as in ForwardOptions
  int64_t n_logits = 1;              // of the last tokens of each sequence; 0: none
};

struct PassResult {
  Tensor hidden;  // [tokens, hidden], where the context works; until the next pass or the arena's scope ends
  Tensor logits;  // [sequences * n_logits, vocab], for the host to read; likewise
};

// The logits of these rows of hidden states: [rows, vocab] (arena).
Tensor logits_of_rows(Context& ctx, const Model& model, Tensor hidden, const std::vector<int32_t>& rows);

class Passes {
 public:
  // One cache a sequence; each is extended by its tokens.
  PassResult run(Context& ctx, const Model& model, std::span<const std::vector<int32_t>> sequences,
                 std::span<LatentCache* const> caches, const PassOptions& options);

 private:
  struct Recorded {
    std::vector<int64_t> shape;  // tokens of each sequence, n_logits, and where the caches are
    std::unique_ptr<Arena> arena;
    Batch batch;
    Tensor hidden, logits;
    std::shared_ptr<DeviceGraph> graph;  // null as long as it came once
  };
  Recorded& find(std::vector<int64_t> shape);

  std::vector<Recorded> recorded_;  // the latest last
  Buffer host_logits_;
};

}  // namespace fathom
