#include "ops/latent_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "ops/test_tensors.h"

namespace fathom {
namespace {

constexpr Format kFormats[] = {Format::f32, Format::bf16, Format::f16, Format::f8_e4m3, Format::q8_0};

// n rows of random numbers of very different sizes, stored.
std::string stored_rows(const LatentRowLayout& layout, Tensor rows) {
  std::string stored;
  for (int64_t i = 0; i < rows.rows(); ++i) {
    for (int64_t j = 0; j < layout.dim(); ++j) rows.f32(i, j) *= std::exp2(static_cast<float>(j % 5 - i % 7));
    std::string row(static_cast<size_t>(latent_row_bytes(layout)), 0);
    write_latent_row(layout, row.data(), rows.f32_row(i), rows.f32_row(i) + layout.kv_lora_rank);
    stored += row;
  }
  return stored;
}

TEST(LatentRows, HaveTheDocumentedSizes) {
  const std::vector<int64_t> bytes = {2304, 1152, 1152, 656, 672};
  for (size_t i = 0; i < bytes.size(); ++i) EXPECT_EQ(latent_row_bytes({kFormats[i], 512, 64}), bytes[i]);
}

TEST(LatentRows, ReadAsThePlainTwinReads) {
  for (const Format format : kFormats) {
    for (const auto& [rank, rope] : {std::pair<int64_t, int64_t>{1, 2}, {7, 2}, {32, 8}, {140, 6}, {512, 64}}) {
      const LatentRowLayout layout{format, rank, rope};
      const Tensor rows = random_f32(9, layout.dim(), 3);
      const std::string stored = stored_rows(layout, rows);
      const Tensor fast = filled_like(rows, NAN), plain = filled_like(rows, NAN);
      read_latent_rows(layout, fast.f32(), stored.data(), 9);
      plain::read_latent_rows(layout, plain.f32(), stored.data(), 9);
      EXPECT_TRUE(same_bits(fast, plain)) << format_traits(format).name << " " << rank;
      // What was read is stored as it is.
      std::string again(stored.size(), 0);
      for (int64_t i = 0; i < 9; ++i) {
        write_latent_row(layout, again.data() + i * latent_row_bytes(layout), fast.f32_row(i), fast.f32_row(i) + rank);
      }
      const Tensor twice = filled_like(rows, NAN);
      read_latent_rows(layout, twice.f32(), again.data(), 9);
      EXPECT_LE(max_relative_error(twice, fast), 1e-6) << format_traits(format).name << " " << rank;
    }
  }
}

// The error of a number against the largest of the numbers that share its scale.
TEST(LatentRows, RoundToTheirPrecision) {
  const Tensor rows = random_f32(20, 256 + 32, 4);
  struct Case {
    Format format;
    float latent, rope;
  };
  for (const Case& c : {Case{Format::f32, 0, 0}, Case{Format::bf16, 1.0f / 256, 1.0f / 256},
                        Case{Format::f16, 1.0f / 2048, 1.0f / 2048}, Case{Format::f8_e4m3, 1.0f / 16, 1.0f / 256},
                        Case{Format::q8_0, 1.0f / 250, 1.0f / 256}}) {
    const LatentRowLayout layout{c.format, 256, 32};
    std::string row(static_cast<size_t>(latent_row_bytes(layout)), 0);
    std::vector<float> read(static_cast<size_t>(layout.dim()));
    for (int64_t i = 0; i < 20; ++i) {
      write_latent_row(layout, row.data(), rows.f32_row(i), rows.f32_row(i) + 256);
      read_latent_rows(layout, read.data(), row.data(), 1);
      for (int64_t j = 0; j < layout.dim(); ++j) {
        constexpr float kLargest = 4.5f;  // of so many normal deviates
        const float error = std::fabs(read[static_cast<size_t>(j)] - rows.f32(i, j));
        EXPECT_LE(error, kLargest * (j < 256 ? c.latent : c.rope)) << format_traits(c.format).name;
      }
    }
  }
}

// Each part of a row is a row by itself.
TEST(LatentRows, PartsAreRowsOfTheirOwn) {
  for (const Format format : kFormats) {
    for (const int64_t dim : {2, 40, 130}) {
      const LatentRowLayout one{format, dim, 0}, layout{format, dim, 0, 6};
      const int64_t bytes = latent_row_bytes(one), row_bytes = latent_row_bytes(layout);
      ASSERT_EQ(row_bytes, 6 * bytes);
      const Tensor x = random_f32(3, 6 * dim, 1), got = filled_f32(3, 6 * dim, NAN), part = filled_f32(3, dim, NAN);
      const Tensor plain = filled_f32(3, 6 * dim, NAN);
      std::string rows(static_cast<size_t>(3 * row_bytes), 0), alone(static_cast<size_t>(bytes), 0);
      for (int64_t i = 0; i < 3; ++i) write_latent_row(layout, rows.data() + i * row_bytes, x.f32_row(i), nullptr);
      read_latent_rows(layout, got.f32(), rows.data(), 3);
      plain::read_latent_rows(layout, plain.f32(), rows.data(), 3);
      EXPECT_TRUE(same_bits(got, plain));
      for (int64_t p = 0; p < 6; ++p) {
        read_latent_parts(layout, p, part.f32(), rows.data(), 3);
        for (int64_t i = 0; i < 3; ++i) {
          EXPECT_EQ(std::memcmp(part.f32_row(i), got.f32_row(i) + p * dim, static_cast<size_t>(dim) * sizeof(float)),
                    0);
          write_latent_row(one, alone.data(), x.f32_row(i) + p * dim, nullptr);
          EXPECT_EQ(alone, rows.substr(static_cast<size_t>(i * row_bytes + p * bytes), static_cast<size_t>(bytes)));
        }
      }
    }
  }
}

TEST(LatentRows, KeepZerosZero) {
  for (const Format format : kFormats) {
    const LatentRowLayout layout{format, 40, 4};
    const std::vector<float> zeros(44);
    std::vector<float> read(44, 1.0f);
    std::string row(static_cast<size_t>(latent_row_bytes(layout)), 'x');
    write_latent_row(layout, row.data(), zeros.data(), zeros.data() + 40);
    read_latent_rows(layout, read.data(), row.data(), 1);
    EXPECT_EQ(read, zeros) << format_traits(format).name;
  }
}

}  // namespace
}  // namespace fathom
