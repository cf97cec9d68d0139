// formulas.toml in memory: what a plan asks for, checks, computes and advises, as data. The program and the planner's
// page read the same file; no number of a plan is computed anywhere else, but for the facts of models and hardware.
#pragma once

#include <string>
#include <vector>

#include "plan/expression.h"

namespace fathom::plan {

// What the user may say: an option of the command line and a control of the page.
struct Input {
  std::vector<std::string> plans;  // "memory", "train", "serve"
  std::string name, option, title, unit;
  Expression standard;  // where nothing is said; of a choice its number, from 0
  double least = 0, most = 1e18;
  bool whole = false;
  // One of these; then {name}_is_{choice} is 1 for the one that was chosen and 0 for the others.
  std::vector<std::string> choices;
};

// A number that was fitted to measurements, or is an assumption.
struct Constant {
  std::string name, title, source;
  double value = 0;
};

struct Line {
  std::vector<std::string> plans;
  std::string section, name, title, unit, source;
  std::string basis;  // exact, fitted, published or estimate
  Expression value;
  Expression when;  // empty: always; else where this is 0, the line is 0 and not shown
  bool show = true;
};

// A text with {names} for a plan in which `when` is true: a check ends it, an advice stands behind it.
struct Remark {
  std::vector<std::string> plans;
  Expression when;
  std::string text;
};

struct Formulas {
  std::vector<Input> inputs;
  std::vector<Constant> constants;
  std::vector<Line> lines;
  std::vector<Remark> checks, advice;
};

// Of the program; read once.
const Formulas& formulas();
// Error, naming the line, for keys that are unknown, formulas that are none, and names that come twice in a plan.
Formulas read_formulas(std::string_view toml);

}  // namespace fathom::plan
