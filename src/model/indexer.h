// The indexer of a layer (V3.2 section 2.1.1; ops/indexer.h) between the layer's attention and its caches: what it
// makes of the tokens, where it keeps keys, and which tokens then attend to what it chooses.
#pragma once

#include "model/forward.h"

namespace fathom {

// The query, key and weights of each token, up to the choice. hidden, input: what attention reads; q_latent: the
// query's latent behind its norm. keys_alone: for the cache, where nothing is to be chosen.
void index_queries(Context& ctx, const Model& model, const IndexerWeights& w, const Batch& batch,
                   const LinearInput& hidden, const LinearInput& q_latent, Tensor input, bool keys_alone,
                   IndexerSaved& s);

// Stores the new tokens' index keys behind those that the caches hold.
void extend_index_caches(Context& ctx, const Batch& batch, int64_t layer, Tensor keys,
                         std::span<LatentCache* const> caches);

// The keys of packed sequences [tokens, index_head_dim] as caches of index keys alone; memory from ctx.arena.
std::vector<LatentCacheView> index_views(Context& ctx, const Batch& batch, Tensor keys);
// s.selected, where a sequence is longer than index_topk.
void choose_keys(Context& ctx, const Model& model, const Batch& batch, IndexerSaved& s);

// Over tokens and layers.
struct IndexerLossSums {
  double kl = 0, recall = 0;
  int64_t n = 0, n_recall = 0;  // n_recall: where there was a choice
  double kl_mean() const { return n > 0 ? kl / static_cast<double>(n) : 0; }
  double recall_mean() const { return n_recall > 0 ? recall / static_cast<double>(n_recall) : 1; }
  IndexerLossSums& operator+=(const IndexerLossSums& part);
};

// New tokens that stand together and attend alike.
struct AttentionRun {
  bool expanded, selected;
  int64_t first_row = 0;
  std::vector<LatentCacheView> views{};
  int64_t n_rows() const;
};
// Of sequences whose tokens attend to topk tokens at most; those from expand_from on read their caches in the expanded
// form where that is cheaper. Which way a token takes depends on its position alone, for its bits' sake.
std::vector<AttentionRun> attention_runs(std::span<const LatentCacheView> seen, const MlaDims& dims, int64_t topk,
                                         size_t expand_from);

// dw += `scale` times the gradient of a layer's indexer loss (ops/indexer_loss.h), summed over tokens; what was saved
// of the layer's attention is whole. Adds to `result`. Memory from ctx.arena.
void train_indexer(Context& ctx, const Model& model, const IndexerWeights& w, IndexerWeights& dw, const Batch& batch,
                   const MlaSaved& s, double scale, IndexerLossSums& result);

}  // namespace fathom
