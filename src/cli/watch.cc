// fathom watch: a page that draws training runs while they run.
#include "serve/watch.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/terminal.h"
#include "base/utf8.h"
#include "cli/command.h"
#include "serve/page_file.h"

namespace fathom::cli {
namespace {

constexpr size_t kMostRuns = 16;  // more could not be told apart
constexpr double kFlushS = 1;     // for answers that are begun

struct WatchCommandOptions {
  std::vector<std::string> runs;
  ListenOptions listen{.port = 8090};
};

void run(const WatchCommandOptions& o, const CommonOptions& common) {
  if (o.runs.size() > kMostRuns) throw UsageError("watch: {} runs, at most {}", o.runs.size(), kMostRuns);
  serve::Watch watch{serve::watched_runs(o.runs), access_of(o.listen, "watch"), version_text()};
  watch.version.resize(watch.version.find('\n'));
  serve::HttpServer server(
      o.listen.host, o.listen.port, {},
      {[](const serve::HttpRequest&) { return serve::HttpVerdict(); },
       [](const serve::HttpRefusal& refusal, std::string_view) { return serve::refuse_watch(refusal); },
       [&](const serve::HttpRequest& request, serve::HttpReply reply) { serve::answer_watch(watch, request, reply); }});
  const std::string url = url_of(o.listen.host, server.port());
  nlohmann::ordered_json names = nlohmann::ordered_json::array();
  for (const serve::WatchedRun& each : watch.runs) names.push_back(mend_utf8(each.name));
  write_stdout(common.json
                   ? nlohmann::ordered_json{{"url", url}, {"port", server.port()}, {"runs", names}}.dump() + "\n"
                   : url + "\n");
  if (!serve::find_page_file("watch", "/")) {
    log("this program was built without the page (FATHOM_PAGE=OFF): only /runs and /runs/N/log are answered");
  }
  for (const serve::WatchedRun& each : watch.runs) log("{}: {}", printable(each.name), printable(each.log.native()));
  double drained_s = 0;
  server.every(0.05, [&] {
    if (interrupted_by == 0) return;
    if (drained_s == 0) {
      drained_s = monotonic_s();
      server.drain();
    }
    if (server.n_connections() == 0 || monotonic_s() - drained_s > kFlushS) server.stop();
  });
  server.run();
}

}  // namespace

void add_watch(CLI::App& app, CommonOptions& common) {
  const auto o = std::make_shared<WatchCommandOptions>();
  CLI::App* c = app.add_subcommand(
      "watch", "Serve a page that draws training runs while they run: losses, balance, biases, speed, samples");
  c->add_option("RUN", o->runs, "What fathom train --out names, or a log (.jsonl); several are drawn over one another")
      ->required()
      ->type_name("");
  c->option_defaults()->always_capture_default();
  add_listen_options(*c, o->listen);
  c->callback([o, &common] { run(*o, common); });
}

}  // namespace fathom::cli
