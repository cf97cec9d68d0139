#include "parallel/row_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/rng.h"

namespace fathom {
namespace {

struct Rows {
  std::vector<float> values;
  Tensor tensor;
};
Rows random_rows(int64_t n, int64_t cols) {
  Rows rows{std::vector<float>(static_cast<size_t>(n * cols)), {}};
  Rng rng(1);
  for (float& x : rows.values)
    x = static_cast<float>(rng.normal() * std::exp2(static_cast<double>(rng.below(20)) - 10));
  rows.tensor = Tensor(rows.values.data(), Format::f32, {n, cols});
  return rows;
}

TEST(RowCodec, WhatIsDecodedIsWhatWasSent) {
  ThreadPool pool(2);
  for (const int64_t cols : {int64_t{1}, int64_t{127}, int64_t{128}, int64_t{300}}) {
    for (const int64_t n_raw : {int64_t{0}, int64_t{5}}) {
      for (const auto& [format, precision] : {std::pair(RowFormat::f32, 0.0), std::pair(RowFormat::bf16, 1.0 / 256),
                                              std::pair(RowFormat::fp8, 1.0 / 16)}) {
        const Rows rows = random_rows(7, cols + n_raw);
        Rows back = random_rows(7, cols + n_raw), again = back;
        again.tensor.data = again.values.data();
        std::vector<std::byte> sent(static_cast<size_t>(7 * row_bytes(format, cols + n_raw, n_raw))), twice = sent;
        encode_rows(pool, format, rows.tensor, n_raw, sent.data());
        decode_rows(pool, format, back.tensor, n_raw, sent.data());
        for (int64_t r = 0; r < 7; ++r) {
          for (int64_t i = 0; i < cols + n_raw; ++i) {
            const double x = rows.tensor.f32(r, i), y = back.tensor.f32(r, i);
            double largest = 0;  // of the tile
            for (int64_t j = i / 128 * 128; j < std::min(cols, i / 128 * 128 + 128); ++j) {
              largest = std::max(largest, std::abs(double{rows.tensor.f32(r, j)}));
            }
            const double allowed =
                i >= cols ? 0 : std::abs(x) * precision + (format == RowFormat::fp8 ? largest / 448 / 512 : 0);
            EXPECT_NEAR(x, y, allowed) << cols << " " << i;
          }
        }
        // On the next hop nothing is lost.
        encode_rows(pool, format, back.tensor, n_raw, twice.data());
        decode_rows(pool, format, again.tensor, n_raw, twice.data());
        EXPECT_EQ(again.values, back.values);
      }
    }
  }
}

TEST(RowCodec, NumbersThatAreNotFiniteStayTold) {
  ThreadPool pool(1);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const RowFormat format : {RowFormat::f32, RowFormat::bf16, RowFormat::fp8}) {
      Rows rows = random_rows(1, 130);
      rows.values[3] = bad;
      std::vector<std::byte> sent(static_cast<size_t>(row_bytes(format, 130, 0)));
      encode_rows(pool, format, rows.tensor, 0, sent.data());
      decode_rows(pool, format, rows.tensor, 0, sent.data());
      if (std::isnan(bad)) {
        EXPECT_TRUE(std::isnan(rows.values[3]));
      }
      for (const size_t i : {size_t{128}, size_t{129}}) EXPECT_TRUE(std::isfinite(rows.values[i]));
    }
  }
}

TEST(RowCodec, NothingIsNothing) {
  ThreadPool pool(1);
  for (const float little : {0.0f, 1e-45f, 1e-38f, -1e-37f}) {
    Rows rows = random_rows(1, 200);
    for (float& x : rows.values) x = little;
    std::vector<std::byte> sent(static_cast<size_t>(row_bytes(RowFormat::fp8, 200, 0)));
    encode_rows(pool, RowFormat::fp8, rows.tensor, 0, sent.data());
    decode_rows(pool, RowFormat::fp8, rows.tensor, 0, sent.data());
    for (const float x : rows.values) EXPECT_NEAR(x, little, std::numeric_limits<float>::min());
  }
}

TEST(RowCodec, BytesAreTheReports) {
  // V3's rows of 7,168 (planner facts of the report): a byte a number and a scale each 128; two bytes on the way back.
  EXPECT_EQ(row_bytes(RowFormat::fp8, 7168, 0), 7168 + 224);
  EXPECT_EQ(row_bytes(RowFormat::bf16, 7168, 0), 14336);
  EXPECT_EQ(dispatch_format(Precision::fp8), RowFormat::fp8);
  EXPECT_EQ(combine_format(Precision::fp8), RowFormat::bf16);
}

}  // namespace
}  // namespace fathom
