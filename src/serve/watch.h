// What fathom watch answers: the page that draws training runs, and their logs, which are read and never written.
//   GET /runs               {"version", "runs": [{"name", "path", "there", "bytes", "age_s", "changed", "error"}]}
//   GET /runs/N/log?from=B&mark=M   whole lines from byte B on, see read_log; headers X-Log-From, X-Log-Next,
//   X-Log-Mark,
//                           X-Log-Bytes. 204: there is no log yet
//   GET /, /FILE            the page
#pragma once

#include <string>
#include <vector>

#include "serve/access.h"
#include "serve/http.h"
#include "serve/run_log.h"

namespace fathom::serve {

struct Watch {
  std::vector<WatchedRun> runs;
  Access access;
  std::string version;
};

// On the server's thread. Reading a piece of a log is all that it waits for.
HttpRefusalText refuse_watch(const HttpRefusal& refusal);
void answer_watch(const Watch& watch, const HttpRequest& request, HttpReply& reply);

}  // namespace fathom::serve
