#include "serve/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace fathom::serve {
namespace {

const std::vector<double> kSeconds = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600};
const std::vector<double> kTokens = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};

// Writes families, each with its labels behind `model_name`.
struct Writer {
  std::string labels;
  std::string text = {};

  void family(std::string_view name, std::string_view type, std::string_view help) {
    text += fmt::format("# HELP fathom:{0} {1}\n# TYPE fathom:{0} {2}\n", name, help, type);
  }
  template <class T>
  void value(std::string_view name, T x, std::string_view more_labels = "") {
    text += fmt::format("fathom:{}{{{}{}}} {}\n", name, labels, more_labels, x);
  }
  template <class T>
  void gauge(std::string_view name, std::string_view help, T x) {
    family(name, "gauge", help);
    value(name, x);
  }
  void counter(std::string_view name, std::string_view help, int64_t x) {
    family(name, "counter", help);
    value(name, x);
  }
  void histogram(std::string_view name, std::string_view help, const Histogram& h) {
    family(name, "histogram", help);
    int64_t n = 0;
    const std::string bucket = fmt::format("{}_bucket", name);
    for (size_t i = 0; i < h.counts.size(); ++i) {
      n += h.counts[i];
      value(bucket, n, i < h.bounds.size() ? fmt::format(",le=\"{}\"", h.bounds[i]) : ",le=\"+Inf\"");
    }
    value(fmt::format("{}_sum", name), h.sum);
    value(fmt::format("{}_count", name), n);
  }
};

constexpr size_t kMostExperts = 4096;  // of all layers, told one by one

Histogram histogram_of(const PassSizes& sizes) {
  std::vector<double> bounds;
  for (size_t i = 0; i + 1 < sizes.counts.size(); ++i) bounds.push_back(static_cast<double>(int64_t{1} << i));
  Histogram h(std::move(bounds));
  h.counts.assign(sizes.counts.begin(), sizes.counts.end());
  h.sum = static_cast<double>(sizes.sum);
  return h;
}

void write_experts(Writer& w, const ExpertLoad& tokens) {
  size_t n = 0;
  for (const std::vector<int64_t>& layer : tokens) n += layer.size();
  if (n == 0) return;
  w.family("eplb_balancedness", "gauge", "Of a layer's experts the mean of their tokens over the most, 1 is even.");
  for (size_t l = 0; l < tokens.size(); ++l) {
    if (tokens[l].empty()) continue;
    const auto most = static_cast<double>(*std::max_element(tokens[l].begin(), tokens[l].end()));
    const double sum = std::accumulate(tokens[l].begin(), tokens[l].end(), 0.0);
    w.value("eplb_balancedness", most > 0 ? sum / static_cast<double>(tokens[l].size()) / most : 1,
            fmt::format(",layer=\"{}\"", l));
  }
  if (n > kMostExperts) return;
  w.family("expert_tokens_total", "counter", "Tokens that each expert got.");
  for (size_t l = 0; l < tokens.size(); ++l) {
    for (size_t e = 0; e < tokens[l].size(); ++e)
      w.value("expert_tokens_total", tokens[l][e], fmt::format(",layer=\"{}\",expert=\"{}\"", l, e));
  }
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

}  // namespace

Histogram::Histogram(std::vector<double> upper_bounds) : bounds(std::move(upper_bounds)), counts(bounds.size() + 1) {}

void Histogram::observe(double value) {
  ++counts[static_cast<size_t>(std::lower_bound(bounds.begin(), bounds.end(), value) - bounds.begin())];
  sum += value;
}

Metrics::Metrics(std::string model_name)
    : model_name_(std::move(model_name)),
      first_token_(kSeconds),
      token_gap_(kSeconds),
      per_token_(kSeconds),
      request_(kSeconds),
      queue_(kSeconds),
      prefill_(kSeconds),
      decode_(kSeconds),
      prompt_tokens_(kTokens),
      generated_tokens_(kTokens) {}

void Metrics::count_http(std::string_view route, int status) { ++http_[{std::string(route), status}]; }

void Metrics::count_end(const Generation& g, bool failed) {
  ++ended_[failed ? "error" : finish_reason_name(g.finish)];
  if (failed) return;
  queue_.observe(g.queue_s);
  prefill_.observe(g.prefill_s - g.queue_s);
  prompt_tokens_.observe(static_cast<double>(g.prompt_tokens));
  generated_tokens_.observe(static_cast<double>(g.ids.size()));
  if (g.ids.empty()) return;
  first_token_.observe(g.prefill_s);
  decode_.observe(g.decode_s);
  if (g.ids.size() > 1) per_token_.observe(g.decode_s / static_cast<double>(g.ids.size() - 1));
}

std::string Metrics::text(const EngineState& state, const PassCounts& counts, int64_t connections) const {
  Writer w{fmt::format("model_name=\"{}\"", escaped(model_name_))};
  w.gauge("num_requests_running", "Sequences that are read or generated.", state.running);
  w.gauge("num_requests_waiting", "Sequences that wait for room.", state.waiting);
  const auto share = [](int64_t a, int64_t b) { return b > 0 ? static_cast<double>(a) / static_cast<double>(b) : 0.0; };
  w.gauge("kv_cache_usage_perc", "Part of the cache's pages that running sequences hold, 1 is all.",
          share(state.pages_held, state.pages));
  w.gauge("kv_cache_pages_shared", "Pages that later sequences can share.", state.pages_shared);
  w.counter("kv_cache_evictions_total", "Pages forgotten for the sake of room.", state.pages_evicted);
  w.counter("num_preemptions_total", "Sequences put back for the sake of older ones.", state.preemptions);
  w.counter("prefix_cache_queries_total", "Tokens of prompts that were looked up.", counts.asked_tokens);
  w.counter("prefix_cache_hits_total", "Of these, found.", counts.cached_tokens);
  w.counter("prefix_cache_loaded_total", "Of these, in files.", counts.loaded_tokens);
  w.gauge("prefix_cache_files", "Pages in files.", state.store.pages);
  w.gauge("prefix_cache_file_bytes", "Bytes of these.", state.store.bytes);
  w.counter("prefix_cache_files_written_total", "Pages written to files.", state.store.written);
  w.counter("prefix_cache_files_dropped_total", "Pages not written, for too many waited.", state.store.dropped);
  w.counter("prefix_cache_file_errors_total", "Files that could not be written, or were damaged.", state.store.failed);
  w.counter("prompt_tokens_total", "Tokens of prompts.", counts.asked_tokens);
  w.counter("prompt_tokens_cached_total", "Of these, found in the cache.", counts.cached_tokens);
  w.counter("prompt_tokens_computed_total",
            "Tokens of prompts read by the model, those read twice for want of room included.", counts.prompt_tokens);
  w.counter("generation_tokens_total", "Tokens generated.", counts.generated_tokens);
  w.counter("iterations_total", "Passes of the model.", counts.passes);
  w.histogram("iteration_tokens_total", "Tokens of a pass.", histogram_of(counts.tokens));
  w.histogram("batch_size", "Sequences of a pass.", histogram_of(counts.sequences));
  w.counter("corrupted_requests_total", "Outputs that ended since logits were not finite.", counts.corrupted);
  w.counter("spec_decode_num_drafts_total", "Times that the MTP module proposed something.", counts.drafts);
  w.counter("spec_decode_num_draft_tokens_total", "Tokens that the MTP module proposed.", counts.drafted);
  w.counter("spec_decode_num_accepted_tokens_total", "Of these, accepted.", counts.accepted);
  if (!counts.accepted_at.empty()) {
    w.family("spec_decode_num_accepted_tokens_per_pos_total", "counter",
             "Of these, by their place in what was proposed.");
    for (size_t i = 0; i < counts.accepted_at.size(); ++i) {
      w.value("spec_decode_num_accepted_tokens_per_pos_total", counts.accepted_at[i],
              fmt::format(",position=\"{}\"", i));
    }
  }
  write_experts(w, counts.expert_tokens);
  w.counter("admission_rejections_total", "Requests answered 429.", refused_);
  w.gauge("http_connections", "Open connections.", connections);
  w.family("request_success_total", "counter", "Sequences ended, by reason.");
  for (const auto& [reason, n] : ended_)
    w.value("request_success_total", n, fmt::format(",finished_reason=\"{}\"", reason));
  w.family("http_requests_total", "counter", "Requests answered, by route and status.");
  for (const auto& [key, n] : http_) {
    w.value("http_requests_total", n, fmt::format(",route=\"{}\",status=\"{}\"", escaped(key.first), key.second));
  }
  w.histogram("time_to_first_token_seconds", "From a sequence's arrival to its first token.", first_token_);
  w.histogram("inter_token_latency_seconds", "Between two pieces of a sequence's output.", token_gap_);
  w.histogram("request_time_per_output_token_seconds", "Mean time of a sequence's tokens behind the first.",
              per_token_);
  w.histogram("e2e_request_latency_seconds", "From a request's arrival to its end.", request_);
  w.histogram("request_queue_time_seconds", "From a sequence's arrival until its prompt is read.", queue_);
  w.histogram("request_prefill_time_seconds", "From there to the first token.", prefill_);
  w.histogram("request_decode_time_seconds", "From the first token to the last.", decode_);
  w.histogram("request_prompt_tokens", "Tokens of a sequence's prompt.", prompt_tokens_);
  w.histogram("request_generation_tokens", "Tokens generated for a sequence.", generated_tokens_);
  return std::move(w.text);
}

}  // namespace fathom::serve
