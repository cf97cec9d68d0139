// Records -> scores with their intervals.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "eval/records.h"
#include "eval/tasks.h"

namespace fathom::eval {

// A share of 0 to 1, or a perplexity, with its 95 % interval.
struct Measure {
  std::string name;
  double value = 0, low = 0, high = 0;
  int64_t n = 0;  // items
};

struct TaskResult {
  std::string task;
  std::vector<Measure> measures;                 // the leading one first
  std::vector<Measure> subjects;                 // of the leading one, by name
  int64_t items = 0, samples = 1, answered = 0;  // answered: items with all their samples
  int64_t failed = 0, cut = 0,
          truncated = 0;  // answers: not asked; ended by a limit of tokens; prompt without its begin
  int64_t prompt_tokens = 0, tokens = 0;
  double seconds = 0;  // that answers took, added up: more than went by where several were written at a time
  nlohmann::ordered_json settings;
};

// Of one task. samples: of each item; with several a measure is the mean over items of the mean over samples. ks: for
// programs "pass@k" of these (statistics.h), for answers "maj@samples", what most samples say. bytes: of a text, for
// bits per byte. Wilson intervals where each item has one answer or all score the same, else by the standard error over
// items.
TaskResult task_result(const Task& task, std::span<const Record> records, int64_t n_items, int64_t samples,
                       std::span<const int64_t> ks, int64_t bytes, nlohmann::ordered_json settings);

nlohmann::ordered_json result_json(const TaskResult& result);
// As result_json() writes it. Error, beginning with `where`, for anything else.
TaskResult read_result(simdjson::dom::element json, const std::string& where);

// A difference of two runs over the same items.
struct Comparison {
  std::string task, measure;
  int64_t n = 0;                                           // items that both have
  double a = 0, b = 0, difference = 0, low = 0, high = 0;  // b - a, with its 95 % interval over items
  // Where each item has one answer: right in both, in one alone, in neither; McNemar's exact test of the two between.
  int64_t both = 0, only_a = 0, only_b = 0, neither = 0;
  double p = 1;
  bool binary = false;
};
// For each measure that both have. Items are the same by their id.
std::vector<Comparison> compare_records(const std::string& task, std::span<const Record> a, std::span<const Record> b);
nlohmann::ordered_json comparison_json(const Comparison& comparison);

}  // namespace fathom::eval
