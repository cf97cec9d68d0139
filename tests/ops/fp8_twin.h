// The three products of a linear layer in FP8 as V3 section 3.3 has them, value by value: codes, a scale for each tile
// of either operand, sums of 128 products in f32, each scaled and added up.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "number/formats.h"
#include "ops/rounding.h"
#include "ops/test_tensors.h"

namespace fathom {

// at(operand, i, k): code * scale.
struct Fp8Operand {
  Tensor codes, scales;  // [rows, K] and [rows, tiles], K the dimension that is summed over
  int64_t part;          // of K, in which tiles begin anew

  int64_t tile_of(int64_t k) const { return k / part * ((part + 127) / 128) + k % part / 128; }
  float value(int64_t r, int64_t k) const { return codes.f32(r, k) * scales.f32(r, tile_of(k)); }
};

inline float fp8_scale(float largest, bool power_of_two) {
  const float scale = std::max(largest / 448, 0x1p-126F);
  return power_of_two ? std::exp2(std::ceil(std::log2(scale))) : scale;
}

// [rows, K] in tiles of 1 x 128.
inline Fp8Operand quantize_rows(Tensor x, bool power_of_two, int64_t parts = 1) {
  const int64_t part = x.cols() / parts;
  Fp8Operand o{zeros_like(x), filled_f32(x.rows(), parts * ((part + 127) / 128), 0), part};
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t first = 0; first < x.cols();) {
      const int64_t end = std::min(first / part * part + part, first + 128);
      float largest = 0;
      for (int64_t k = first; k < end; ++k) largest = std::max(largest, std::fabs(x.f32(r, k)));
      const float scale = o.scales.f32(r, o.tile_of(first)) = fp8_scale(largest, power_of_two);
      for (; first < end; ++first) o.codes.f32(r, first) = f8_e4m3_to_f32(f32_to_f8_e4m3(x.f32(r, first) / scale));
    }
  }
  return o;
}

// [rows, K] in blocks of 128 x 128, of each of `parts` matrices one above the other.
inline Fp8Operand quantize_blocks(Tensor w, int64_t parts) {
  const Fp8Operand o{zeros_like(w), filled_f32(w.rows(), (w.cols() + 127) / 128, 0), w.cols()};
  const int64_t height = w.rows() / parts;
  for (int64_t top = 0; top < w.rows();) {
    const int64_t bottom = std::min(top / height * height + height, top + 128);
    for (int64_t left = 0; left < w.cols(); left += 128) {
      const int64_t right = std::min(w.cols(), left + 128);
      float largest = 0;
      for (int64_t r = top; r < bottom; ++r) {
        for (int64_t k = left; k < right; ++k) largest = std::max(largest, std::fabs(w.f32(r, k)));
      }
      const float scale = fp8_scale(largest, false);
      for (int64_t r = top; r < bottom; ++r) {
        o.scales.f32(r, left / 128) = scale;
        for (int64_t k = left; k < right; ++k) {
          o.codes.f32(r, k) = f8_e4m3_to_f32(f32_to_f8_e4m3(w.f32(r, k) / scale));
        }
      }
    }
    top = bottom;
  }
  return o;
}

inline Tensor transposed(Tensor x) {
  const Tensor t = filled_f32(x.cols(), x.rows(), 0);
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t c = 0; c < x.cols(); ++c) t.f32(c, r) = x.f32(r, c);
  }
  return t;
}

// y[i, j] += sum_k a[i, k] b[j, k], both with the same tiles along k.
inline void add_products(Tensor y, const Fp8Operand& a, const Fp8Operand& b) {
  const int64_t k_end = a.codes.cols(), part = std::min(a.part, b.part);
  for (int64_t i = 0; i < y.rows(); ++i) {
    for (int64_t j = 0; j < y.cols(); ++j) {
      float total = 0;
      for (int64_t first = 0; first < k_end;) {
        const int64_t end = std::min({k_end, first / part * part + part, first + 128});
        const float scales = a.scales.f32(i, a.tile_of(first)) * b.scales.f32(j, b.tile_of(first));
        float sum = 0;
        for (; first < end; ++first) sum += a.codes.f32(i, first) * b.codes.f32(j, first);
        total += sum * scales;
      }
      y.f32(i, j) += total;
    }
  }
}

// y += x W^T
inline void fp8_forward(Tensor y, Tensor x, Tensor w, const Rounding& r) {
  add_products(y, quantize_rows(x, r.x_power_of_two), quantize_blocks(w, r.w_parts));
}

// dx += dy W: W read along its other dimension has the same blocks.
inline void fp8_backward_input(Tensor dx, Tensor dy, Tensor w, const Rounding& r) {
  const Fp8Operand blocks = quantize_blocks(w, r.w_parts), rows = quantize_rows(dy, r.dy_power_of_two, r.w_parts);
  Fp8Operand other{transposed(blocks.codes), filled_f32(w.cols(), rows.scales.cols(), 0), rows.part};
  for (int64_t k = 0; k < w.rows(); ++k) {
    for (int64_t c = 0; c < w.cols(); ++c) other.scales.f32(c, other.tile_of(k)) = blocks.scales.f32(k, c / 128);
  }
  add_products(dx, rows, other);
}

// dw += dy^T x, x as it was kept: in tiles along its rows, or in twelve bits.
inline void fp8_backward_weight(Tensor dw, Tensor dy, Tensor x, const Rounding& r) {
  Tensor kept = transposed(x);
  if (!r.x_in_e5m6) {
    const Fp8Operand rows = quantize_rows(x, r.x_power_of_two);
    for (int64_t t = 0; t < x.rows(); ++t) {
      for (int64_t c = 0; c < x.cols(); ++c) kept.f32(c, t) = rows.value(t, c);
    }
  }
  add_products(dw, quantize_rows(transposed(dy), r.dy_power_of_two), quantize_rows(kept, r.x_power_of_two));
}

}  // namespace fathom
