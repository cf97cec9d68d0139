// Any bytes on a connection, cut anywhere: the same requests, and the same refusal at their end.
#include <string>
#include <vector>

#include "base/error.h"
#include "serve/http.h"

namespace {

using namespace fathom;

struct Seen {
  std::vector<serve::HttpRequest> requests;
  int refused = 0;
};

// As a connection does: what was not taken comes again with more behind it. A piece has 1 to `most` bytes.
Seen read(std::string_view bytes, size_t most) {
  static const serve::HttpLimits limits{.header_bytes = 1024, .headers = 20, .body_bytes = 2048};
  Seen seen;
  serve::RequestReader reader(limits);
  std::string held;
  uint32_t place = 1;
  try {
    while (!bytes.empty()) {
      place = place * 1664525 + 1013904223;
      const size_t n = std::min(bytes.size(), 1 + (place >> 8) % most);
      held += bytes.substr(0, n);
      bytes.remove_prefix(n);
      for (;;) {
        held.erase(0, reader.put(held));
        if (!reader.done()) break;
        seen.requests.push_back(reader.take());
      }
    }
  } catch (const serve::HttpRefusal& refusal) {
    seen.refused = refusal.status;
    FATHOM_CHECK(refusal.status >= 400 && refusal.status < 600);
  }
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A header that came in pieces is judged once it has ended, one that came at once where it goes wrong.
  const std::string bytes = std::string(reinterpret_cast<const char*>(data), size) + "\r\n\r\n";
  const Seen whole = read(bytes, bytes.size());
  for (const size_t most : {size_t{1}, size_t{7}, size_t{200}}) {
    const Seen cut = read(bytes, most);
    // Beast counts a chunk again whose header's extension was cut: large bodies with such may be refused for it.
    if (cut.refused == 413) continue;
    FATHOM_CHECK(cut.requests.size() == whole.requests.size() && (cut.refused != 0) == (whole.refused != 0),
                 "{} {} {} {}", cut.requests.size(), whole.requests.size(), cut.refused, whole.refused);
    for (size_t i = 0; i < cut.requests.size(); ++i) {
      const serve::HttpRequest &a = cut.requests[i], &b = whole.requests[i];
      FATHOM_CHECK(a.method == b.method && a.path == b.path && a.query == b.query && a.headers == b.headers &&
                   a.body == b.body && a.keep_alive == b.keep_alive);
    }
  }
  for (const serve::HttpRequest& request : whole.requests) {
    FATHOM_CHECK(request.body.size() <= 2048 && request.headers.size() <= 20);
    FATHOM_CHECK(request.path.starts_with('/') || request.path == "*");
  }
  return 0;
}
