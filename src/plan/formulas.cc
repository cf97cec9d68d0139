#include "plan/formulas.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "plan/embedded.h"
#include "plan/toml.h"

namespace fathom::plan {
namespace {

using nlohmann::json;

constexpr std::string_view kPlans[] = {"memory", "train", "serve"};
constexpr std::string_view kBases[] = {"exact", "fitted", "published", "estimate"};

std::string text_of(const json& table, const char* key) {
  if (!table.contains(key)) return "";
  if (!table[key].is_string()) throw Error("{} should be a text", key);
  return table[key].get<std::string>();
}
std::string demand_text(const json& table, const char* key) {
  std::string text = text_of(table, key);
  if (text.empty()) throw Error("{} is missing", key);
  return text;
}
double number_of(const json& table, const char* key, double fallback) {
  if (!table.contains(key)) return fallback;
  if (!table[key].is_number()) throw Error("{} should be a number", key);
  return table[key].get<double>();
}
bool flag_of(const json& table, const char* key, bool fallback) {
  if (!table.contains(key)) return fallback;
  if (!table[key].is_boolean()) throw Error("{} should be true or false", key);
  return table[key].get<bool>();
}
Expression expression_of(const json& table, const char* key) {
  const std::string text = text_of(table, key);
  return text.empty() ? Expression() : Expression(text);
}
std::vector<std::string> texts_of(const json& table, const char* key) {
  std::vector<std::string> texts;
  if (!table.contains(key)) return texts;
  if (table[key].is_string()) return {table[key].get<std::string>()};
  if (!table[key].is_array()) throw Error("{} should be a list of texts", key);
  for (const json& each : table[key]) {
    if (!each.is_string()) throw Error("{} should be a list of texts", key);
    texts.push_back(each.get<std::string>());
  }
  return texts;
}
std::vector<std::string> plans_of(const json& table) {
  std::vector<std::string> plans = texts_of(table, "plan");
  if (plans.empty()) throw Error("plan is missing");
  for (const std::string& plan : plans) {
    if (std::find(std::begin(kPlans), std::end(kPlans), plan) == std::end(kPlans))
      throw Error("'{}' is no plan", printable(plan));
  }
  return plans;
}
std::string name_of(const json& table) {
  std::string name = demand_text(table, "name");
  if (!is_formula_name(name)) throw Error("'{}' cannot be a name", printable(name));
  return name;
}
void known_keys(const json& table, const std::set<std::string_view>& keys) {
  for (const auto& item : table.items()) {
    if (!keys.contains(item.key())) throw Error("'{}' is no key here", printable(item.key()));
  }
}

Input input_of(const json& t) {
  known_keys(t, {"plan", "name", "option", "title", "unit", "default", "least", "most", "whole", "choices"});
  Input input{plans_of(t),
              name_of(t),
              demand_text(t, "option"),
              demand_text(t, "title"),
              text_of(t, "unit"),
              Expression(demand_text(t, "default")),
              number_of(t, "least", 0),
              number_of(t, "most", 1e18),
              flag_of(t, "whole", false),
              texts_of(t, "choices")};
  return input;
}

Constant constant_of(const json& t) {
  known_keys(t, {"name", "title", "value", "source"});
  return {name_of(t), demand_text(t, "title"), demand_text(t, "source"), number_of(t, "value", 0)};
}

Line line_of(const json& t) {
  known_keys(t, {"plan", "section", "name", "title", "unit", "expr", "source", "basis", "when", "show"});
  Line line{plans_of(t),
            demand_text(t, "section"),
            name_of(t),
            demand_text(t, "title"),
            demand_text(t, "unit"),
            demand_text(t, "source"),
            demand_text(t, "basis"),
            Expression(demand_text(t, "expr")),
            expression_of(t, "when"),
            flag_of(t, "show", true)};
  if (std::find(std::begin(kBases), std::end(kBases), line.basis) == std::end(kBases))
    throw Error("basis is exact, fitted, published or estimate");
  return line;
}

Remark remark_of(const json& t) {
  known_keys(t, {"plan", "when", "text"});
  return {plans_of(t), Expression(demand_text(t, "when")), demand_text(t, "text")};
}

template <class Read>
auto all_of(const json& document, const char* kind, const Read& read) {
  std::vector<decltype(read(document))> all;
  if (!document.contains(kind)) return all;
  for (const json& table : document[kind]) {
    all.push_back(errors_at(fmt::format("{} {}", kind, table.value("name", fmt::format("{}", all.size() + 1))),
                            [&] { return read(table); }));
  }
  return all;
}

}  // namespace

Formulas read_formulas(std::string_view toml) {
  return errors_at("formulas.toml", [&] {
    const json document = read_toml(toml, "TOML");
    known_keys(document, {"input", "constant", "line", "check", "advice"});
    Formulas f{all_of(document, "input", input_of), all_of(document, "constant", constant_of),
               all_of(document, "line", line_of), all_of(document, "check", remark_of),
               all_of(document, "advice", remark_of)};
    std::set<std::string> names;
    const auto once = [&](const std::string& plan, const std::string& name) {
      if (!names.insert(fmt::format("{}/{}", plan, name)).second) throw Error("{} stands twice in plan {}", name, plan);
    };
    for (const Constant& each : f.constants) {
      for (const std::string_view plan : kPlans) once(std::string(plan), each.name);
    }
    for (const Input& each : f.inputs) {
      for (const std::string& plan : each.plans) once(plan, each.name);
    }
    for (const Line& each : f.lines) {
      for (const std::string& plan : each.plans) once(plan, each.name);
    }
    return f;
  });
}

const Formulas& formulas() {
  static const Formulas all = read_formulas(embedded_file("formulas.toml"));
  return all;
}

}  // namespace fathom::plan
