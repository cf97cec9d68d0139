#include "ops/indexer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "ops/attention.h"

namespace fathom::plain {
namespace {

// x as scores see it: rounded as a key is.
std::vector<float> as_stored(const IndexKeyLayout& layout, const float* x) {
  std::vector<char> block(static_cast<size_t>(index_block_bytes(layout)));
  std::vector<float> seen(static_cast<size_t>(layout.head_dim));
  write_index_key(layout, block.data(), 0, x);
  read_index_key(layout, seen.data(), block.data(), 0);
  return seen;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// I[t, s] for the first n rows.
std::vector<float> scores_of(const LatentCacheView& sequence, const float* q, const float* w, int64_t n,
                             const IndexerDims& dims) {
  const IndexKeyLayout& layout = sequence.index_keys;
  std::vector<std::vector<float>> heads;
  for (int64_t j = 0; j < dims.n_heads; ++j) heads.push_back(as_stored(layout, q + j * dims.head_dim));
  std::vector<float> scores, key(static_cast<size_t>(dims.head_dim));
  for (int64_t s = 0; s < n; ++s) {
    read_index_key(layout, key.data(), sequence.index_block(s / kIndexBlock, index_block_bytes(layout)),
                   s % kIndexBlock);
    double score = 0;
    for (int64_t j = 0; j < dims.n_heads; ++j) {
      const double product = dot(heads[static_cast<size_t>(j)], key);
      score += w[j] * (product < 0 ? 0 : product);  // NaN stays NaN
    }
    scores.push_back(static_cast<float>(score));
  }
  return scores;
}

// Calls back for each new token: its row of q, its sequence, and how many rows it sees.
template <class F>
void each_token(std::span<const LatentCacheView> sequences, const F& f) {
  int64_t t = 0;
  for (const LatentCacheView& sequence : sequences) {
    for (int64_t i = 0; i < sequence.n_new; ++i) f(t++, sequence, sequence.length - sequence.n_new + i + 1);
  }
}

}  // namespace

void hadamard(float* x, int64_t n) {
  if (!std::has_single_bit(static_cast<uint64_t>(n))) return;
  const std::vector<float> before(x, x + n);
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      const bool negative = std::popcount(static_cast<uint64_t>(i & j)) % 2 != 0;
      sum += negative ? -before[static_cast<size_t>(j)] : before[static_cast<size_t>(j)];
    }
    x[i] = static_cast<float>(sum / std::sqrt(static_cast<double>(n)));
  }
}

void select_keys(Tensor selected, Tensor q, Tensor w, std::span<const LatentCacheView> sequences,
                 const IndexerDims& dims) {
  each_token(sequences, [&](int64_t t, const LatentCacheView& sequence, int64_t n) {
    std::vector<int32_t> rows(static_cast<size_t>(n));
    std::iota(rows.begin(), rows.end(), 0);
    if (n > dims.topk) {
      std::vector<float> scores = scores_of(sequence, q.f32_row(t), w.f32_row(t), n, dims);
      // NaN before all others.
      const auto larger = [&](int32_t a, int32_t b) {
        const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
        return std::isnan(x) || std::isnan(y) ? std::isnan(x) && !std::isnan(y) : x > y;
      };
      std::stable_sort(rows.begin(), rows.end(), larger);
      rows.resize(static_cast<size_t>(dims.topk));
      std::sort(rows.begin(), rows.end());
    }
    rows.resize(static_cast<size_t>(dims.topk), -1);
    std::copy(rows.begin(), rows.end(), selected.i32() + t * selected.row_stride);
  });
}

void index_scores(Tensor scores, Tensor q, Tensor w, std::span<const LatentCacheView> sequences,
                  const IndexerDims& dims) {
  each_token(sequences, [&](int64_t t, const LatentCacheView& sequence, int64_t n) {
    std::vector<float> row = scores_of(sequence, q.f32_row(t), w.f32_row(t), n, dims);
    row.resize(static_cast<size_t>(sequence.length), -std::numeric_limits<float>::infinity());
    std::copy(row.begin(), row.end(), scores.f32_row(t));
  });
}

}  // namespace fathom::plain
