// A load of streamed requests on one server, measured as its clients see it: when each request began, when each piece
// of its answer came, how it ended. On the calling thread alone.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "serve/event_stream.h"
#include "serve/http_client.h"

namespace fathom::serve {

struct LoadTarget {
  HttpUrl url;
  std::string path;     // behind the URL's base, of an endpoint that streams
  HttpHeaders headers;  // to send with each request
  HttpClientLimits limits;
};

// Closed loop: `clients` at a time, each of which begins its next request when the one before has ended. Open loop,
// with clients 0: request i begins arrivals_s[i] seconds behind the load's begin, whatever has become of the others.
struct LoadPlan {
  int64_t requests = 0;
  int64_t clients = 0;
  std::vector<double> arrivals_s;  // [requests] in the open loop, ascending
};

struct RequestRecord {
  double begin_s = -1;  // since the load's begin: in the open loop, when it was due; -1: it was never begun
  double late_s = 0;    // how much later it was sent
  double end_s = -1;    // since begin_s: [DONE], or the failure; -1: it has not ended
  // When each piece of text, thought or call came, since begin_s.
  std::vector<double> pieces_s;
  ToldUsage usage;
  int status = 0;  // of HTTP; 0: none came
  // Empty: an answer came to its end. Otherwise "http_429" or the like, "error_event" (told in the stream), "empty" (an
  // answer without text), or a name of HttpEnd; and a line about it.
  std::string failure, message;
};

struct LoadResult {
  std::vector<RequestRecord> records;  // [requests]
  double duration_s = 0;               // to the last end, or to the interruption
  double client_cpu_s = 0;             // that measuring itself took
  bool interrupted = false;
};

struct LoadProgress {
  int64_t ended = 0, failed = 0, running = 0;
};

// body_of(i): the body of request i, which asks for a stream. `watch` is called twenty times a second; false from it is
// the end, with the requests that run left as they are. Error where the host has no address.
LoadResult run_load(const LoadTarget& target, const LoadPlan& plan, const std::function<std::string(int64_t)>& body_of,
                    const std::function<bool(const LoadProgress&)>& watch);

}  // namespace fathom::serve
