// What a teacher said, as it came: the file that making traces goes on from (tune/traces.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "tune/traces.h"

namespace fathom::tune {

struct TraceAnswer {
  eval::Answer answer;
  std::optional<TraceVerdict> verdict;  // nothing: not verified yet
};

// Appended to, a line at a time; what a kill left of a line is dropped.
class TraceJournal {
 public:
  // settings: a line of JSON; UsageError where the file has another first line. n_questions, n_samples: Error for an
  // answer to something else.
  TraceJournal(std::filesystem::path path, const std::string& settings, size_t n_questions, int64_t n_samples);
  ~TraceJournal();
  TraceJournal(const TraceJournal&) = delete;
  TraceJournal& operator=(const TraceJournal&) = delete;

  using Key = std::pair<size_t, int64_t>;  // question, sample
  const std::map<Key, TraceAnswer>& answers() const { return answers_; }
  bool has(const Key& key) const { return answers_.contains(key); }
  void add(const Key& key, eval::Answer answer);
  void verify(const Key& key, TraceVerdict verdict);

 private:
  void read_line(std::string_view line, int64_t number);
  void write(const nlohmann::ordered_json& line);
  std::filesystem::path path_;
  size_t n_questions_;
  int64_t n_samples_;
  int fd_ = -1;
  std::map<Key, TraceAnswer> answers_;
};

}  // namespace fathom::tune
