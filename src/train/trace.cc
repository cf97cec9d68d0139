#include "train/trace.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace fathom {
namespace {

using nlohmann::json;
using Piece = PipelineTrace::Piece;

// Of files that are read.
constexpr size_t kMostBytes = size_t{256} << 20, kMostPieces = size_t{1} << 20;
constexpr int64_t kMostRanks = 1024, kMostChunks = 1 << 16;
constexpr double kMostSeconds = 1e9;

constexpr std::string_view kStep = "step ";

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
    event["args"] = {{"bytes", sum.bytes}, {"seconds", sum.end - sum.begin}};
    events.push_back(std::move(event));
  }
}

// Seconds before `end` in which one was under way.
template <class Sum>
double seconds_of_sums(std::vector<Sum> sums, double end) {
  std::ranges::sort(sums, {}, &Sum::begin);
  double seconds = 0, counted = 0;
  for (const Sum& sum : sums) {
    const double until = std::min(sum.end, end);
    seconds += std::max(until - std::max(sum.begin, counted), 0.0);
    counted = std::max(counted, until);
  }
  return seconds;
}

}  // namespace

void TraceWriter::add(int64_t step, const StepTrace& trace) { steps_.emplace_back(step, trace); }

std::string TraceWriter::write(const RankGroup& all, const std::filesystem::path& file) const {
  const int rank = all.ranks[static_cast<size_t>(all.index)];
  json events = names_of(rank);
  RankTimes times;
  double at = 0;  // where the step begins in the file: the same on all ranks, up to a barrier
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
    events.push_back(event(fmt::format("{}{}", kStep, step), "step", rank, kSteps, at, at + trace.end, json::object()));
    const PipelineTrace& p = trace.pipeline;
    times.all += trace.end;
    times.computed += p.computed;
    times.exposed += p.exposed;
    times.starved += p.starved;
    times.sums_beside += seconds_of_sums(trace.sums, p.end);
    times.sums_alone += trace.end - p.end;
    std::vector<double> lengths(static_cast<size_t>(all.size()));
    lengths[static_cast<size_t>(all.index)] = trace.end;
    sum_over(all, std::span(lengths));
    at += *std::max_element(lengths.begin(), lengths.end());
  }
  json told{{"events", std::move(events)},
            {"times", {times.all, times.computed, times.exposed, times.starved, times.sums_beside, times.sums_alone}}};
  const std::vector<std::string> texts = gather_texts(all, told.dump());
  if (all.index != 0) return {};
  json merged = json::array();
  std::vector<RankTimes> all_times;
  for (const std::string& text : texts) {
    json of_rank = json::parse(text);
    merged.insert(merged.end(), of_rank["events"].begin(), of_rank["events"].end());
    const std::array<double, 6> seconds = of_rank["times"];
    all_times.push_back({seconds[0], seconds[1], seconds[2], seconds[3], seconds[4], seconds[5]});
  }
  write_file_atomically(file, json{{"traceEvents", std::move(merged)}, {"displayTimeUnit", "ms"}}.dump() + "\n");
  return times_table(all_times);
}

std::string times_table(std::span<const RankTimes> ranks) {
  std::string table = "rank  computed  waits for messages  waits for a stage  sums beside  sums alone\n";
  for (size_t r = 0; r < ranks.size(); ++r) {
    const RankTimes& t = ranks[r];
    const auto percent = [&](double seconds) { return t.all > 0 ? 100 * seconds / t.all : 0; };
    table += fmt::format("{:4}  {:6.1f} %  {:16.1f} %  {:15.1f} %  {:9.1f} %  {:8.1f} %\n", r, percent(t.computed),
                         percent(t.exposed), percent(t.starved), percent(t.sums_beside), percent(t.sums_alone));
  }
  return table;
}

namespace {

// An event of a file.
struct FileEvent {
  std::string_view name, category;
  int64_t rank;
  double begin_s, end_s;
  bool is_under_way;
  simdjson::dom::element whole;
};

int64_t integer_of(simdjson::dom::element object, const char* key, int64_t most) {
  int64_t value = -1;
  if (object[key].get(value) != simdjson::SUCCESS || value < 0 || value > most) {
    throw Error("{} must be an integer from 0 to {}", key, most);
  }
  return value;
}

double seconds_of(simdjson::dom::element object, const char* key) {
  double value = -1;
  if (object[key].get(value) != simdjson::SUCCESS || !(value >= 0 && value <= kMostSeconds * 1e6)) {
    throw Error("{} must be a number from 0 to {:g}", key, kMostSeconds * 1e6);
  }
  return value / 1e6;
}

simdjson::dom::element arguments_of(simdjson::dom::element event) {
  simdjson::dom::element arguments;
  if (event["args"].get(arguments) != simdjson::SUCCESS) throw Error("args is missing");
  return arguments;
}

// Nothing for what a picture does not show.
std::optional<FileEvent> event_of(simdjson::dom::element whole) {
  FileEvent event{};
  std::string_view phase;
  if (!whole.is_object()) throw Error("is no object");
  if (whole["ph"].get(phase) != simdjson::SUCCESS) throw Error("ph is missing");
  if (whole["cat"].get(event.category) != simdjson::SUCCESS) return std::nullopt;
  // A sum as long as it is under way, or a piece of the rank's own work on it.
  event.is_under_way = phase == "b" && event.category == "sum";
  const bool is_piece = event.category == "pass" || event.category == "wait" || event.category == "sum";
  if (!event.is_under_way && (phase != "X" || (!is_piece && event.category != "step"))) return std::nullopt;
  if (whole["name"].get(event.name) != simdjson::SUCCESS) throw Error("name is missing");
  event.rank = integer_of(whole, "pid", kMostRanks - 1);
  event.begin_s = seconds_of(whole, "ts");
  event.end_s = event.begin_s +
                (event.is_under_way ? 1e6 * seconds_of(arguments_of(whole), "seconds") : seconds_of(whole, "dur"));
  event.whole = whole;
  return event;
}

Piece piece_of(const FileEvent& event) {
  const bool is_pass = event.category == "pass";
  const auto* const kind = std::find(kPieces.begin(), kPieces.end(), is_pass ? event.name.substr(0, 1) : event.name);
  const auto i = static_cast<size_t>(kind - kPieces.begin());
  Piece piece{static_cast<Piece::Kind>(i), {}, event.begin_s, event.end_s};
  if (i == kPieces.size() || is_pass != (piece.kind < Piece::Kind::beside)) {
    throw Error("{} is neither a pass nor a wait", printable(event.name, 40));
  }
  if (is_pass) {
    const simdjson::dom::element arguments = arguments_of(event.whole);
    piece.pass = {static_cast<int>(integer_of(arguments, "direction", 1)),
                  static_cast<int>(integer_of(arguments, "chunk", kMostChunks))};
  }
  return piece;
}

std::vector<FileEvent> events_of(const JsonDocument& document) {
  simdjson::dom::array list;
  if (document.root()["traceEvents"].get(list) != simdjson::SUCCESS) throw Error("has no list traceEvents");
  std::vector<FileEvent> events;
  size_t i = 0;
  for (const simdjson::dom::element whole : list) {
    std::optional<FileEvent> event = errors_at(fmt::format("traceEvents[{}]", i++), [&] { return event_of(whole); });
    if (event) events.push_back(*event);
  }
  return events;
}

// [step]: when it begins.
std::map<int64_t, double> steps_of(const std::vector<FileEvent>& events) {
  std::map<int64_t, double> steps;
  for (const FileEvent& event : events) {
    if (event.category != "step" || !event.name.starts_with(kStep)) continue;
    int64_t number = 0;
    const std::string_view digits = event.name.substr(kStep.size());
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (error != std::errc() || end != digits.data() + digits.size()) {
      throw Error("{} is no step's number", printable(event.name, 40));
    }
    const auto [at, is_new] = steps.try_emplace(number, event.begin_s);
    if (!is_new) at->second = std::min(at->second, event.begin_s);
  }
  if (steps.empty()) throw Error("has no steps; fathom train --trace writes such files");
  return steps;
}

// sums: each as long as it was under way.
RankTimes times_of(double length_s, const MeasuredRank& rank, const std::vector<PipelineTrace::Span>& sums) {
  RankTimes times{length_s};
  double nothing = 0;
  double* const of_kind[] = {&times.computed, &times.computed, &times.computed, &times.computed,
                             &nothing,        &times.exposed,  &times.starved};
  for (const Piece& piece : rank.pieces) *of_kind[static_cast<size_t>(piece.kind)] += piece.end - piece.begin;
  times.sums_beside = seconds_of_sums(sums, rank.pieces.empty() ? 0 : rank.pieces.back().end);
  for (const PipelineTrace::Span& alone : rank.sums) times.sums_alone += alone.end - alone.begin;
  return times;
}

}  // namespace

TracedStep read_traced_step(const std::filesystem::path& file, std::optional<int64_t> step) {
  const JsonDocument document = JsonDocument::read(file, kMostBytes);
  return errors_at(printable(file.native()), [&] {
    const std::vector<FileEvent> events = events_of(document);
    const std::map<int64_t, double> steps = steps_of(events);
    const auto chosen = step ? steps.find(*step) : std::prev(steps.end());
    if (chosen == steps.end()) {
      throw Error("has no step {}, but {} to {}", *step, steps.begin()->first, steps.rbegin()->first);
    }
    TracedStep traced{chosen->first};
    const double begin = chosen->second;
    double end = HUGE_VAL;  // where the next one begins
    for (const auto& [number, at] : steps) {
      if (at > begin) end = std::min(end, at);
    }
    std::vector<std::vector<PipelineTrace::Span>> sums;  // [rank]
    std::vector<double> ends;                            // [rank]: of its step
    size_t n = 0;
    bool is_empty = true;
    for (const FileEvent& event : events) {
      if (event.begin_s < begin || event.begin_s >= end) continue;
      if (++n > kMostPieces) throw Error("step {} has more than {} pieces", traced.step, kMostPieces);
      const auto r = static_cast<size_t>(event.rank);
      if (r >= traced.ranks.size()) {
        traced.ranks.resize(r + 1);
        sums.resize(r + 1);
        ends.resize(r + 1);
      }
      const PipelineTrace::Span span{event.begin_s - begin, event.end_s - begin};
      if (event.is_under_way) {
        sums[r].push_back(span);
      } else if (event.category == "step") {
        ends[r] = std::max(ends[r], span.end);
      } else {
        Piece piece = piece_of(event);
        piece.begin = span.begin;
        piece.end = span.end;
        traced.ranks[r].pieces.push_back(piece);
        is_empty = false;
      }
      traced.length_s = std::max(traced.length_s, span.end);
    }
    if (is_empty || !(traced.length_s > 0)) throw Error("step {} takes no time", traced.step);
    for (size_t r = 0; r < traced.ranks.size(); ++r) {
      MeasuredRank& rank = traced.ranks[r];
      std::stable_sort(rank.pieces.begin(), rank.pieces.end(),
                       [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
      const double passes_end = rank.pieces.empty() ? 0 : rank.pieces.back().end;
      if (ends[r] > passes_end && !sums[r].empty()) rank.sums.push_back({passes_end, ends[r]});
      traced.times.push_back(times_of(traced.length_s, rank, sums[r]));
    }
    return traced;
  });
}

}  // namespace fathom
