// Saves checkpoints of a run on many ranks while training goes on, as train/saver.h does for one process: each rank
// copies what it writes of the state between two steps, and a thread of its own writes the copy; when all have, one of
// rank 0 writes what makes it a checkpoint. These threads send nothing: ranks tell each other between steps.
#pragma once

#include <filesystem>
#include <future>

#include "train/saver.h"
#include "train/sharded_state.h"

namespace fathom {

// Of one run; rank 0 holds the lock of `out`. All are collective. A save that has ended is logged by rank 0, or its
// Error thrown on all ranks, by the next call.
class ShardedSaver {
 public:
  // saved_step: the checkpoint that the run goes on from, 0 for none. state and tokenizer must outlive the saver.
  ShardedSaver(std::filesystem::path out, const RankState& state, const Tokenizer& tokenizer, Settings settings,
               SaverOptions options, int64_t saved_step);

  // Waits for the save before, copies the state and begins to write it. numbers: the run's, without weights and
  // moments.
  void save(const TrainedState& numbers);
  // As Saver has them.
  void taken(int64_t step);
  void save_last(const TrainedState& numbers);
  void poll();
  void wait();

 private:
  enum class Phase { idle, writing, committing };
  template <class Work>
  void attempt(const Work& work);
  void begin(const TrainedState& numbers, bool copies);
  void advance();
  void remove_needless();
  void commit() const;

  std::filesystem::path out_;
  const RankState& state_;
  const Tokenizer& tokenizer_;
  Settings settings_;
  SaverOptions options_;
  int64_t saved_step_;
  bool cleaned_ = true;   // nothing is needless
  bool is_last_ = false;  // no other save comes
  Phase phase_ = Phase::idle;
  double begin_s_ = 0;
  RankFiles files_;
  Buffer copy_;           // what files_ are views of, where training goes on
  TrainedState numbers_;  // that are saved
  std::launch launch_{};  // of what writes them
  std::future<void> running_;
};

}  // namespace fathom
