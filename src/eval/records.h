// What a run has asked and got, an object a line, saved as it comes: OUT/TASK.jsonl. A line that a kill has torn is
// dropped when the file is opened again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace fathom::eval {

// One answer to one item, or one window of a text.
struct Record {
  int64_t item = 0, sample = 0;
  std::string id{}, subject{};
  std::vector<std::pair<std::string, double>> scores{};  // of 0 to 1, but for "logprob" of a window
  std::string extracted{};
  std::string error{};     // of a question that could not be asked: its scores are 0
  std::string finish{};    // "stop", "length", ...
  bool truncated = false;  // the prompt lost its begin
  int64_t prompt_tokens = 0, tokens = 0;
  double seconds = 0;
};

// The record's own fields and, behind them, more for people: prompt, answer, expected, ...
nlohmann::ordered_json record_json(const Record& record, const nlohmann::ordered_json& more);

// All records of a file in their order; none where there is no file. Error, naming file and line, for a line that is no
// record, but for the last.
std::vector<Record> read_records(const std::filesystem::path& path);

// Appends lines; each is there as a whole, or torn at the file's end. Safe to call from many threads.
class RecordFile {
 public:
  // Cuts a torn line off. Without a path nothing is kept.
  explicit RecordFile(const std::filesystem::path& path);
  ~RecordFile();
  RecordFile(const RecordFile&) = delete;
  RecordFile& operator=(const RecordFile&) = delete;

  void append(const nlohmann::ordered_json& line);
  void sync();  // to the disk, which append() does every few seconds

 private:
  std::filesystem::path path_;
  std::mutex mutex_;
  int fd_ = -1;
  double synced_s_ = 0;
};

}  // namespace fathom::eval
