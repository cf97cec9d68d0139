// What may be said of scores of a few hundred questions.
#pragma once

#include <cstdint>
#include <span>

namespace fathom::eval {

struct Interval {
  double low, high;
};

// Wilson's score interval of a share of `n` questions of which `right` were answered rightly (Wilson 1927), by default
// at 95 %. n 0: [0, 1].
Interval wilson_interval(int64_t right, int64_t n, double z = 1.959963984540054);

// Of the mean of values, by their standard error; fewer than two values: the mean itself.
Interval mean_interval(std::span<const double> values, double z = 1.959963984540054);

// The chance that of k samples one at least is right, unbiased, from n of which `right` were (Chen et al. 2021,
// equation 1): 1 - C(n - right, k) / C(n, k). 0 <= right <= n, 1 <= k <= n.
double pass_at_k(int64_t n, int64_t right, int64_t k);

}  // namespace fathom::eval
