// The planner's page: one HTML file that evaluates formulas.toml in a browser, without a server and without a network.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "plan/hardware.h"
#include "plan/model_facts.h"

namespace fathom::plan {

struct PageModel {
  ModelFacts facts;
  std::string argument;  // what --model-config says for it
};

struct PageDevice {
  Hardware hardware;
  bool of_file = false;  // not one that the program knows
};

struct PageContent {
  std::string version;                          // of the program
  std::vector<PageModel> models;                // the first one is chosen when the page is opened
  std::vector<PageDevice> devices;              // likewise
  std::string hardware_file;                    // where devices of a file are from
  std::map<std::string, std::string> sureness;  // a sentence for each kind of plan
};

// The file's text. Its Content-Security-Policy names scripts and styles by their hashes and allows nothing else: no
// text of a model or of hardware becomes a script, nothing is asked of any server.
std::string plan_page(const PageContent& content);

}  // namespace fathom::plan
