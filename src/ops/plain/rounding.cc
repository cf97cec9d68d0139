#include "ops/rounding.h"

#include <algorithm>
#include <cmath>

#include "number/formats.h"

namespace fathom::plain {
namespace {

constexpr int64_t kTile = 128;

float scale_for(float largest, float top, bool power_of_two) {
  const float scale = std::max(largest / top, 0x1p-126F);
  if (!power_of_two) return scale;
  int exponent;
  const float fraction = std::frexp(scale, &exponent);
  return std::ldexp(1.0F, fraction == 0.5F ? exponent - 1 : exponent);
}

// All of out = x rounded as one tile.
template <class At>
void round_tile(Tensor out, Tensor x, int64_t n, bool power_of_two, const At& at) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x.f32()[at(i, x)]));
  const float scale = scale_for(largest, kF8Max, power_of_two);
  for (int64_t i = 0; i < n; ++i) {
    out.f32()[at(i, out)] = scale * f8_e4m3_to_f32(f32_to_f8_e4m3(x.f32()[at(i, x)] / scale));
  }
}

}  // namespace

void round_rows(Tensor out, Tensor x, bool power_of_two) {
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t c = 0; c < x.cols(); c += kTile) {
      round_tile(out, x, std::min(kTile, x.cols() - c), power_of_two,
                 [&](int64_t i, Tensor of) { return t * of.row_stride + c + i; });
    }
  }
}

void round_columns(Tensor out, Tensor x, Tensor offsets, bool power_of_two) {
  const int64_t groups = offsets ? offsets.size() - 1 : 1;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = offsets ? offsets.i32()[g] : 0, end = offsets ? offsets.i32()[g + 1] : x.rows();
    for (int64_t first = begin; first < end; first += kTile) {
      for (int64_t c = 0; c < x.cols(); ++c) {
        round_tile(out, x, std::min(kTile, end - first), power_of_two,
                   [&](int64_t i, Tensor of) { return (first + i) * of.row_stride + c; });
      }
    }
  }
}

void round_blocks(Tensor out, Tensor w) {
  const int64_t rows = w.rank == 3 ? w.shape[1] : w.rows(), cols = w.cols();
  for (int64_t m = 0; m < w.size() / std::max<int64_t>(rows * cols, 1); ++m) {
    for (int64_t r = 0; r < rows; r += kTile) {
      for (int64_t c = 0; c < cols; c += kTile) {
        const int64_t n_rows = std::min(kTile, rows - r), n = std::min(kTile, cols - c);
        round_tile(out, w, n_rows * n, false,
                   [&](int64_t i, Tensor) { return (m * rows + r + i / n) * cols + c + i % n; });
      }
    }
  }
}

void round_to_e5m6(Tensor x) {
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t c = 0; c < x.cols(); c += kTile) {
      float* tile = x.f32_row(t) + c;
      const int64_t n = std::min(kTile, x.cols() - c);
      float largest = 0;
      for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(tile[i]));
      const float scale = scale_for(largest, 65024, true);
      for (int64_t i = 0; i < n; ++i) {
        int exponent;
        std::frexp(tile[i] / scale, &exponent);  // magnitude in [2^(exponent - 1), 2^exponent)
        const float step = std::ldexp(1.0F, std::max(exponent - 1, -14) - 6);
        tile[i] = scale * (step * std::nearbyint(tile[i] / scale / step));
      }
    }
  }
}

}  // namespace fathom::plain
