// Log probabilities of one row of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

namespace fathom {

// Refers to the row.
struct LogSoftmax {
  const float* logits;
  double max = 0, log_sum = 0;
  int64_t best = 0;  // the likeliest token; of equal ones the lowest

  explicit LogSoftmax(std::span<const float> row) : logits(row.data()) {
    best = std::max_element(row.begin(), row.end()) - row.begin();
    max = row[static_cast<size_t>(best)];
    double sum = 0;
    for (const float x : row) sum += std::exp(x - max);
    log_sum = std::log(sum);
  }
  double operator[](int64_t token) const { return logits[token] - max - log_sum; }
  double entropy(int64_t n) const {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (const double p = std::exp((*this)[i]); p > 0) sum -= p * (*this)[i];
    }
    return sum;
  }
};

}  // namespace fathom
