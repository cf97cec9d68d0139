// Log probabilities of one row of logits: of all tokens, or as a sampler makes them, with a temperature, of some.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

namespace fathom {

// Refers to the row, and to the tokens that are kept (ascending; none: all).
struct LogSoftmax {
  const float* logits;
  double max = 0, log_sum = 0;
  int64_t best = 0;  // the likeliest token; of equal ones the lowest
  double temperature = 1;
  std::span<const int32_t> kept{};

  explicit LogSoftmax(std::span<const float> row) : logits(row.data()) {
    best = std::max_element(row.begin(), row.end()) - row.begin();
    max = row[static_cast<size_t>(best)];
    double sum = 0;
    for (const float x : row) sum += std::exp(x - max);
    log_sum = std::log(sum);
  }
  LogSoftmax(std::span<const float> row, double at_temperature, std::span<const int32_t> of)
      : logits(row.data()), temperature(at_temperature), kept(of) {
    best = kept.empty() ? std::max_element(row.begin(), row.end()) - row.begin()
                        : *std::max_element(kept.begin(), kept.end(), [&](int32_t a, int32_t b) {
                            return row[static_cast<size_t>(a)] < row[static_cast<size_t>(b)];
                          });
    max = row[static_cast<size_t>(best)];
    double sum = 0;
    if (kept.empty()) {
      for (const float x : row) sum += std::exp((x - max) / temperature);
    } else {
      for (const int32_t id : kept) sum += std::exp((row[static_cast<size_t>(id)] - max) / temperature);
    }
    log_sum = std::log(sum);
  }
  // Of a token that is kept.
  double operator[](int64_t token) const { return (logits[token] - max) / temperature - log_sum; }
  double entropy(int64_t n) const {
    double sum = 0;
    const auto add = [&](int64_t token) {
      if (const double p = std::exp((*this)[token]); p > 0) sum -= p * (*this)[token];
    };
    if (kept.empty()) {
      for (int64_t i = 0; i < n; ++i) add(i);
    } else {
      for (const int32_t id : kept) add(id);
    }
    return sum;
  }
};

}  // namespace fathom
