#include "train/saver.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "base/terminal.h"

namespace fathom {

Saver::Saver(std::filesystem::path out, const Tokenizer& tokenizer, Settings settings, SaverOptions options,
             int64_t saved_step)
    : out_(std::move(out)),
      tokenizer_(tokenizer),
      settings_(std::move(settings)),
      options_(options),
      saved_step_(saved_step) {
  remove_leftovers(out_);
}

Saver::~Saver() {
  try {
    if (running_.valid()) tell(running_.get());
  } catch (const std::exception& error) {
    log("{}", error.what());
  }
}

Saver::Saved Saver::write(const TrainedState& state) const {
  const double begin_s = monotonic_s();
  try {
    save_checkpoint(out_, state, tokenizer_, settings_);
    return {state.step, monotonic_s() - begin_s};
  } catch (const Error& error) {
    throw Error("{}", no_checkpoint(out_, state.step, saved_step_, error.what()));
  }
}

void Saver::tell(const Saved& saved) {
  saved_step_ = saved.step;
  cleaned_ = false;
  log("step {}: saved in {:.2f} s", saved.step, saved.seconds);
}

void Saver::remove_needless() {
  if (std::exchange(cleaned_, true)) return;
  const std::string trouble = remove_old_checkpoints(out_, saved_step_, options_.keep);
  if (!trouble.empty()) log("an old checkpoint stays: {}", trouble);
}

void Saver::taken(int64_t step) {
  if (saved_step_ < step) remove_needless();
}

void Saver::settle() {
  try {
    tell(running_.get());
  } catch (const Error& error) {
    if (options_.on_failure == SaveFailure::stop) throw;
    log("{}; training goes on", error.what());
  }
}

void Saver::save(const TrainedState& state) {
  wait();
  if (options_.mode == SaveMode::sync) {
    running_ = std::async(std::launch::deferred, [this, &state] { return write(state); });
    wait();
  } else {
    copy_state(copy_, state);
    running_ = std::async(std::launch::async, [this] { return write(copy_); });
  }
}

void Saver::save_last(const TrainedState& state) {
  wait();
  if (saved_step_ < state.step) tell(write(state));
  remove_needless();
}

void Saver::poll() {
  if (running_.valid() && running_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) settle();
}

void Saver::wait() {
  if (running_.valid()) settle();
}

std::string no_checkpoint(const std::filesystem::path& out, int64_t step, int64_t saved_step, const std::string& why) {
  return fmt::format("no checkpoint of step {}: {}; {}", step, why,
                     saved_step == 0 ? "none was saved before"
                                     : fmt::format("the last good one is {}",
                                                   printable(checkpoint_directory(out, saved_step).native())));
}

SaveMode resolve_save_mode(SaveMode wanted, double copy_bytes, double free_bytes) {
  if (wanted == SaveMode::sync || copy_bytes <= free_bytes) {
    return wanted == SaveMode::automatic ? SaveMode::async : wanted;
  }
  if (wanted == SaveMode::async) {
    throw Error("--save-mode async: a copy of the state takes {} of memory, beside the training {} are left; give sync",
                human_bytes(copy_bytes), human_bytes(std::max(free_bytes, 0.0)));
  }
  log("memory is short for a copy of the state ({}): training will wait for each save", human_bytes(copy_bytes));
  return SaveMode::sync;
}

SaveMode save_mode_named(const std::string& name) {
  if (name == "auto") return SaveMode::automatic;
  if (name == "async") return SaveMode::async;
  if (name == "sync") return SaveMode::sync;
  throw UsageError("--save-mode {}: must be async or sync", printable(name));
}

SaveFailure save_failure_named(const std::string& name) {
  if (name == "stop") return SaveFailure::stop;
  if (name == "warn") return SaveFailure::warn;
  throw UsageError("--save-failure {}: must be stop or warn", printable(name));
}

}  // namespace fathom
