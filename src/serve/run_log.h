// The log of a training run (train.jsonl), read piece by piece while the run writes it. Nothing is kept between two
// pieces, and nothing is expected of what stands in it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace fathom::serve {

struct WatchedRun {
  std::string name;  // short, and no other's
  std::string path;  // as it was given
  std::filesystem::path log;
};

// Of directories that `fathom train --out` writes, which may still be empty, and log files. Error for what is neither.
std::vector<WatchedRun> watched_runs(const std::vector<std::string>& paths);

struct LogState {
  uint64_t bytes = 0;
  double age_s = 0;     // since something was last written
  std::string changed;  // another text after every change
};
// None: there is no log yet. Error where it cannot be read, or is no regular file.
std::optional<LogState> log_state(const std::filesystem::path& log);

inline constexpr size_t kLogPieceBytes = size_t{1} << 20;

struct LogPiece {
  uint64_t from = 0;   // where it begins: at 0 where the log is not the one any more that was read up to there
  uint64_t next = 0;   // where the next one does
  uint64_t mark = 0;   // of what stands before `next`: tells one log from another
  uint64_t bytes = 0;  // of the log
  std::string lines;   // whole ones, ended by '\n'
};
// Whole lines from `from` on, `max_bytes` at most. Longer lines are passed over. A log that is shorter than `from`, or
// where another `mark` stands before it, is read from its beginning: it was begun anew, or cut back by a --resume.
// None: there is no log. Error as above.
std::optional<LogPiece> read_log(const std::filesystem::path& log, uint64_t from, std::optional<uint64_t> mark,
                                 size_t max_bytes = kLogPieceBytes);

}  // namespace fathom::serve
