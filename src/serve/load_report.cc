#include "serve/load_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace fathom::serve {

double percentile(std::span<const double> ascending, double part) {
  FATHOM_CHECK(!ascending.empty() && part >= 0 && part <= 1);
  const double place = part * static_cast<double>(ascending.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, ascending.size() - 1);
  return std::lerp(ascending[below], ascending[above], place - static_cast<double>(below));
}

std::optional<Distribution> distribution_of(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  std::sort(values.begin(), values.end());
  return Distribution{.mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size()),
                      .p50 = percentile(values, 0.5),
                      .p90 = percentile(values, 0.9),
                      .p95 = percentile(values, 0.95),
                      .p99 = percentile(values, 0.99),
                      .max = values.back()};
}

double time_to_first_token_s(const RequestRecord& record) { return record.pieces_s.at(0); }

int64_t output_tokens(const RequestRecord& record) {
  return record.usage.completion_tokens >= 0 ? record.usage.completion_tokens : std::ssize(record.pieces_s);
}

std::optional<double> time_per_output_token_s(const RequestRecord& record) {
  const int64_t n = output_tokens(record);
  if (n < 2) return std::nullopt;
  return (record.end_s - time_to_first_token_s(record)) / static_cast<double>(n - 1);
}

int64_t peak_concurrency(std::span<const RequestRecord> records) {
  std::vector<std::pair<double, int>> changes;  // at a time, ends first
  for (const RequestRecord& r : records) {
    if (r.begin_s < 0) continue;
    changes.emplace_back(r.begin_s, 1);
    if (r.end_s >= 0) changes.emplace_back(r.begin_s + r.end_s, -1);
  }
  std::sort(changes.begin(), changes.end());
  int64_t running = 0, most = 0;
  for (const auto& change : changes) {
    running += change.second;
    most = std::max(most, running);
  }
  return most;
}

bool Objectives::any() const { return std::isfinite(ttft_s) || std::isfinite(tpot_s) || std::isfinite(e2e_s); }

bool keeps(const RequestRecord& completed, const Objectives& objectives) {
  return time_to_first_token_s(completed) <= objectives.ttft_s &&
         time_per_output_token_s(completed).value_or(0) <= objectives.tpot_s && completed.end_s <= objectives.e2e_s;
}

double LoadReport::good_percent() const {
  const int64_t ended = completed + failed;
  return ended > 0 ? 100 * static_cast<double>(good) / static_cast<double>(ended) : 0;
}

LoadReport report_of(const LoadResult& result, const Objectives& objectives) {
  LoadReport report;
  report.duration_s = result.duration_s;
  report.client_cpu_s = result.client_cpu_s;
  report.peak_concurrency = peak_concurrency(result.records);
  std::vector<double> ttft_s, tpot_s, itl_s, e2e_s;
  const auto add = [](int64_t told, int64_t& sum) {
    if (told >= 0) sum = std::max<int64_t>(sum, 0) + told;
  };
  for (const RequestRecord& r : result.records) {
    report.late_s = std::max(report.late_s, r.late_s);
    if (r.end_s < 0) {
      ++report.unfinished;
      continue;
    }
    if (!r.failure.empty()) {
      ++report.failed;
      LoadReport::Failures& alike = report.failures[r.failure];
      if (alike.n++ == 0) alike.message = r.message;
      continue;
    }
    ++report.completed;
    add(r.usage.prompt_tokens, report.input_tokens);
    add(r.usage.cached_tokens, report.cached_tokens);
    report.output_tokens += output_tokens(r);
    report.pieces += std::ssize(r.pieces_s);
    report.server_counts &= r.usage.completion_tokens >= 0;
    ttft_s.push_back(time_to_first_token_s(r));
    if (const auto tpot = time_per_output_token_s(r)) tpot_s.push_back(*tpot);
    for (size_t i = 1; i < r.pieces_s.size(); ++i) itl_s.push_back(r.pieces_s[i] - r.pieces_s[i - 1]);
    e2e_s.push_back(r.end_s);
    report.good += keeps(r, objectives);
  }
  report.ttft_s = distribution_of(std::move(ttft_s));
  report.tpot_s = distribution_of(std::move(tpot_s));
  report.itl_s = distribution_of(std::move(itl_s));
  report.e2e_s = distribution_of(std::move(e2e_s));
  return report;
}

}  // namespace fathom::serve
