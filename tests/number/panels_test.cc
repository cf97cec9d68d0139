#include "number/panels.h"

#include <gtest/gtest.h>

#include "base/arithmetic.h"
#include "number/blocks.h"
#include "number/plain_pack.h"
#include "number/random_blocks.h"

namespace fathom {
namespace {

class Panels : public testing::TestWithParam<Format> {};

TEST_P(Panels, HoldWhatTheRowsHold) {
  const Format format = GetParam();
  for (const int64_t n_rows : {8, 1, 5}) {
    const int64_t cols = 3 * 256;
    std::vector<uint8_t> stored = random_blocks(format, n_rows * cols, 7);
    std::vector<const void*> rows;
    for (int64_t r = 0; r < n_rows; ++r) rows.push_back(stored.data() + format_bytes(format, r * cols));
    std::vector<uint8_t> panel(static_cast<size_t>(panel_bytes(format, cols)));
    pack_panel(panel.data(), rows.data(), n_rows, format, cols);

    std::vector<float> want(static_cast<size_t>(8 * cols)), got(want.size(), -1);
    to_f32(want.data(), stored.data(), format, n_rows * cols);
    unpack_panel(got.data(), panel.data(), format, cols);
    EXPECT_EQ(got, want) << n_rows;
  }
}

INSTANTIATE_TEST_SUITE_P(Blocks, Panels, testing::ValuesIn(kBlockFormats),
                         [](const auto& test) { return format_traits(test.param).name; });

// Every number of rows and odd numbers of columns; rows that begin anywhere.
TEST(Panels, ArePackedAsByThePlainTwin) {
  for (const Format format : {Format::q8_0, Format::q4_0, Format::q5_0, Format::q4_k, Format::q5_k, Format::q6_k,
                              Format::f32, Format::bf16, Format::f16, Format::f8_e4m3}) {
    const int64_t block = format_traits(format).block;
    for (const int64_t blocks : {1, 3, 131}) {
      const int64_t cols = blocks * block;
      const auto row_bytes = static_cast<size_t>(format_bytes(format, cols));
      std::vector<uint8_t> stored(8 * row_bytes + 1);
      Rng rng(static_cast<uint64_t>(blocks));
      for (uint8_t& byte : stored) byte = static_cast<uint8_t>(rng.next() >> 56);
      const std::vector<float> scales(static_cast<size_t>(ceil_div(cols, kFp8PanelBlock)), 2);
      for (int64_t n_rows = 0; n_rows <= 8; ++n_rows) {
        std::vector<const void*> rows;
        for (size_t r = 0; r < static_cast<size_t>(n_rows); ++r) rows.push_back(stored.data() + 1 + r * row_bytes);
        std::vector<uint8_t> got(static_cast<size_t>(panel_bytes(format, cols)), 0xEE), want(got);
        pack_panel(got.data(), rows.data(), n_rows, format, cols, scales.data());
        plain::pack_panel(want.data(), rows.data(), n_rows, format, cols, scales.data());
        EXPECT_EQ(got, want) << format_traits(format).name << " " << cols << " columns, " << n_rows << " rows";
      }
    }
  }
}

TEST(Panels, OfFloatsHaveAnyNumberOfColumns) {
  for (const Format format : {Format::f32, Format::bf16, Format::f16, Format::f8_e4m3}) {
    for (const int64_t cols : {1, 7, 128, 300}) {
      std::vector<uint8_t> stored(static_cast<size_t>(format_bytes(format, 6 * cols)));
      std::vector<float> numbers(static_cast<size_t>(6 * cols)), want(static_cast<size_t>(8 * cols));
      Rng rng(3);
      for (float& x : numbers) x = static_cast<float>(rng.normal());
      from_f32(stored.data(), numbers.data(), format, 6 * cols);
      to_f32(want.data(), stored.data(), format, 6 * cols);
      std::vector<float> scales;
      for (int64_t b = 0; b < ceil_div(cols, kFp8PanelBlock); ++b) scales.push_back(0.5f + static_cast<float>(b));
      if (format == Format::f8_e4m3) {
        for (int64_t i = 0; i < 6 * cols; ++i) want[i] *= scales[static_cast<size_t>(i % cols / kFp8PanelBlock)];
      }
      std::vector<const void*> rows;
      for (int64_t r = 0; r < 6; ++r) rows.push_back(stored.data() + format_bytes(format, r * cols));
      std::vector<uint8_t> panel(static_cast<size_t>(panel_bytes(format, cols)));
      pack_panel(panel.data(), rows.data(), 6, format, cols, scales.data());
      std::vector<float> got(want.size(), -1);
      unpack_panel(got.data(), panel.data(), format, cols);
      EXPECT_EQ(got, want) << format_traits(format).name << " " << cols;
    }
  }
}

TEST(Panels, AreSlicedByPanelsAndMatrices) {
  std::vector<std::byte> bytes(3 * 3 * 8 * 36);
  const Tensor w = panel_tensor(bytes.data(), Format::q4_0, {3, 20, 64});
  EXPECT_EQ(w.size_bytes(), 3 * 3 * 8 * 36);  // 20 rows fill 3 panels
  const auto offset = [&](Tensor t) { return static_cast<const std::byte*>(t.data) - bytes.data(); };
  EXPECT_EQ(offset(w[2]), 2 * 3 * 8 * 36);
  EXPECT_EQ(offset(w[1].slice(8, 12)), (3 + 1) * 8 * 36);
}

}  // namespace
}  // namespace fathom
