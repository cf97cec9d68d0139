#include "train/trace.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/file.h"

namespace fathom {
namespace {

using nlohmann::json;
using Piece = PipelineTrace::Piece;

enum Row { kComputed, kMessages, kSteps };

constexpr std::array<const char*, 7> kPieces = {
    "F", "B", "I", "W", "adding gradients", "wait for messages", "wait for a stage"};

// Of one rank; times in microseconds, as the format has them.
json event(const std::string& name, const char* category, int rank, Row row, double begin_s, double end_s,
           json arguments) {
  return {{"name", name},
          {"cat", category},
          {"ph", "X"},
          {"ts", begin_s * 1e6},
          {"dur", (end_s - begin_s) * 1e6},
          {"pid", rank},
          {"tid", static_cast<int>(row)},
          {"args", std::move(arguments)}};
}

json names_of(int rank) {
  json events = json::array();
  events.push_back(
      {{"name", "process_name"}, {"ph", "M"}, {"pid", rank}, {"args", {{"name", fmt::format("rank {}", rank)}}}});
  for (const auto& [row, name] :
       {std::pair(kComputed, "passes"), std::pair(kMessages, "experts' rows"), std::pair(kSteps, "steps")}) {
    events.push_back({{"name", "thread_name"},
                      {"ph", "M"},
                      {"pid", rank},
                      {"tid", static_cast<int>(row)},
                      {"args", {{"name", name}}}});
  }
  return events;
}

// As long as it is under way: of those that lie over one another Perfetto draws each in a row of its own.
void add_sum(json& events, const StepTrace::Sum& sum, int rank, double at) {
  const std::string name =
      sum.layer < 0 ? "sum of the embedding's gradients" : fmt::format("sum of layer {}'s gradients", sum.layer);
  const std::string id = fmt::format("{}-{}", rank, events.size());
  for (const auto& [phase, moment] : {std::pair("b", sum.begin), std::pair("e", sum.end)}) {
    json event{{"name", name}, {"cat", "sum"}, {"ph", phase}, {"id", id}, {"ts", (at + moment) * 1e6}, {"pid", rank}};
    event["tid"] = static_cast<int>(kSteps);
    event["args"] = {{"bytes", sum.bytes}};
    events.push_back(std::move(event));
  }
}

// Seconds of the pipeline in which a sum was under way.
double hidden_sums(const StepTrace& trace) {
  std::vector<StepTrace::Sum> sums = trace.sums;
  std::ranges::sort(sums, {}, &StepTrace::Sum::begin);
  double hidden = 0, counted = 0;
  for (const StepTrace::Sum& sum : sums) {
    const double end = std::min(sum.end, trace.pipeline.end);
    hidden += std::max(end - std::max(sum.begin, counted), 0.0);
    counted = std::max(counted, end);
  }
  return hidden;
}

}  // namespace

void TraceWriter::add(int64_t step, const StepTrace& trace) { steps_.emplace_back(step, trace); }

std::string TraceWriter::write(const RankGroup& all, const std::filesystem::path& file) const {
  const int rank = all.ranks[static_cast<size_t>(all.index)];
  json events = names_of(rank);
  std::vector<double> shares(6);  // seconds: in all, computed, exposed, starved, sums hidden and exposed
  double at = 0;                  // where the step begins in the file: the same on all ranks, up to a barrier
  for (const auto& [step, trace] : steps_) {
    for (const Piece& piece : trace.pipeline.pieces) {
      const bool is_pass = piece.kind < Piece::Kind::beside;
      const char* const category = is_pass ? "pass" : piece.kind == Piece::Kind::beside ? "sum" : "wait";
      std::string name = kPieces[static_cast<size_t>(piece.kind)];
      json arguments = json::object();
      if (is_pass) {
        name += std::to_string(piece.pass.direction);
        arguments = {{"chunk", piece.pass.chunk}, {"direction", piece.pass.direction}};
      }
      events.push_back(event(name, category, rank, kComputed, at + piece.begin, at + piece.end, arguments));
    }
    for (const Traffic::Message& message : trace.messages) {
      events.push_back(event(message.returns ? "combine" : "dispatch", "rows", rank, kMessages,
                             at + message.begin - trace.origin_s, at + message.end - trace.origin_s,
                             {{"bytes", message.bytes}}));
    }
    for (const StepTrace::Sum& sum : trace.sums) add_sum(events, sum, rank, at);
    events.push_back(event(fmt::format("step {}", step), "step", rank, kSteps, at, at + trace.end, json::object()));
    const PipelineTrace& p = trace.pipeline;
    const double part[] = {trace.end, p.computed, p.exposed, p.starved, hidden_sums(trace), trace.end - p.end};
    for (size_t i = 0; i < shares.size(); ++i) shares[i] += part[i];
    std::vector<double> lengths(static_cast<size_t>(all.size()));
    lengths[static_cast<size_t>(all.index)] = trace.end;
    sum_over(all, std::span(lengths));
    at += *std::max_element(lengths.begin(), lengths.end());
  }
  json told{{"events", std::move(events)}, {"shares", shares}};
  const std::vector<std::string> texts = gather_texts(all, told.dump());
  if (all.index != 0) return {};
  json merged = json::array();
  std::string table = "rank  computed  waits for messages  waits for a stage  sums beside  sums alone\n";
  for (size_t r = 0; r < texts.size(); ++r) {
    json of_rank = json::parse(texts[r]);
    merged.insert(merged.end(), of_rank["events"].begin(), of_rank["events"].end());
    const std::vector<double> seconds = of_rank["shares"];
    const auto percent = [&](size_t i) { return seconds[0] > 0 ? 100 * seconds[i] / seconds[0] : 0; };
    table += fmt::format("{:4}  {:6.1f} %  {:16.1f} %  {:15.1f} %  {:9.1f} %  {:8.1f} %\n", r, percent(1), percent(2),
                         percent(3), percent(4), percent(5));
  }
  write_file_atomically(file, json{{"traceEvents", std::move(merged)}, {"displayTimeUnit", "ms"}}.dump() + "\n");
  return table;
}

}  // namespace fathom
