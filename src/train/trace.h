// What every rank did in some steps of a run, for Perfetto (ui.perfetto.dev) or chrome://tracing, and in numbers.
#pragma once

#include <filesystem>
#include <optional>

#include "parallel/schedule_picture.h"
#include "train/parallel_step.h"

namespace fathom {

// Steps in the middle of a run say more than its first ones, which take memory for the first time.
inline constexpr int64_t kTracedSteps = 5;

class TraceWriter {
 public:
  void add(int64_t step, const StepTrace& trace);
  size_t n_steps() const { return steps_.size(); }
  // Collective. Rank 0 writes the file: processes are ranks, with a row for what is computed, one for rows of experts
  // on their way, one for whole steps, and sums of gradients as long as they are under way. Returns there a table of
  // what part of the steps ranks computed, waited for messages that hid behind nothing, waited for another stage, had
  // sums of gradients under way beside these, and waited for sums alone; nothing elsewhere. Error on rank 0 alone.
  std::string write(const RankGroup& all, const std::filesystem::path& file) const;

 private:
  std::vector<std::pair<int64_t, StepTrace>> steps_;
};

// Seconds of a rank.
struct RankTimes {
  double all = 0, computed = 0, exposed = 0, starved = 0, sums_beside = 0, sums_alone = 0;
};
// In percent of `all`, a line for each rank.
std::string times_table(std::span<const RankTimes> ranks);

// A step out of such a file.
struct TracedStep {
  int64_t step = 0;
  double length_s = 0;  // until the last rank is ready
  std::vector<MeasuredRank> ranks;
  std::vector<RankTimes> times;
};
// The file's last step where none is named. Error, with the file's name, for what is no such trace, whoever wrote it.
TracedStep read_traced_step(const std::filesystem::path& file, std::optional<int64_t> step);

}  // namespace fathom
