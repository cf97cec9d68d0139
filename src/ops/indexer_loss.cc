// By strips of queries: the scores of a strip with all keys up to its last are matrices, made head by head, so that
// memory grows with the length of a sequence and not with its square.
#include "ops/indexer_loss.h"

#include <cmath>

#include "ops/attention_blocks.h"
#include "ops/embedding.h"
#include "ops/gemm.h"

namespace fathom {
namespace {

using namespace attention;

constexpr int64_t kStripQueries = 256;
constexpr int64_t kQueriesOfTask = 4;

// Queries first .. first + n of a sequence whose first token is `begin`; they see keys begin .. first + n at most.
struct Strip {
  int64_t begin, first, n;
  int64_t n_keys() const { return first + n - begin; }
  int64_t n_seen(int64_t i) const { return first + i + 1 - begin; }
};

// All [queries, keys], rows `stride` apart.
struct Scratch {
  float *target, *full;  // the main attention's distribution over what is seen; over all up to the query
  float* scores;         // I, then its gradient
  float* products;       // of one head
  float* q;              // [queries, key_dim], scaled
  int64_t stride;
};

template <class Row>
void for_each_row(Context& ctx, const Strip& strip, const Row& row) {
  ctx.pool.parallel_for(0, strip.n, kQueriesOfTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row(i);
  });
}

// products = the strip's rows of one index head times the keys
void index_products(Context& ctx, const IndexerLossInputs& in, const Strip& strip, int64_t head, const Scratch& s) {
  const int64_t dim = in.dims.head_dim;
  gemm(ctx, {strip.n, strip.n_keys(), dim, false, true, in.q.row_stride, in.k.row_stride, s.stride},
       in.q.f32_row(strip.first) + head * dim, in.k.f32_row(strip.begin), s.products, false);
}

// target, and full where it is wanted: the mean over heads.
void main_distributions(Context& ctx, const IndexerLossInputs& in, const Strip& strip, const SeenKeys& seen,
                        const Scratch& s) {
  const MlaDims& d = in.main_dims;
  const ExpandedInputs main = {in.main_q, in.kv, in.k_rope, d};
  const int64_t nope = d.qk_nope_head_dim, rope = d.qk_rope_head_dim, key_dim = main.key_dim();
  const int64_t n_keys = strip.n_keys();
  const float weight = 1 / static_cast<float>(d.n_heads);
  const cpu::AttentionKernels& k = kernels();
  for (int64_t head = 0; head < d.n_heads; ++head) {
    k.copy(s.q, key_dim, main.query(strip.first, head), in.main_q.row_stride, strip.n, key_dim, in.softmax_scale);
    gemm(ctx, {strip.n, n_keys, nope, false, true, key_dim, in.kv.row_stride, s.stride}, s.q,
         in.kv.f32_row(strip.begin) + head * main.kv_dim(), s.products, false);
    gemm(ctx, {strip.n, n_keys, rope, false, true, key_dim, in.k_rope.row_stride, s.stride}, s.q + nope,
         in.k_rope.f32_row(strip.begin), s.products, true);
    for_each_row(ctx, strip, [&](int64_t i) {
      float* const row = s.products + i * s.stride;
      const int64_t n = padded(strip.n_seen(i));
      std::fill(row + strip.n_seen(i), row + n, kMasked);
      if (s.full != nullptr) {
        float* const full = s.full + i * s.stride;
        if (head == 0) std::fill_n(full, n, 0.0f);
        float* const scratch = s.scores + i * s.stride;
        std::copy_n(row, n, scratch);
        float lse = in.lse.f32(strip.first + i, head);
        if (seen.bits != nullptr) {
          const float largest = *std::max_element(row, row + n);
          double sum = 0;
          for (int64_t j = 0; j < strip.n_seen(i); ++j) sum += std::exp(static_cast<double>(row[j]) - largest);
          lse = largest + static_cast<float>(std::log(sum));
        }
        k.probabilities(scratch, s.stride, 1, n, &lse, 0);
        k.scale_and_add(full, 1, scratch, weight, n);
      }
      if (seen.bits != nullptr) {
        for (int64_t j = 0; j < n; j += kBlock) {
          k.mask_queries(row + j, s.stride, 1, std::min(kBlock, n - j), seen.row(strip.first + i) + j / kBlock, 0);
        }
      }
      k.probabilities(row, s.stride, 1, n, in.lse.f32_row(strip.first + i) + head, 0);
      float* const target = s.target + i * s.stride;
      if (head == 0) std::fill_n(target, n, 0.0f);
      k.scale_and_add(target, 1, row, weight, n);
    });
  }
}

// What the topk highest of `scores` hold of `full`, as a part of what any topk could hold.
float recall_of(const float* scores, const float* full, int64_t n, int64_t topk) {
  if (n <= topk) return 1;
  std::vector<int32_t> order(static_cast<size_t>(n));
  const auto held = [&](const float* by) {
    for (int64_t j = 0; j < n; ++j) order[static_cast<size_t>(j)] = static_cast<int32_t>(j);
    std::nth_element(order.begin(), order.begin() + topk - 1, order.end(),
                     [&](int32_t a, int32_t b) { return by[a] > by[b] || (by[a] == by[b] && a < b); });
    double sum = 0;
    for (int64_t j = 0; j < topk; ++j) sum += full[order[static_cast<size_t>(j)]];
    return sum;
  };
  const double best = held(full);
  return best > 0 ? static_cast<float>(held(scores) / best) : 1;
}

// scores become factor * (softmax(scores) - target) over what is seen and 0 elsewhere; returns the row's KL.
float score_gradients(float* scores, const float* target, int64_t n, const uint64_t* seen, float factor) {
  const auto is_seen = [&](int64_t j) { return seen == nullptr || (seen[j / 64] >> j % 64 & 1) != 0; };
  float largest = kMasked;
  for (int64_t j = 0; j < n; ++j) {
    if (is_seen(j)) largest = std::max(largest, scores[j]);
  }
  double sum = 0, kl = 0;
  for (int64_t j = 0; j < n; ++j) {
    if (is_seen(j)) sum += std::exp(static_cast<double>(scores[j]) - largest);
  }
  const double lse = largest + std::log(sum);
  for (int64_t j = 0; j < n; ++j) {
    if (!is_seen(j)) {
      scores[j] = 0;
      continue;
    }
    const double log_q = scores[j] - lse, p = target[j];
    if (p > 0) kl += p * (std::log(p) - log_q);
    scores[j] = static_cast<float>(factor * (std::exp(log_q) - p));
  }
  return static_cast<float>(kl);
}

}  // namespace

void indexer_loss(Context& ctx, const IndexerLossInputs& in, float factor, Tensor kl, Tensor recall, Tensor dq,
                  Tensor dk, Tensor d_weights) {
  const int64_t n_heads = in.dims.n_heads, dim = in.dims.head_dim, topk = in.dims.topk;
  const int64_t tokens = in.q.rows();
  FATHOM_CHECK(in.q.cols() == n_heads * dim && in.k.cols() == dim && in.weights.cols() == n_heads);
  FATHOM_CHECK(in.lse && in.lse.rows() == tokens && kl.size() == tokens && (!recall || recall.size() == tokens));
  FATHOM_CHECK(dk.contiguous() && dq.rows() == tokens && d_weights.rows() == tokens);
  const ArenaScope scope(ctx.arena);
  const int64_t longest = longest_sequence(in.seq_offsets);
  const SeenKeys seen = in.selected ? seen_keys(ctx, in.selected, longest) : SeenKeys{};
  const int64_t stride = block_stride(longest), strip_rows = std::min(kStripQueries, longest);
  const auto matrix = [&] { return new_floats(ctx, strip_rows * stride); };
  const MlaDims& main = in.main_dims;
  const Scratch s = {matrix(),
                     recall ? matrix() : nullptr,
                     matrix(),
                     matrix(),
                     new_floats(ctx, strip_rows * (main.qk_nope_head_dim + main.qk_rope_head_dim)),
                     stride};
  fill_zero(ctx, dk);

  std::vector<Strip> strips;
  for (int64_t sequence = 0; sequence + 1 < in.seq_offsets.size(); ++sequence) {
    const int64_t begin = in.seq_offsets.i32()[sequence], end = in.seq_offsets.i32()[sequence + 1];
    for (int64_t first = begin; first < end; first += kStripQueries) {
      strips.push_back({begin, first, std::min(kStripQueries, end - first)});
    }
  }
  for (const Strip& strip : strips) {
    const int64_t n_keys = strip.n_keys();
    main_distributions(ctx, in, strip, seen, s);
    for (int64_t head = 0; head < n_heads; ++head) {
      index_products(ctx, in, strip, head, s);
      for_each_row(ctx, strip, [&](int64_t i) {
        const float weight = in.weights.f32(strip.first + i, head);
        float* const scores = s.scores + i * stride;
        const float* const products = s.products + i * stride;
        for (int64_t j = 0; j < n_keys; ++j) {
          scores[j] = (head == 0 ? 0 : scores[j]) + weight * std::max(products[j], 0.0f);
        }
      });
    }
    for_each_row(ctx, strip, [&](int64_t i) {
      const int64_t token = strip.first + i, n = strip.n_seen(i);
      float* const scores = s.scores + i * stride;
      if (recall) recall.f32()[token] = recall_of(scores, s.full + i * stride, n, topk);
      kl.f32()[token] =
          score_gradients(scores, s.target + i * stride, n, seen.bits != nullptr ? seen.row(token) : nullptr, factor);
      std::fill(scores + n, scores + n_keys, 0.0f);
    });
    for (int64_t head = 0; head < n_heads; ++head) {
      index_products(ctx, in, strip, head, s);
      for_each_row(ctx, strip, [&](int64_t i) {
        const float weight = in.weights.f32(strip.first + i, head);
        float* const products = s.products + i * stride;
        const float* const d_scores = s.scores + i * stride;
        double sum = 0;
        for (int64_t j = 0; j < n_keys; ++j) {
          sum += static_cast<double>(d_scores[j]) * std::max(products[j], 0.0f);
          products[j] = products[j] > 0 ? weight * d_scores[j] : 0;
        }
        d_weights.f32(strip.first + i, head) = static_cast<float>(sum);
      });
      gemm(ctx, {strip.n, dim, n_keys, false, false, stride, in.k.row_stride, dq.row_stride}, s.products,
           in.k.f32_row(strip.begin), dq.f32_row(strip.first) + head * dim, false);
      gemm(ctx, {n_keys, dim, strip.n, true, false, stride, in.q.row_stride, dk.row_stride}, s.products,
           in.q.f32_row(strip.first) + head * dim, dk.f32_row(strip.begin), true);
    }
  }
}

}  // namespace fathom
