// What a load's records say, in the figures that serving is compared by.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "serve/load_client.h"

namespace fathom::serve {

// `part` of 0 to 1, between two values by linear interpolation, as numpy's default; `ascending` is not empty.
double percentile(std::span<const double> ascending, double part);

struct Distribution {
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;
};
// Nothing for no values.
std::optional<Distribution> distribution_of(std::vector<double> values);

// Seconds until the first piece of text.
double time_to_first_token_s(const RequestRecord& record);
// As the server counts tokens, or pieces of text where it does not say.
int64_t output_tokens(const RequestRecord& record);
// (end - first token) / (tokens - 1); nothing for fewer than two tokens.
std::optional<double> time_per_output_token_s(const RequestRecord& record);

// The most requests that ran at one moment. One that ends where another begins does not run beside it.
int64_t peak_concurrency(std::span<const RequestRecord> records);

// What a request must keep to be good; of fewer than two tokens, tpot is kept.
struct Objectives {
  static constexpr double kNone = std::numeric_limits<double>::infinity();
  double ttft_s = kNone, tpot_s = kNone, e2e_s = kNone;

  bool any() const;
};
bool keeps(const RequestRecord& completed, const Objectives& objectives);

struct LoadReport {
  int64_t completed = 0, failed = 0, unfinished = 0;  // unfinished: interrupted, or never begun for that
  struct Failures {
    int64_t n = 0;
    std::string message;  // of the first
  };
  std::map<std::string, Failures> failures;  // by kind
  double duration_s = 0, client_cpu_s = 0;
  double late_s = 0;  // the longest that a request was sent later than it was due
  int64_t peak_concurrency = 0;
  // Of completed requests. Of those of which the server told: -1 where it never did.
  int64_t input_tokens = -1, cached_tokens = -1;
  int64_t output_tokens = 0, pieces = 0;
  bool server_counts = true;                                 // output tokens, of every request
  std::optional<Distribution> ttft_s, tpot_s, itl_s, e2e_s;  // itl: each gap between two pieces of each answer
  int64_t good = 0;                                          // of the completed

  double good_percent() const;  // of all that have ended
  double per_s(int64_t n) const { return duration_s > 0 ? static_cast<double>(n) / duration_s : 0; }
};
LoadReport report_of(const LoadResult& result, const Objectives& objectives);

}  // namespace fathom::serve
