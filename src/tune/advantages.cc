#include "tune/advantages.h"

#include <algorithm>
#include <cmath>

namespace fathom::tune {
namespace {
constexpr double kEqual = 1e-8;
}  // namespace

std::vector<double> advantages(std::span<const double> rewards, bool by_deviation) {
  std::vector<double> result(rewards.begin(), rewards.end());
  if (rewards.empty()) return result;
  const auto [least, most] = std::ranges::minmax(rewards);
  if (most - least <= kEqual * std::max(std::abs(least), std::abs(most))) {
    std::ranges::fill(result, 0.0);  // and not what rounding leaves, which a deviation would make as good as any
    return result;
  }
  const auto count = static_cast<double>(rewards.size());
  double mean = 0, squares = 0;
  for (const double r : rewards) mean += r / count;
  for (double& r : result) r -= mean;
  for (const double d : result) squares += d * d;
  const double deviation = std::sqrt(squares / count);
  if (by_deviation) {
    for (double& d : result) d /= deviation;
  }
  return result;
}

}  // namespace fathom::tune
