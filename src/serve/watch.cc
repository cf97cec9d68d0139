#include "serve/watch.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/utf8.h"
#include "serve/page_file.h"
#include "serve/request.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kRuns = "/runs", kLog = "/log";

// All of `text` as a number; none where it is no such.
std::optional<uint64_t> number_of(std::string_view text, int base = 10) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// The value of a field of a query; none where it is not given. ApiError 400 where it is no number.
std::optional<uint64_t> field_of(std::string_view query, std::string_view name, int base) {
  while (!query.empty()) {
    const std::string_view field = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(field.size() + 1, query.size()));
    if (!field.starts_with(name) || field.substr(name.size(), 1) != "=") continue;
    const std::optional<uint64_t> value = number_of(field.substr(name.size() + 1), base);
    if (!value) throw ApiError(400, fmt::format("{} is no number", name), std::string(name), "invalid_value");
    return value;
  }
  return std::nullopt;
}

std::string runs_json(const Watch& watch) {
  ordered_json runs = ordered_json::array();
  for (const WatchedRun& run : watch.runs) {
    ordered_json each{{"name", mend_utf8(run.name)}, {"path", mend_utf8(run.path)}, {"there", false}};
    try {
      if (const std::optional<LogState> state = log_state(run.log)) {
        each["there"] = true;
        each["bytes"] = state->bytes;
        each["age_s"] = state->age_s;
        each["changed"] = state->changed;
      }
    } catch (const Error& error) {
      each["error"] = mend_utf8(error.what());
    }
    runs.push_back(std::move(each));
  }
  return ordered_json{{"version", watch.version}, {"runs", std::move(runs)}}.dump();
}

// Of /runs/N/log the N; none: another path, or no such run.
std::optional<size_t> run_of(const Watch& watch, std::string_view path) {
  if (!path.starts_with(kRuns) || !path.ends_with(kLog) || path.size() <= kRuns.size() + 1 + kLog.size()) return {};
  path = path.substr(kRuns.size(), path.size() - kRuns.size() - kLog.size());
  if (path[0] != '/') return {};
  const std::optional<uint64_t> n = number_of(path.substr(1));
  return n && *n < watch.runs.size() ? n : std::nullopt;
}

const HttpHeaders& safe_headers() {
  static const HttpHeaders headers = {{"X-Content-Type-Options", "nosniff"},
                                      {"Cache-Control", "no-store"},
                                      {"Cross-Origin-Resource-Policy", "same-origin"}};
  return headers;
}

void send_log(const WatchedRun& run, std::string_view query, HttpReply& reply) {
  const std::optional<LogPiece> piece =
      read_log(run.log, field_of(query, "from", 10).value_or(0), field_of(query, "mark", 16));
  HttpHeaders headers = safe_headers();
  if (!piece) return reply.send(204, "", "", headers);
  headers.emplace_back("X-Log-From", std::to_string(piece->from));
  headers.emplace_back("X-Log-Next", std::to_string(piece->next));
  headers.emplace_back("X-Log-Mark", fmt::format("{:016x}", piece->mark));
  headers.emplace_back("X-Log-Bytes", std::to_string(piece->bytes));
  reply.send(200, "application/x-ndjson", piece->lines, headers);
}

void answer(const Watch& watch, const HttpRequest& request, HttpReply& reply) {
  check_origin(watch.access, request);
  const bool is_get = request.method == "GET" || request.method == "HEAD";
  const std::optional<size_t> run = run_of(watch, request.path);
  const std::optional<PageFile> file = find_page_file("watch", request.path);
  if (!run && !file && request.path != kRuns) {
    throw ApiError(404, fmt::format("there is no {}", printable(request.path)), "", "not_found");
  }
  if (!is_get) throw ApiError(405, "only GET is answered here", "", "method_not_allowed");
  if (file) {
    HttpHeaders headers = page_headers();
    headers.emplace_back("X-Content-Type-Options", "nosniff");
    return reply.send(200, file->content_type, file->content, headers);
  }
  check_key(watch.access, request);
  if (run) return send_log(watch.runs[*run], request.query, reply);
  reply.send(200, "application/json", runs_json(watch), safe_headers());
}

}  // namespace

HttpRefusalText refuse_watch(const HttpRefusal& refusal) {
  return {error_json(ApiError(refusal.status, refusal.what())), safe_headers()};
}

void answer_watch(const Watch& watch, const HttpRequest& request, HttpReply& reply) {
  const auto refuse = [&](const ApiError& error) {
    HttpHeaders headers = safe_headers();
    if (error.status == 405) headers.emplace_back("Allow", "GET, HEAD");
    if (error.status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
    reply.send(error.status, "application/json", error_json(error), headers);
  };
  try {
    answer(watch, request, reply);
  } catch (const ApiError& error) {
    refuse(error);
  } catch (const std::exception& error) {  // a log that cannot be read
    refuse(ApiError(500, error.what()));
  }
}

}  // namespace fathom::serve
