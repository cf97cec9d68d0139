// Speculative decoding with the first MTP module (V3 section 5.4.3): the module proposes the next tokens one after the
// other, and the main model, which sees them all in one pass, keeps those that it would have said. What comes out is
// the main model's: the same tokens when greedy, the same distribution otherwise.
#pragma once

#include <vector>

#include "infer/sampler.h"
#include "model/forward.h"

namespace fathom {

struct Draft {
  int32_t id;
  Distribution q;  // id was drawn from it
};

// Extends the module's cache by rows of which the main model has just made the hidden states: hidden [n, hidden_size],
// and next_ids [n], the token behind each. Returns the module's own hidden states (arena), shaped the same.
Tensor read_mtp(Context& ctx, const Model& model, LatentCache& cache, Tensor hidden, std::span<const int32_t> next_ids);

// The same for several sequences in one pass, whose rows of `hidden` begin anywhere. Returns theirs one behind the
// other.
struct MtpPiece {
  LatentCache* cache;
  int64_t first_row;
  std::vector<int32_t> next_ids;
};
Tensor read_mtp(Context& ctx, const Model& model, Tensor hidden, std::span<const MtpPiece> pieces, size_t expand_from);

// n proposals for what follows `previous` (prompt and output so far, the last n_generated output). hidden: those of the
// tokens that the module has not read, which are all but the last of `previous`; it reads them, for n = 0 too. Deeper
// proposals take the module's own hidden state for the main model's; their rows do not stay in the cache.
std::vector<Draft> draft_tokens(Context& ctx, const Model& model, LatentCache& cache, Tensor hidden,
                                std::vector<int32_t> previous, int64_t n_generated, int64_t n,
                                const SamplerOptions& options, Rng& rng);

// Speculative sampling (Leviathan et al. 2023): the draft with probability min(1, p / q), else a draw from what p has
// above q. Its result is distributed as p, whatever q is.
int32_t verify_draft(const Distribution& p, const Draft& draft, Rng& rng);

}  // namespace fathom
