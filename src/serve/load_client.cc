#include "serve/load_client.h"

#include <sys/resource.h>

#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/terminal.h"

namespace fathom::serve {
namespace {

constexpr double kWatchS = 0.05;
constexpr size_t kMaxEventBytes = size_t{1} << 20;
constexpr size_t kMaxErrorBytes = size_t{8} << 10;  // of an answer that is no stream
constexpr size_t kMaxPieces = size_t{1} << 18;

double thread_cpu_s() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// One answer as it comes in.
struct Answer {
  RequestRecord& record;
  double begin_s;  // of monotonic_s()
  EventReader events{kMaxEventBytes};
  std::string content_type, other;  // the body, where it is no stream
  bool has_events = false, finished = false, done = false;
};

void fail(RequestRecord& record, std::string kind, std::string message) {
  record.failure = std::move(kind);
  record.message = std::move(message);
}

void take_piece(Answer& answer, const StreamPiece& piece, double now_s) {
  RequestRecord& record = answer.record;
  answer.has_events = true;
  answer.finished |= piece.finished;
  answer.done |= piece.done;
  if (piece.has_text) record.pieces_s.push_back(now_s - answer.begin_s);
  const auto take = [](int64_t told, int64_t& count) {
    if (told >= 0) count = told;
  };
  take(piece.usage.prompt_tokens, record.usage.prompt_tokens);
  take(piece.usage.completion_tokens, record.usage.completion_tokens);
  take(piece.usage.cached_tokens, record.usage.cached_tokens);
  if (piece.error) return fail(record, "error_event", *piece.error);
  if (record.pieces_s.size() > kMaxPieces) {
    fail(record, name_of(HttpEnd::too_large), fmt::format("an answer in more than {} pieces", kMaxPieces));
  }
}

HttpNext take_bytes(Answer& answer, simdjson::dom::parser& parser, const std::string& bytes, double now_s) {
  RequestRecord& record = answer.record;
  if (record.status != 200 || !answer.has_events) {
    answer.other += bytes.substr(0, kMaxErrorBytes - answer.other.size());
    if (record.status != 200) return answer.other.size() < kMaxErrorBytes ? HttpNext::more : HttpNext::stop;
  }
  try {
    answer.events.put(bytes);
    while (const auto data = answer.events.next()) {
      if (data->empty()) continue;  // a sign of life
      take_piece(answer, read_stream_piece(parser, *data), now_s);
      if (!record.failure.empty()) break;
      if (answer.done) {
        record.end_s = now_s - answer.begin_s;
        return HttpNext::last;
      }
    }
  } catch (const Error& error) {
    fail(record, name_of(HttpEnd::malformed), error.what());
  }
  return record.failure.empty() ? HttpNext::more : HttpNext::stop;
}

// Judges an answer that has come to its end.
void judge(Answer& answer, HttpEnd end, const std::string& message) {
  RequestRecord& record = answer.record;
  if (record.end_s < 0) record.end_s = monotonic_s() - answer.begin_s;
  if (!record.failure.empty()) return;
  if (record.status != 0 && record.status != 200) {
    return fail(record, fmt::format("http_{}", record.status), error_message_of(answer.other));
  }
  if (end != HttpEnd::complete) return fail(record, name_of(end), message);
  if (!answer.has_events) {
    return fail(record, name_of(HttpEnd::malformed),
                fmt::format("no event stream ({}): {}",
                            answer.content_type.empty() ? "no content type" : printable(answer.content_type, 80),
                            error_message_of(answer.other)));
  }
  // Some servers leave [DONE] out.
  if (!answer.done && !answer.finished) {
    return fail(record, name_of(HttpEnd::cut), "the stream has ended without [DONE] or a finish reason");
  }
  if (record.pieces_s.empty()) fail(record, "empty", "an answer without text");
}

struct Load {
  const LoadTarget& target;
  const LoadPlan& plan;
  const std::function<std::string(int64_t)>& body_of;
  HttpClient client;
  LoadResult result;
  LoadProgress progress;
  double begin_s = 0;
  int64_t next = 0;
  simdjson::dom::parser parser{};

  void begin(double due_s) {
    const int64_t i = next++;
    RequestRecord& record = result.records[static_cast<size_t>(i)];
    ++progress.running;
    record.begin_s = due_s - begin_s;
    const auto answer = std::make_shared<Answer>(Answer{record, due_s});
    std::string text =
        request_text(target.url, "POST", target.path, target.headers, body_of(i), target.limits.keep_alive);
    record.late_s = monotonic_s() - due_s;
    client.send(std::move(text),
                {.header =
                     [answer](int status, const std::string& content_type) {
                       answer->record.status = status;
                       answer->content_type = content_type;
                     },
                 .body = [this, answer](const std::string& bytes,
                                        double now_s) { return take_bytes(*answer, parser, bytes, now_s); },
                 .end = [this, answer](HttpEnd end, const std::string& message) { ended(*answer, end, message); }});
  }

  void ended(Answer& answer, HttpEnd end, const std::string& message) {
    judge(answer, end, message);
    --progress.running;
    progress.failed += !answer.record.failure.empty();
    if (++progress.ended == plan.requests) return client.stop();
    if (plan.clients > 0 && next < plan.requests) begin(monotonic_s());
  }

  // One client after the other, listening in between to those that have begun.
  void start_clients(int64_t n) {
    if (n == 0 || next == plan.requests) return;
    begin(monotonic_s());
    client.at(0, [this, n] { start_clients(n - 1); });
  }

  // Begins what is due, and comes again for the next.
  void arrive() {
    const auto due_s = [&] { return begin_s + plan.arrivals_s[static_cast<size_t>(next)]; };
    while (next < plan.requests && due_s() <= monotonic_s()) begin(due_s());
    if (next < plan.requests) client.at(due_s(), [this] { arrive(); });
  }
};

}  // namespace

LoadResult run_load(const LoadTarget& target, const LoadPlan& plan, const std::function<std::string(int64_t)>& body_of,
                    const std::function<bool(const LoadProgress&)>& watch) {
  FATHOM_CHECK(plan.clients > 0 || std::ssize(plan.arrivals_s) == plan.requests);
  Load load{target, plan, body_of, HttpClient(target.url, target.limits)};
  load.result.records.resize(static_cast<size_t>(plan.requests));
  if (plan.requests == 0) return std::move(load.result);
  load.client.every(kWatchS, [&] {
    if (watch(load.progress)) return;
    load.result.interrupted = true;
    load.client.stop();
  });
  const double cpu_s = thread_cpu_s();
  load.begin_s = monotonic_s();
  if (plan.clients > 0) {
    load.start_clients(plan.clients);
  } else {
    load.arrive();
  }
  load.client.run();
  load.result.client_cpu_s = thread_cpu_s() - cpu_s;
  if (load.result.interrupted) {
    load.result.duration_s = monotonic_s() - load.begin_s;
  } else {
    for (const RequestRecord& r : load.result.records) {
      load.result.duration_s = std::max(load.result.duration_s, r.begin_s + r.end_s);
    }
  }
  return std::move(load.result);
}

}  // namespace fathom::serve
