#include "infer/draft.h"

#include <algorithm>

namespace fathom {

Tensor read_mtp(Context& ctx, const Model& model, LatentCache& cache, Tensor hidden,
                std::span<const int32_t> next_ids) {
  FATHOM_CHECK(hidden.rows() == static_cast<int64_t>(next_ids.size()));
  const MtpPiece piece{&cache, 0, {next_ids.begin(), next_ids.end()}};
  return read_mtp(ctx, model, hidden, {&piece, 1}, hidden.rows() >= kExpandFrom ? kExpandAll : kExpandNone);
}

Tensor read_mtp(Context& ctx, const Model& model, Tensor hidden, std::span<const MtpPiece> pieces, size_t expand_from) {
  std::vector<int32_t> rows;
  std::vector<std::vector<int32_t>> ids;
  std::vector<int64_t> positions;
  std::vector<LatentCache*> caches;
  for (const MtpPiece& piece : pieces) {
    for (size_t i = 0; i < piece.next_ids.size(); ++i)
      rows.push_back(static_cast<int32_t>(piece.first_row) + static_cast<int32_t>(i));
    ids.push_back(piece.next_ids);
    positions.push_back(piece.cache->length);
    caches.push_back(piece.cache);
  }
  const MtpInput input{from_host(ctx, rows), make_batch(ctx, ids, positions)};
  return mtp_forward(ctx, model, model.weights.mtp[0], input, hidden, {.caches = caches, .expand_from = expand_from});
}

std::vector<Draft> draft_tokens(Context& ctx, const Model& model, LatentCache& cache, Tensor hidden,
                                std::vector<int32_t> previous, int64_t n_generated, int64_t n,
                                const SamplerOptions& options, Rng& rng) {
  const auto unread = std::span<const int32_t>(previous).subspan(static_cast<size_t>(cache.length) + 1);
  Tensor state = read_mtp(ctx, model, cache, hidden, unread);
  std::vector<Draft> drafts;
  if (n == 0) return drafts;
  const int64_t n_read = cache.length;
  Buffer host_logits;
  for (;;) {
    state = state.slice(state.rows() - 1, 1);
    const Tensor logits = on_host(ctx, head_logits(ctx, model, state), host_logits);
    Distribution q = distribution({logits.f32(), static_cast<size_t>(logits.cols())}, previous, n_generated, options);
    const int32_t id = draw(q, rng);
    drafts.push_back({id, std::move(q)});
    if (static_cast<int64_t>(drafts.size()) >= n) break;
    previous.push_back(id);
    ++n_generated;
    state = read_mtp(ctx, model, cache, state, {&id, 1});
  }
  cache.length = n_read;
  return drafts;
}

int32_t verify_draft(const Distribution& p, const Draft& draft, Rng& rng) {
  const double p_total = total_weight(p), q_total = total_weight(draft.q);
  const auto share = [](const Distribution& candidates, double total, int32_t id) {
    const auto it = std::lower_bound(candidates.begin(), candidates.end(), id,
                                     [](const Candidate& c, int32_t wanted) { return c.id < wanted; });
    return it != candidates.end() && it->id == id ? it->weight / total : 0;
  };
  if (rng.uniform() * share(draft.q, q_total, draft.id) < share(p, p_total, draft.id)) return draft.id;

  Distribution rest;
  for (const Candidate& c : p) {
    const double above = c.weight / p_total - share(draft.q, q_total, c.id);
    if (above > 0) rest.push_back({c.id, above});
  }
  return draw(rest.empty() ? p : rest, rng);  // empty: p and q differ by rounding alone
}

}  // namespace fathom
