#include "ops/layer_norm.h"

#include <cmath>

#include "ops/grain.h"

namespace fathom {
namespace {

struct Statistics {
  double mean, inverse;
};
Statistics statistics(const float* x, int64_t n, float eps) {
  double sum = 0, squares = 0;
  for (int64_t d = 0; d < n; ++d) sum += x[d];
  const double mean = sum / static_cast<double>(n);
  for (int64_t d = 0; d < n; ++d) squares += (x[d] - mean) * (x[d] - mean);
  return {mean, 1 / std::sqrt(squares / static_cast<double>(n) + eps)};
}

}  // namespace

void layer_norm(Context& ctx, Tensor y, Tensor x, Tensor w, Tensor b, float eps) {
  const int64_t n = x.cols();
  FATHOM_CHECK(y.rows() == x.rows() && y.cols() == n && w.size() == n && b.size() == n);
  ctx.pool.parallel_for(0, x.rows(), row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto [mean, inverse] = statistics(x.f32_row(t), n, eps);
      for (int64_t d = 0; d < n; ++d) {
        y.f32(t, d) = static_cast<float>((x.f32(t, d) - mean) * inverse * w.f32()[d] + b.f32()[d]);
      }
    }
  });
}

void layer_norm_backward(Context& ctx, Tensor dx, Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor w, float eps) {
  const int64_t tokens = x.rows(), n = x.cols();
  FATHOM_CHECK(dx.rows() == tokens && dx.cols() == n && dy.rows() == tokens && dy.cols() == n && w.size() == n);
  FATHOM_CHECK(dw.size() == n && db.size() == n);
  const ArenaScope scope(ctx.arena);
  const Tensor normed = new_f32(ctx, {tokens, n}), inverses = new_f32(ctx, {tokens});
  ctx.pool.parallel_for(0, tokens, row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto [mean, inverse] = statistics(x.f32_row(t), n, eps);
      for (int64_t d = 0; d < n; ++d) normed.f32(t, d) = static_cast<float>((x.f32(t, d) - mean) * inverse);
      inverses.f32()[t] = static_cast<float>(inverse);
    }
  });
  ctx.pool.parallel_for(0, n, column_grain(tokens), [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      double of_w = 0, of_b = 0;
      for (int64_t t = 0; t < tokens; ++t) {
        of_w += static_cast<double>(dy.f32(t, d)) * normed.f32(t, d);
        of_b += dy.f32(t, d);
      }
      dw.f32()[d] += static_cast<float>(of_w);
      db.f32()[d] += static_cast<float>(of_b);
    }
  });
  ctx.pool.parallel_for(0, tokens, row_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      double mean = 0, along = 0;  // of w dy, and of that times what was normed
      for (int64_t d = 0; d < n; ++d) {
        const double g = static_cast<double>(w.f32()[d]) * dy.f32(t, d);
        mean += g;
        along += g * normed.f32(t, d);
      }
      mean /= static_cast<double>(n);
      along /= static_cast<double>(n);
      for (int64_t d = 0; d < n; ++d) {
        const double g = static_cast<double>(w.f32()[d]) * dy.f32(t, d);
        dx.f32(t, d) = static_cast<float>(inverses.f32()[t] * (g - mean - normed.f32(t, d) * along));
      }
    }
  });
}

}  // namespace fathom
