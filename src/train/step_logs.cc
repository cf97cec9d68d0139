#include "train/step_logs.h"

#include "base/error.h"
#include "base/terminal.h"

namespace fathom {

StepLogs::StepLogs(const TrainOptions& options, const std::filesystem::path& log, const std::filesystem::path& sampled,
                   int64_t last_step)
    : metrics(log, last_step), goes_on_unlogged(options.saver.on_failure == SaveFailure::warn) {
  if (!sampled.empty()) samples.emplace(sampled, last_step);
  if (!options.tensorboard.empty()) tensorboard.emplace(options.tensorboard, last_step + 1);
}

void write_step(StepLogs& logs, const StepMetrics& metrics, std::string_view sampled, const StateToSave& state,
                bool is_taken, Saver& saver) {
  try {
    if (logs.samples) logs.samples->write_lines(sampled);
    logs.metrics.write(metrics);
    if (logs.tensorboard) logs.tensorboard->write(metrics);
  } catch (const Error& error) {
    if (!logs.goes_on_unlogged) {
      if (is_taken) saver.save_last(state());
      throw Error("{}; stopped after step {}, go on with --resume", error.what(), saver.saved_step());
    }
    log("step {}: {}; training goes on", metrics.step, error.what());
  }
}

void save_step(const TrainOptions& options, StepLogs& logs, const StepMetrics& metrics, const StateToSave& state,
               bool is_last, Saver& saver) {
  saver.poll();
  // While steps are skipped there is nothing new to save, and what there is may be what they fail at.
  const bool due = options.save_every > 0 && metrics.step % options.save_every == 0 && !metrics.skipped;
  if (!due && !is_last) return;
  try {
    logs.metrics.sync();
    if (logs.samples) logs.samples->sync();
  } catch (const Error& error) {
    if (!logs.goes_on_unlogged) throw;
    log("{}; training goes on", error.what());
  }
  if (is_last) {
    saver.save_last(state());
  } else {
    saver.save(state());
  }
}

}  // namespace fathom
