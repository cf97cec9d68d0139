#include "ops/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace fathom::plain {
namespace {

// The n best of the values, ascending; equal values: the lower index. NaN counts as the worst.
std::vector<int64_t> best(std::vector<float> values, int64_t n) {
  for (float& v : values) v = std::isnan(v) ? -std::numeric_limits<float>::infinity() : v;
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] > values[b]; });
  order.resize(n);
  std::sort(order.begin(), order.end());
  return order;
}

float group_score(const RouterConfig& config, std::vector<float> scores) {
  for (float& v : scores) v = std::isnan(v) ? -std::numeric_limits<float>::infinity() : v;
  std::sort(scores.rbegin(), scores.rend());
  return config.method == TopkMethod::noaux_tc && scores.size() > 1 ? scores[0] + scores[1] : scores[0];
}

}  // namespace

void route(const RouterConfig& config, Tensor topk_ids, Tensor topk_weights, Tensor scores, Tensor logits,
           Tensor bias) {
  const int64_t experts = config.n_routed_experts, k = config.num_experts_per_tok;
  for (int64_t t = 0; t < logits.rows(); ++t) {
    const float* z = logits.f32_row(t);
    float* s = scores.f32_row(t);
    const float highest = *std::max_element(z, z + experts);
    double total = 0;
    for (int64_t e = 0; e < experts; ++e) total += std::exp(static_cast<double>(z[e]) - highest);
    for (int64_t e = 0; e < experts; ++e) {
      s[e] = static_cast<float>(config.scoring == Scoring::sigmoid
                                    ? 1 / (1 + std::exp(-static_cast<double>(z[e])))
                                    : std::exp(static_cast<double>(z[e]) - highest) / total);
    }

    std::vector<float> choice(s, s + experts);
    if (config.method == TopkMethod::noaux_tc && bias) {
      for (int64_t e = 0; e < experts; ++e) choice[e] += bias.f32()[e];
    }
    if (config.method != TopkMethod::greedy && config.n_group > 1) {
      const int64_t group_size = experts / config.n_group;
      std::vector<float> groups;
      for (int64_t g = 0; g < config.n_group; ++g) {
        const auto begin = choice.begin() + g * group_size;
        groups.push_back(group_score(config, {begin, begin + group_size}));
      }
      const std::vector<int64_t> kept = best(groups, config.topk_group);
      for (int64_t g = 0; g < config.n_group; ++g) {
        if (!std::binary_search(kept.begin(), kept.end(), g)) {
          std::fill_n(choice.begin() + g * group_size, group_size, -std::numeric_limits<float>::infinity());
        }
      }
    }

    const std::vector<int64_t> chosen = best(choice, k);
    float sum = 0;
    for (const int64_t e : chosen) sum += s[e];
    for (int64_t j = 0; j < k; ++j) {
      const float gate = config.norm_topk_prob ? s[chosen[j]] / (sum + 1e-20f) : s[chosen[j]];
      topk_ids.i32()[t * topk_ids.row_stride + j] = static_cast<int32_t>(chosen[j]);
      topk_weights.f32(t, j) = gate * config.routed_scaling_factor;
    }
  }
}

void route_backward(const RouterConfig& config, Tensor d_logits, Tensor d_weights, Tensor topk_ids, Tensor scores,
                    Tensor d_scores) {
  const int64_t experts = config.n_routed_experts, k = config.num_experts_per_tok;
  for (int64_t t = 0; t < scores.rows(); ++t) {
    const float* s = scores.f32_row(t);
    const int32_t* ids = topk_ids.i32() + t * topk_ids.row_stride;
    std::vector<double> ds(experts, 0);
    if (d_scores) std::copy_n(d_scores.f32_row(t), experts, ds.begin());
    double sum = 1e-20, dot = 0;
    for (int64_t j = 0; j < k; ++j) {
      sum += s[ids[j]];
      dot += static_cast<double>(d_weights.f32(t, j)) * s[ids[j]];
    }
    for (int64_t j = 0; j < k; ++j) {
      const double d = d_weights.f32(t, j);
      ds[ids[j]] += config.routed_scaling_factor * (config.norm_topk_prob ? d / sum - dot / (sum * sum) : d);
    }
    double mean = 0;  // of ds under the softmax
    for (int64_t e = 0; e < experts; ++e) mean += ds[e] * s[e];
    for (int64_t e = 0; e < experts; ++e) {
      const double slope = config.scoring == Scoring::sigmoid ? ds[e] * (1.0 - s[e]) : ds[e] - mean;
      d_logits.f32(t, e) = static_cast<float>(s[e] * slope);
    }
  }
}

double sequence_balance_loss(const RouterConfig& config, Tensor d_scores, Tensor scores, Tensor seq_offsets,
                             double alpha, double gradient_scale) {
  const int64_t experts = config.n_routed_experts, k = config.num_experts_per_tok;
  double loss = 0;
  for (int64_t q = 0; q + 1 < seq_offsets.size(); ++q) {
    const int64_t begin = seq_offsets.i32()[q], end = seq_offsets.i32()[q + 1];
    const auto length = static_cast<double>(end - begin);
    std::vector<double> f(experts, 0), p(experts, 0), totals;
    for (int64_t t = begin; t < end; ++t) {
      const float* s = scores.f32_row(t);
      totals.push_back(std::accumulate(s, s + experts, 0.0));
      for (const int64_t e : best({s, s + experts}, k)) f[e] += static_cast<double>(experts) / (k * length);  // eq. 18
      for (int64_t e = 0; e < experts; ++e) p[e] += s[e] / totals.back() / length;  // eq. 19, 20
    }
    for (int64_t e = 0; e < experts; ++e) loss += alpha * f[e] * p[e];  // eq. 17
    for (int64_t t = begin; t < end; ++t) {
      const float* s = scores.f32_row(t);
      const double total = totals[t - begin], mean = std::inner_product(s, s + experts, f.begin(), 0.0) / total;
      for (int64_t e = 0; e < experts; ++e) {
        d_scores.f32(t, e) += static_cast<float>(gradient_scale * alpha / length / total * (f[e] - mean));
      }
    }
  }
  return loss;
}

}  // namespace fathom::plain
