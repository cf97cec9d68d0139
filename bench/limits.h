// The rates of this machine that kernels are held against (ops/machine.h), measured once for each number of threads.
#pragma once

#include <benchmark/benchmark.h>

#include <map>

#include "ops/machine.h"

namespace fathom {

inline const MachineRates& machine_limits(int threads) {
  static std::map<int, MachineRates> measured;
  const auto found = measured.find(threads);
  if (found != measured.end()) return found->second;
  ThreadPool pool(threads);
  return measured.emplace(threads, measure_machine(pool, MachineEffort::quick)).first->second;
}

// Counts `work` of each iteration a second under `name`, and what part of `limit` that is.
inline void count_against(benchmark::State& state, const char* name, double work, double limit) {
  using benchmark::Counter;
  state.counters[name] = Counter(work, Counter::kIsIterationInvariantRate);
  state.counters["of limit"] = Counter(work / limit, Counter::kIsIterationInvariantRate);
}

}  // namespace fathom
