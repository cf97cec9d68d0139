// fathom plan page: the planner as a page that needs no program and no server.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "cli/command.h"
#include "cli/plan.h"
#include "plan/page.h"

namespace fathom::cli {
namespace {

using namespace plan;

constexpr size_t kMostModels = 100;

struct PageOptions {
  std::vector<std::string> models;
  std::string hardware, out;
};

// The user's own ones first; two with a name are told apart.
std::vector<PageModel> page_models(const std::vector<std::string>& own) {
  std::vector<PageModel> models;
  std::set<std::string> names;
  const auto add = [&](const std::string& argument) {
    ModelFacts facts = facts_of(argument);
    const std::string name = facts.name;
    for (int n = 2; !names.insert(facts.name).second; ++n) facts.name = fmt::format("{} ({})", name, n);
    models.push_back({std::move(facts), printable(argument, 400)});
  };
  for (const std::string& argument : own) add(argument);
  for (const std::string& name : known_models()) {
    if (std::find(own.begin(), own.end(), name) == own.end()) add(name);
  }
  return models;
}

// What plans take without --gpu comes first; of two with a name the first one counts.
std::vector<PageDevice> page_devices(const std::string& file) {
  std::vector<PageDevice> devices;
  std::vector<Hardware> all = devices_of(file);
  const size_t n_own = all.size() - known_devices().size();
  std::set<std::string> names;
  for (size_t i = 0; i < all.size(); ++i) {
    if (names.insert(all[i].name).second) devices.push_back({std::move(all[i]), i < n_own});
  }
  return devices;
}

void run_page(const PageOptions& o, const CommonOptions& common) {
  if (common.json && o.out.empty())
    throw UsageError("plan page: --json tells of a file and the page itself would go to stdout: name one with --out");
  if (o.models.size() > kMostModels) throw UsageError("plan page: --model-config: at most {} models", kMostModels);
  const std::string version = version_text();
  PageContent content{version.substr(0, version.find('\n')),
                      page_models(o.models),
                      page_devices(o.hardware),
                      o.hardware.empty() ? "" : printable(o.hardware, 400),
                      {}};
  for (const char* kind : {"memory", "train", "serve"}) content.sureness[kind] = sureness(kind);
  const std::string page = plan_page(content);
  if (o.out.empty()) return write_stdout(page);
  write_file_atomically(o.out, page);
  if (common.json) {
    write_stdout(nlohmann::ordered_json{{"page", o.out},
                                        {"bytes", page.size()},
                                        {"models", content.models.size()},
                                        {"devices", content.devices.size()}}
                     .dump() +
                 "\n");
  } else if (!common.quiet) {
    std::fputs(fmt::format("{}: {} models, {} kinds of hardware; open it in a browser\n", printable(o.out, 400),
                           content.models.size(), content.devices.size())
                   .c_str(),
               stderr);
  }
}

}  // namespace

void add_plan_page(CLI::App& plan, CommonOptions& common) {
  const auto o = std::make_shared<PageOptions>();
  CLI::App* c =
      plan.add_subcommand("page", "The planner as one HTML file, with sliders, that needs no server (docs/planner.md)");
  c->add_option("--out", o->out, "Write the page there (default: to stdout)")->type_name("FILE");
  c->add_option("--model-config", o->models,
                "Add a model to the page: a config.json, a model directory or a .gguf file; may be given again")
      ->type_name("MODEL")
      ->allow_extra_args(false);
  c->add_option("--hardware", o->hardware, "Add GPUs and hosts to it, as for the other plans")->type_name("FILE");
  c->callback([o, &common] { run_page(*o, common); });
}

}  // namespace fathom::cli
