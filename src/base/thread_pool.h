// The process's one pool of threads. Operators take it from their Context; nobody else makes threads to compute with.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace fathom {

// Physical cores that this process may use (affinity mask and cgroup quota respected), at least 1.
int usable_cores();
// The CPUs of its affinity mask: one of every core first, then the other hyper-threads.
std::vector<int> usable_cpus();

class ThreadPool {
 public:
  // The calling thread is one of them. Thread i stays on CPU cpus[i]; without `cpus` the system moves them.
  explicit ThreadPool(int n_threads, std::span<const int> cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls task(i, thread) for every i in [0, n_tasks), each once, in index order of starting, on size() threads;
  // `thread` in [0, size()) picks per-thread scratch. Returns when all are done. The first exception thrown by a task
  // is rethrown here; tasks that have not started then are skipped. Called from inside a task, runs on that thread
  // alone. Does not wait for threads that have started no task, so a core that another program has is missed only.
  void run(int64_t n_tasks, const std::function<void(int64_t i, int thread)>& task);

  // Splits [begin, end) into pieces of `grain` (the last may be shorter) and calls body(piece_begin, piece_end). Pieces
  // depend on the grain alone, not on the number of threads, so sums over a piece are the same on every machine.
  void parallel_for(int64_t begin, int64_t end, int64_t grain,
                    const std::function<void(int64_t begin, int64_t end)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fathom
