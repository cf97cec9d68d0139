// fathom plan memory, train, serve, hardware and page: parts of cli/plan.cc.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "plan/hardware.h"
#include "plan/model_facts.h"

namespace CLI {
class App;
}

namespace fathom::cli {

struct CommonOptions;

// Adds them to `plan`; their options are the inputs of plan/formulas.toml.
void add_plan_costs(CLI::App& plan, CommonOptions& common);
// Adds the page that plans in a browser.
void add_plan_page(CLI::App& plan, CommonOptions& common);

// Of a known model's name, a config.json, a model directory or a GGUF file.
plan::ModelFacts facts_of(const std::string& model);
// Those of a file, where one is named, and then the known ones; the first is what a plan takes without --gpu.
std::vector<plan::Hardware> devices_of(const std::string& hardware);
// A whole number that a double holds exactly as one, any other as it is.
nlohmann::ordered_json json_number(double x);
// How sure the figures of a plan are.
std::string sureness(const std::string& kind);

}  // namespace fathom::cli
