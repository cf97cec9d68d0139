// What a run on one process writes of its steps, and the checkpoints between them: as `fathom train`, `sft` and `grpo`
// have it alike.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string_view>

#include "train/metrics.h"
#include "train/options.h"
#include "train/saver.h"
#include "train/tensorboard.h"

namespace fathom {

struct StepLogs {
  MetricsLog metrics;
  std::optional<MetricsLog> samples;  // what a step's answers were
  std::optional<TensorboardLog> tensorboard;
  bool goes_on_unlogged;

  // Lines of steps behind last_step are dropped. `sampled`: the file of answers, empty for none.
  StepLogs(const TrainOptions& options, const std::filesystem::path& log, const std::filesystem::path& sampled,
           int64_t last_step);
};

// The state as it is now, in the host's memory: where a device has it, it is fetched.
using StateToSave = std::function<const TrainedState&()>;

// Where writing fails the run ends with Error, behind a checkpoint if the state is that of a step that was taken, or is
// told and goes on (--save-failure warn). `sampled`: lines of answers, before the one that says that the step is done.
void write_step(StepLogs& logs, const StepMetrics& metrics, std::string_view sampled, const StateToSave& state,
                bool is_taken, Saver& saver);

// The checkpoint that --save-every makes due, or the last one; no log is older than it.
void save_step(const TrainOptions& options, StepLogs& logs, const StepMetrics& metrics, const StateToSave& state,
               bool is_last, Saver& saver);

}  // namespace fathom
