// What every step of a run does alike, on one process (train/train.h) and on many (train/parallel_train.h): what it
// asks of the loss, what it reports, when it is taken, and how the run ends where none is.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "train/example_source.h"
#include "train/metrics.h"
#include "train/options.h"
#include "train/saved_state.h"

namespace fathom {

inline constexpr const char* kCalmer = "try a lower --lr, or a longer --warmup";
// Why a step is skipped that loss and gradient have nothing against, and why the run ends behind one that was taken.
inline constexpr const char* kBrokenBias = "a correction bias of the router is not finite";
inline constexpr const char* kLostBits =
    "weights or moments are not what the step before left: the memory has lost bits";
inline constexpr const char* kSoundMemory =
    "remove later ones, go on with --resume, on a machine whose memory is sound";
inline constexpr const char* kBrokenState = "it left weights or moments that are not finite";

// The config of what is trained: the file's, with the tokenizer's begin and end tokens where it names none.
ModelConfig trained_config(const TrainOptions& options, const Tokenizer& tokenizer);

// --balance-alpha, or what `balance` has without one.
double balance_alpha_of(const TrainOptions& options, Balance balance);
// Of all steps; scales come with each.
LossOptions loss_of_run(const TrainOptions& options, const ModelConfig& config, Balance balance, double alpha);
// Of one: of the mean over its micro-batches.
LossOptions loss_of_step(const TrainOptions& options, const LossOptions& of_run, int64_t step,
                         std::span<const Examples> micro_batches, int64_t n_mtp_modules);

// The greatest norm that --clip leaves: the factor of a gradient of this norm.
double gradient_scale(const TrainOptions& options, double norm);
// --bias-update-speed, or 0 where the correction biases stay in this step.
double bias_speed(const TrainOptions& options, Balance balance, int64_t step);

// Of the average of the weights behind a step; in the first ones it moves faster, so that it forgets the initial
// weights.
double average_decay(const TrainOptions& options, int64_t step);

// What loss and gradient say of a step.
StepMetrics metrics_of(const TrainOptions& options, int64_t step, const LossResult& loss, double gradient_norm);
bool is_finite(const StepMetrics& metrics);  // losses and gradient
// Makes `state` that of this step, and says why it must be skipped, as reason_to_skip() does.
std::string begin_step(const TrainOptions& options, const StepMetrics& metrics, TrainedState& state);
// And what comes of it: one of these two. `state` and metrics count what was learned from.
void count_skipped(std::string why, StepMetrics& metrics, TrainedState& state);
void count_taken(const LossResult& loss, const StepMetrics& metrics, TrainedState& state);
void set_speed(const LossResult& loss, double seconds, StepMetrics& metrics, const TrainedState& state);

// Whether the experts' loads are reported with this step, and whether a run with --val-data is validated behind it.
bool reports_load(const TrainOptions& options, int64_t step);
bool validates(const TrainOptions& options, int64_t step);
void set_validation(const LossResult& validation, StepMetrics& metrics, TrainedState& state);

// UsageError where --out has checkpoints of a run that --resume does not go on with.
void require_new_run(const TrainOptions& options);
// What the run begins with, or where there is nothing, since there are checkpoints, the newest of them. UsageError for
// one beyond --steps.
TrainedState begun_or_resumed(const TrainOptions& options, std::optional<TrainedState> begun, const Settings& settings,
                              ThreadPool& pool);

// Said of a run that goes on from `state`: other --steps bend the schedule, where the rate had begun to fall it jumps.
void tell_changed_rate(const TrainOptions& options, const TrainedState& state);

// Why the run ends here, with the last good checkpoint: of checkpoints those are good that a step was taken from.
[[noreturn]] void give_up(const std::filesystem::path& out, int64_t last_taken, int64_t step, const std::string& why,
                          const char* advice);
// And where the weights before what was skipped have been saved.
[[noreturn]] void give_up_with_saved(const std::filesystem::path& out, int64_t step, const std::string& why);

}  // namespace fathom
