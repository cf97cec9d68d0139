// The kernels of every instruction set that this CPU has, against their formulas.
#include "ops/cpu/attention_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/cpu.h"
#include "ops/test_tensors.h"

namespace fathom {
namespace {

std::vector<const cpu::AttentionKernels*> tables() {
  std::vector<const cpu::AttentionKernels*> all = {&cpu::baseline::attention_kernels};
  if (cpu_isa() >= Isa::avx2) all.push_back(&cpu::avx2::attention_kernels);
  if (cpu_isa() >= Isa::avx512) all.push_back(&cpu::avx512::attention_kernels);
  return all;
}

TEST(AttentionKernels, ProductsOfAnyShape) {
  for (const cpu::AttentionKernels* kernels : tables()) {
    for (const int64_t m : {1, 2, 5, 6, 7, 8, 13, 64}) {
      for (const int64_t n : {1, 3, 4, 7, 8, 15, 16, 17, 33, 129}) {
        for (const int64_t k : {1, 7, 16, 65}) {
          const Tensor a = random_f32(m, k, 1, k + 3), a_columns = filled_f32(k, m, 0, m + 1);
          const Tensor b = random_f32(k, n, 2, n + 1), b_columns = filled_f32(n, k, 0, k + 5);
          const Tensor before = random_f32(m, n, 3, n + 2);
          for (int64_t j = 0; j < k; ++j) {
            for (int64_t i = 0; i < m; ++i) a_columns.f32(j, i) = a.f32(i, j);
            for (int64_t i = 0; i < n; ++i) b_columns.f32(i, j) = b.f32(j, i);
          }
          const Tensor want = zeros_like(before), sum = zeros_like(before);
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) {
              double x = 0;
              for (int64_t l = 0; l < k; ++l) x += static_cast<double>(a.f32(i, l)) * b.f32(l, j);
              want.f32(i, j) = static_cast<float>(x);
              sum.f32(i, j) = static_cast<float>(x + before.f32(i, j));
            }
          }
          const Tensor c = filled_like(before, NAN), c_columns = copy_of(before), c_dots = filled_like(before, NAN);
          const Tensor c_fetching = copy_of(before);
          kernels->multiply({m, n, k}, {a.f32(), a.row_stride}, {b.f32(), b.row_stride}, {c.f32(), c.row_stride},
                            false);
          kernels->multiply({m, n, k}, {a_columns.f32(), 1, a_columns.row_stride}, {b.f32(), b.row_stride},
                            {c_columns.f32(), c_columns.row_stride}, true);
          const auto* const bytes = reinterpret_cast<const char*>(b.f32());
          cpu::Ahead ahead = {bytes, bytes + b.size_bytes()};
          kernels->multiply_fetching({m, n, k}, {a_columns.f32(), 1, a_columns.row_stride}, {b.f32(), b.row_stride},
                                     {c_fetching.f32(), c_fetching.row_stride}, true, ahead);
          kernels->multiply_transposed(m, n, k, a.f32(), a.row_stride, b_columns.f32(), b_columns.row_stride,
                                       c_dots.f32(), c_dots.row_stride);
          EXPECT_LE(max_relative_error(c, want), 1e-6) << m << " " << n << " " << k;
          EXPECT_LE(max_relative_error(c_columns, sum), 1e-6) << m << " " << n << " " << k;
          for (int64_t i = 0; i < m; ++i) {
            EXPECT_EQ(0, std::memcmp(c_fetching.f32_row(i), c_columns.f32_row(i), static_cast<size_t>(n) * 4));
          }
          EXPECT_LE(max_relative_error(c_dots, want), 1e-6) << m << " " << n << " " << k;
          EXPECT_TRUE(gaps_untouched(c) && gaps_untouched(c_columns) && gaps_untouched(c_dots));
          EXPECT_TRUE(gaps_untouched(c_fetching));
        }
      }
    }
  }
}

TEST(AttentionKernels, TransposesAndCopiesAnyShape) {
  for (const cpu::AttentionKernels* kernels : tables()) {
    for (const int64_t rows : {1, 3, 8, 16, 31, 64}) {
      for (const int64_t cols : {1, 5, 8, 16, 35, 96}) {
        const Tensor from = random_f32(rows, cols, 1, cols + 3), to = filled_f32(cols, rows, NAN, rows + 2);
        kernels->transpose(to.f32(), to.row_stride, from.f32(), from.row_stride, rows, cols, -2);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(to.f32(j, i), -2 * from.f32(i, j)) << rows << "x" << cols;
        }
        EXPECT_TRUE(gaps_untouched(to));

        const Tensor copied = filled_f32(rows, cols, NAN, cols + 2);
        kernels->copy(copied.f32(), copied.row_stride, from.f32(), from.row_stride, rows, cols, -2);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(copied.f32(i, j), -2 * from.f32(i, j)) << rows << "x" << cols;
        }
        EXPECT_TRUE(gaps_untouched(copied));
      }
    }
  }
}

TEST(AttentionKernels, OnlineSoftmaxOverBlocksIsTheSoftmaxOfAll) {
  constexpr int64_t kKeys = 21, kFirst = 8, kQueries = 16;
  for (const cpu::AttentionKernels* kernels : tables()) {
    const Tensor scores = random_f32(kKeys, kQueries, 1), p = copy_of(scores);
    for (int64_t j = 0; j < kFirst; ++j) p.f32(j, 3) = -INFINITY;  // query 3 sees nothing of the first block
    std::vector<float> largest(kQueries, -std::numeric_limits<float>::max()), sum(kQueries, 0), first(kQueries),
        second(kQueries);
    kernels->online_softmax(p.f32(), kQueries, kFirst, kQueries, largest.data(), sum.data(), first.data());
    kernels->online_softmax(p.f32_row(kFirst), kQueries, kKeys - kFirst, kQueries, largest.data(), sum.data(),
                            second.data());
    for (int64_t q = 0; q < kQueries; ++q) {
      double want = 0;
      for (int64_t j = q == 3 ? kFirst : 0; j < kKeys; ++j) want += std::exp(static_cast<double>(scores.f32(j, q)));
      const auto i = static_cast<size_t>(q);
      EXPECT_NEAR(largest[i] + std::log(sum[i]), std::log(want), 1e-5);
      for (int64_t j = 0; j < kKeys; ++j) {
        const double got = p.f32(j, q) / sum[i] * (j < kFirst ? second[i] : 1);
        const double share = q == 3 && j < kFirst ? 0 : std::exp(static_cast<double>(scores.f32(j, q))) / want;
        EXPECT_NEAR(got, share, 1e-6) << j << " " << q;
      }
    }
  }
}

TEST(AttentionKernels, ElementwiseStepsOfTheBackwardPass) {
  constexpr int64_t kRows = 3, kCols = 32;
  for (const cpu::AttentionKernels* kernels : tables()) {
    const Tensor s = random_f32(kRows, kCols, 1), dp = random_f32(kRows, kCols, 2), shifts = random_f32(kRows, 2, 3);
    const Tensor p = copy_of(s), ds = copy_of(dp);
    kernels->probabilities(p.f32(), kCols, kRows, kCols, shifts.f32(), 2);
    kernels->score_gradients(ds.f32(), p.f32(), kCols, kRows, kCols, shifts.f32() + 1, 2);
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kCols; ++j) {
        const double want = std::min(1.0, std::exp(static_cast<double>(s.f32(i, j)) - shifts.f32(i, 0)));
        EXPECT_NEAR(p.f32(i, j), want, 2e-6 * want);
        EXPECT_NEAR(ds.f32(i, j), want * (dp.f32(i, j) - static_cast<double>(shifts.f32(i, 1))), 1e-5 * want + 1e-6);
      }
    }
    for (const int64_t n : {1, 7, 32}) {
      const Tensor y = copy_of(s.slice(0, 1).columns(0, n)), z = copy_of(y);
      kernels->scale_and_add(y.f32(), 2, dp.f32(), 3, n);
      kernels->scale_and_add(z.f32(), 2, nullptr, 3, n);
      for (int64_t i = 0; i < n; ++i) {
        EXPECT_NEAR(y.f32(0, i), 2 * s.f32(0, i) + 3 * dp.f32(0, i), 1e-5);
        EXPECT_EQ(z.f32(0, i), 2 * s.f32(0, i));
      }
    }
  }
}

}  // namespace
}  // namespace fathom
