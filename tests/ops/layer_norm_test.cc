#include "ops/layer_norm.h"

#include "ops/each_isa.h"
#include "ops/test_tensors.h"

namespace fathom {
namespace {

TEST(LayerNorm, HasMeanAndDeviationOfItsWeights) {
  for (const int64_t n : {2, 5, 64, 128}) {
    const Tensor x = random_f32(7, n, 1, n + 3), w = random_f32(n, 2), b = random_f32(n, 3), y = zeros_like(x);
    layer_norm(ctx(), y, x, w, b, 1e-6f);
    EXPECT_TRUE(gaps_untouched(y));
    for (int64_t t = 0; t < x.rows(); ++t) {
      double mean = 0, variance = 0;
      for (int64_t d = 0; d < n; ++d) mean += x.f32(t, d) / static_cast<double>(n);
      for (int64_t d = 0; d < n; ++d) variance += std::pow(x.f32(t, d) - mean, 2) / static_cast<double>(n);
      for (int64_t d = 0; d < n; ++d) {
        EXPECT_NEAR(y.f32(t, d), (x.f32(t, d) - mean) / std::sqrt(variance + 1e-6) * w.f32()[d] + b.f32()[d], 2e-6);
      }
    }
  }
}

TEST(LayerNorm, GradientsAreThoseOfTheFunction) {
  const Tensor x = random_f32(5, 33, 1), w = random_f32(33, 2), b = random_f32(33, 3), dy = random_f32(5, 33, 4);
  const Tensor y = zeros_like(x), dx = zeros_like(x), dw = zeros_like(w), db = zeros_like(b);
  const auto loss = [&] {
    layer_norm(ctx(), y, x, w, b, 1e-2f);
    return dot(y, dy);
  };
  layer_norm_backward(ctx(), dx, dw, db, dy, x, w, 1e-2f);
  EXPECT_LT(gradient_error(loss, x, dx), 1e-3);
  EXPECT_LT(gradient_error(loss, w, dw), 1e-3);
  EXPECT_LT(gradient_error(loss, b, db), 1e-3);
  const Tensor in_place = copy_of(dy);
  layer_norm_backward(ctx(), in_place, dw, db, in_place, x, w, 1e-2f);
  EXPECT_TRUE(same_bits(in_place, dx));
}

TEST(LayerNorm, BitsDoNotDependOnThreads) {
  const Tensor x = random_f32(1000, 64, 1), w = random_f32(64, 2), b = random_f32(64, 3), dy = random_f32(1000, 64, 4);
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 5}) {
    ThreadedContext c(threads);
    const Tensor y = zeros_like(x), dx = zeros_like(x), dw = zeros_like(w), db = zeros_like(b);
    layer_norm(c.ctx, y, x, w, b, 1e-6f);
    layer_norm_backward(c.ctx, dx, dw, db, dy, x, w, 1e-6f);
    if (first.empty()) first = {y, dx, dw, db};
    EXPECT_TRUE(same_bits(y, first[0]) && same_bits(dx, first[1]) && same_bits(dw, first[2]) &&
                same_bits(db, first[3]));
  }
}

}  // namespace
}  // namespace fathom
