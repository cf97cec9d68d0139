#include "eval/results.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/json.h"
#include "eval/answers.h"
#include "eval/statistics.h"
#include "eval/task_files.h"

namespace fathom::eval {
namespace {

using nlohmann::ordered_json;

// Records of each item that has all its samples, one of each.
std::map<int64_t, std::vector<const Record*>> by_item(std::span<const Record> records, int64_t samples) {
  std::map<int64_t, std::map<int64_t, const Record*>> all;
  for (const Record& record : records) all[record.item].try_emplace(record.sample, &record);
  std::map<int64_t, std::vector<const Record*>> whole;
  for (const auto& [item, of_item] : all) {
    if (std::ssize(of_item) < samples) continue;
    for (const auto& [sample, record] : of_item) {
      if (sample < samples) whole[item].push_back(record);
    }
  }
  return whole;
}

double score_of(const Record& record, const std::string& name) {
  for (const auto& [key, value] : record.scores) {
    if (key == name) return value;
  }
  return 0;
}

Measure share(std::string name, std::span<const double> values, bool binary) {
  Measure measure{.name = std::move(name), .n = std::ssize(values)};
  double sum = 0;
  for (const double value : values) sum += value;
  measure.value = values.empty() ? 0 : sum / static_cast<double>(values.size());
  // Items that all score the same have no spread to tell an interval by.
  const bool no_spread = std::ranges::all_of(values, [&](double value) { return value == values[0]; });
  const Interval interval = binary || no_spread ? wilson_interval(std::llround(sum), measure.n) : mean_interval(values);
  measure.low = std::max(0.0, interval.low);
  measure.high = std::min(1.0, interval.high);
  return measure;
}

// Whether what most samples answer is right; of equal counts, what came first.
bool majority_is_right(const std::vector<const Record*>& samples, const std::string& lead) {
  struct Group {
    const Record* first;
    int64_t n;
  };
  std::vector<Group> groups;
  for (const Record* record : samples) {
    if (record->extracted.empty()) continue;
    const auto at = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
      return group.first->extracted == record->extracted || same_answer(record->extracted, group.first->extracted);
    });
    if (at == groups.end()) {
      groups.push_back({record, 1});
    } else {
      ++at->n;
    }
  }
  const auto most =
      std::max_element(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.n < b.n; });
  return most != groups.end() && score_of(*most->first, lead) > 0.5;
}

void measure_text(std::span<const Record> records, int64_t bytes, TaskResult& result) {
  double sum = 0;
  int64_t tokens = 0;
  std::vector<double> losses;
  for (const Record& record : records) {
    const double logprob = score_of(record, "logprob");
    if (record.tokens == 0) continue;
    sum += logprob;
    tokens += record.tokens;
    losses.push_back(-logprob / static_cast<double>(record.tokens));
  }
  if (tokens == 0) return;
  const double loss = -sum / static_cast<double>(tokens);
  const Interval interval = mean_interval(losses);
  const double half = (interval.high - interval.low) / 2;
  result.measures.push_back({"perplexity", std::exp(loss), std::exp(loss - half), std::exp(loss + half), tokens});
  if (bytes > 0) {
    const double bits = loss / std::log(2) * static_cast<double>(tokens) / static_cast<double>(bytes);
    const double scale = loss > 0 ? bits / loss : 0;
    result.measures.push_back({"bits_per_byte", bits, bits - half * scale, bits + half * scale, tokens});
  }
}

}  // namespace

TaskResult task_result(const Task& task, std::span<const Record> records, int64_t n_items, int64_t samples,
                       std::span<const int64_t> ks, int64_t bytes, ordered_json settings) {
  TaskResult result{
      .task = std::string(task.name), .items = n_items, .samples = samples, .settings = std::move(settings)};
  const auto whole = by_item(records, samples);
  result.answered = std::ssize(whole);
  std::vector<std::string> names;
  for (const auto& [item, of_item] : whole) {
    for (const Record* record : of_item) {
      result.failed += !record->error.empty();
      result.cut += record->finish == "length";
      result.truncated += record->truncated;
      result.prompt_tokens += record->prompt_tokens;
      result.tokens += record->tokens;
      result.seconds += record->seconds;
      for (const auto& [name, value] : record->scores) {
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
      }
    }
  }
  if (task.kind == TaskKind::perplexity) {
    measure_text(records, bytes, result);
    return result;
  }
  const auto values_of = [&](const std::string& name, const std::string* subject) {
    std::vector<double> values;
    for (const auto& [item, of_item] : whole) {
      if (subject != nullptr && of_item[0]->subject != *subject) continue;
      double sum = 0;
      for (const Record* record : of_item) sum += score_of(*record, name);
      values.push_back(sum / static_cast<double>(of_item.size()));
    }
    return values;
  };
  if (names.empty()) return result;
  const std::string lead = names[0];
  if (task.kind == TaskKind::code) {
    for (const int64_t k : ks) {
      std::vector<double> values;
      for (const auto& [item, of_item] : whole) {
        int64_t right = 0;
        for (const Record* record : of_item) right += score_of(*record, lead) > 0.5;
        values.push_back(pass_at_k(std::ssize(of_item), right, k));
      }
      result.measures.push_back(share(fmt::format("pass@{}", k), values, samples == 1));
    }
  } else {
    for (const std::string& name : names)
      result.measures.push_back(share(name, values_of(name, nullptr), samples == 1));
    if (samples > 1) {
      std::vector<double> values;
      for (const auto& [item, of_item] : whole) values.push_back(majority_is_right(of_item, lead) ? 1 : 0);
      result.measures.push_back(share(fmt::format("maj@{}", samples), values, true));
    }
  }
  std::vector<std::string> subjects;
  for (const auto& [item, of_item] : whole) {
    if (!of_item[0]->subject.empty()) subjects.push_back(of_item[0]->subject);
  }
  std::sort(subjects.begin(), subjects.end());
  subjects.erase(std::unique(subjects.begin(), subjects.end()), subjects.end());
  if (subjects.size() > 1) {
    for (const std::string& subject : subjects) {
      result.subjects.push_back(share(subject, values_of(lead, &subject), samples == 1));
    }
  }
  return result;
}

namespace {

ordered_json measures_json(std::span<const Measure> measures) {
  ordered_json list = ordered_json::array();
  for (const Measure& m : measures) {
    list.push_back({{"name", m.name}, {"value", m.value}, {"low", m.low}, {"high", m.high}, {"n", m.n}});
  }
  return list;
}

std::vector<Measure> read_measures(simdjson::dom::element json, const char* key, const std::string& where) {
  simdjson::dom::array list;
  if (json[key].get(list)) throw Error("{}: there is no list under \"{}\"", where, key);
  std::vector<Measure> measures;
  for (const simdjson::dom::element one : list) {
    Measure m{.name = text_field(one, "name", where), .n = integer_field(one, "n", where)};
    if (one["value"].get_double().get(m.value) || one["low"].get_double().get(m.low) ||
        one["high"].get_double().get(m.high)) {
      throw Error("{}: the measure {} has no value", where, printable(m.name, 40));
    }
    measures.push_back(std::move(m));
  }
  return measures;
}

}  // namespace

ordered_json result_json(const TaskResult& r) {
  return {{"task", r.task},
          {"measures", measures_json(r.measures)},
          {"subjects", measures_json(r.subjects)},
          {"items", r.items},
          {"samples", r.samples},
          {"answered", r.answered},
          {"failed", r.failed},
          {"cut", r.cut},
          {"truncated", r.truncated},
          {"prompt_tokens", r.prompt_tokens},
          {"tokens", r.tokens},
          {"seconds", r.seconds},
          {"settings", r.settings}};
}

TaskResult read_result(simdjson::dom::element json, const std::string& where) {
  TaskResult r{.task = text_field(json, "task", where),
               .measures = read_measures(json, "measures", where),
               .subjects = read_measures(json, "subjects", where)};
  for (const auto& [key, value] :
       std::initializer_list<std::pair<const char*, int64_t*>>{{"items", &r.items},
                                                               {"samples", &r.samples},
                                                               {"answered", &r.answered},
                                                               {"failed", &r.failed},
                                                               {"cut", &r.cut},
                                                               {"truncated", &r.truncated},
                                                               {"tokens", &r.tokens},
                                                               {"prompt_tokens", &r.prompt_tokens}}) {
    *value = integer_field(json, key, where);
  }
  if (json["seconds"].get_double().get(r.seconds)) throw Error("{}: there is no number under \"seconds\"", where);
  simdjson::dom::element settings;
  if (json["settings"].get(settings)) throw Error("{}: there are no settings", where);
  r.settings = ordered_json::parse(simdjson::to_string(settings));
  return r;
}

std::vector<Comparison> compare_records(const std::string& task, std::span<const Record> a, std::span<const Record> b) {
  struct Sums {
    double sum[2] = {0, 0};
    int64_t n[2] = {0, 0};
  };
  std::vector<std::string> names;
  std::map<std::string, std::map<std::string, Sums>> all;  // by measure, by id
  for (const int side : {0, 1}) {
    for (const Record& record : side == 0 ? a : b) {
      for (const auto& [name, value] : record.scores) {
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
        Sums& sums = all[name][record.id];
        sums.sum[side] += value;
        ++sums.n[side];
      }
    }
  }
  std::vector<Comparison> comparisons;
  for (const std::string& name : names) {
    Comparison c{.task = task, .measure = name, .binary = true};
    std::vector<double> differences;
    for (const auto& [id, sums] : all[name]) {
      if (sums.n[0] == 0 || sums.n[1] == 0) continue;
      const double mean_a = sums.sum[0] / static_cast<double>(sums.n[0]),
                   mean_b = sums.sum[1] / static_cast<double>(sums.n[1]);
      c.a += mean_a;
      c.b += mean_b;
      differences.push_back(mean_b - mean_a);
      const auto is_whole = [](double x) { return x == 0 || x == 1; };
      c.binary &= is_whole(mean_a) && is_whole(mean_b);
      ++(mean_a > 0.5 ? (mean_b > 0.5 ? c.both : c.only_a) : (mean_b > 0.5 ? c.only_b : c.neither));
    }
    c.n = std::ssize(differences);
    if (c.n == 0) continue;
    c.a /= static_cast<double>(c.n);
    c.b /= static_cast<double>(c.n);
    c.difference = c.b - c.a;
    const Interval interval = mean_interval(differences);
    c.low = interval.low;
    c.high = interval.high;
    if (c.binary) {
      // Twice the chance of as few as the fewer of those that differ, were either as likely.
      const int64_t n = c.only_a + c.only_b, fewer = std::min(c.only_a, c.only_b);
      double chance = 0;
      for (int64_t k = 0; k <= fewer; ++k) {
        chance += std::exp(std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1) -
                           static_cast<double>(n) * std::log(2));
      }
      c.p = n == 0 ? 1 : std::min(1.0, 2 * chance);
    }
    comparisons.push_back(c);
  }
  return comparisons;
}

ordered_json comparison_json(const Comparison& c) {
  ordered_json json{{"task", c.task}, {"measure", c.measure},       {"n", c.n},     {"a", c.a},
                    {"b", c.b},       {"difference", c.difference}, {"low", c.low}, {"high", c.high}};
  if (c.binary) {
    json["both"] = c.both;
    json["only_a"] = c.only_a;
    json["only_b"] = c.only_b;
    json["neither"] = c.neither;
    json["p"] = c.p;
  }
  return json;
}

}  // namespace fathom::eval
