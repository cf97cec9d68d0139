// Any bytes that a server may answer, cut anywhere: the same answer, the same events in it, and the same end. What does
// not begin as HTTP is a stream of events behind a header.
#include <string>
#include <vector>

#include "base/error.h"
#include "serve/event_stream.h"
#include "serve/http_client.h"

namespace {

using namespace fathom;

constexpr size_t kMostBody = 2048, kMostEvent = 256;

struct Seen {
  int status = 0;
  std::string content_type, body;
  std::vector<std::string> events;
  bool keep_alive = false, ends = false, bad_events = false;
  std::string failure;  // empty: none
};

// As the load client does: what was not taken comes again with more behind it. A piece has 1 to `most` bytes.
Seen read(std::string_view bytes, size_t most) {
  static const serve::HttpClientLimits limits{.header_bytes = 1024, .body_bytes = kMostBody};
  Seen seen;
  serve::ReplyReader reader(limits);
  serve::EventReader events(kMostEvent);
  std::string held;
  uint32_t place = 1;
  try {
    while (!bytes.empty() && !reader.done()) {
      place = place * 1664525 + 1013904223;
      const size_t n = std::min(bytes.size(), 1 + (place >> 8) % most);
      held += bytes.substr(0, n);
      bytes.remove_prefix(n);
      held.erase(0, reader.put(held));
      const std::string piece = reader.take_body();
      seen.body += piece;
      if (seen.bad_events) continue;
      try {
        events.put(piece);
        while (const auto data = events.next()) seen.events.emplace_back(*data);
      } catch (const Error&) {
        seen.bad_events = true;
      }
    }
    seen.ends = reader.put_end();
    seen.keep_alive = reader.keep_alive();
  } catch (const serve::HttpFailure& failure) {
    FATHOM_CHECK(failure.end == serve::HttpEnd::malformed || failure.end == serve::HttpEnd::too_large);
    seen.failure = serve::name_of(failure.end);
  }
  seen.status = reader.status();
  seen.content_type = reader.content_type();
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A header that came in pieces is judged once it has ended, one that came at once where it goes wrong.
  std::string bytes = std::string(reinterpret_cast<const char*>(data), size) + "\r\n\r\n";
  if (!bytes.starts_with("HTTP/")) bytes = "HTTP/1.1 200 OK\r\n\r\n" + bytes;
  const Seen whole = read(bytes, bytes.size());
  FATHOM_CHECK(whole.body.size() <= kMostBody);
  for (const size_t most : {size_t{1}, size_t{7}, size_t{200}}) {
    const Seen cut = read(bytes, most);
    // Beast counts a chunk again whose header's extension was cut: large bodies with such may be refused for it.
    if (cut.failure == "too_large" || whole.failure == "too_large") continue;
    FATHOM_CHECK(cut.failure == whole.failure && cut.ends == whole.ends, "'{}' '{}'", cut.failure, whole.failure);
    if (!whole.failure.empty()) continue;
    FATHOM_CHECK(cut.status == whole.status && cut.content_type == whole.content_type && cut.body == whole.body &&
                 cut.keep_alive == whole.keep_alive);
    FATHOM_CHECK(cut.events == whole.events && cut.bad_events == whole.bad_events);
  }
  simdjson::dom::parser parser;
  for (const std::string& event : whole.events) {
    FATHOM_CHECK(event.size() <= kMostEvent);
    try {
      const serve::StreamPiece piece = serve::read_stream_piece(parser, event);
      FATHOM_CHECK(piece.usage.prompt_tokens >= -1 && piece.usage.completion_tokens >= -1 &&
                   piece.usage.cached_tokens >= -1);
    } catch (const Error&) {
    }
  }
  FATHOM_CHECK(serve::error_message_of(whole.body).find('\n') == std::string::npos);
  return 0;
}
