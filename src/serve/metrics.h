// What the server counts, in Prometheus's text format. Names are vLLM's behind fathom's prefix, so that dashboards made
// for that port by replacing it. On the server's thread alone.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "infer/generation.h"
#include "serve/engine.h"

namespace fathom::serve {

struct Histogram {
  explicit Histogram(std::vector<double> upper_bounds);  // ascending; one more, for all above them, is added
  void observe(double value);

  std::vector<double> bounds;
  std::vector<int64_t> counts;  // [bounds + 1], not summed up
  double sum = 0;
};

class Metrics {
 public:
  explicit Metrics(std::string model_name);

  void count_http(std::string_view route, int status);
  void count_refusal() { ++refused_; }
  void observe_token_gap(double seconds) { token_gap_.observe(seconds); }
  void count_end(const Generation& generation, bool failed);
  void count_aborted(size_t n) { ended_["abort"] += static_cast<int64_t>(n); }
  void count_request(double seconds) { request_.observe(seconds); }

  std::string text(const EngineState& state, const PassCounts& counts, int64_t connections) const;

 private:
  std::string model_name_;
  std::map<std::pair<std::string, int>, int64_t> http_;
  std::map<std::string, int64_t, std::less<>> ended_;  // by finish reason
  int64_t refused_ = 0;
  Histogram first_token_, token_gap_, per_token_, request_, queue_, prefill_, decode_, prompt_tokens_,
      generated_tokens_;
};

}  // namespace fathom::serve
