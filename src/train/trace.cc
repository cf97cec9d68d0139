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

constexpr std::array<const char*, 6> kPieces = {"F", "B", "I", "W", "wait for messages", "wait for a stage"};

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

double length_of(const StepTrace& trace) { return std::max(trace.pipeline.end, trace.reduce_end); }

}  // namespace

void TraceWriter::add(int64_t step, const StepTrace& trace) { steps_.emplace_back(step, trace); }

std::string TraceWriter::write(const RankGroup& all, const std::filesystem::path& file) const {
  const int rank = all.ranks[static_cast<size_t>(all.index)];
  json events = names_of(rank);
  std::vector<double> shares(5);  // seconds: in all, computed, exposed, starved, summing
  double at = 0;                  // where the step begins in the file: the same on all ranks, up to a barrier
  for (const auto& [step, trace] : steps_) {
    for (const Piece& piece : trace.pipeline.pieces) {
      const bool waits = piece.kind == Piece::Kind::exposed || piece.kind == Piece::Kind::starved;
      std::string name = kPieces[static_cast<size_t>(piece.kind)];
      json arguments = json::object();
      if (!waits) {
        name += std::to_string(piece.pass.direction);
        arguments = {{"chunk", piece.pass.chunk}, {"direction", piece.pass.direction}};
      }
      events.push_back(
          event(name, waits ? "wait" : "pass", rank, kComputed, at + piece.begin, at + piece.end, arguments));
    }
    for (const Traffic::Message& message : trace.messages) {
      events.push_back(event(message.returns ? "combine" : "dispatch", "rows", rank, kMessages,
                             at + message.begin - trace.origin_s, at + message.end - trace.origin_s,
                             {{"bytes", message.bytes}}));
    }
    events.push_back(event("sum of gradients", "step", rank, kSteps, at + trace.reduce_begin, at + trace.reduce_end,
                           json::object()));
    events.push_back(
        event(fmt::format("step {}", step), "step", rank, kSteps, at, at + trace.reduce_begin, json::object()));
    double length = length_of(trace);
    const PipelineTrace& p = trace.pipeline;
    const double part[] = {length, p.computed, p.exposed, p.starved, trace.reduce_end - trace.reduce_begin};
    for (size_t i = 0; i < shares.size(); ++i) shares[i] += part[i];
    std::vector<double> lengths(static_cast<size_t>(all.size()));
    lengths[static_cast<size_t>(all.index)] = length;
    sum_over(all, std::span(lengths));
    at += *std::max_element(lengths.begin(), lengths.end());
  }
  json told{{"events", std::move(events)}, {"shares", shares}};
  const std::vector<std::string> texts = gather_texts(all, told.dump());
  if (all.index != 0) return {};
  json merged = json::array();
  std::string table = "rank  computed  waits for messages  waits for a stage  sums gradients\n";
  for (size_t r = 0; r < texts.size(); ++r) {
    json of_rank = json::parse(texts[r]);
    merged.insert(merged.end(), of_rank["events"].begin(), of_rank["events"].end());
    const std::vector<double> seconds = of_rank["shares"];
    const auto percent = [&](size_t i) { return seconds[0] > 0 ? 100 * seconds[i] / seconds[0] : 0; };
    table += fmt::format("{:4}  {:6.1f} %  {:16.1f} %  {:15.1f} %  {:12.1f} %\n", r, percent(1), percent(2), percent(3),
                         percent(4));
  }
  write_file_atomically(file, json{{"traceEvents", std::move(merged)}, {"displayTimeUnit", "ms"}}.dump() + "\n");
  return table;
}

}  // namespace fathom
