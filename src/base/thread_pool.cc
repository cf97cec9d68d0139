#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <limits>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace fathom {
namespace {

constexpr int kSpins = 4000;  // about 20 us: longer than the gap between two operators, shorter than a time slice

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// CPU limit of the cgroup (v2), or a large number where there is none.
double cgroup_cpus() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 1e9;
  return std::atof(quota.c_str()) / period;
}

thread_local int task_thread = -1;  // this thread's index while it runs a task, else -1

// The calling thread's place from now on. A CPU that has gone meanwhile changes nothing.
void stay_on(int cpu) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(cpu, &mask);
  (void)sched_setaffinity(0, sizeof mask, &mask);
}

// All CPUs of the affinity mask, and how many of them, which stand first, are cores of their own.
struct Cpus {
  std::vector<int> ids;
  int n_cores = 0;
};
Cpus find_cpus() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) return {};
  std::set<std::string> cores;  // "package:core", so that two hyper-threads count once
  Cpus found;
  std::vector<int> others;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu{}/topology/", cpu);
    std::string package, core;
    const bool known = std::ifstream(folder + "physical_package_id") >> package &&  //
                       std::ifstream(folder + "core_id") >> core;
    const bool first = !known || cores.insert(fmt::format("{}:{}", package, core)).second;
    (first ? found.ids : others).push_back(cpu);
  }
  found.n_cores = static_cast<int>(found.ids.size());
  found.ids.insert(found.ids.end(), others.begin(), others.end());
  return found;
}

}  // namespace

int usable_cores() {
  const int found = find_cpus().n_cores;
  const int n = found > 0 ? found : static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, static_cast<int>(std::min<double>(n, std::max(1.0, cgroup_cpus()))));
}

std::vector<int> usable_cpus() { return find_cpus().ids; }

struct ThreadPool::State {
  std::vector<std::thread> workers;
  std::atomic<uint32_t> runs{0};  // one more for each run(), and for the end: what idle workers wait for
  std::atomic<bool> stop{false};

  // The run in progress. A task is claimed by taking 1 from `unclaimed`, whose upper half counts runs: who succeeds
  // has read the task and number of this very run, since both change only while nothing is unclaimed. A worker that
  // comes late, because another program has its core, finds nothing to do and is not waited for.
  std::atomic<uint64_t> unclaimed{0};  // run << 32 | tasks that nobody has started
  std::atomic<const std::function<void(int64_t, int)>*> task{nullptr};
  std::atomic<uint32_t> n_tasks{0};
  std::atomic<uint32_t> unfinished{0};
  std::atomic<bool> failed{false};  // tasks that have not started are skipped
  std::mutex error_mutex;
  std::exception_ptr error;

  bool nothing_to_claim() const { return static_cast<uint32_t>(unclaimed.load(std::memory_order_acquire)) == 0; }

  void take_tasks(int thread) {
    task_thread = thread;
    for (uint64_t word = unclaimed.load(std::memory_order_acquire); static_cast<uint32_t>(word) != 0;) {
      const auto* const claimed = task.load(std::memory_order_relaxed);
      const uint32_t n = n_tasks.load(std::memory_order_relaxed);
      if (!unclaimed.compare_exchange_weak(word, word - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      try {
        if (!failed.load(std::memory_order_relaxed)) (*claimed)(n - static_cast<uint32_t>(word), thread);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        failed.store(true, std::memory_order_relaxed);
      }
      if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.notify_one();
      word = unclaimed.load(std::memory_order_acquire);
    }
    task_thread = -1;
  }

  void work(int thread) {
    while (!stop.load(std::memory_order_acquire)) {
      const uint32_t seen = runs.load(std::memory_order_acquire);
      take_tasks(thread);
      for (int spin = 0; spin < kSpins && runs.load(std::memory_order_acquire) == seen; ++spin) pause_cpu();
      if (nothing_to_claim() && !stop.load(std::memory_order_acquire)) runs.wait(seen, std::memory_order_acquire);
    }
  }
};

ThreadPool::ThreadPool(int n_threads, std::span<const int> cpus) : state_(std::make_unique<State>()) {
  FATHOM_CHECK(cpus.empty() || static_cast<int>(cpus.size()) >= n_threads);
  for (int thread = 1; thread < n_threads; ++thread) {
    const int cpu = cpus.empty() ? -1 : cpus[static_cast<size_t>(thread)];
    state_->workers.emplace_back([state = state_.get(), thread, cpu] {
      if (cpu >= 0) stay_on(cpu);
      state->work(thread);
    });
  }
  if (!cpus.empty()) stay_on(cpus[0]);
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_release);
  state_->runs.fetch_add(1, std::memory_order_release);
  state_->runs.notify_all();
  for (auto& worker : state_->workers) worker.join();
}

int ThreadPool::size() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run(int64_t n_tasks, const std::function<void(int64_t, int)>& task) {
  if (n_tasks <= 0) return;
  State& s = *state_;
  if (n_tasks == 1 || s.workers.empty() || task_thread >= 0) {
    const int before = task_thread;
    struct Restore {
      int before;
      ~Restore() { task_thread = before; }
    } restore{before};
    task_thread = std::max(before, 0);
    for (int64_t i = 0; i < n_tasks; ++i) task(i, task_thread);
    return;
  }
  FATHOM_CHECK(n_tasks < std::numeric_limits<uint32_t>::max());
  const auto n = static_cast<uint32_t>(n_tasks);
  s.task.store(&task, std::memory_order_relaxed);
  s.n_tasks.store(n, std::memory_order_relaxed);
  s.unfinished.store(n, std::memory_order_relaxed);
  s.failed.store(false, std::memory_order_relaxed);
  s.error = nullptr;
  const uint32_t run = s.runs.load(std::memory_order_relaxed) + 1;
  s.unclaimed.store(static_cast<uint64_t>(run) << 32 | n, std::memory_order_release);
  s.runs.store(run, std::memory_order_release);
  s.runs.notify_all();
  s.take_tasks(0);
  for (int spin = 0; spin < kSpins && s.unfinished.load(std::memory_order_acquire) != 0; ++spin) pause_cpu();
  // Asleep, this thread leaves its core to the one that it waits for, should another program have taken that one's.
  for (uint32_t left = s.unfinished.load(std::memory_order_acquire); left != 0;
       left = s.unfinished.load(std::memory_order_acquire)) {
    s.unfinished.wait(left, std::memory_order_acquire);
  }
  if (s.error) std::rethrow_exception(s.error);
}

void ThreadPool::parallel_for(int64_t begin, int64_t end, int64_t grain,
                              const std::function<void(int64_t, int64_t)>& body) {
  FATHOM_CHECK(grain > 0);
  const int64_t n = end - begin;
  if (n <= 0) return;
  run((n + grain - 1) / grain,
      [&](int64_t i, int) { body(begin + i * grain, std::min(end, begin + (i + 1) * grain)); });
}

}  // namespace fathom
