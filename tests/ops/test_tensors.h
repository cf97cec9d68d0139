// What the operators' tests share: tensors with contents, distances between them, a context, finite differences.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "base/rng.h"
#include "ops/context.h"

namespace fathom {

// A context with three threads; its arena is never reset.
inline Context& ctx() {
  static ThreadPool pool(3);
  static Arena arena;
  static Context context{pool, arena};
  return context;
}

// Memory that lives as long as the program, every piece its own heap block so that AddressSanitizer sees its ends.
template <class T>
T* test_memory(int64_t n, T value) {
  static std::deque<std::vector<T>> blocks;
  return blocks.emplace_back(static_cast<size_t>(std::max<int64_t>(n, 1)), value).data();
}

// [rows, cols] with row_stride >= cols elements between rows (0: cols). What lies between the rows is NaN, so that a
// kernel which reads it is found out; gaps_untouched() tells whether one wrote there.
inline Tensor filled_f32(int64_t rows, int64_t cols, float value, int64_t row_stride = 0) {
  if (row_stride == 0) row_stride = cols;
  const int64_t n = rows == 0 ? 0 : (rows - 1) * row_stride + cols;
  Tensor t(test_memory(n, std::numeric_limits<float>::quiet_NaN()), Format::f32, {rows, cols});
  t.row_stride = row_stride;
  for (int64_t r = 0; r < rows; ++r) std::fill_n(t.f32_row(r), cols, value);
  return t;
}

inline bool gaps_untouched(Tensor t) {
  for (int64_t r = 0; r + 1 < t.rows(); ++r) {
    for (int64_t i = t.cols(); i < t.row_stride; ++i) {
      if (!std::isnan(t.f32_row(r)[i])) return false;
    }
  }
  return true;
}

// Normally distributed, deviation 1.
inline Tensor random_f32(int64_t rows, int64_t cols, uint64_t seed, int64_t row_stride = 0) {
  Tensor t = filled_f32(rows, cols, 0, row_stride);
  Rng rng(seed);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < cols; ++i) t.f32(r, i) = static_cast<float>(rng.normal());
  }
  return t;
}
inline Tensor random_f32(int64_t n, uint64_t seed) {
  const Tensor t = random_f32(1, n, seed);
  return Tensor(t.data, Format::f32, {n});
}

inline Tensor with_shape_of(Tensor memory, Tensor t) {
  t.data = memory.data;
  t.row_stride = memory.row_stride;
  return t;
}
// The same shape and row stride.
inline Tensor filled_like(Tensor t, float value) {
  return with_shape_of(filled_f32(t.rows(), t.cols(), value, t.row_stride), t);
}
inline Tensor zeros_like(Tensor t) { return filled_like(t, 0); }
inline Tensor copy_of(Tensor t) {
  const Tensor copy = zeros_like(t);
  for (int64_t r = 0; r < t.rows(); ++r) std::copy_n(t.f32_row(r), t.cols(), copy.f32_row(r));
  return copy;
}

inline Tensor i32_tensor(const std::vector<int32_t>& values) {
  const int64_t n = static_cast<int64_t>(values.size());
  const Tensor t(test_memory<int32_t>(n, 0), Format::i32, {n});
  std::copy(values.begin(), values.end(), t.i32());
  return t;
}

// Infinite where one is NaN.
inline double max_abs_error(Tensor got, Tensor want) {
  EXPECT_EQ(got.rows(), want.rows());
  EXPECT_EQ(got.cols(), want.cols());
  double worst = 0;
  for (int64_t r = 0; r < want.rows(); ++r) {
    for (int64_t i = 0; i < want.cols(); ++i) {
      const double error = std::abs(static_cast<double>(got.f32(r, i)) - want.f32(r, i));
      worst = std::max(worst, std::isnan(error) ? std::numeric_limits<double>::infinity() : error);
    }
  }
  return worst;
}

inline double max_abs(Tensor t) {
  double worst = 0;
  for (int64_t r = 0; r < t.rows(); ++r) {
    for (int64_t i = 0; i < t.cols(); ++i) worst = std::max(worst, std::abs(static_cast<double>(t.f32(r, i))));
  }
  return worst;
}

// The largest error as a part of the largest magnitude expected.
inline double max_relative_error(Tensor got, Tensor want) {
  return max_abs_error(got, want) / std::max(max_abs(want), 1e-30);
}

inline bool same_bits(Tensor a, Tensor b) {
  if (a.rows() != b.rows() || a.cols() != b.cols() || a.format != b.format) return false;
  const size_t row_bytes = static_cast<size_t>(a.cols() * format_bytes(a.format));
  for (int64_t r = 0; r < a.rows(); ++r) {
    if (std::memcmp(a.at(r * a.row_stride), b.at(r * b.row_stride), row_bytes) != 0) return false;
  }
  return true;
}

// sum_i a_i b_i in double: a loss whose gradient in a is b.
inline double dot(Tensor a, Tensor b) {
  double sum = 0;
  for (int64_t r = 0; r < a.rows(); ++r) {
    for (int64_t i = 0; i < a.cols(); ++i) sum += static_cast<double>(a.f32(r, i)) * b.f32(r, i);
  }
  return sum;
}

// Whether `gradient` is that of `loss` (a function of x's present values) in x, by central differences at up to
// `max_points` elements spread evenly over x. Returns the largest error as a part of the largest gradient.
inline double gradient_error(const std::function<double()>& loss, Tensor x, Tensor gradient, float step = 1e-2f,
                             int64_t max_points = 100) {
  int64_t stride = std::max<int64_t>(1, x.size() / max_points);
  while (std::gcd(stride, x.cols()) != 1) ++stride;  // or some columns would never be looked at
  double worst = 0;
  for (int64_t i = 0; i < x.size(); i += stride) {
    float& value = x.f32(i / x.cols(), i % x.cols());
    const float before = value;
    value = before + step;
    const double up = value, loss_up = loss();
    value = before - step;
    const double down = value, loss_down = loss();
    value = before;
    const double slope = (loss_up - loss_down) / (up - down);
    const double error = std::abs(slope - gradient.f32(i / x.cols(), i % x.cols()));
    worst = std::max(worst, std::isnan(error) ? std::numeric_limits<double>::infinity() : error);
  }
  return worst / std::max(max_abs(gradient), 1e-30);
}

}  // namespace fathom
