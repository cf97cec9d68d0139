#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
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
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};  // one more for each run()
  std::atomic<bool> stop{false};

  // The run in progress. Written by the caller before it raises `generation`.
  const std::function<void(int64_t, int)>* task = nullptr;
  int64_t n_tasks = 0;
  std::atomic<int64_t> next{0};
  std::atomic<int> busy{0};  // workers that have not finished this run
  std::mutex error_mutex;
  std::exception_ptr error;

  void take_tasks(int thread) {
    task_thread = thread;
    for (;;) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= n_tasks) break;
      try {
        (*task)(i, thread);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(n_tasks, std::memory_order_relaxed);
      }
    }
    task_thread = -1;
  }

  void work(int thread) {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation.load(std::memory_order_acquire) == seen && !stop; ++spin) {
        pause_cpu();
      }
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stop || generation.load(std::memory_order_acquire) != seen; });
      }
      if (stop) return;
      ++seen;
      take_tasks(thread);
      busy.fetch_sub(1, std::memory_order_release);
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
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
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
  s.task = &task;
  s.n_tasks = n_tasks;
  s.error = nullptr;
  s.next.store(0, std::memory_order_relaxed);
  s.busy.store(static_cast<int>(s.workers.size()), std::memory_order_relaxed);
  {
    const std::lock_guard lock(s.mutex);
    s.generation.fetch_add(1, std::memory_order_release);
  }
  s.wake.notify_all();
  s.take_tasks(0);
  for (int spin = 0; s.busy.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpins) {
      pause_cpu();
    } else {
      std::this_thread::yield();
    }
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
