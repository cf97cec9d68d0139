// Saves checkpoints while training goes on: the state is copied between two steps, and one thread writes the copy. That
// thread computes nothing: it waits for the disk, most of the time.
#pragma once

#include <filesystem>
#include <future>
#include <string>

#include "train/saved_state.h"

namespace fathom {

enum class SaveMode {
  automatic,  // async where memory suffices for a second state
  async,
  sync  // training waits for each save
};
enum class SaveFailure {
  stop,  // the run ends with its error
  warn   // it is logged, and the next save tried when it is due
};

struct SaverOptions {
  SaveMode mode = SaveMode::async;
  SaveFailure on_failure = SaveFailure::stop;
  Keep keep;
};

// Of one run, which holds the lock of `out`. A save that has ended is logged, or its Error thrown, by the next call.
class Saver {
 public:
  // saved_step: the checkpoint that the run goes on from, 0 for none. `tokenizer` must outlive the saver.
  Saver(std::filesystem::path out, const Tokenizer& tokenizer, Settings settings, SaverOptions options,
        int64_t saved_step);
  ~Saver();  // waits; an error is logged
  Saver(const Saver&) = delete;
  Saver& operator=(const Saver&) = delete;

  // Waits for the save before, copies `state` and begins to write it.
  void save(const TrainedState& state);
  // This step has been taken, so that a checkpoint of an earlier one is known to be good: those that it makes needless
  // are removed.
  void taken(int64_t step);
  // Returns when a checkpoint of `state` is on disk, and needless ones are removed. None comes after it: Error in any
  // case when it fails.
  void save_last(const TrainedState& state);
  void poll();  // does not wait
  void wait();

  int64_t saved_step() const { return saved_step_; }  // of the newest checkpoint known to be on disk

 private:
  struct Saved {
    int64_t step;
    double seconds;
  };
  Saved write(const TrainedState& state) const;
  void settle();
  void tell(const Saved& saved);
  void remove_needless();

  std::filesystem::path out_;
  const Tokenizer& tokenizer_;
  Settings settings_;
  SaverOptions options_;
  int64_t saved_step_;
  bool cleaned_ = true;  // nothing is needless
  TrainedState copy_;
  std::future<Saved> running_;  // on copy_
};

// What is said of a save that failed: why, and what there is.
std::string no_checkpoint(const std::filesystem::path& out, int64_t step, int64_t saved_step, const std::string& why);

// `wanted`, or for automatic what memory allows, where a copy of the state takes copy_bytes and training leaves
// free_bytes. Error when async is asked for and does not fit.
SaveMode resolve_save_mode(SaveMode wanted, double copy_bytes, double free_bytes);

SaveMode save_mode_named(const std::string& name);
SaveFailure save_failure_named(const std::string& name);

}  // namespace fathom
