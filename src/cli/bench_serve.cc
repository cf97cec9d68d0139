#include "cli/bench_serve.h"

#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/file.h"
#include "base/json.h"
#include "base/terminal.h"
#include "serve/keys.h"
#include "serve/load_client.h"
#include "serve/load_plan.h"
#include "serve/load_report.h"

namespace fathom::cli {
namespace {

using Json = nlohmann::ordered_json;
using serve::LoadReport;

// Streams of randomness of prompts that are not counted, behind all that are.
constexpr uint64_t kUncounted = uint64_t{1} << 40, kShared = uint64_t{1} << 41;
constexpr double kLateS = 0.02;  // from here on the client itself is told to be slow

struct Level {
  int64_t clients = 0;
  double rate = 0;

  std::string name() const {
    if (clients == 0) return fmt::format("{:g} requests/s", rate);
    return fmt::format("{} {}", clients, clients == 1 ? "client" : "clients");
  }
};

std::vector<Level> levels_of(const ServeBenchOptions& o) {
  std::vector<Level> levels;
  for (const int64_t clients : o.clients) levels.push_back({.clients = clients});
  for (const double rate : o.rates) levels.push_back({.rate = rate});
  if (levels.empty()) levels.push_back({.clients = 1});
  return levels;
}

// What is measured, in one place.
struct ServeBench {
  const ServeBenchOptions& o;
  const CommonOptions& common;
  int64_t prompt, gen;
  serve::LoadTarget target;
  serve::RequestFields fields;
  serve::Objectives objectives;
  std::optional<serve::RequestBodies> bodies;
  std::vector<serve::FilePrompt> prompts;  // of --prompts
  serve::WordTokens word_tokens;
  std::string shared;  // words that all prompts begin with

  // Which requests these are, of all that are ever made: no two have the same words.
  std::string body_of(uint64_t request) const {
    if (!prompts.empty()) {
      const serve::FilePrompt& p = prompts[request % prompts.size()];
      return bodies->body(p.json, p.max_tokens.value_or(gen));
    }
    return bodies->body_of_words(shared + serve::random_words(word_tokens.words_for(prompt), common.seed, request),
                                 gen);
  }
};

// The key that the server wants, if any.
std::string key_of(const ServeBenchOptions& o) {
  if (!o.key_file.empty()) return serve::read_api_keys(o.key_file).front();
  const char* key = std::getenv("FATHOM_BENCH_API_KEY");
  if (key == nullptr || *key == 0) return "";
  if (!serve::is_api_key(key)) throw UsageError("FATHOM_BENCH_API_KEY: this is no key that a header can carry");
  return key;
}

serve::LoadTarget target_of(const ServeBenchOptions& o, serve::Endpoint endpoint) {
  serve::LoadTarget target;
  target.url = serve::parse_http_url(o.url);
  if (target.url.path.ends_with("/v1"))
    target.url.path.resize(target.url.path.size() - 3);  // as clients' base_url has it
  target.path = serve::path_of(endpoint);
  target.headers = {{"Accept", "text/event-stream"}};
  if (const std::string key = key_of(o); !key.empty()) target.headers.emplace_back("Authorization", "Bearer " + key);
  target.limits.timeout_s = o.timeout_s;
  target.limits.keep_alive = !o.closes;
  return target;
}

// The server's first model.
std::string first_model(const serve::LoadTarget& target) {
  const std::string where = fmt::format("http://{}{}/v1/models", target.url.authority, target.url.path);
  const std::string request =
      serve::request_text(target.url, "GET", "/v1/models", target.headers, "", target.limits.keep_alive);
  const auto answer = serve::ask(target.url, request, target.limits, [] { return interrupted_by != 0; });
  if (!answer) throw Interrupted{};
  if (answer->status != 200) {
    throw Error("{}: {} {}{}", printable(where), answer->status, serve::error_message_of(answer->body),
                answer->status < 500 ? "; --model NAME says whom to ask" : "");
  }
  const JsonDocument document = JsonDocument::parse(answer->body, printable(where));
  std::string_view id;
  if (document.root()["data"].at(0)["id"].get(id)) {
    throw Error("{}: it names no model; --model NAME says whom to ask", printable(where));
  }
  return std::string(id);
}

// Requests that are not part of what is measured, `clients` at a time. Error where one fails.
std::vector<serve::RequestRecord> ask_uncounted(const ServeBench& b, int64_t requests, int64_t clients,
                                                const std::function<std::string(int64_t)>& body_of) {
  serve::LoadResult result = serve::run_load(b.target, {.requests = requests, .clients = clients}, body_of,
                                             [](const serve::LoadProgress&) { return interrupted_by == 0; });
  stop_when_interrupted();
  for (const serve::RequestRecord& r : result.records) {
    if (r.failure.empty() || r.failure == "empty") continue;
    throw Error("{}: a first request fails: {}: {}", printable(b.o.url), r.failure, r.message);
  }
  return std::move(result.records);
}

// How many tokens the server makes of words.
serve::WordTokens measure_words(const ServeBench& b) {
  constexpr int64_t kWords[] = {8, 40};
  const auto records = ask_uncounted(b, 2, 1, [&](int64_t i) {
    return b.bodies->body_of_words(serve::random_words(kWords[i], b.common.seed, kUncounted + static_cast<uint64_t>(i)),
                                   1);
  });
  const int64_t tokens[] = {records[0].usage.prompt_tokens, records[1].usage.prompt_tokens};
  if (tokens[0] < 0) log("the server does not tell how many tokens a prompt has: a word is taken for one");
  return serve::word_tokens(kWords[0], tokens[0], kWords[1], tokens[1]);
}

// ---- Results

Json json_of(const std::optional<serve::Distribution>& d) {
  if (!d) return nullptr;
  return {{"mean", 1e3 * d->mean}, {"p50", 1e3 * d->p50}, {"p90", 1e3 * d->p90},
          {"p95", 1e3 * d->p95},   {"p99", 1e3 * d->p99}, {"max", 1e3 * d->max}};
}

Json or_null(int64_t n) { return n < 0 ? Json(nullptr) : Json(n); }

Json json_of(const ServeBench& b, const Level& level, const LoadReport& r) {
  Json json{{"test", "serve"}, {"url", b.o.url}, {"model", b.fields.model}, {"endpoint", b.o.endpoint}};
  if (level.clients > 0) {
    json["clients"] = level.clients;
  } else {
    json["rate"] = level.rate;
    json["burstiness"] = b.o.burstiness;
  }
  json["prompt"] = b.prompts.empty() ? Json(b.prompt) : Json(nullptr);
  json["shared_prefix"] = b.o.shared_prefix;
  json["gen"] = b.gen;
  Json failures = Json::object(), messages = Json::object();
  for (const auto& [kind, alike] : r.failures) {
    failures[kind] = alike.n;
    messages[kind] = alike.message;
  }
  json["requests"] = r.completed + r.failed;
  json["completed"] = r.completed;
  json["failed"] = r.failed;
  json["failures"] = failures;
  json["failure_messages"] = messages;
  json["unfinished"] = r.unfinished;
  json["duration_s"] = r.duration_s;
  json["requests_per_s"] = r.per_s(r.completed);
  json["input_tokens"] = or_null(r.input_tokens);
  json["cached_tokens"] = or_null(r.cached_tokens);
  json["output_tokens"] = r.output_tokens;
  json["output_pieces"] = r.pieces;
  json["tokens_counted_by"] = r.server_counts ? "server" : "pieces";
  json["input_tokens_per_s"] = r.input_tokens < 0 ? Json(nullptr) : Json(r.per_s(r.input_tokens));
  json["output_tokens_per_s"] = r.per_s(r.output_tokens);
  json["peak_concurrency"] = r.peak_concurrency;
  json["ttft_ms"] = json_of(r.ttft_s);
  json["tpot_ms"] = json_of(r.tpot_s);
  json["itl_ms"] = json_of(r.itl_s);
  json["e2e_ms"] = json_of(r.e2e_s);
  json["goodput"] = nullptr;
  if (b.objectives.any()) {
    const auto objective = [](double ms) { return ms > 0 ? Json(ms) : Json(nullptr); };
    json["goodput"] = {{"slo_ttft_ms", objective(b.o.slo_ttft_ms)}, {"slo_tpot_ms", objective(b.o.slo_tpot_ms)},
                       {"slo_e2e_ms", objective(b.o.slo_e2e_ms)},   {"requests", r.good},
                       {"requests_per_s", r.per_s(r.good)},         {"percent", r.good_percent()}};
  }
  json["late_ms"] = 1e3 * r.late_s;
  json["client_cpu_s"] = r.client_cpu_s;
  return json;
}

std::string number(double x) { return fmt::format("{:.{}f}", x, x >= 1000 ? 0 : x >= 100 ? 1 : 2); }

std::string table_of(const ServeBench& b, const Level& level, const LoadReport& r) {
  std::string text = fmt::format("\n{}: {} requests in {:.2f} s, {}{}\n", level.name(), r.completed + r.failed,
                                 r.duration_s, r.failed == 0 ? "none failed" : fmt::format("{} failed", r.failed),
                                 r.unfinished > 0 ? fmt::format(", {} not ended", r.unfinished) : "");
  for (const auto& [kind, alike] : r.failures) text += fmt::format("  {} x {}: {}\n", alike.n, kind, alike.message);
  if (r.completed == 0) return text;
  text += fmt::format("  {} requests/s", number(r.per_s(r.completed)));
  if (r.input_tokens >= 0) text += fmt::format(", {} tokens/s in", number(r.per_s(r.input_tokens)));
  text += fmt::format(", {} {}/s out, at most {} at a time\n", number(r.per_s(r.output_tokens)),
                      r.server_counts ? "tokens" : "pieces", r.peak_concurrency);
  if (r.cached_tokens > 0 && r.input_tokens > 0) {
    text += fmt::format("  {} of {} tokens in found in the server's cache, {:.1f} %\n", r.cached_tokens, r.input_tokens,
                        100 * static_cast<double>(r.cached_tokens) / static_cast<double>(r.input_tokens));
  }
  text += fmt::format("  {:<6}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}\n", "ms", "mean", "p50", "p90", "p95", "p99", "max");
  const auto line = [&](const char* name, const std::optional<serve::Distribution>& d) {
    if (!d) return;
    text += fmt::format("  {:<6}", name);
    for (const double s : {d->mean, d->p50, d->p90, d->p95, d->p99, d->max})
      text += fmt::format("{:>10}", number(1e3 * s));
    text += '\n';
  };
  line("TTFT", r.ttft_s);
  line("TPOT", r.tpot_s);
  line("ITL", r.itl_s);
  line("E2E", r.e2e_s);
  if (b.objectives.any()) {
    std::string kept;
    const auto objective = [&](const char* name, double ms) {
      if (ms > 0) kept += fmt::format("{}{} {:g} ms", kept.empty() ? "" : ", ", name, ms);
    };
    objective("TTFT", b.o.slo_ttft_ms);
    objective("TPOT", b.o.slo_tpot_ms);
    objective("E2E", b.o.slo_e2e_ms);
    text +=
        fmt::format("  goodput {} requests/s, {:.1f} % within {}\n", number(r.per_s(r.good)), r.good_percent(), kept);
  }
  return text;
}

void tell_doubts(const ServeBench& b, const LoadReport& r) {
  if (r.completed > 0 && !r.server_counts) log("the server does not tell how many tokens it wrote: pieces are counted");
  if (r.late_s > kLateS) {
    log("requests were sent up to {:.0f} ms late: this machine had no time for the client", 1e3 * r.late_s);
  }
  if (b.shared.empty() && b.prompts.empty() && 2 * r.cached_tokens > r.input_tokens && r.input_tokens > 0) {
    log("the server had most of the prompts in its cache: it was asked with this --seed before; another has new ones");
  }
}

void save_records(AtomicFile& file, const Level& level, const std::vector<serve::RequestRecord>& records) {
  const auto ms = [](double s) { return std::round(1e6 * s) / 1e3; };
  for (size_t i = 0; i < records.size(); ++i) {
    const serve::RequestRecord& r = records[i];
    if (r.begin_s < 0) continue;
    Json json = Json::object();
    if (level.clients > 0) json["clients"] = level.clients;
    if (level.clients == 0) json["rate"] = level.rate;
    json["request"] = i;
    json["begin_ms"] = ms(r.begin_s);
    json["late_ms"] = ms(r.late_s);
    json["end"] = r.end_s < 0 ? "unfinished" : r.failure.empty() ? "completed" : r.failure;
    if (!r.message.empty()) json["message"] = r.message;
    json["status"] = r.status == 0 ? Json(nullptr) : Json(r.status);
    json["e2e_ms"] = r.end_s < 0 ? Json(nullptr) : Json(ms(r.end_s));
    json["prompt_tokens"] = or_null(r.usage.prompt_tokens);
    json["cached_tokens"] = or_null(r.usage.cached_tokens);
    json["completion_tokens"] = or_null(r.usage.completion_tokens);
    json["pieces_ms"] = Json::array();
    for (const double s : r.pieces_s) json["pieces_ms"].push_back(ms(s));
    file.write(json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  }
}

serve::LoadResult run_level(const ServeBench& b, const Level& level, int64_t requests, uint64_t first) {
  serve::LoadPlan plan{.requests = requests, .clients = level.clients};
  if (level.clients == 0) plan.arrivals_s = serve::arrival_times(requests, level.rate, b.o.burstiness, b.common.seed);
  Progress progress(level.name(), requests);
  return serve::run_load(
      b.target, plan, [&](int64_t i) { return b.body_of(first + static_cast<uint64_t>(i)); },
      [&](const serve::LoadProgress& now) {
        progress.update(now.ended, fmt::format("{} running{}", now.running,
                                               now.failed > 0 ? fmt::format(", {} failed", now.failed) : ""));
        return interrupted_by == 0;
      });
}

// A connection is an open file, of which a process may often have 1024.
void allow_connections() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// CLI11's own takes "nan" for a number in any range.
CLI::Validator number_in(double least, double most) {
  return {[least, most](const std::string& text) {
            double x = 0;
            const bool ok = CLI::detail::lexical_cast(text, x) && x >= least && x <= most;
            return ok ? std::string() : fmt::format("{} must be {:g} to {:g}", printable(text), least, most);
          },
          fmt::format("{:g} to {:g}", least, most), "number"};
}

}  // namespace

void run_serve_bench(const ServeBenchOptions& o, const std::string& model, int64_t prompt, int64_t gen,
                     const CommonOptions& common) {
  require_cpu(common, "bench --url");
  if (prompt < 1 || gen < 1) throw UsageError("bench: with --url, --prompt and --gen are 1 or more");
  const auto endpoint = o.endpoint == "chat" ? serve::Endpoint::chat : serve::Endpoint::completions;
  const auto seconds_of = [](double ms) { return ms > 0 ? ms / 1e3 : serve::Objectives::kNone; };
  ServeBench b{.o = o, .common = common, .prompt = prompt, .gen = gen, .target = target_of(o, endpoint)};
  b.objectives = {
      .ttft_s = seconds_of(o.slo_ttft_ms), .tpot_s = seconds_of(o.slo_tpot_ms), .e2e_s = seconds_of(o.slo_e2e_ms)};
  b.fields = {.endpoint = endpoint,
              .model = model,
              .temperature = o.temperature,
              .ignore_eos = !o.stops_at_eos,
              .extra = o.extra_body};
  if (!o.prompts.empty()) b.prompts = serve::read_prompts(o.prompts, endpoint);
  std::unique_ptr<AtomicFile> save;
  if (!o.save.empty()) save = std::make_unique<AtomicFile>(o.save);
  allow_connections();
  if (model.empty()) b.fields.model = first_model(b.target);
  b.bodies.emplace(b.fields);

  const std::vector<Level> levels = levels_of(o);
  int64_t most_clients = 1;
  for (const Level& level : levels) most_clients = std::max(most_clients, level.clients);
  if (b.prompts.empty()) b.word_tokens = measure_words(b);
  if (o.shared_prefix > 0) {
    const auto words = std::llround(static_cast<double>(o.shared_prefix) / b.word_tokens.per_word);
    b.shared = serve::random_words(std::max<int64_t>(words, 1), common.seed, kShared) + " ";
  }
  if (o.warmup > 0) {
    ask_uncounted(b, o.warmup, std::min(o.warmup, most_clients),
                  [&](int64_t i) { return b.body_of(kUncounted + 2 + static_cast<uint64_t>(i)); });
  }

  if (!common.json) {
    const std::string what = b.prompts.empty()
                                 ? fmt::format("prompts of about {} tokens", prompt + o.shared_prefix)
                                 : fmt::format("{} prompts of {}", b.prompts.size(), printable(o.prompts));
    write_stdout(fmt::format("{} at {}: {}, {}, answers of {}{} tokens\n", printable(b.fields.model), printable(o.url),
                             o.endpoint, what, o.stops_at_eos ? "up to " : "", gen));
  }
  uint64_t first = 0;
  int64_t completed = 0;
  std::string failure;
  for (const Level& level : levels) {
    const int64_t requests = std::max(o.requests, level.clients);
    const serve::LoadResult result = run_level(b, level, requests, first);
    first += static_cast<uint64_t>(requests);
    const LoadReport report = serve::report_of(result, b.objectives);
    write_stdout(common.json ? json_of(b, level, report).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"
                             : table_of(b, level, report));
    tell_doubts(b, report);
    if (save) save_records(*save, level, result.records);
    completed += report.completed;
    if (!report.failures.empty())
      failure = report.failures.begin()->first + ": " + report.failures.begin()->second.message;
    if (result.interrupted) break;
  }
  if (first > b.prompts.size() && !b.prompts.empty()) {
    log("{} has {} prompts for {} requests: some were asked more than once", printable(o.prompts), b.prompts.size(),
        first);
  }
  if (save) save->commit();
  stop_when_interrupted();
  if (completed == 0) throw Error("{}: no request was answered: {}", printable(o.url), failure);
}

void add_serve_bench_options(CLI::App& command, ServeBenchOptions& o, CLI::Option* prompt) {
  constexpr const char* kGroup = "Of a server";
  CLI::Option* url =
      command.add_option("--url", o.url, "Measure this server, http://HOST:PORT, and no model of this program")
          ->type_name("URL")
          ->group(kGroup);
  const auto add = [&](const char* name, auto& value, const char* help) {
    return command.add_option(name, value, help)->needs(url)->group(kGroup);
  };
  const auto flag = [&](const char* name, bool& value, const char* help) {
    command.add_flag(name, value, help)->needs(url)->group(kGroup);
  };
  const auto list = [&](const char* name, auto& values, const char* help) {
    return add(name, values, help)->delimiter(',')->allow_extra_args(false)->type_name("N,...");
  };
  CLI::Option* clients =
      list("--clients", o.clients, "Load levels: so many clients at a time, each request behind the last");
  clients->check(CLI::Range(1, 1 << 16))->default_str("1");
  CLI::Option* rates = list("--rate", o.rates, "Load levels: so many requests a second, whatever becomes of them");
  rates->check(number_in(1e-6, 1e6))->excludes(clients)->default_str("");
  add("--burstiness", o.burstiness, "With --rate: 1 comes by chance (Poisson), less in bursts, more evenly")
      ->check(number_in(1e-3, 1e6))
      ->needs(rates);
  add("--requests", o.requests, "Requests of each level, at least one a client")->check(CLI::Range(1, 1 << 24));
  add("--warmup", o.warmup, "Requests before, which do not count")->check(CLI::Range(0, 1 << 20));
  CLI::Option* shared =
      add("--shared-prefix", o.shared_prefix, "Tokens that all prompts begin with, before --prompt of their own");
  shared->check(CLI::Range(0, 1 << 24));
  add("--prompts", o.prompts, "Ask these instead of random words: an object a line with prompt or messages")
      ->type_name("FILE.jsonl")
      ->excludes(prompt)
      ->excludes(shared);
  add("--endpoint", o.endpoint, "Of OpenAI's API: chat, completions")->check(CLI::IsMember({"chat", "completions"}));
  add("--temperature", o.temperature, "Of the answers; 0 takes the likeliest token")->check(number_in(0.0, 100.0));
  flag("--stop-at-eos", o.stops_at_eos, "Let answers end before --gen tokens: ignore_eos is not sent");
  add("--extra-body", o.extra_body, "Fields for every request, in place of those it has")->type_name("JSON");
  add("--api-key-file", o.key_file, "The server's key is its first line (chmod 600; or FATHOM_BENCH_API_KEY)")
      ->type_name("FILE");
  add("--timeout", o.timeout_s, "Seconds that a request may take")->check(number_in(0.001, 1e6));
  flag("--no-keep-alive", o.closes, "A connection for each request");
  const auto objective = [&](const char* name, double& ms, const char* help) {
    add(name, ms, help)->check(number_in(1e-3, 1e9))->type_name("MS")->default_str("");
  };
  objective("--slo-ttft", o.slo_ttft_ms, "Goodput counts requests whose first token comes within so many ms");
  objective("--slo-tpot", o.slo_tpot_ms, "and whose tokens behind it take so many ms at most, on average");
  objective("--slo-e2e", o.slo_e2e_ms, "and that end within so many ms");
  add("--save", o.save, "Every request with its times, an object a line")->type_name("FILE.jsonl");
}

}  // namespace fathom::cli
