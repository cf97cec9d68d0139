// fathom plan: what training and serving need, before anyone pays. Schedules of pipelines, places of experts' copies.
#include "cli/plan.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "cli/command.h"
#include "parallel/eplb.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/schedule_picture.h"
#include "train/trace.h"

namespace fathom::cli {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int kMostRanks = 1024, kMostChunks = 65536;
constexpr int64_t kMostOperations = 4 << 20;
constexpr size_t kMostLineBytes = size_t{64} << 20;
constexpr int kMostExperts = 1 << 16, kMostReplicas = 1 << 18;
constexpr double kMostLoad = 1e100;  // sums of what a line may hold stay finite
constexpr int kDrawingColumns = 100;

struct ScheduleOptions {
  std::string kind = "dualpipe";
  int ranks = 8, chunks = 20;
  OpTimes times;
  double transfer = 0;
  std::string trace;
  std::optional<int64_t> step;
  std::string svg;
};

ordered_json numbers(const std::vector<double>& values) {
  ordered_json list = ordered_json::array();
  for (const double x : values) list.push_back(json_number(x));
  return list;
}

// What was measured, in place of a simulation.
void run_traced(const ScheduleOptions& o, const CommonOptions& common) {
  const TracedStep traced = read_traced_step(o.trace, o.step);
  if (!o.svg.empty()) {
    write_file_atomically(
        o.svg, schedule_svg(traced.ranks, fmt::format("{}: step {}, {} ranks, measured",
                                                      printable(std::filesystem::path(o.trace).stem().native(), 80),
                                                      traced.step, traced.ranks.size())));
  }
  if (common.json) {
    ordered_json ranks = ordered_json::array();
    for (const RankTimes& times : traced.times) {
      ranks.push_back({{"computed_s", times.computed},
                       {"exposed_s", times.exposed},
                       {"starved_s", times.starved},
                       {"sums_beside_s", times.sums_beside},
                       {"sums_alone_s", times.sums_alone}});
    }
    return write_stdout(ordered_json{{"step", traced.step}, {"makespan_s", traced.length_s}, {"ranks", ranks}}.dump() +
                        "\n");
  }
  std::string text = schedule_drawing(traced.ranks, kDrawingColumns);
  text +=
      "F forward, B backward, I for inputs only, W for weights only; small: direction 1\n"
      ": waits for messages, . for a stage, S sums gradients\n";
  text += fmt::format("step {} takes {:.4g} s, of it\n{}", traced.step, traced.length_s, times_table(traced.times));
  write_stdout(text);
}

void run_schedule(const ScheduleOptions& o, const CommonOptions& common) {
  if (!o.trace.empty()) return run_traced(o, common);
  if (int64_t{o.ranks} * o.chunks > kMostOperations)
    throw UsageError("plan schedule: --ranks {} times --chunks {} is more than {} operations", o.ranks, o.chunks,
                     kMostOperations);
  if (o.times.w > o.times.b) throw UsageError("plan schedule: --w {} is a part of --b {}", o.times.w, o.times.b);
  const auto kind = std::find_if(std::begin(kScheduleKinds), std::end(kScheduleKinds), [&](const auto& each) {
                      return each.name == o.kind;
                    })->kind;
  PipelineSchedule schedule;
  try {
    schedule = make_schedule(kind, o.ranks, o.chunks);
  } catch (const Error& error) {
    throw UsageError("plan schedule: {}", error.what());
  }
  const Simulation sim = simulate(schedule, o.times, o.transfer);
  const double bubble = bubble_by_formula(kind, o.ranks, o.times);
  const int peak = peak_by_formula(kind, o.ranks, o.chunks);
  if (!o.svg.empty()) {
    write_file_atomically(
        o.svg, schedule_svg(schedule, sim.spans,
                            fmt::format("{}: {} ranks, {} chunks; F {:g}, B {:g}, W {:g}, F&B {:g}", o.kind, o.ranks,
                                        o.chunks, o.times.f, o.times.b, o.times.w, o.times.fb),
                            ""));
  }
  if (common.json) {
    ordered_json ops = ordered_json::array();
    for (const auto& of_rank : schedule.ops) ops.push_back(schedule_text(of_rank));
    const ordered_json result{{"schedule", o.kind},
                              {"ranks", o.ranks},
                              {"chunks", o.chunks},
                              {"ops", ops},
                              {"makespan", json_number(sim.makespan)},
                              {"idle", numbers(sim.idle)},
                              {"peak_live", sim.peak_live},
                              {"peak_held", sim.peak_held},
                              {"bubble_by_formula", json_number(bubble)},
                              {"peak_by_formula", peak}};
    return write_stdout(result.dump() + "\n");
  }
  std::string text = schedule_drawing(schedule, sim.spans, kDrawingColumns);
  text += "F forward, B backward, I for inputs only, W for weights only, X forward and backward; small: direction 1\n";
  const auto [least, most] = std::minmax_element(sim.idle.begin(), sim.idle.end());
  text += fmt::format("makespan {:g}, of it a rank waits {:g} to {:g} ({:.1f} to {:.1f} %); by formula {:g}\n",
                      sim.makespan, *least, *most, 100 * *least / sim.makespan, 100 * *most / sim.makespan, bubble);
  text += fmt::format("chunks that a rank holds: {} at most, by formula {}\n",
                      *std::max_element(sim.peak_held.begin(), sim.peak_held.end()), peak);
  write_stdout(text);
}

// Of one layer's list, or of many: [layer][expert].
std::vector<std::vector<double>> loads_of(const json& weight) {
  if (!weight.is_array() || weight.empty()) throw Error("weight must be a list, [layer][expert]");
  std::vector<std::vector<double>> loads;
  for (const json& layer : weight) {
    std::vector<double>& load = loads.emplace_back();
    if (!layer.is_array() || layer.empty() || std::ssize(layer) > kMostExperts)
      throw Error("weight: a layer is a list of 1 to {} numbers", kMostExperts);
    for (const json& x : layer) {
      if (!x.is_number()) throw Error("weight: a layer is a list of 1 to {} numbers", kMostExperts);
      load.push_back(x.get<double>());
      if (load.back() > kMostLoad) throw Error("weight: the load of an expert is at most {:g}", kMostLoad);
    }
  }
  return loads;
}

int count_of(const json& object, const char* name) {
  if (!object.contains(name)) throw Error("{} is missing", name);
  const json& value = object[name];
  if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > kMostReplicas)
    throw Error("{} must be an integer from 1 to {}", name, kMostReplicas);
  return value.get<int>();
}

std::string placement_line(const std::string& line, const CommonOptions& common) {
  const json object = json::parse(line, nullptr, false);
  if (!object.is_object()) throw Error("is no JSON object");
  const PlacementShape shape{count_of(object, "num_replicas"), count_of(object, "num_groups"),
                             count_of(object, "num_nodes"), count_of(object, "num_gpus")};
  const std::vector<std::vector<double>> loads = loads_of(object.contains("weight") ? object["weight"] : json(nullptr));
  ordered_json physical = ordered_json::array(), counts = physical, worst = physical;
  std::vector<ExpertPlacement> placements;
  size_t most = 0;
  for (const std::vector<double>& load : loads) {
    const ExpertPlacement& placement = placements.emplace_back(place_experts(load, shape));
    physical.push_back(placement.physical_to_logical);
    ordered_json& count = counts.emplace_back(ordered_json::array());
    for (const std::vector<int>& copies : placement.logical_to_physical) {
      count.push_back(copies.size());
      most = std::max(most, copies.size());
    }
    worst.push_back(max_over_mean_load(load, placement, shape.n_gpus));
  }
  if (!common.json) {
    std::string text;
    for (size_t layer = 0; layer < loads.size(); ++layer) {
      text += fmt::format("layer {}: the busiest GPU has {:.3f} times the mean; GPU by GPU:", layer,
                          worst[layer].get<double>());
      const std::vector<int>& all = placements[layer].physical_to_logical;
      const size_t per_gpu = all.size() / static_cast<size_t>(shape.n_gpus);
      for (size_t i = 0; i < all.size(); ++i)
        text += fmt::format("{}{}", i > 0 && i % per_gpu == 0 ? " | " : " ", all[i]);
      text += '\n';
    }
    return text;
  }
  ordered_json logical = ordered_json::array();  // -1: no more copies
  for (const ExpertPlacement& placement : placements) {
    ordered_json& layer = logical.emplace_back(ordered_json::array());
    for (std::vector<int> copies : placement.logical_to_physical) {
      copies.resize(most, -1);
      layer.push_back(copies);
    }
  }
  ordered_json result = ordered_json::parse(line);
  result["physical_to_logical"] = physical;
  result["logical_to_physical"] = logical;
  result["expert_count"] = counts;
  result["max_over_mean_gpu_load"] = worst;
  return result.dump() + "\n";
}

void run_eplb(const CommonOptions& common) {
  int64_t n = 0;
  for (std::string line; std::getline(std::cin, line);) {
    stop_when_interrupted();
    ++n;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    write_stdout(errors_at(fmt::format("standard input: line {}", n), [&] {
      if (line.size() > kMostLineBytes) throw Error("has more than {} bytes", kMostLineBytes);
      return placement_line(line, common);
    }));
  }
}

// As CLI::Range, which writes its limits, 1e-9 too, with six digits behind the point.
CLI::Validator time_between(double least, double most) {
  return {[least, most](const std::string& text) {
            double x = 0;
            const bool ok = CLI::detail::lexical_cast(text, x) && x >= least && x <= most;
            return ok ? "" : fmt::format("{} is no number from {:g} to {:g}", printable(text), least, most);
          },
          fmt::format("FLOAT in [{:g} - {:g}]", least, most)};
}

void add_schedule(CLI::App& plan, CommonOptions& common) {
  const auto o = std::make_shared<ScheduleOptions>();
  CLI::App* c = plan.add_subcommand("schedule",
                                    "Draw and simulate a pipeline schedule, or draw a measured one (docs/parallel.md)");
  c->option_defaults()->always_capture_default();
  std::vector<std::string> names;
  for (const auto& each : kScheduleKinds) names.emplace_back(each.name);
  std::vector<CLI::Option*> simulated{
      c->add_option("--kind", o->kind, "Which")->check(CLI::IsMember(names))->type_name(""),
      c->add_option("--ranks", o->ranks, "Ranks of the pipeline")->check(CLI::Range(1, kMostRanks)),
      c->add_option("--chunks", o->chunks, "Micro-batches of a step, of both directions together")
          ->check(CLI::Range(1, kMostChunks))};
  const CLI::Validator time = time_between(1e-9, 1e9);
  for (const auto& [name, value, text] : {std::tuple("--f", &o->times.f, "Time of a forward pass"),
                                          {"--b", &o->times.b, "Time of a whole backward pass"},
                                          {"--w", &o->times.w, "Time of its part for weights"},
                                          {"--fb", &o->times.fb, "Time of a forward and a backward pass together"}}) {
    simulated.push_back(c->add_option(name, *value, text)->check(time));
  }
  simulated.push_back(
      c->add_option("--transfer", o->transfer, "Time from one rank to the next")->check(time_between(0, 1e9)));
  CLI::Option* const trace =
      c->add_option("--from-trace", o->trace,
                    "Draw instead what was measured: a file that fathom train --trace has written")
          ->type_name("FILE");
  for (CLI::Option* const each : simulated) trace->excludes(each);
  c->add_option("--step", o->step, "Which step of the trace; its last by default")->needs(trace);
  c->add_option("--svg", o->svg, "Draw it into this file")->type_name("FILE");
  c->callback([o, &common] { run_schedule(*o, common); });
}

}  // namespace

void add_plan(CLI::App& app, CommonOptions& common) {
  CLI::App* plan = app.add_subcommand(
      "plan", "What a training or a deployment needs: memory, time, money, schedules, experts' places");
  plan->require_subcommand(1);
  add_plan_costs(*plan, common);
  add_plan_page(*plan, common);
  add_schedule(*plan, common);
  plan->add_subcommand("eplb",
                       "Place copies of experts on GPUs: {\"weight\": [[load of each expert] of each layer], "
                       "\"num_replicas\", \"num_groups\", \"num_nodes\", \"num_gpus\"} a line on standard input")
      ->callback([&common] { run_eplb(common); });
}

}  // namespace fathom::cli
