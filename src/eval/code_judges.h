// Programs are tried on threads of their own, while others are still written.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <filesystem>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "eval/answerer.h"

namespace fathom::eval {

// An answer whose program has not been tried yet.
struct UntriedAnswer {
  Answer answer;
  size_t item = 0;
  int64_t sample = 0;
};

class CodeJudges {
 public:
  // judge(): tries one; false where `stopped` (SandboxLimits::stopped) ended it. n (>= 1) at a time.
  using Judge = std::function<bool(const UntriedAnswer& one, const std::atomic<bool>& stopped)>;
  CodeJudges(int n, Judge judge);
  ~CodeJudges();
  CodeJudges(const CodeJudges&) = delete;
  CodeJudges& operator=(const CodeJudges&) = delete;

  // Waits while many are waiting, but not when interrupted. Error that a trial has ended with; `one` is kept even then.
  void add(UntriedAnswer one, const Interrupted& interrupted);
  // Waits until all are tried or it is interrupted. Error that a trial has ended with.
  void finish(const Interrupted& interrupted);
  // Ends those that are being tried, at once. What is left untried.
  std::vector<UntriedAnswer> stop();

 private:
  void work();
  // Until ready() or an interruption, which is looked at some times a second, or a failure.
  template <class Ready>
  void wait(std::unique_lock<std::mutex>& lock, const Interrupted& interrupted, const Ready& ready);

  Judge judge_;
  std::mutex mutex_;
  std::condition_variable wake_, changed_;
  std::deque<UntriedAnswer> waiting_;
  int n_busy_ = 0;
  std::exception_ptr failure_;
  std::atomic<bool> stopped_ = false;
  std::vector<std::thread> threads_;
};

// Of a run that was stopped, an answer a line: so that nothing is asked twice. None where there is no such file. Error,
// naming file and line, for another line. n_items, n_samples: what the run asks.
std::vector<UntriedAnswer> read_untried(const std::filesystem::path& path, size_t n_items, int64_t n_samples);
// Without any there is no file.
void write_untried(const std::filesystem::path& path, const std::vector<UntriedAnswer>& untried);

}  // namespace fathom::eval
