#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "ops/plain/dot.h"

namespace fathom::plain {
namespace {

// Where one head's parts stand in the rows of q, kv and o.
struct Head {
  Tensor q_nope, q_rope, k_nope, v;  // [tokens, their dim]
};

Head head_of(Tensor q, Tensor kv, const MlaDims& dims, int64_t h) {
  const auto [n_heads, nope, rope, v_dim, rank] = dims;
  return {q.columns(h * (nope + rope), nope), q.columns(h * (nope + rope) + nope, rope),
          kv.columns(h * (nope + v_dim), nope), kv.columns(h * (nope + v_dim) + nope, v_dim)};
}

double score(const Head& head, Tensor k_rope, int64_t t, int64_t j, float scale) {
  return scale * (dot(head.q_nope.f32_row(t), head.k_nope.f32_row(j), head.q_nope.cols()) +
                  dot(head.q_rope.f32_row(t), k_rope.f32_row(j), head.q_rope.cols()));
}

// The first token of t's sequence.
int64_t sequence_begin(Tensor seq_offsets, int64_t t) {
  int64_t s = 0;
  while (seq_offsets.i32()[s + 1] <= t) ++s;
  return seq_offsets.i32()[s];
}

// The keys that token t of the packed sequences sees.
std::vector<int64_t> keys_of(Tensor seq_offsets, Tensor selected, int64_t t) {
  const int64_t begin = sequence_begin(seq_offsets, t);
  std::vector<int64_t> keys;
  if (!selected) {
    for (int64_t j = begin; j <= t; ++j) keys.push_back(j);
  } else {
    const int32_t* const row = selected.i32() + t * selected.row_stride;
    for (int64_t i = 0; i < selected.cols() && row[i] >= 0; ++i) keys.push_back(begin + row[i]);
  }
  return keys;
}

// scores become their softmax; returns their log-sum-exp.
double softmax(std::vector<double>& scores) {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const double s : scores) largest = std::max(largest, s);
  for (const double s : scores) sum += std::exp(s - largest);
  for (double& s : scores) s = std::exp(s - largest) / sum;
  return largest + std::log(sum);
}

}  // namespace

void mla_attention(Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor seq_offsets, const MlaDims& dims, float scale,
                   Tensor lse, Tensor selected) {
  for (int64_t h = 0; h < dims.n_heads; ++h) {
    const Head head = head_of(q, kv, dims, h);
    for (int64_t t = 0; t < q.rows(); ++t) {
      const std::vector<int64_t> keys = keys_of(seq_offsets, selected, t);
      std::vector<double> p;
      for (const int64_t j : keys) p.push_back(score(head, k_rope, t, j, scale));
      const double log_sum = softmax(p);
      if (lse) lse.f32(t, h) = static_cast<float>(log_sum);
      for (int64_t d = 0; d < dims.v_head_dim; ++d) {
        double sum = 0;
        for (size_t i = 0; i < keys.size(); ++i) sum += p[i] * head.v.f32(keys[i], d);
        o.f32(t, h * dims.v_head_dim + d) = static_cast<float>(sum);
      }
    }
  }
}

void mla_attention_backward(Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q, Tensor kv,
                            Tensor k_rope, Tensor lse, Tensor seq_offsets, const MlaDims& dims, float scale,
                            Tensor selected) {
  const auto [n_heads, nope, rope, v_dim, rank] = dims;
  const int64_t n_tokens = q.rows();
  const auto zeros = [n_tokens](int64_t cols) { return std::vector<double>(static_cast<size_t>(n_tokens * cols)); };
  const auto assign = [](Tensor to, const std::vector<double>& from) {
    for (int64_t i = 0; i < to.size(); ++i) {
      to.f32(i / to.cols(), i % to.cols()) = static_cast<float>(from[static_cast<size_t>(i)]);
    }
  };
  // target[row] += weight * values, where a row of target has n elements
  const auto add = [](std::vector<double>& target, int64_t row, double weight, const float* values, int64_t n) {
    for (int64_t i = 0; i < n; ++i) target[static_cast<size_t>(row * n + i)] += weight * values[i];
  };

  std::vector<double> sum_k_rope = zeros(rope);
  for (int64_t h = 0; h < n_heads; ++h) {
    const Head head = head_of(q, kv, dims, h), d_head = head_of(dq, dkv, dims, h);
    std::vector<double> sum_q_nope = zeros(nope), sum_q_rope = zeros(rope), sum_k_nope = zeros(nope);
    std::vector<double> sum_v = zeros(v_dim);
    for (int64_t t = 0; t < n_tokens; ++t) {
      const float* d_out = d_o.f32_row(t) + h * v_dim;
      const double d_out_dot_out = dot(d_out, o.f32_row(t) + h * v_dim, v_dim);
      for (const int64_t j : keys_of(seq_offsets, selected, t)) {
        const double p = std::exp(score(head, k_rope, t, j, scale) - lse.f32(t, h));
        const double dp = dot(d_out, head.v.f32_row(j), v_dim);
        const double ds = scale * p * (dp - d_out_dot_out);
        add(sum_v, j, p, d_out, v_dim);
        add(sum_q_nope, t, ds, head.k_nope.f32_row(j), nope);
        add(sum_q_rope, t, ds, k_rope.f32_row(j), rope);
        add(sum_k_nope, j, ds, head.q_nope.f32_row(t), nope);
        add(sum_k_rope, j, ds, head.q_rope.f32_row(t), rope);
      }
    }
    assign(d_head.q_nope, sum_q_nope);
    assign(d_head.q_rope, sum_q_rope);
    assign(d_head.k_nope, sum_k_nope);
    assign(d_head.v, sum_v);
  }
  assign(dk_rope, sum_k_rope);
}

void mla_attention_absorbed(Tensor o, Tensor q, Tensor kv_b, std::span<const LatentCacheView> sequences,
                            const MlaDims& dims, float scale, Tensor selected) {
  const auto [n_heads, nope, rope, v_dim, rank] = dims;
  int64_t t = 0;  // row of q and o
  for (const LatentCacheView& sequence : sequences) {
    std::vector<float> rows(static_cast<size_t>(sequence.length * (rank + rope)));
    const LatentRowLayout layout = dims.cached_row(sequence.format);
    for (int64_t j = 0; j < sequence.length; ++j) {
      plain::read_latent_rows(layout, rows.data() + j * layout.dim(), sequence.row(j, latent_row_bytes(layout)), 1);
    }
    for (int64_t i = 0; i < sequence.n_new; ++i, ++t) {
      std::vector<int32_t> seen;
      if (selected) {
        const int32_t* const row = selected.i32() + t * selected.row_stride;
        seen.assign(row, std::find(row, row + selected.cols(), -1));
      } else {
        seen.resize(static_cast<size_t>(sequence.length - sequence.n_new + i + 1));
        std::iota(seen.begin(), seen.end(), 0);
      }
      for (int64_t h = 0; h < n_heads; ++h) {
        const float* q_nope = q.f32_row(t) + h * (nope + rope);
        const float* q_rope = q_nope + nope;
        std::vector<double> q_c(static_cast<size_t>(rank)), o_c(q_c);
        for (int64_t c = 0; c < rank; ++c) {
          for (int64_t d = 0; d < nope; ++d) {
            q_c[static_cast<size_t>(c)] += static_cast<double>(kv_b.f32(h * (nope + v_dim) + d, c)) * q_nope[d];
          }
        }
        std::vector<double> p;
        for (const int32_t j : seen) {
          const float* row = rows.data() + j * (rank + rope);
          double s = dot(q_rope, row + rank, rope);
          for (int64_t c = 0; c < rank; ++c) s += q_c[static_cast<size_t>(c)] * row[c];
          p.push_back(scale * s);
        }
        softmax(p);
        for (size_t j = 0; j < p.size(); ++j) {
          const float* row = rows.data() + seen[j] * (rank + rope);
          for (int64_t c = 0; c < rank; ++c) o_c[static_cast<size_t>(c)] += p[j] * row[c];
        }
        for (int64_t d = 0; d < v_dim; ++d) {
          const float* up = kv_b.f32_row(h * (nope + v_dim) + nope + d);
          double sum = 0;
          for (int64_t c = 0; c < rank; ++c) sum += up[c] * o_c[static_cast<size_t>(c)];
          o.f32(t, h * v_dim + d) = static_cast<float>(sum);
        }
      }
    }
  }
}

}  // namespace fathom::plain
