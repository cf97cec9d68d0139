#include "infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "base/error.h"

namespace fathom {
namespace {

bool more_likely(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

void apply_penalties(std::span<float> logits, std::span<const int32_t> previous, int64_t n_generated,
                     const SamplerOptions& options) {
  if (options.repetition_penalty == 1 && options.presence_penalty == 0 && options.frequency_penalty == 0) return;
  std::unordered_map<int32_t, int64_t> seen;  // token -> times in the output
  const size_t first_generated = previous.size() - static_cast<size_t>(n_generated);
  for (size_t i = 0; i < previous.size(); ++i) seen[previous[i]] += i >= first_generated ? 1 : 0;
  for (const auto& [id, count] : seen) {
    double logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / options.repetition_penalty : logit * options.repetition_penalty;
    if (count > 0) logit -= options.presence_penalty + static_cast<double>(count) * options.frequency_penalty;
    logits[static_cast<size_t>(id)] = static_cast<float>(logit);
  }
}

// The lowest id with the largest logit; Error for logits that allow no choice.
int32_t largest(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      throw BrokenLogits("the model's logit for token {} is {}: weights are broken or overflow", i, logits[i]);
    }
    if (logits[i] > logits[best]) best = i;
  }
  if (std::isinf(logits[best])) throw Error("the model's logits exclude every token");
  return static_cast<int32_t>(best);
}

void keep_top_k(Distribution& candidates, int64_t top_k) {
  if (top_k == 0 || static_cast<size_t>(top_k) >= candidates.size()) return;
  std::nth_element(candidates.begin(), candidates.begin() + top_k, candidates.end(), more_likely);
  candidates.resize(static_cast<size_t>(top_k));
}

void keep_top_p(Distribution& candidates, double top_p) {
  if (top_p >= 1) return;
  const double sum = total_weight(candidates);
  // Tokens this unlikely cannot be needed to reach top_p even if all were: sorting them would be most of the work.
  const double floor = (1 - top_p) * sum / static_cast<double>(candidates.size());
  std::erase_if(candidates, [floor](const Candidate& c) { return c.weight < floor; });
  std::sort(candidates.begin(), candidates.end(), more_likely);
  double reached = 0;
  size_t n = 0;
  while (n < candidates.size() && (n == 0 || reached < top_p * sum)) reached += candidates[n++].weight;
  candidates.resize(n);
}

}  // namespace

void check_sampler(const SamplerOptions& o) {
  // Written so that NaN is refused too.
  if (!(o.temperature >= 0 && o.temperature <= 1e6))
    throw UsageError("--temperature {}: must be between 0 and 10^6", o.temperature);
  if (o.top_k < 0) throw UsageError("--top-k {}: must be 0 (off) or more", o.top_k);
  if (!(o.top_p > 0 && o.top_p <= 1)) throw UsageError("--top-p {}: must be above 0 and at most 1", o.top_p);
  if (!(o.min_p >= 0 && o.min_p <= 1)) throw UsageError("--min-p {}: must be between 0 and 1", o.min_p);
  if (!(o.repetition_penalty > 0 && o.repetition_penalty <= 1e6)) {
    throw UsageError("--repetition-penalty {}: must be above 0 and at most 10^6", o.repetition_penalty);
  }
  if (!(std::abs(o.presence_penalty) <= 100)) {
    throw UsageError("--presence-penalty {}: must be between -100 and 100", o.presence_penalty);
  }
  if (!(std::abs(o.frequency_penalty) <= 100)) {
    throw UsageError("--frequency-penalty {}: must be between -100 and 100", o.frequency_penalty);
  }
}

Distribution distribution(std::span<float> logits, std::span<const int32_t> previous, int64_t n_generated,
                          const SamplerOptions& options) {
  FATHOM_CHECK(!logits.empty() && n_generated >= 0 && static_cast<size_t>(n_generated) <= previous.size());
  for (const auto& [id, bias] : options.logit_bias) {
    if (id >= 0 && static_cast<size_t>(id) < logits.size()) logits[static_cast<size_t>(id)] += bias;
  }
  apply_penalties(logits, previous, n_generated, options);
  const int32_t best = largest(logits);
  if (options.temperature == 0) return {{best, 1}};

  const double top_logit = logits[static_cast<size_t>(best)];
  Distribution candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates.push_back({static_cast<int32_t>(i), std::exp((logits[i] - top_logit) / options.temperature)});
  }
  keep_top_k(candidates, options.top_k);
  keep_top_p(candidates, options.top_p);
  std::erase_if(candidates, [&](const Candidate& c) { return c.weight < options.min_p || c.weight == 0; });
  // One order whatever the filters did, so that the same draw means the same token.
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  return candidates;
}

double total_weight(const Distribution& candidates) {
  double sum = 0;
  for (const Candidate& c : candidates) sum += c.weight;
  return sum;
}

int32_t draw(const Distribution& candidates, Rng& rng) {
  double left = rng.uniform() * total_weight(candidates);
  for (const Candidate& c : candidates) {
    if (left < c.weight) return c.id;
    left -= c.weight;
  }
  return candidates.back().id;  // rounding used up the draw
}

int32_t sample(std::span<float> logits, std::span<const int32_t> previous, int64_t n_generated,
               const SamplerOptions& options, Rng& rng) {
  const Distribution candidates = distribution(logits, previous, n_generated, options);
  return options.temperature == 0 ? candidates.front().id : draw(candidates, rng);
}

}  // namespace fathom
