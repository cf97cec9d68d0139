#include "eval/statistics.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>

namespace fathom::eval {
namespace {

TEST(Statistics, WilsonsIntervalIsThePublishedOne) {
  // Newcombe 1998, table I, method 3.
  const Interval a = wilson_interval(81, 263), b = wilson_interval(15, 148), c = wilson_interval(0, 20);
  EXPECT_NEAR(a.low, 0.2553, 5e-5);
  EXPECT_NEAR(a.high, 0.3662, 5e-5);
  EXPECT_NEAR(b.low, 0.0624, 5e-5);
  EXPECT_NEAR(b.high, 0.1605, 5e-5);
  EXPECT_EQ(c.low, 0);
  EXPECT_NEAR(c.high, 0.1611, 5e-5);
  EXPECT_EQ(wilson_interval(0, 0).high, 1);
}

TEST(Statistics, PassAtKIsTheShareOfSubsetsWithARightOne) {
  constexpr int kSamples = 7;
  for (int right = 0; right <= kSamples; ++right) {
    for (int k = 1; k <= kSamples; ++k) {
      int subsets = 0, with_right = 0;
      for (unsigned chosen = 0; chosen < 1U << kSamples; ++chosen) {
        if (std::popcount(chosen) != k) continue;
        ++subsets;
        with_right += (chosen & ((1U << right) - 1)) != 0;
      }
      EXPECT_NEAR(pass_at_k(kSamples, right, k), with_right / static_cast<double>(subsets), 1e-12) << right << " " << k;
    }
  }
}

TEST(Statistics, TheIntervalOfAMeanIsByItsStandardError) {
  const std::array values = {0.0, 1.0, 1.0, 0.0};
  const Interval interval = mean_interval(values, 1);
  EXPECT_NEAR(interval.high - 0.5, 0.288675, 1e-6);
  EXPECT_NEAR(0.5 - interval.low, 0.288675, 1e-6);
  EXPECT_EQ(mean_interval(std::array{3.0}).low, 3);
}

}  // namespace
}  // namespace fathom::eval
