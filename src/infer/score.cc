#include "infer/score.h"

#include <algorithm>
#include <numeric>

#include "model/indexer.h"

namespace fathom {
namespace {

constexpr int64_t kGroupTokens = 4096;

// Appends the rows of every group to the outputs, which keep the order of their first appearance.
struct Collector {
  Context& ctx;
  std::vector<ScoreTensor>& tensors;
  Buffer memory{};          // of what comes from a device
  int64_t n_sequences = 0;  // so far

  ScoreTensor& find(const std::string& name, Format format, std::vector<int64_t> row_shape) {
    const auto it = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
    if (it != tensors.end()) return *it;
    return tensors.emplace_back(ScoreTensor{name, format, std::move(row_shape), {}, {}});
  }
  void add(const std::string& name, Tensor rows) {
    rows = on_host(ctx, rows, memory);
    ScoreTensor& out = find(name, rows.format, {rows.cols()});
    for (int64_t t = 0; t < rows.rows(); ++t) {
      if (rows.format == Format::i32) {
        const int32_t* row = rows.i32() + t * rows.row_stride;
        out.ids.insert(out.ids.end(), row, row + rows.cols());
      } else {
        out.values.insert(out.values.end(), rows.f32_row(t), rows.f32_row(t) + rows.cols());
      }
    }
  }
};

// For each sequence, what the indexer of a layer gives every token for every token up to it, and what it chooses.
void collect_indexer(Context& ctx, const Model& model, const Batch& batch, size_t layer, const IndexerSaved& s,
                     Collector& out) {
  const std::vector<LatentCacheView> views = index_views(ctx, batch, s.k);
  IndexerDims dims = model.config.indexer;
  for (int64_t i = 0; i < batch.n_sequences(); ++i) {
    const ArenaScope scope(ctx.arena);
    const auto view = std::span(views).subspan(static_cast<size_t>(i), 1);
    const int64_t first = batch.offsets[static_cast<size_t>(i)], n = view[0].length;
    dims.topk = std::min(model.config.indexer.topk, n);  // which may be far more than there are tokens
    const Tensor scores = new_f32(ctx, {n, n}), selected = new_i32(ctx, {n, dims.topk});
    index_scores(ctx, scores, s.q.slice(first, n), s.weights.slice(first, n), view, dims);
    select_keys(ctx, selected, s.q.slice(first, n), s.weights.slice(first, n), view, dims);
    out.add(fmt::format("indexer.{}.scores.{}", layer, out.n_sequences + i), scores);
    out.add(fmt::format("indexer.{}.topk_ids.{}", layer, out.n_sequences + i), selected);
  }
}

void collect_group(Context& ctx, const Model& model, const Batch& batch, const ScoreOptions& options, Collector& out) {
  const ArenaScope scope(ctx.arena);
  ForwardSaved saved;
  const Tensor hidden = forward(ctx, model, batch, {.saved = &saved, .taps = options.all});
  out.add("logits", head_logits(ctx, model, hidden));
  out.add("final_hidden", hidden);
  for (size_t l = 0; l < saved.layers.size(); ++l) {
    const LayerSaved& layer = saved.layers[l];
    if (options.all) {
      out.add(fmt::format("hidden.{}", l), layer.x);
      out.add(fmt::format("attn_out.{}", l), layer.attention_out);
      out.add(fmt::format("mlp_out.{}", l), layer.mlp_out);
      if (layer.attention.indexer.q) collect_indexer(ctx, model, batch, l, layer.attention.indexer, out);
    }
    if (!layer.moe.topk_ids) continue;
    if (options.all) out.add(fmt::format("router.{}.logits", l), layer.moe.logits);
    out.add(fmt::format("router.{}.topk_ids", l), layer.moe.topk_ids);
    out.add(fmt::format("router.{}.topk_weights", l), layer.moe.topk_weights);
  }
  if (options.all) out.add(fmt::format("hidden.{}", saved.layers.size()), saved.x);
  out.n_sequences += batch.n_sequences();
  if (!options.mtp) return;
  const Tensor mtp_hidden = mtp_forward(ctx, model, model.weights.mtp[0], make_mtp_input(ctx, batch), hidden);
  out.add("mtp_hidden", mtp_hidden);
  out.add("mtp_logits", head_logits(ctx, model, mtp_hidden));
}

}  // namespace

void check_sequences(const ModelConfig& config, std::span<const std::vector<int32_t>> sequences) {
  if (sequences.empty()) throw Error("no sequence to score: give at least one token");
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto& ids = sequences[s];
    if (ids.empty()) throw Error("sequence {} is empty: give it at least one token", s);
    const auto length = static_cast<int64_t>(ids.size());
    if (length > config.max_position_embeddings) {
      throw Error("sequence {} has {} tokens, more than the model's context of {} (max_position_embeddings): cut it", s,
                  length, config.max_position_embeddings);
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0 || ids[i] >= config.vocab_size) {
        throw Error("token id {} at position {} of sequence {} is outside the vocabulary of {}", ids[i], i, s,
                    config.vocab_size);
      }
    }
  }
}

void for_each_group(Context& ctx, std::span<const std::vector<int32_t>> sequences, int64_t max_tokens,
                    const std::function<void(const Batch& batch)>& use, const OnTokens& on_tokens) {
  int64_t done = 0;
  for (size_t begin = 0; begin < sequences.size();) {
    size_t end = begin;
    int64_t tokens = 0;
    do {
      tokens += std::ssize(sequences[end++]);
    } while (end < sequences.size() && tokens + std::ssize(sequences[end]) <= max_tokens);
    const ArenaScope scope(ctx.arena);
    use(make_batch(ctx, sequences.subspan(begin, end - begin)));
    begin = end;
    done += tokens;
    if (on_tokens) on_tokens(done);
  }
}

std::vector<std::vector<int32_t>> cut_windows(std::span<const int32_t> ids, int64_t window) {
  std::vector<std::vector<int32_t>> windows;
  const auto size = static_cast<size_t>(window);
  for (size_t begin = 0; begin + 1 < ids.size(); begin += size - 1) {
    const auto part = ids.subspan(begin, std::min(size, ids.size() - begin));
    windows.emplace_back(part.begin(), part.end());
  }
  return windows;
}

ScoreResult score(Context& ctx, const Model& model, std::span<const std::vector<int32_t>> sequences,
                  const ScoreOptions& options) {
  check_sequences(model.config, sequences);
  if ((options.mtp || options.mtp_weight > 0) && model.weights.mtp.empty()) {
    throw Error("this model has no MTP layer (num_nextn_predict_layers is 0): leave the MTP options out");
  }
  int64_t n_main = 0;
  for (const auto& ids : sequences) n_main += std::ssize(ids) - 1;
  LossOptions loss_options{.mtp_weight = options.mtp_weight};
  if (n_main > 0) loss_options.main_scale = 1.0 / static_cast<double>(n_main);
  const int64_t n_mtp = count_mtp_targets(sequences, std::ssize(model.weights.mtp));
  if (n_mtp > 0) loss_options.mtp_scale = 1.0 / static_cast<double>(n_mtp);

  ScoreResult result;
  Collector out{ctx, result.tensors};
  if (options.tensors) {
    ScoreTensor& ids = out.find("input_ids", Format::i64, {});
    for (const auto& sequence : sequences) ids.ids.insert(ids.ids.end(), sequence.begin(), sequence.end());
    ScoreTensor& offsets = out.find("seq_offsets", Format::i32, {});
    offsets.ids.push_back(0);
    for (const auto& sequence : sequences)
      offsets.ids.push_back(offsets.ids.back() + static_cast<int64_t>(sequence.size()));
  }
  for_each_group(ctx, sequences, kGroupTokens, [&](const Batch& batch) {
    const Targets targets = make_targets(ctx, batch);
    if (options.tensors) collect_group(ctx, model, batch, options, out);
    result.loss += options.gradients != nullptr
                       ? loss_and_gradients(ctx, model, *options.gradients, batch, targets, loss_options)
                       : loss(ctx, model, batch, targets, loss_options);
  });
  return result;
}

}  // namespace fathom
