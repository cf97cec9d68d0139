#include "plan/plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace fathom::plan {
namespace {

bool is_of(const std::vector<std::string>& plans, const std::string& kind) {
  return std::find(plans.begin(), plans.end(), kind) != plans.end();
}

bool is_true(const Expression& when, const Values& values) {
  if (when.empty()) return true;
  const double x = when.evaluate(values);
  return x != 0 && !std::isnan(x);
}

// "{name}" in a text becomes the value.
std::string filled(const std::string& text, const Plan& plan) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t open = std::min(text.find('{', at), text.size());
    out += text.substr(at, open - at);
    if (open == text.size()) break;
    const size_t close = text.find('}', open);
    FATHOM_CHECK(close != std::string::npos, "{}", text);
    const std::string name = text.substr(open + 1, close - open - 1);
    at = close + 1;
    const auto input = std::find_if(plan.inputs.begin(), plan.inputs.end(),
                                    [&](const PlannedInput& each) { return each.input->name == name; });
    if (input != plan.inputs.end()) {
      out += input->input->choices.empty() ? show_value(input->value, input->input->unit) : input->choice;
      continue;
    }
    const auto line = std::find_if(plan.lines.begin(), plan.lines.end(),
                                   [&](const PlannedLine& each) { return each.line->name == name; });
    out += line != plan.lines.end() ? show_value(line->value, line->line->unit) : show_number(plan.at(name));
  }
  return out;
}

PlannedInput chosen_input(const Input& input, const PlanRequest& request, const Values& values) {
  PlannedInput planned{&input, 0, "", false};
  const auto given = request.given.find(input.name);
  planned.given = given != request.given.end();
  if (!input.choices.empty()) {
    auto at = static_cast<size_t>(std::clamp(planned.given ? 0.0 : input.standard.evaluate(values), 0.0,
                                             static_cast<double>(input.choices.size() - 1)));
    if (planned.given) {
      const auto found = std::find(input.choices.begin(), input.choices.end(), given->second);
      if (found == input.choices.end()) {
        throw UsageError("plan {}: {} {}: must be one of {}", request.kind, input.option, printable(given->second),
                         fmt::join(input.choices, ", "));
      }
      at = static_cast<size_t>(found - input.choices.begin());
    }
    planned.value = static_cast<double>(at);
    planned.choice = input.choices[at];
    return planned;
  }
  const std::string what = fmt::format("plan {}: {}", request.kind, input.option);
  planned.value = planned.given ? parse_quantity(given->second, what) : input.standard.evaluate(values);
  if (!planned.given) return planned;
  if (!(planned.value >= input.least) || !(planned.value <= input.most)) {
    throw UsageError("{} {}: must be from {} to {}", what, printable(given->second), show_number(input.least),
                     show_number(input.most));
  }
  if (input.whole && planned.value != std::floor(planned.value))
    throw UsageError("{} {}: must be a whole number", what, printable(given->second));
  return planned;
}

void take_inputs(Plan& plan, const PlanRequest& request, const Formulas& formulas) {
  for (const auto& [name, text] : request.given) {
    const bool known = std::any_of(formulas.inputs.begin(), formulas.inputs.end(), [&, n = name](const Input& each) {
      return each.name == n && is_of(each.plans, request.kind);
    });
    if (!known) throw UsageError("plan {}: there is no input {}", request.kind, printable(name));
  }
  for (const Input& input : formulas.inputs) {
    if (!is_of(input.plans, request.kind)) continue;
    const PlannedInput planned = chosen_input(input, request, plan.values);
    plan.values[input.name] = planned.value;
    for (size_t i = 0; i < input.choices.size(); ++i)
      plan.values[fmt::format("{}_is_{}", input.name, input.choices[i])] = planned.choice == input.choices[i] ? 1 : 0;
    if (const auto brought = request.model.of_choice.find(input.name); brought != request.model.of_choice.end()) {
      for (const auto& [name, value] : brought->second.at(planned.choice)) plan.values[name] = value;
    }
    plan.inputs.push_back(planned);
  }
}

// As {:.<digits>g}, but a number with more digits before its point has all of them in place of an exponent.
std::string significant(double x, int digits) {
  return std::abs(x) >= std::pow(10, digits) - 0.5 ? fmt::format("{:.0f}", x) : fmt::format("{:.{}g}", x, digits);
}

// Bytes in powers of ten, and where they are many in powers of two as well, as memory is sold.
std::string show_bytes(double x) {
  static constexpr const char* kUnits[] = {"bytes", "KB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"};
  size_t unit = 0;
  double y = x;
  for (; std::abs(y) >= 1000 && unit + 1 < std::size(kUnits); ++unit) y /= 1000;
  std::string text = unit == 0 ? fmt::format("{:g} bytes", y) : significant(y, 5) + " " + kUnits[unit];
  if (std::abs(x) >= 1e9) text += fmt::format(" ({} GiB)", significant(x / (1 << 30), 4));
  return text;
}

std::string show_scaled(double x, std::string_view unit) {
  static constexpr std::pair<double, const char*> kSteps[] = {{1e24, "Y"}, {1e21, "Z"}, {1e18, "E"}, {1e15, "P"},
                                                              {1e12, "T"}, {1e9, "G"},  {1e6, "M"},  {1e3, "K"}};
  for (const auto& [size, letter] : kSteps) {
    if (std::abs(x) >= size) return fmt::format("{} {}{}", significant(x / size, 4), letter, unit);
  }
  return fmt::format("{:.4g} {}", x, unit);
}

std::string show_seconds(double x) {
  const double size = std::abs(x);
  if (size == 0) return "0 s";
  if (size < 1e-3) return fmt::format("{:.4g} us", x * 1e6);
  if (size < 1) return fmt::format("{:.4g} ms", x * 1e3);
  if (size < 3600) return fmt::format("{:.4g} s", x);
  return size < 86400 ? fmt::format("{:.4g} hours", x / 3600) : significant(x / 86400, 4) + " days";
}

std::string show_count(double x) {
  static constexpr std::pair<double, const char*> kSteps[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}};
  for (const auto& [size, letter] : kSteps) {
    if (std::abs(x) >= size) return fmt::format("{} {}", significant(x / size, 5), letter);
  }
  return std::abs(x) >= 100 ? fmt::format("{:.0f}", x) : fmt::format("{:.4g}", x);
}

}  // namespace

double Plan::at(std::string_view name) const {
  const auto found = values.find(name);
  FATHOM_CHECK(found != values.end(), "{}", name);
  return found->second;
}

Plan make_plan(const PlanRequest& request, const Formulas& all) {
  Plan plan;
  plan.values = request.model.values;
  for (const auto& [name, value] : request.hardware.values) plan.values[name] = value;
  for (const Constant& constant : all.constants) plan.values[constant.name] = constant.value;
  take_inputs(plan, request, all);
  for (const Remark& check : all.checks) {
    if (is_of(check.plans, request.kind) && is_true(check.when, plan.values))
      throw UsageError("plan {}: {}", request.kind, filled(check.text, plan));
  }
  for (const Line& line : all.lines) {
    if (!is_of(line.plans, request.kind)) continue;
    const bool there = is_true(line.when, plan.values);
    const double value = there ? line.value.evaluate(plan.values) : 0;
    if (!std::isfinite(value)) {
      throw Error("plan {}: {} ({}) comes out as no finite number: {}", request.kind, line.name, line.title,
                  line.value.with_numbers(plan.values, show_number));
    }
    plan.values[line.name] = value;
    plan.lines.push_back({&line, value, there && line.show});
  }
  for (const Remark& advice : all.advice) {
    if (is_of(advice.plans, request.kind) && is_true(advice.when, plan.values))
      plan.advice.push_back(filled(advice.text, plan));
  }
  return plan;
}

double parse_quantity(std::string_view text, std::string_view what) {
  const auto fail = [&]() -> double {
    throw UsageError("{} {}: should be a number, as 4096, 14.8T, 400GB or 80%{}", what, printable(text, 60),
                     text.find(',') == std::string_view::npos ? "" : "; commas part groups of three digits, as 1,024");
  };
  std::string digits;
  size_t at = 0;
  const auto is = [&](size_t i, std::string_view any) {
    return i < text.size() && any.find(text[i]) != std::string_view::npos;
  };
  constexpr std::string_view kDigits = "0123456789", kSigns = "+-";
  const auto take_digits = [&] {
    while (is(at, kDigits)) digits += text[at++];
  };
  if (is(at, kSigns)) digits += text[at++];
  const size_t whole = at;
  take_digits();
  // Groups of three behind one to three digits and nothing else: 1,64 is a list, no number.
  if (at > whole && at - whole <= 3) {
    while (is(at, ",_") && is(at + 1, kDigits) && is(at + 2, kDigits) && is(at + 3, kDigits)) {
      digits += text.substr(at + 1, 3);
      at += 4;
    }
  }
  if (is(at, ".")) {
    digits += text[at++];
    take_digits();
  }
  if (is(at, "eE") && is(is(at + 1, kSigns) ? at + 2 : at + 1, kDigits)) {
    digits += text.substr(at, 2);
    at += 2;
    take_digits();
  }
  if (digits.starts_with('+')) digits.erase(0, 1);
  double value = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (read.ec != std::errc() || read.ptr != digits.data() + digits.size() || digits.empty()) return fail();
  std::string_view unit = text.substr(at);
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  if (unit.ends_with("/s")) unit.remove_suffix(2);
  static constexpr std::pair<std::string_view, double> kUnits[] = {
      {"", 1},       {"%", 0.01},      {"K", 1e3},       {"k", 1e3},
      {"M", 1e6},    {"B", 1e9},       {"G", 1e9},       {"T", 1e12},
      {"KB", 1e3},   {"MB", 1e6},      {"GB", 1e9},      {"TB", 1e12},
      {"KiB", 1024}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1099511627776.0}};
  for (const auto& [name, size] : kUnits) {
    if (unit == name) return std::isfinite(value * size) ? value * size : fail();
  }
  return fail();
}

std::string show_number(double x) {
  if (x == std::floor(x) && std::abs(x) < 1e15) return fmt::format("{:.0f}", x);
  return fmt::format("{:.6g}", x);
}

std::string show_value(double x, std::string_view unit) {
  if (unit == "bytes") return show_bytes(x);
  if (unit == "bytes/s") return show_scaled(x, "B/s");
  if (unit == "s") return show_seconds(x);
  if (unit == "share") return significant(100 * x, 4) + " %";
  if (unit == "dollars") {
    return std::abs(x) >= 1e6 ? fmt::format("${} M", significant(x / 1e6, 4))
                              : fmt::format("${:.{}f}", x, std::abs(x) >= 1000 ? 0 : 2);
  }
  if (unit == "FLOP") return show_scaled(x, "FLOP");
  if (unit == "FLOP/s") return show_scaled(x, "FLOP/s");
  if (unit == "parameters" || unit == "tokens") return show_count(x);
  if (unit == "yes") return x != 0 ? "yes" : "no";
  if (unit == "hours" || unit == "days" || unit == "times" || unit == "tokens/s")
    return fmt::format("{} {}", show_count(x), unit);
  return show_count(x);
}

}  // namespace fathom::plan
