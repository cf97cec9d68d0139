#include "infer/divergence.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "ops/log_softmax.h"

namespace fathom {
namespace {

constexpr int64_t kGroupTokens = 2048;  // run together
constexpr int64_t kLogitRows = 64;      // whose logits are in memory

struct TokenDivergence {
  double kl, loss, other_loss;
  bool same_top_1;
};

TokenDivergence compare(std::span<const float> row, std::span<const float> other_row, int32_t next) {
  const LogSoftmax p(row), q(other_row);
  double kl = 0;
  for (int64_t v = 0; v < std::ssize(row); ++v) {
    const double log_p = p[v];
    kl += std::exp(log_p) * (log_p - q[v]);
  }
  return {std::max(kl, 0.0), -p[next], -q[next], p.best == q.best};  // rounding may leave less than nothing
}

// The smallest value that so large a part of them does not exceed.
double quantile(const std::vector<double>& sorted, double part) {
  const auto at = static_cast<size_t>(std::ceil(part * static_cast<double>(sorted.size())));
  return sorted[std::max<size_t>(at, 1) - 1];
}

}  // namespace

Predictions predict(Context& ctx, const Model& model, std::span<const std::vector<int32_t>> sequences,
                    const OnTokens& on_tokens) {
  const Tensor head = model.weights.head;
  Predictions predictions{model.config, Buffer(static_cast<size_t>(head.size_bytes())), head, {}};
  std::memcpy(predictions.memory.data(), head.data, static_cast<size_t>(head.size_bytes()));
  predictions.head.data = predictions.memory.data();
  check_sequences(model.config, sequences);
  const auto keep = [&](const Batch& batch) {
    const Tensor hidden = forward(ctx, model, batch);
    predictions.hidden.insert(predictions.hidden.end(), hidden.f32(), hidden.f32() + hidden.size());
  };
  for_each_group(ctx, sequences, kGroupTokens, keep, on_tokens);
  return predictions;
}

Divergence diverge(Context& ctx, const Predictions& predictions, const Model& other,
                   std::span<const std::vector<int32_t>> sequences, const OnTokens& on_tokens) {
  const ModelConfig& config = predictions.config;
  FATHOM_CHECK(config.vocab_size == other.config.vocab_size && config.hidden_size == other.config.hidden_size);
  ModelWeights head_alone;
  head_alone.head = predictions.head;
  const Model first = make_model(config, head_alone);
  std::vector<TokenDivergence> all;
  const float* kept = predictions.hidden.data();
  check_sequences(other.config, sequences);
  const auto compare_group = [&](const Batch& batch) {
    const Tensor hidden = forward(ctx, other, batch);
    std::vector<int32_t> next(static_cast<size_t>(batch.n_tokens()), -1);
    for (size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
      for (auto t = static_cast<size_t>(batch.offsets[s]); t + 1 < static_cast<size_t>(batch.offsets[s + 1]); ++t) {
        next[t] = batch.tokens[t + 1];
      }
    }
    for (int64_t begin = 0; begin < batch.n_tokens(); begin += kLogitRows) {
      const ArenaScope scope(ctx.arena);
      const int64_t n = std::min(kLogitRows, batch.n_tokens() - begin);
      const Tensor rows(const_cast<float*>(kept), Format::f32, {n, config.hidden_size});  // NOLINT: only read
      const Tensor logits = head_logits(ctx, first, rows),
                   other_logits = head_logits(ctx, other, hidden.slice(begin, n));
      std::vector<TokenDivergence> found(static_cast<size_t>(n));
      ctx.pool.parallel_for(0, n, 1, [&](int64_t t, int64_t) {
        const auto vocab = static_cast<size_t>(config.vocab_size);
        const int32_t token = next[static_cast<size_t>(begin + t)];
        if (token < 0) return;
        found[static_cast<size_t>(t)] = compare({logits.f32_row(t), vocab}, {other_logits.f32_row(t), vocab}, token);
      });
      for (int64_t t = 0; t < n; ++t) {
        if (next[static_cast<size_t>(begin + t)] >= 0) all.push_back(found[static_cast<size_t>(t)]);
      }
      kept += n * config.hidden_size;
    }
  };
  for_each_group(ctx, sequences, kGroupTokens, compare_group, on_tokens);

  Divergence result;
  result.tokens = std::ssize(all);
  if (all.empty()) return result;
  std::vector<double> kl;
  for (const TokenDivergence& token : all) {
    kl.push_back(token.kl);
    result.same_top_1 += token.same_top_1 ? 1 : 0;
    result.loss += token.loss;
    result.other_loss += token.other_loss;
  }
  const auto n = static_cast<double>(all.size());
  result.kl_mean = std::accumulate(kl.begin(), kl.end(), 0.0) / n;
  result.same_top_1 /= n;
  result.loss /= n;
  result.other_loss /= n;
  std::sort(kl.begin(), kl.end());
  result.kl_median = quantile(kl, 0.5);
  result.kl_p99 = quantile(kl, 0.99);
  result.kl_max = kl.back();
  return result;
}

}  // namespace fathom
