#include "ops/indexer_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/plain/dot.h"

namespace fathom::plain {
namespace {

void softmax(std::vector<double>& x, const std::vector<bool>& seen) {
  double largest = -INFINITY, sum = 0;
  for (size_t j = 0; j < x.size(); ++j) largest = seen[j] ? std::max(largest, x[j]) : largest;
  for (size_t j = 0; j < x.size(); ++j) sum += x[j] = seen[j] ? std::exp(x[j] - largest) : 0;
  for (double& p : x) p /= sum;
}

// The mass of `full` where `by` has its largest values.
double held(const std::vector<double>& by, const std::vector<double>& full, int64_t topk) {
  std::vector<size_t> order(by.size());
  for (size_t j = 0; j < order.size(); ++j) order[j] = j;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return by[a] > by[b]; });
  double sum = 0;
  for (int64_t j = 0; j < std::min(topk, std::ssize(order)); ++j) sum += full[order[static_cast<size_t>(j)]];
  return sum;
}

}  // namespace

void indexer_loss(const IndexerLossInputs& in, float factor, Tensor kl, Tensor recall, Tensor dq, Tensor dk,
                  Tensor d_weights) {
  const int64_t n_heads = in.dims.n_heads, dim = in.dims.head_dim, topk = in.dims.topk;
  const MlaDims& main = in.main_dims;
  const int64_t main_heads = main.n_heads, nope = main.qk_nope_head_dim, rope = main.qk_rope_head_dim,
                v_dim = main.v_head_dim;
  std::vector<double> sum_k(static_cast<size_t>(dk.size()));
  for (int64_t s = 0; s + 1 < in.seq_offsets.size(); ++s) {
    const int64_t begin = in.seq_offsets.i32()[s];
    for (int64_t t = begin; t < in.seq_offsets.i32()[s + 1]; ++t) {
      const auto n = static_cast<size_t>(t + 1 - begin);
      std::vector<bool> seen(n, !in.selected);
      for (int64_t i = 0; in.selected && i < in.selected.cols(); ++i) {
        const int32_t key = in.selected.i32()[t * in.selected.row_stride + i];
        if (key >= 0) seen[static_cast<size_t>(key)] = true;
      }
      const std::vector<bool> all(n, true);
      std::vector<double> target(n), full(n), scores(n);
      for (int64_t h = 0; h < main_heads; ++h) {
        const float* q = in.main_q.f32_row(t) + h * (nope + rope);
        std::vector<double> p(n);
        for (size_t j = 0; j < n; ++j) {
          const int64_t key = begin + static_cast<int64_t>(j);
          p[j] = in.softmax_scale *
                 (dot(q, in.kv.f32_row(key) + h * (nope + v_dim), nope) + dot(q + nope, in.k_rope.f32_row(key), rope));
        }
        std::vector<double> p_full = p;
        softmax(p, seen);
        softmax(p_full, all);
        for (size_t j = 0; j < n; ++j) {
          target[j] += p[j] / static_cast<double>(main_heads);
          full[j] += p_full[j] / static_cast<double>(main_heads);
        }
      }
      const auto product = [&](size_t j, int64_t head) {
        return dot(in.q.f32_row(t) + head * dim, in.k.f32_row(begin + static_cast<int64_t>(j)), dim);
      };
      for (size_t j = 0; j < n; ++j) {
        for (int64_t head = 0; head < n_heads; ++head) {
          scores[j] += in.weights.f32(t, head) * std::max(product(j, head), 0.0);
        }
      }
      if (recall) recall.f32()[t] = static_cast<float>(held(scores, full, topk) / held(full, full, topk));
      softmax(scores, seen);
      double sum = 0;
      for (size_t j = 0; j < n; ++j) sum += target[j] > 0 ? target[j] * std::log(target[j] / scores[j]) : 0;
      kl.f32()[t] = static_cast<float>(sum);
      for (int64_t head = 0; head < n_heads; ++head) {
        double of_weight = 0;
        std::vector<double> of_q(static_cast<size_t>(dim));
        for (size_t j = 0; j < n; ++j) {
          const double d_score = factor * (scores[j] - target[j]), a = product(j, head);
          if (a <= 0) continue;
          of_weight += d_score * a;
          const double d_product = d_score * in.weights.f32(t, head);
          const int64_t key = begin + static_cast<int64_t>(j);
          for (int64_t d = 0; d < dim; ++d) {
            of_q[static_cast<size_t>(d)] += d_product * in.k.f32(key, d);
            sum_k[static_cast<size_t>(key * dim + d)] += d_product * in.q.f32(t, head * dim + d);
          }
        }
        d_weights.f32(t, head) = static_cast<float>(of_weight);
        for (int64_t d = 0; d < dim; ++d) dq.f32(t, head * dim + d) = static_cast<float>(of_q[static_cast<size_t>(d)]);
      }
    }
  }
  for (int64_t i = 0; i < dk.size(); ++i) dk.f32(i / dim, i % dim) = static_cast<float>(sum_k[static_cast<size_t>(i)]);
}

}  // namespace fathom::plain
