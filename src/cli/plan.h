// fathom plan memory, train, serve and hardware: parts of cli/plan.cc.
#pragma once

namespace CLI {
class App;
}

namespace fathom::cli {

struct CommonOptions;

// Adds them to `plan`; their options are the inputs of plan/formulas.toml.
void add_plan_costs(CLI::App& plan, CommonOptions& common);

}  // namespace fathom::cli
