#include "tune/advantages.h"

#include <gtest/gtest.h>

#include <array>

namespace fathom::tune {
namespace {

TEST(Advantages, AreRewardsBesideTheGroupsMean) {
  const auto plain = advantages(std::array{1.0, 0.0, 0.0, 1.0, 0.5}, false);
  const std::array expected = {0.5, -0.5, -0.5, 0.5, 0.0};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(plain[i], expected[i], 1e-15);
}

TEST(Advantages, ByDeviationHaveMeanZeroAndDeviationOne) {
  const auto scaled = advantages(std::array{3.0, 1.0, 0.0, 0.0}, true);
  double sum = 0, squares = 0;
  for (const double a : scaled) sum += a, squares += a * a;
  EXPECT_NEAR(sum, 0, 1e-12);
  EXPECT_NEAR(squares / 4, 1, 1e-12);
}

TEST(Advantages, OfEqualRewardsAreZero) {
  for (const bool by_deviation : {false, true}) {
    for (const double a : advantages(std::array{0.1, 0.1, 0.1}, by_deviation)) EXPECT_EQ(a, 0);
    for (const double a : advantages(std::array{0.1 + 0.2, 0.3, 0.3}, by_deviation)) EXPECT_EQ(a, 0);
    for (const double a : advantages(std::array{-1e9, -1e9 - 1e-6}, by_deviation)) EXPECT_EQ(a, 0);
    for (const double a : advantages(std::array{0.0, 0.0}, by_deviation)) EXPECT_EQ(a, 0);
    EXPECT_GT(advantages(std::array{1e-12, 0.0}, by_deviation)[0], 0);  // small beside nothing
    EXPECT_GT(advantages(std::array{1.000001, 1.0}, by_deviation)[0], 0);
  }
  EXPECT_TRUE(advantages({}, true).empty());
}

}  // namespace
}  // namespace fathom::tune
