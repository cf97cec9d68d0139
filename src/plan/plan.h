// A plan: formulas.toml evaluated for a model, hardware and what the user says.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "plan/formulas.h"
#include "plan/hardware.h"
#include "plan/model_facts.h"

namespace fathom::plan {

struct PlanRequest {
  std::string kind;  // "memory", "train" or "serve"
  ModelFacts model;
  Hardware hardware;
  std::map<std::string, std::string> given;  // by the names of inputs, as the user wrote them
};

struct PlannedInput {
  const Input* input;
  double value;        // of a choice its number
  std::string choice;  // its name
  bool given;
};
struct PlannedLine {
  const Line* line;
  double value;
  bool shown;
};
struct Plan {
  Values values;  // of everything: facts, hardware, inputs, constants, lines
  std::vector<PlannedInput> inputs;
  std::vector<PlannedLine> lines;
  std::vector<std::string> advice;
  double at(std::string_view name) const;  // FATHOM_CHECK for a name that there is not
};

// UsageError, in a line that says what is possible, for an input out of its range, and where one of the plan's checks
// is true (a layout that does not divide, a number format that the GPU does not have). Error for a number that comes
// out infinite, which names the line.
Plan make_plan(const PlanRequest& request, const Formulas& all = formulas());

// "14.8T", "671B", "400GB", "50GB/s", "1.5MiB", "80%", "2,048": a number. UsageError, beginning with `what`, for
// another text, "1,64" too.
double parse_quantity(std::string_view text, std::string_view what);

// A value as people read it: "70.27 KB", "14.76 ms", "671.03 B", "$5.576 M", "38.9 %".
std::string show_value(double value, std::string_view unit);
// Shortest exact form of whole numbers, six digits of others: for formulas with numbers put in.
std::string show_number(double value);

}  // namespace fathom::plan
