#include "number/blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/file.h"

namespace fathom {
namespace {

const Format kFormats[] = {Format::q8_0, Format::q4_0, Format::q5_0, Format::q4_k, Format::q5_k, Format::q6_k};

using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;

struct Fixture {
  Bytes blocks;
  Floats numbers;
};
// A file of tests/data/blocks (see make.py there).
Fixture fixture(const std::string& name, Format format) {
  constexpr int64_t kNumbers = 2048;
  const auto n_bytes = static_cast<size_t>(format_bytes(format, kNumbers));
  const std::string file = read_file(FATHOM_TEST_DATA "/blocks/" + name + ".bin", 1 << 20);
  EXPECT_EQ(file.size(), n_bytes + kNumbers * sizeof(float)) << name;
  Fixture f = {Bytes(n_bytes), Floats(kNumbers)};
  std::memcpy(f.blocks.data(), file.data(), n_bytes);
  std::memcpy(f.numbers.data(), file.data() + n_bytes, kNumbers * sizeof(float));
  return f;
}

Bytes encoded(const Floats& x, Format format, int64_t cols, const float* importance = nullptr) {
  Bytes blocks(static_cast<size_t>(format_bytes(format, static_cast<int64_t>(x.size()))));
  encode_blocks(blocks.data(), x.data(), format, static_cast<int64_t>(x.size()) / cols, cols, importance);
  return blocks;
}

Floats decoded(const Bytes& blocks, Format format) {
  const auto traits = format_traits(format);
  Floats x(blocks.size() / static_cast<size_t>(traits.block_bytes) * static_cast<size_t>(traits.block));
  decode_blocks(x.data(), blocks.data(), format, static_cast<int64_t>(x.size()));
  return x;
}

Floats there_and_back(const Floats& x, Format format, const float* importance = nullptr) {
  return decoded(encoded(x, format, static_cast<int64_t>(x.size()), importance), format);
}

double rms(const Floats& x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * v;
  return std::sqrt(sum / static_cast<double>(x.size()));
}

double rms_error(const Floats& x, const Floats& y) {
  Floats difference(x.size());
  for (size_t i = 0; i < x.size(); ++i) difference[i] = x[i] - y[i];
  return rms(difference);
}

// The standard library's distributions differ between machines: sums of twelve uniform numbers instead.
float gaussian(std::mt19937& random) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += random() * 0x1p-32;
  return static_cast<float>(sum);
}
Floats gaussians(size_t n, float scale = 1, unsigned seed = 1) {
  std::mt19937 random(seed);
  Floats x(n);
  for (float& v : x) v = scale * gaussian(random);
  return x;
}
// Without a fourth moment: a gaussian over the square root of a sum of three squares.
Floats heavy_tailed(size_t n) {
  std::mt19937 random(2);
  Floats x(n);
  for (float& v : x) {
    float sum = 0;
    for (int i = 0; i < 3; ++i) sum += std::pow(gaussian(random), 2.0f);
    v = gaussian(random) / std::sqrt(sum / 3);
  }
  return x;
}

TEST(Blocks, AnyBytesDecodeAsGgufDecodesThem) {
  std::vector<Format> formats(std::begin(kFormats), std::end(kFormats));
  formats.push_back(Format::q5_1);
  for (const Format format : formats) {
    const auto traits = format_traits(format);
    const Fixture want = fixture(traits.name, format);
    const Floats got = decoded(want.blocks, format);
    for (size_t begin = 0; begin < got.size(); begin += static_cast<size_t>(traits.block)) {
      float largest = 0;
      for (size_t i = begin; i < begin + static_cast<size_t>(traits.block); ++i)
        largest = std::max(largest, std::fabs(want.numbers[i]));
      for (size_t i = begin; i < begin + static_cast<size_t>(traits.block); ++i)
        ASSERT_NEAR(got[i], want.numbers[i], 1e-6f * largest) << traits.name << " " << i;
    }
  }
}

TEST(Blocks, Q8_0HasTheBitsThatGgufGivesIt) {
  const Fixture want = fixture("q8_0_encoded", Format::q8_0);
  const Bytes got = encoded(want.numbers, Format::q8_0, 32);
  for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], want.blocks[i]) << "block " << i / 34 << " byte " << i % 34;
}

// The root mean square error of gaussian numbers of variance 1: seen on 65,536 numbers and rounded up by 1%.
TEST(Blocks, GaussianNumbersKeepTheirError) {
  const std::pair<Format, double> cases[] = {{Format::q8_0, 0.00545}, {Format::q4_0, 0.0825}, {Format::q5_0, 0.0408},
                                             {Format::q4_k, 0.0708},  {Format::q5_k, 0.0347}, {Format::q6_k, 0.0170}};
  const Floats x = gaussians(1 << 16);
  for (const auto& [format, bound] : cases) {
    const double error = rms_error(x, there_and_back(x, format));
    EXPECT_LE(error, bound) << format_traits(format).name;
    EXPECT_GE(error, 0.9 * bound) << format_traits(format).name << " is better than the bound says";
  }
}

// Rounding to steps that span the numbers gives 0.29 steps. Integer scales cost some of it.
TEST(Blocks, ErrorIsAPartOfTheLargestStep) {
  Floats outliers = gaussians(4096), shifted = gaussians(4096), positive = gaussians(4096), sparse(4096);
  for (size_t i = 5; i < outliers.size(); i += 256) outliers[i] = i % 512 == 5 ? 100 : -100;
  for (float& v : shifted) v -= 30;
  for (float& v : positive) v += 30;
  for (size_t i = 0; i < sparse.size(); i += 77) sparse[i] = static_cast<float>(i) - 2000;
  for (const Floats& x : {gaussians(4096), heavy_tailed(4096), outliers, shifted, positive, sparse}) {
    for (const Format format : kFormats) {
      const bool has_min = format == Format::q4_k || format == Format::q5_k;
      const int levels = format == Format::q8_0                             ? 255
                         : format == Format::q6_k                           ? 64
                         : format == Format::q5_0 || format == Format::q5_k ? 32
                                                                            : 16;
      const size_t size = static_cast<size_t>(format_traits(format).block), run = format == Format::q6_k ? 16 : 32;
      const Floats back = there_and_back(x, format);
      for (size_t begin = 0; begin < x.size(); begin += size) {
        const auto at = x.begin() + static_cast<std::ptrdiff_t>(begin);
        float step = 0;
        for (size_t r = 0; r < size; r += run) {
          const auto [low, high] =
              std::minmax_element(at + static_cast<std::ptrdiff_t>(r), at + static_cast<std::ptrdiff_t>(r + run));
          const float span = has_min ? *high - std::min(*low, 0.0f) : 2 * std::max(-*low, *high);
          step = std::max(step, span / static_cast<float>(levels - 1));
        }
        const Floats numbers(at, at + static_cast<std::ptrdiff_t>(size));
        const Floats restored(back.begin() + static_cast<std::ptrdiff_t>(begin),
                              back.begin() + static_cast<std::ptrdiff_t>(begin + size));
        ASSERT_LE(rms_error(numbers, restored), 0.5f * step) << format_traits(format).name << " from " << begin;
      }
    }
  }
}

TEST(Blocks, ScalesAreNoWorseThanThoseThatTheLargestNumberGives) {
  for (const Floats& x : {gaussians(4096), heavy_tailed(4096), gaussians(4096, 1e-3f)}) {
    for (const auto& [format, half] : {std::pair{Format::q4_0, 8.0f}, {Format::q5_0, 16.0f}}) {
      const Floats back = there_and_back(x, format);
      for (size_t begin = 0; begin < x.size(); begin += 32) {
        float extreme = 0;
        for (size_t i = begin; i < begin + 32; ++i) extreme = std::fabs(x[i]) > std::fabs(extreme) ? x[i] : extreme;
        const float d = extreme / -half;
        double plain = 0, ours = 0;
        for (size_t i = begin; i < begin + 32; ++i) {
          plain += std::pow(x[i] - d * std::min(std::round(x[i] / d), half - 1), 2);
          ours += std::pow(x[i] - back[i], 2);
        }
        ASSERT_LE(ours, 1.01 * plain) << format_traits(format).name << " from " << begin;
      }
    }
  }
}

TEST(Blocks, ZerosStayZeroAndConstantsNearlyConstant) {
  for (const Format format : kFormats) {
    EXPECT_EQ(there_and_back(Floats(512), format), Floats(512)) << format_traits(format).name;
    for (const float c : {1.0f, -1.0f, 3e-3f, -7e4f}) {
      for (const float y : there_and_back(Floats(512, c), format))
        ASSERT_NEAR(y, c, std::fabs(c) * 2e-3f) << format_traits(format).name;
    }
  }
}

TEST(Blocks, NumbersThatNoScaleReachesAreCut) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const Format format : kFormats) {
    const char* name = format_traits(format).name;
    for (const float size : {1e9f, 1e20f, kLargest}) {
      Floats x(512);
      for (size_t i = 0; i < x.size(); ++i) x[i] = i % 3 == 0 ? size : i % 3 == 1 ? -size : 0;
      const Floats y = there_and_back(x, format), heavy(512, 1e30f), z = there_and_back(x, format, heavy.data());
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_TRUE(std::isfinite(y[i]) && std::isfinite(z[i])) << name;
        if (i % 3 == 2) {
          ASSERT_LE(std::fabs(y[i]), 65504) << name;
        } else {
          ASSERT_GE(y[i] * (x[i] > 0 ? 1 : -1), 65504 * 6) << name;
        }
      }
    }
  }
}

TEST(Blocks, SmallNumbersKeepWhatTheScalesCanHold) {
  for (const Format format : kFormats) {
    for (const float size : {1e-45f, 1e-40f, 1e-38f, 1e-20f, 1e-9f}) {
      for (const float y : there_and_back(gaussians(512, size), format))
        ASSERT_EQ(y, 0) << format_traits(format).name << " " << size;
    }
    if (format == Format::q8_0) continue;  // its scale is the reference's
    const Floats x = gaussians(4096, 1e-5f);
    EXPECT_LE(rms_error(x, there_and_back(x, format)), 0.12 * rms(x)) << format_traits(format).name;
  }
}

TEST(Blocks, ImportanceMovesTheErrorToColumnsThatHaveNone) {
  constexpr size_t kRows = 64, kCols = 256;
  const Floats x = gaussians(kRows * kCols);
  Floats importance(kCols);
  for (size_t i = 0; i < kCols; ++i) importance[i] = i % 4 == 0 ? 1e3f : i % 4 == 1 ? 0 : 1;
  const auto weighted_error = [&](const Floats& y) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += importance[i % kCols] * std::pow(x[i] - y[i], 2);
    return sum;
  };
  for (const Format format : kFormats) {
    if (format == Format::q8_0) continue;
    const Bytes with = encoded(x, format, kCols, importance.data());
    const double plain = weighted_error(decoded(encoded(x, format, kCols), format));
    EXPECT_LE(weighted_error(decoded(with, format)), 0.75 * plain) << format_traits(format).name;
    // Only relations count.
    Floats scaled = importance;
    for (float& w : scaled) w *= 0x1p100f;
    EXPECT_EQ(encoded(x, format, kCols, scaled.data()), with) << format_traits(format).name;
    const Floats none(kCols);
    const double unweighted = rms_error(x, decoded(encoded(x, format, kCols, none.data()), format));
    EXPECT_LE(unweighted, 1.01 * rms_error(x, decoded(encoded(x, format, kCols), format)))
        << format_traits(format).name;
  }
}

TEST(Blocks, RowsAreIndependentAndPointersNeedNoAlignment) {
  constexpr int64_t kRows = 5, kCols = 768;
  const Floats x = heavy_tailed(kRows * kCols);
  Floats importance = gaussians(kCols);
  for (float& w : importance) w *= w;
  for (const Format format : kFormats) {
    for (const float* weights : {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
      const Bytes whole = encoded(x, format, kCols, weights);
      EXPECT_EQ(encoded(x, format, kCols, weights), whole);
      const auto row_bytes = static_cast<size_t>(format_bytes(format, kCols));
      for (int64_t row = 0; row < kRows; ++row) {
        Bytes alone(row_bytes + 2, 0xAA);
        encode_blocks(alone.data() + 1, x.data() + row * kCols, format, 1, kCols, weights);
        EXPECT_EQ(std::memcmp(alone.data() + 1, whole.data() + static_cast<size_t>(row) * row_bytes, row_bytes), 0)
            << format_traits(format).name << " row " << row;
        EXPECT_EQ(alone.front(), 0xAA);
        EXPECT_EQ(alone.back(), 0xAA);
      }
    }
    EXPECT_EQ(encoded({}, format, 256), Bytes());
  }
}

}  // namespace
}  // namespace fathom
