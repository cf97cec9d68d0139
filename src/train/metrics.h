// What a run reports of each step: lines of a JSONL file, read back for the report.
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/forward.h"

namespace fathom {

struct StepMetrics {
  int64_t step = 0;
  int64_t steps = 0;  // that the run is to have
  double loss = 0;
  std::optional<double> mtp_loss;
  std::optional<double> divergence;  // from a teacher's logits, a target (ops/distillation.h)
  // Of indexers that train: KL to the attention a token and layer, and how much of it the chosen tokens hold (recall of
  // ops/indexer_loss.h).
  std::optional<double> indexer_loss, indexer_recall;
  double lr = 0, grad_norm = 0;
  int64_t tokens = 0;  // learned from since the beginning
  double tokens_per_s = 0;
  double seconds = 0;         // of training until the step was done; pauses before a --resume do not count
  std::optional<double> mfu;  // model FLOPs utilization: the step's part of the machine's measured f32 peak
  double max_violation = 0;
  std::optional<std::string> skipped;  // why the step was not taken; its loss may be no number then
  std::optional<double> val_loss;
  std::optional<double> val_loss_average;  // of the averaged weights
  // MaxVio over all that was validated on, with val_loss: of each MoE layer, and the worst.
  std::vector<double> val_layer_violations;
  double val_max_violation = 0;
  // At some steps: tokens of each expert of each MoE layer, and of each layer MaxVio, least and greatest bias.
  ExpertLoad expert_load;
  std::vector<double> layer_violations;
  std::vector<std::array<float, 2>> bias_ranges;
  std::optional<std::string> sample;  // text drawn after the step
  // What the run's ExampleSource tells of the step, by name.
  std::vector<std::pair<std::string, double>> of_source;
};

std::string to_json_line(const StepMetrics& metrics);
std::vector<StepMetrics> read_metrics(const std::filesystem::path& path);

// Appends a line a step, each flushed, so that `tail -f` follows the run.
class MetricsLog {
 public:
  // Keeps the lines of steps up to `last_step` and drops the rest (0: begins anew).
  MetricsLog(const std::filesystem::path& path, int64_t last_step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;
  void write(const StepMetrics& metrics);
  void write_lines(std::string_view lines);                  // objects that begin with their "step", a line each
  void sync();                                               // what was written survives a power loss
  double seconds_before() const { return seconds_before_; }  // those of the last line that was kept; 0: none

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  double seconds_before_ = 0;
  bool broken_line_ = false;  // a write failed in the middle of a line
};

}  // namespace fathom
