// The rates of this machine that kernels are held against (ops/machine.h), measured once for each number of threads.
#pragma once

#include <benchmark/benchmark.h>

#include <map>
#include <utility>

#include "ops/machine.h"

namespace fathom {

// Those of caches need MachineEffort::full, which takes some seconds.
inline const MachineRates& machine_limits(int threads, MachineEffort effort = MachineEffort::quick) {
  static std::map<std::pair<int, MachineEffort>, MachineRates> measured;
  const auto found = measured.find({threads, effort});
  if (found != measured.end()) return found->second;
  ThreadPool pool(threads);
  return measured.emplace(std::pair(threads, effort), measure_machine(pool, effort)).first->second;
}

// Counts `work` of each iteration a second under `name`, and what part of `limit` that is.
inline void count_against(benchmark::State& state, const char* name, double work, double limit) {
  using benchmark::Counter;
  state.counters[name] = Counter(work, Counter::kIsIterationInvariantRate);
  state.counters["of limit"] = Counter(work / limit, Counter::kIsIterationInvariantRate);
}

}  // namespace fathom
