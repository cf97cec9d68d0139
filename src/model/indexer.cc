#include "model/indexer.h"

#include <algorithm>
#include <cmath>

#include "base/arithmetic.h"
#include "ops/indexer_loss.h"
#include "ops/layer_norm.h"

namespace fathom {
namespace {

constexpr float kIndexNormEps = 1e-6f;

float weight_factor(const IndexerDims& dims) { return 1 / std::sqrt(static_cast<float>(dims.n_heads * dims.head_dim)); }

void multiply(Tensor x, float factor) {
  for (float& value : std::span(x.f32(), static_cast<size_t>(x.size()))) value *= factor;
}

}  // namespace

void index_queries(Context& ctx, const Model& model, const IndexerWeights& w, const Batch& batch,
                   const LinearInput& hidden, const LinearInput& q_latent, Tensor input, bool keys_alone,
                   IndexerSaved& s) {
  const auto& [n_heads, head_dim, topk] = model.config.indexer;
  const int64_t tokens = input.rows();
  const Rounding rounding{model.precision};
  s.k_in = new_f32(ctx, {tokens, head_dim});
  s.k = new_f32(ctx, {tokens, head_dim});
  const LinearCall of_keys{s.k_in, hidden, w.k, {}, {}, rounding};
  if (keys_alone) {
    linear(ctx, {of_keys});
  } else {
    s.q = new_f32(ctx, {tokens, n_heads * head_dim});
    s.weights = new_f32(ctx, {tokens, n_heads});
    linear(ctx, {of_keys, {s.q, q_latent, w.q_b, {}, {}, rounding}, {s.weights, input, w.head_weights}});
    multiply(s.weights, weight_factor(model.config.indexer));
    rope(ctx, model.index_rope, s.q, batch.positions, {n_heads, head_dim, 0});
  }
  layer_norm(ctx, s.k, s.k_in, w.k_norm, w.k_bias, kIndexNormEps);
  rope(ctx, model.index_rope, s.k, batch.positions, {1, head_dim, 0});
}

void extend_index_caches(Context& ctx, const Batch& batch, int64_t layer, Tensor keys,
                         std::span<LatentCache* const> caches) {
  for (int64_t s = 0; s < batch.n_sequences(); ++s) {
    const LatentCache& cache = *caches[static_cast<size_t>(s)];
    const int64_t first = sequence_begin(batch, s), n_new = sequence_begin(batch, s + 1) - first;
    ctx.pool.parallel_for(0, n_new, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = cache.length + i;
        write_index_key(cache.index_keys, cache.index_block(layer, row / kIndexBlock), row % kIndexBlock,
                        keys.f32_row(first + i));
      }
    });
  }
}

std::vector<LatentCacheView> index_views(Context& ctx, const Batch& batch, Tensor keys) {
  const IndexKeyLayout layout{IndexFormat::f32, keys.cols()};
  const int64_t block_bytes = index_block_bytes(layout);
  std::vector<LatentCacheView> views;
  for (int64_t s = 0; s < batch.n_sequences(); ++s) {
    const int64_t first = sequence_begin(batch, s), n = sequence_begin(batch, s + 1) - first;
    const int64_t n_blocks = ceil_div(n, kIndexBlock);
    auto* const blocks = static_cast<char*>(ctx.arena.allocate(static_cast<size_t>(n_blocks * block_bytes)));
    ctx.pool.parallel_for(0, n_blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kIndexBlock; i < std::min(end * kIndexBlock, n); ++i) {
        write_index_key(layout, blocks + i / kIndexBlock * block_bytes, i % kIndexBlock, keys.f32_row(first + i));
      }
    });
    LatentCacheView view{nullptr, n, n};
    view.index_keys = layout;
    view.index_blocks = blocks;
    views.push_back(view);
  }
  return views;
}

void choose_keys(Context& ctx, const Model& model, const Batch& batch, IndexerSaved& s) {
  const IndexerDims& dims = model.config.indexer;
  int64_t longest = 0;
  for (int64_t q = 0; q < batch.n_sequences(); ++q) {
    longest = std::max<int64_t>(longest, sequence_begin(batch, q + 1) - sequence_begin(batch, q));
  }
  if (longest <= dims.topk) return;
  s.selected = new_i32(ctx, {s.q.rows(), dims.topk});
  const ArenaScope scope(ctx.arena);
  select_keys(ctx, s.selected, s.q, s.weights, index_views(ctx, batch, s.k), dims);
}

int64_t AttentionRun::n_rows() const {
  int64_t n = 0;
  for (const LatentCacheView& view : views) n += view.n_new;
  return n;
}

std::vector<AttentionRun> attention_runs(std::span<const LatentCacheView> seen, const MlaDims& dims, int64_t topk,
                                         size_t expand_from) {
  std::vector<AttentionRun> runs;
  int64_t row = 0;
  for (size_t s = 0; s < seen.size(); ++s) {
    const auto add = [&](int64_t begin, int64_t end, bool expanded, bool selected) {  // positions
      begin = std::max(begin, seen[s].length - seen[s].n_new);
      end = std::min(end, seen[s].length);
      if (begin >= end) return;
      if (runs.empty() || runs.back().expanded != expanded || runs.back().selected != selected) {
        runs.push_back({expanded, selected, row});
      }
      LatentCacheView view = seen[s];
      view.length = end;
      view.n_new = end - begin;
      runs.back().views.push_back(view);
      row += end - begin;
    };
    const bool expand = s >= expand_from;
    const int64_t gathered =
        expand && topk < INT64_MAX ? std::max(topk, gather_from(dims, seen[s].format, topk)) : topk;
    add(0, topk, expand, false);
    add(topk, gathered, expand, true);
    add(gathered, INT64_MAX, false, true);
  }
  return runs;
}

IndexerLossSums& IndexerLossSums::operator+=(const IndexerLossSums& part) {
  kl += part.kl;
  recall += part.recall;
  n += part.n;
  n_recall += part.n_recall;
  return *this;
}

void train_indexer(Context& ctx, const Model& model, const IndexerWeights& w, IndexerWeights& dw, const Batch& batch,
                   const MlaSaved& s, double scale, IndexerLossSums& result) {
  const MlaDims dims = model.config.mla();
  const IndexerDims& indexer = model.config.indexer;
  const int64_t tokens = batch.n_tokens();
  const Rounding rounding{model.precision};
  const ArenaScope scope(ctx.arena);
  const Tensor kl = new_f32(ctx, {tokens}), recall = new_f32(ctx, {tokens});
  const Tensor dq = new_f32(ctx, {tokens, s.indexer.q.cols()}), dk = new_f32(ctx, {tokens, indexer.head_dim});
  const Tensor d_weights = new_f32(ctx, {tokens, indexer.n_heads});
  indexer_loss(ctx,
               {s.indexer.q, s.indexer.k, s.indexer.weights, indexer, s.q, s.kv,
                s.kv_a.columns(dims.kv_lora_rank, dims.qk_rope_head_dim), s.lse, batch.seq_offsets, s.indexer.selected,
                dims, model.softmax_scale},
               static_cast<float>(scale), kl, recall, dq, dk, d_weights);
  rope_backward(ctx, model.index_rope, dq, batch.positions, {indexer.n_heads, indexer.head_dim, 0});
  rope_backward(ctx, model.index_rope, dk, batch.positions, {1, indexer.head_dim, 0});
  layer_norm_backward(ctx, dk, dw.k_norm, dw.k_bias, dk, s.indexer.k_in, w.k_norm, kIndexNormEps);
  multiply(d_weights, weight_factor(indexer));
  linear_backward_weight(ctx, {{dw.q_b, dq, s.q_latent, {}, rounding},
                               {dw.k, dk, s.input, {}, rounding},
                               {dw.head_weights, d_weights, s.input}});

  for (int64_t q = 0; q < batch.n_sequences(); ++q) {
    for (int32_t t = sequence_begin(batch, q); t < sequence_begin(batch, q + 1); ++t) {
      result.kl += kl.f32()[t];
      ++result.n;
      if (t - sequence_begin(batch, q) < indexer.topk) continue;
      result.recall += recall.f32()[t];
      ++result.n_recall;
    }
  }
}

}  // namespace fathom
