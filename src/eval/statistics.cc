#include "eval/statistics.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace fathom::eval {

Interval wilson_interval(int64_t right, int64_t n, double z) {
  if (n <= 0) return {0, 1};
  const double count = static_cast<double>(n), share = static_cast<double>(right) / count, z2 = z * z;
  const double centre = (share + z2 / (2 * count)) / (1 + z2 / count);
  const double half = z / (1 + z2 / count) * std::sqrt(share * (1 - share) / count + z2 / (4 * count * count));
  return {std::max(centre - half, 0.0), std::min(centre + half, 1.0)};
}

Interval mean_interval(std::span<const double> values, double z) {
  const double count = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double x : values) sum += x;
  const double mean = values.empty() ? 0 : sum / count;
  if (values.size() < 2) return {mean, mean};
  for (const double x : values) squares += (x - mean) * (x - mean);
  const double half = z * std::sqrt(squares / (count - 1) / count);
  return {mean - half, mean + half};
}

double pass_at_k(int64_t n, int64_t right, int64_t k) {
  FATHOM_CHECK(0 <= right && right <= n && 1 <= k && k <= n);
  if (n - right < k) return 1;
  double none = 1;  // C(n - right, k) / C(n, k), as a product, so that nothing overflows
  for (int64_t i = n - right + 1; i <= n; ++i) none *= 1 - static_cast<double>(k) / static_cast<double>(i);
  return 1 - none;
}

}  // namespace fathom::eval
