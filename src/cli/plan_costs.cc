// fathom plan memory, train and serve: what a model needs, how fast it trains and is served, what that costs; hardware:
// the table behind them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/hf_model.h"
#include "cli/command.h"
#include "cli/plan.h"
#include "plan/plan.h"

namespace fathom::cli {
namespace {

using nlohmann::ordered_json;
using namespace plan;

constexpr size_t kMostHardwareBytes = size_t{1} << 20;
constexpr int kTitleColumns = 60, kValueColumns = 26;

struct CostCommandOptions {
  std::string model = "deepseek-v3", gpu, hardware, over;
  bool explain = false;
  std::map<std::string, std::string> given;  // of inputs; empty: not given
};

}  // namespace

ModelFacts facts_of(const std::string& model) {
  if (is_known_model(model)) return model_facts(known_model(model), model);
  const std::filesystem::path path(model);
  if (!path_exists(path)) (void)known_model(model);  // says which there are
  return model_facts(read_model_config(path),
                     printable(path.filename().empty() ? path.native() : path.stem().native()));
}

std::vector<Hardware> devices_of(const std::string& hardware) {
  std::vector<Hardware> devices;
  if (!hardware.empty()) {
    devices =
        read_devices(read_file(hardware, kMostHardwareBytes), printable(std::filesystem::path(hardware).native()));
  }
  devices.insert(devices.end(), known_devices().begin(), known_devices().end());
  return devices;
}

nlohmann::ordered_json json_number(double x) {
  // The bound first: a larger number, or one that is none, is no int64_t.
  if (std::abs(x) < 9e15 && x == std::floor(x)) return static_cast<int64_t>(x);
  return x;
}

namespace {

// The GPU that was asked for; else the first of the user's own file; else DeepSeek's.
Hardware device_of(const CostCommandOptions& o) {
  const std::vector<Hardware> devices = devices_of(o.hardware);
  if (!o.gpu.empty()) return find_device(devices, o.gpu);
  return o.hardware.empty() ? find_device(devices, "h800") : devices.front();
}

std::string as_json(const PlanRequest& request, const Plan& plan, bool explain) {
  ordered_json inputs = ordered_json::object(), lines = inputs, constants = inputs;
  for (const PlannedInput& each : plan.inputs) {
    if (each.choice.empty()) {
      inputs[each.input->name] = json_number(each.value);
    } else {
      inputs[each.input->name] = each.choice;
    }
  }
  for (const PlannedLine& each : plan.lines) {
    if (!each.shown) continue;
    ordered_json line{{"value", json_number(each.value)}, {"unit", each.line->unit}, {"basis", each.line->basis}};
    if (explain) {
      line["title"] = each.line->title;
      line["formula"] = each.line->value.text();
      line["with_numbers"] = each.line->value.with_numbers(plan.values, show_number);
      line["source"] = each.line->source;
    }
    lines[each.line->name] = std::move(line);
  }
  for (const Constant& each : formulas().constants) constants[each.name] = json_number(each.value);
  const ordered_json result{
      {"plan", request.kind}, {"model", request.model.name}, {"gpu", request.hardware.name}, {"inputs", inputs},
      {"lines", lines},       {"constants", constants},      {"advice", plan.advice}};
  return result.dump() + "\n";
}

// Wraps at spaces; lines behind the first begin with `indent` spaces.
std::string wrapped(const std::string& text, size_t indent) {
  constexpr size_t kColumns = 110;
  std::string out;
  size_t column = indent;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    if (column > indent && column + end - at > kColumns) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
    }
    out += text.substr(at, end - at);
    column += end - at + 1;
    at = end + 1;
  }
  return out;
}

}  // namespace

std::string sureness(const std::string& kind) {
  const std::string exact = "Figures without a mark follow from the architecture and are exact; ";
  if (kind == "memory") {
    return exact +
           "published ones follow rules of the reports. Estimates are what a careful implementation needs: expect up "
           "to "
           "15 % more for fragments and buffers.";
  }
  if (kind == "train") {
    return exact +
           "fitted ones rest on a few published runs. Hours, and with them price and MFU, were within 17 % of those "
           "that nothing was fitted to, the one bubble that was published 61 % too low (docs/planner.md); other "
           "hardware and smaller models may be a third off.";
  }
  return exact +
         "fitted ones rest on a few published services and were within 12 % of those that nothing was fitted to, hosts "
         "within a third (docs/planner.md); few sequences on GPUs are slower than this, since launches are not "
         "counted.";
}

namespace {

// remark: a sentence behind the advice.
std::string as_text(const PlanRequest& request, const Plan& plan, bool explain, const std::string& remark) {
  std::string text = fmt::format("{} on {} ({})\n", request.model.name, request.hardware.name, request.hardware.title);
  std::string with;
  for (const PlannedInput& each : plan.inputs) {
    with += fmt::format("{}{} {}", with.empty() ? "" : ", ", each.input->option.substr(2),
                        each.choice.empty() ? show_value(each.value, each.input->unit) : each.choice);
  }
  text += "with " + wrapped(with, 5) + "\n";
  std::string section;
  for (const PlannedLine& each : plan.lines) {
    if (!each.shown) continue;
    const Line& line = *each.line;
    if (line.section != section) text += fmt::format("\n{}\n", section = line.section);
    std::string value = show_value(each.value, line.unit);
    if (line.unit == "parameters") value = fmt::format("{:.0f}  {:>9}", each.value, value);
    text += fmt::format("  {:<{}} {:>{}}  {}", line.title, kTitleColumns, value, kValueColumns,
                        line.basis == "exact" ? "" : line.basis);
    text.erase(text.find_last_not_of(' ') + 1);
    text += "\n";
    if (!explain) continue;
    text += fmt::format("      {} = {}\n", line.name, wrapped(line.value.text(), 8));
    if (!line.value.names().empty())
      text += fmt::format("      = {}\n", wrapped(line.value.with_numbers(plan.values, show_number), 8));
    text += fmt::format("      {}: {}\n", line.basis, wrapped(line.source, 8));
  }
  if (explain) {
    text += "\nConstants\n";
    for (const Constant& each : formulas().constants) {
      text += fmt::format("  {} = {}: {}\n      {}\n", each.name, show_number(each.value), each.title,
                          wrapped(each.source, 6));
    }
  }
  text += "\n";
  for (const std::string& advice : plan.advice) text += wrapped(advice + ".", 2) + "\n";
  if (!remark.empty()) text += wrapped(remark, 2) + "\n";
  return text + wrapped(sureness(request.kind), 0) + "\n";
}

// What memory says of other hardware: how many would hold weights and caches in the formats that `plan` has them in,
// which are not each one's defaults; --ram, where it is given, is that of every host. As the page says it (charts.js).
std::string others_text(const PlanRequest& request, const Plan& plan, const std::vector<Hardware>& devices) {
  PlanRequest other{request.kind, request.model, {}, {}};
  for (const char* name : {"context", "batch", "ram"}) {
    if (const auto found = request.given.find(name); found != request.given.end()) other.given.insert(*found);
  }
  for (const PlannedInput& each : plan.inputs) {
    if (each.input->name == "weights" || each.input->name == "kv_type") other.given[each.input->name] = each.choice;
  }
  std::string text;
  std::set<std::string> names;  // of two with a name the first one counts
  for (const Hardware& device : devices) {
    if (!names.insert(device.name).second || device.values.at("gpu_memory_bytes") <= 0) continue;
    other.hardware = device;
    try {
      const double needed = make_plan(other).at("gpus_needed");  // 0: no number would do
      if (needed > 0) text += fmt::format("{}{:.0f} x {}", text.empty() ? "" : ", ", needed, device.name);
    } catch (const Error&) {
      // A device that nothing can be planned for is none of those that would do; the plan asked for is another's.
    }
  }
  return text.empty() ? ""
                      : fmt::format("Weights in {} and caches would fit into {}.", other.given.at("weights"), text);
}

// --over NAME=V1,V2,...: the request for each of the values, by the value.
std::vector<std::pair<std::string, PlanRequest>> requests_over(const PlanRequest& request, const std::string& over) {
  constexpr size_t kMost = 32;
  const size_t equals = std::min(over.find('='), over.size());
  const std::string name = over.substr(0, equals);
  const auto& inputs = formulas().inputs;
  const auto input = std::find_if(inputs.begin(), inputs.end(), [&](const Input& each) {
    return each.option == "--" + name &&
           std::find(each.plans.begin(), each.plans.end(), request.kind) != each.plans.end();
  });
  const std::string values = over.substr(std::min(equals + 1, over.size()));
  const bool whole =
      !values.empty() && !values.starts_with(',') && !values.ends_with(',') && values.find(",,") == std::string::npos;
  if (input == inputs.end() || !whole) {
    throw UsageError("plan {}: --over {}: should be an option and its values, as batch=1,16,64 or context=4096,32768",
                     request.kind, printable(over, 60));
  }
  std::vector<std::pair<std::string, PlanRequest>> all;
  for (size_t at = equals + 1; at <= over.size();) {
    const size_t comma = std::min(over.find(',', at), over.size());
    all.emplace_back(over.substr(at, comma - at), request);
    all.back().second.given[input->name] = all.back().first;
    if (all.size() > kMost) throw UsageError("plan {}: --over has more than {} values", request.kind, kMost);
    at = comma + 1;
  }
  return all;
}

// A column for each value; of the lines those that are not the same in all columns.
std::string over_text(const std::string& over, const std::vector<std::pair<std::string, Plan>>& plans) {
  constexpr int kColumns = 15;
  std::string text = fmt::format("{:<{}}", over.substr(0, over.find('=')), kTitleColumns);
  for (const auto& [value, plan] : plans) text += fmt::format(" {:>{}}", value, kColumns);
  std::string section;
  for (size_t i = 0; i < plans[0].second.lines.size(); ++i) {
    const PlannedLine& first = plans[0].second.lines[i];
    const Line& line = *first.line;
    const bool shown =
        std::any_of(plans.begin(), plans.end(), [&](const auto& each) { return each.second.lines[i].shown; });
    const bool same = std::all_of(plans.begin(), plans.end(),
                                  [&](const auto& each) { return each.second.lines[i].value == first.value; });
    const bool whether_it_fits = line.unit == "yes";  // worth a line though it is no everywhere
    if (!shown || (same && !whether_it_fits)) continue;
    if (line.section != section) text += fmt::format("\n\n{}", section = line.section);
    text += fmt::format("\n  {:<{}}", line.title, kTitleColumns - 2);
    for (const auto& [value, plan] : plans) {
      std::string cell = show_value(plan.lines[i].value, line.unit);
      text += fmt::format(" {:>{}}", cell.substr(0, cell.find(" (")), kColumns);
    }
  }
  return text + "\n";
}

void run_over(const PlanRequest& request, const CostCommandOptions& o, const CommonOptions& common) {
  if (o.explain && !common.json) {
    throw UsageError("plan {}: the table of --over has no room for --explain: add --json, or leave one of them out",
                     request.kind);
  }
  // All of them before a word of any: a value that is none leaves stdout empty.
  std::vector<std::pair<std::string, Plan>> plans;
  std::string lines;
  for (const auto& [value, each] : requests_over(request, o.over)) {
    plans.emplace_back(value, make_plan(each));
    if (common.json) lines += as_json(each, plans.back().second, o.explain);
  }
  if (common.json) return write_stdout(lines);
  write_stdout(fmt::format("{} on {} ({}); lines that change, and whether it fits\n\n", request.model.name,
                           request.hardware.name, request.hardware.title) +
               over_text(o.over, plans) + "\n" + wrapped(sureness(request.kind), 0) + "\n");
}

void run_plan(const std::string& kind, const CostCommandOptions& o, const CommonOptions& common) {
  PlanRequest request{kind, facts_of(o.model), device_of(o), {}};
  for (const auto& [name, text] : o.given) {
    if (!text.empty()) request.given[name] = text;
  }
  if (!o.over.empty()) return run_over(request, o, common);
  const Plan plan = make_plan(request);
  if (common.json) return write_stdout(as_json(request, plan, o.explain));
  const std::string others = kind == "memory" ? others_text(request, plan, devices_of(o.hardware)) : "";
  write_stdout(as_text(request, plan, o.explain, others));
}

void run_hardware(const CostCommandOptions& o, const CommonOptions& common) {
  const std::vector<Hardware> devices = devices_of(o.hardware);
  if (common.json) {
    for (const Hardware& device : devices) {
      ordered_json json{{"name", device.name}, {"title", device.title}, {"kind", device.is_host ? "host" : "gpu"}};
      for (const auto& [name, value] : device.values) json[name] = json_number(value);
      json["source"] = device.sources;
      write_stdout(json.dump() + "\n");
    }
    return;
  }
  std::string text = fmt::format("{:<14} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8}\n", "TFLOP/s, GB/s", "FP8",
                                 "BF16", "f32", "memory", "its GB/s", "link", "network", "$/hour");
  const auto cell = [](double x, double unit) { return x > 0 ? fmt::format("{:.4g}", x / unit) : std::string("-"); };
  for (const Hardware& d : devices) {
    const Values& v = d.values;
    text += fmt::format("{:<14} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8}\n", d.name,
                        cell(v.at("gpu_fp8_flops"), 1e12), cell(v.at("gpu_bf16_flops"), 1e12),
                        cell(v.at("gpu_f32_flops"), 1e12), cell(v.at("gpu_memory_bytes"), 1e9),
                        cell(v.at("gpu_memory_bandwidth"), 1e9), cell(v.at("gpu_link_bandwidth"), 1e9),
                        cell(v.at("gpu_network_bandwidth"), 1e9), cell(v.at("gpu_price"), 1));
    if (!o.explain) continue;
    text += fmt::format("    {}\n", d.title);
    for (const auto& [key, source] : d.sources) text += fmt::format("    {}: {}\n", key, wrapped(source, 6));
  }
  write_stdout(text);
}

std::string not_empty(const std::string& text) { return text.empty() ? "is empty; left out, it has its default" : ""; }

void add_kind(CLI::App& plan, const char* kind, const char* about, CommonOptions& common) {
  const auto o = std::make_shared<CostCommandOptions>();
  CLI::App* c = plan.add_subcommand(kind, about);
  c->add_option("--model-config", o->model,
                "A known model (deepseek-v3, deepseek-v3.2, deepseek-v2, deepseek-v2-lite, moonlight-16b-a3b, ...), a "
                "config.json, a model directory or a .gguf file")
      ->type_name("MODEL")
      ->capture_default_str();
  c->add_option("--gpu", o->gpu, "A GPU or a host of fathom plan hardware, or of --hardware (default: h800)")
      ->type_name("NAME");
  c->add_option(
       "--hardware", o->hardware,
       "More GPUs and hosts: TOML as fathom plan hardware reads it, or what fathom bench --machine --json prints")
      ->type_name("FILE");
  for (const Input& input : formulas().inputs) {
    if (std::find(input.plans.begin(), input.plans.end(), kind) == input.plans.end()) continue;
    std::string help = input.title;
    if (!input.choices.empty()) help += fmt::format(": {}", fmt::join(input.choices, ", "));
    c->add_option(input.option, o->given[input.name], help)->type_name("");
  }
  c->add_option("--over", o->over,
                "A table of what changes with an option: batch=1,16,64,256 or context=4096,32768,131072")
      ->type_name("NAME=V1,V2,...");
  for (CLI::Option* const option : c->get_options()) {
    if (option != c->get_help_ptr()) option->check(not_empty);
  }
  c->add_flag("--explain", o->explain, "Under each line its formula, the numbers in it, source and basis");
  c->callback([o, kind, &common] { run_plan(kind, *o, common); });
}

}  // namespace

void add_plan_costs(CLI::App& plan, CommonOptions& common) {
  add_kind(plan, "memory", "Parameters, weights, caches and training's memory of a model, and what it fits on", common);
  add_kind(plan, "train", "Work, speed, MFU, bubbles, GPU hours and price of training a model", common);
  add_kind(plan, "serve", "Throughput, latency and price of serving a model, on GPUs or from main memory", common);
  const auto o = std::make_shared<CostCommandOptions>();
  CLI::App* hardware =
      plan.add_subcommand("hardware", "The GPUs and hosts that plans know, and where their numbers are from");
  hardware->add_option("--hardware", o->hardware, "A file with more of them")->type_name("FILE");
  hardware->add_flag("--explain", o->explain, "With the source of each number");
  hardware->callback([o, &common] { run_hardware(*o, common); });
}

}  // namespace fathom::cli
