#include "ops/gqa_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/plain/dot.h"

namespace fathom::plain {

void gqa_attention(Tensor o, Tensor q, std::span<const LatentCacheView> sequences, const GqaDims& dims, float scale,
                   Tensor lse) {
  const int64_t dim = dims.head_dim;
  int64_t t = 0;  // row of q and o
  for (const LatentCacheView& sequence : sequences) {
    const LatentRowLayout layout = dims.cached_row(sequence.format);
    std::vector<float> rows(static_cast<size_t>(sequence.length * dims.row()));
    for (int64_t j = 0; j < sequence.length; ++j) {
      plain::read_latent_rows(layout, rows.data() + j * dims.row(), sequence.row(j, latent_row_bytes(layout)), 1);
    }
    for (int64_t i = 0; i < sequence.n_new; ++i, ++t) {
      const int64_t n_seen = sequence.length - sequence.n_new + i + 1;
      for (int64_t h = 0; h < dims.n_heads; ++h) {
        const int64_t key = h / dims.heads_of_group() * dim, value = (dims.n_kv_heads * dim) + key;
        std::vector<double> p(static_cast<size_t>(n_seen));
        for (int64_t j = 0; j < n_seen; ++j) {
          p[static_cast<size_t>(j)] = scale * dot(q.f32_row(t) + h * dim, rows.data() + j * dims.row() + key, dim);
        }
        const double largest = *std::max_element(p.begin(), p.end());
        double sum = 0;
        for (double& x : p) sum += x = std::exp(x - largest);
        if (lse) lse.f32(t, h) = static_cast<float>(largest + std::log(sum));
        for (int64_t d = 0; d < dim; ++d) {
          double out = 0;
          for (int64_t j = 0; j < n_seen; ++j) out += p[static_cast<size_t>(j)] * rows[j * dims.row() + value + d];
          o.f32(t, h * dim + d) = static_cast<float>(out / sum);
        }
      }
    }
  }
}

void gqa_attention_backward(Tensor dq, Tensor dkv, Tensor d_o, Tensor o, Tensor q, Tensor kv, Tensor lse,
                            Tensor seq_offsets, const GqaDims& dims, float scale) {
  const int64_t dim = dims.head_dim;
  std::vector<double> sum_q(static_cast<size_t>(q.size())), sum_kv(static_cast<size_t>(kv.size()));
  for (int64_t s = 0; s + 1 < seq_offsets.size(); ++s) {
    for (int64_t t = seq_offsets.i32()[s]; t < seq_offsets.i32()[s + 1]; ++t) {
      for (int64_t h = 0; h < dims.n_heads; ++h) {
        const int64_t key = h / dims.heads_of_group() * dim, value = (dims.n_kv_heads * dim) + key;
        const float *const query = q.f32_row(t) + h * dim, *const d_out = d_o.f32_row(t) + h * dim;
        const double delta = dot(d_out, o.f32_row(t) + h * dim, dim);
        for (int64_t j = seq_offsets.i32()[s]; j <= t; ++j) {
          const float* const row = kv.f32_row(j);
          const double p = std::exp(scale * dot(query, row + key, dim) - lse.f32(t, h));
          const double ds = scale * p * (dot(d_out, row + value, dim) - delta);
          for (int64_t d = 0; d < dim; ++d) {
            sum_q[static_cast<size_t>(t * q.cols() + h * dim + d)] += ds * row[key + d];
            sum_kv[static_cast<size_t>(j * kv.cols() + key + d)] += ds * query[d];
            sum_kv[static_cast<size_t>(j * kv.cols() + value + d)] += p * d_out[d];
          }
        }
      }
    }
  }
  const auto assign = [](Tensor to, const std::vector<double>& from) {
    for (int64_t i = 0; i < to.size(); ++i) {
      to.f32(i / to.cols(), i % to.cols()) = static_cast<float>(from[static_cast<size_t>(i)]);
    }
  };
  assign(dq, sum_q);
  assign(dkv, sum_kv);
}

}  // namespace fathom::plain
