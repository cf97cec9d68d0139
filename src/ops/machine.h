// What this machine does at best, measured: memory, caches, arithmetic. Every kernel is held against it, in `fathom
// bench --machine` and beside the micro-benchmarks. It stands with the operators because its loops are built like
// theirs, for each instruction set.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace fathom {

// Of all threads of a pool together, the best of several passes.
struct MachineRates {
  double memory_gbs = 0, memory_4k_gbs = 0;  // reading memory that lies in huge pages, and in pages of 4 KiB
  double l3_gbs = 0, l2_gbs = 0;             // reading a part of the cache: all threads of the L3, each of its own L2
  double f32_gflops = 0;                     // fused multiply-add; as all below, a multiplication and an addition are 2
  double i8_gops = 0;                        // 8-bit products widened to 32 bits at once
  double i8_short_gops = 0;                  // four of them summed in 16 bits first, as 4-bit weights allow
  double i8_dot_gops = 0;  // the CPU's own dot product of bytes (VNNI); 0: it has none, or is not used
};

// How long and how much: `quick` takes a fraction of a second a thread and leaves out 4 KiB pages and caches.
enum class MachineEffort { full, quick };
MachineRates measure_machine(ThreadPool& pool, MachineEffort effort = MachineEffort::full);

// Its f32_gflops alone, which take a tenth of a second.
double measure_f32_gflops(ThreadPool& pool);

// Nanoseconds that a load takes which needs the one before, at random places of much memory.
double memory_latency_ns();

}  // namespace fathom
