#include "ops/attention.h"

#include <cmath>
#include <limits>
#include <vector>

namespace fathom::plain {
namespace {

// scale * (q_nope . k_nope + q_rope . k_rope) of query row t and key row j in head h.
double score(Tensor q, Tensor kv, Tensor k_rope, int64_t t, int64_t j, int64_t h, const MlaDims& d, float scale) {
  const float* query = q.f32_row(t) + h * (d.qk_nope_head_dim + d.qk_rope_head_dim);
  const float* key = kv.f32_row(j) + h * (d.qk_nope_head_dim + d.v_head_dim);
  double sum = 0;
  for (int64_t i = 0; i < d.qk_nope_head_dim; ++i) sum += static_cast<double>(query[i]) * key[i];
  for (int64_t i = 0; i < d.qk_rope_head_dim; ++i) {
    sum += static_cast<double>(query[d.qk_nope_head_dim + i]) * k_rope.f32_row(j)[i];
  }
  return sum * scale;
}

// Softmax of the scores, in place; returns their log-sum-exp.
double softmax(std::vector<double>& scores) {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const double s : scores) largest = std::max(largest, s);
  for (double& s : scores) sum += s = std::exp(s - largest);
  for (double& s : scores) s /= sum;
  return largest + std::log(sum);
}

}  // namespace

void mla_attention(Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor seq_offsets, const MlaDims& d, float scale,
                   Tensor lse) {
  for (int64_t s = 0; s + 1 < seq_offsets.cols(); ++s) {
    const int64_t begin = seq_offsets.i32()[s], end = seq_offsets.i32()[s + 1];
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < d.n_heads; ++h) {
        std::vector<double> p;
        for (int64_t j = begin; j <= t; ++j) p.push_back(score(q, kv, k_rope, t, j, h, d, scale));
        const double log_sum = softmax(p);
        if (lse) lse.f32(t, h) = static_cast<float>(log_sum);
        for (int64_t i = 0; i < d.v_head_dim; ++i) {
          double sum = 0;
          for (int64_t j = begin; j <= t; ++j) {
            sum += p[static_cast<size_t>(j - begin)] *
                   kv.f32_row(j)[h * (d.qk_nope_head_dim + d.v_head_dim) + d.qk_nope_head_dim + i];
          }
          o.f32(t, h * d.v_head_dim + i) = static_cast<float>(sum);
        }
      }
    }
  }
}

void mla_attention_backward(Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q, Tensor kv,
                            Tensor k_rope, Tensor lse, Tensor seq_offsets, const MlaDims& d, float scale) {
  for (Tensor x : {dq, dkv, dk_rope}) {
    for (int64_t t = 0; t < x.rows(); ++t) std::fill_n(x.f32_row(t), x.cols(), 0.0f);
  }
  const int64_t nope = d.qk_nope_head_dim, rope = d.qk_rope_head_dim, v = d.v_head_dim;
  for (int64_t s = 0; s + 1 < seq_offsets.cols(); ++s) {
    const int64_t begin = seq_offsets.i32()[s], end = seq_offsets.i32()[s + 1];
    for (int64_t h = 0; h < d.n_heads; ++h) {
      for (int64_t t = begin; t < end; ++t) {
        const float* d_out = d_o.f32_row(t) + h * v;
        double delta = 0;  // sum over keys of p dp
        for (int64_t i = 0; i < v; ++i) delta += static_cast<double>(d_out[i]) * o.f32_row(t)[h * v + i];
        for (int64_t j = begin; j <= t; ++j) {
          const double p = std::exp(score(q, kv, k_rope, t, j, h, d, scale) - lse.f32(t, h));
          const float* value = kv.f32_row(j) + h * (nope + v) + nope;
          double dp = 0;
          for (int64_t i = 0; i < v; ++i) {
            dp += static_cast<double>(d_out[i]) * value[i];
            dkv.f32_row(j)[h * (nope + v) + nope + i] += static_cast<float>(p * d_out[i]);
          }
          const auto ds = static_cast<float>(p * (dp - delta) * scale);
          const float *query = q.f32_row(t) + h * (nope + rope), *key = kv.f32_row(j) + h * (nope + v);
          for (int64_t i = 0; i < nope; ++i) {
            dq.f32_row(t)[h * (nope + rope) + i] += ds * key[i];
            dkv.f32_row(j)[h * (nope + v) + i] += ds * query[i];
          }
          for (int64_t i = 0; i < rope; ++i) {
            dq.f32_row(t)[h * (nope + rope) + nope + i] += ds * k_rope.f32_row(j)[i];
            dk_rope.f32_row(j)[i] += ds * query[nope + i];
          }
        }
      }
    }
  }
}

void mla_attention_absorbed(Tensor o, Tensor q, Tensor kv_b, std::span<const LatentCacheView> sequences,
                            const MlaDims& d, float scale) {
  const int64_t nope = d.qk_nope_head_dim, rope = d.qk_rope_head_dim, v = d.v_head_dim, rank = d.kv_lora_rank;
  int64_t row = 0;
  for (const LatentCacheView& sequence : sequences) {
    for (int64_t n = 0; n < sequence.n_new; ++n, ++row) {
      const int64_t visible = sequence.length - sequence.n_new + n + 1;
      for (int64_t h = 0; h < d.n_heads; ++h) {
        const float* query = q.f32_row(row) + h * (nope + rope);
        std::vector<double> q_c(static_cast<size_t>(rank)), p, o_c(static_cast<size_t>(rank));
        for (int64_t i = 0; i < nope; ++i) {
          for (int64_t c = 0; c < rank; ++c) {
            q_c[static_cast<size_t>(c)] += static_cast<double>(query[i]) * kv_b.f32(h * (nope + v) + i, c);
          }
        }
        for (int64_t j = 0; j < visible; ++j) {
          const float* cached = sequence.rows + j * (rank + rope);
          double sum = 0;
          for (int64_t c = 0; c < rank; ++c) sum += q_c[static_cast<size_t>(c)] * cached[c];
          for (int64_t i = 0; i < rope; ++i) sum += static_cast<double>(query[nope + i]) * cached[rank + i];
          p.push_back(sum * scale);
        }
        softmax(p);
        for (int64_t j = 0; j < visible; ++j) {
          for (int64_t c = 0; c < rank; ++c) {
            o_c[static_cast<size_t>(c)] += p[static_cast<size_t>(j)] * sequence.rows[j * (rank + rope) + c];
          }
        }
        for (int64_t i = 0; i < v; ++i) {
          double sum = 0;
          for (int64_t c = 0; c < rank; ++c)
            sum += o_c[static_cast<size_t>(c)] * kv_b.f32(h * (nope + v) + nope + i, c);
          o.f32(row, h * v + i) = static_cast<float>(sum);
        }
      }
    }
  }
}

}  // namespace fathom::plain
