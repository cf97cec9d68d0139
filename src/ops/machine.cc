#include "ops/machine.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/residency.h"
#include "base/rng.h"
#include "base/terminal.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/machine_kernels.h"

namespace fathom {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr double kPass_s = 0.02;   // what a pass of arithmetic takes, and about what one of memory does
constexpr double kPasses_s = 1.0;  // no further pass begins: others have the machine, and a rate means little

const cpu::MachineKernels& kernels() {
  return cpu::choose(cpu::baseline::machine_kernels, cpu::avx2::machine_kernels, cpu::avx512::machine_kernels);
}

// A cache's size as the system gives it, or else a usual one.
int64_t cache_bytes(int name, int64_t usual) {
  const int64_t bytes = sysconf(name);
  return bytes > 0 ? bytes : usual;
}

// Work per second of all threads together, at best: every thread does `work_of_thread` in each pass, and a pass takes
// from the first that starts to the last that ends.
double best_rate(ThreadPool& pool, int passes, double work_of_thread, const std::function<void(int thread)>& work) {
  const int n = pool.size();
  std::vector<std::pair<double, double>> times(static_cast<size_t>(n));
  double best = 0;
  const double first_start = monotonic_s();
  for (int pass = 0; pass < passes && (pass == 0 || monotonic_s() - first_start < kPasses_s); ++pass) {
    std::atomic<int> there{0};
    pool.run(n, [&](int64_t, int thread) {
      there.fetch_add(1);
      while (there.load() < n) std::this_thread::yield();  // so that each takes one task
      const double start = monotonic_s();
      work(thread);
      times[static_cast<size_t>(thread)] = {start, monotonic_s()};
    });
    double begin = times[0].first, end = times[0].second;
    for (const auto& [b, e] : times) {
      begin = std::min(begin, b);
      end = std::max(end, e);
    }
    best = std::max(best, n * work_of_thread / (end - begin));
  }
  return best;
}

// Of a loop: as many rounds as a pass takes.
double operations_rate(ThreadPool& pool, int passes, const cpu::MachineLoop& loop) {
  int64_t rounds = 1000;
  for (double took = 0; took < kPass_s; rounds *= 2) {
    const double start = monotonic_s();
    loop.run(rounds);
    took = monotonic_s() - start;
  }
  return best_rate(pool, passes, static_cast<double>(rounds) * loop.operations, [&](int) { loop.run(rounds); });
}

// Every thread its own `bytes`, `repeats` times a pass. A kernel looks a little behind what it reads.
double read_rate(ThreadPool& pool, int passes, int64_t bytes, int64_t repeats, bool huge_pages, int streams = 1) {
  constexpr int64_t kBehind = 4096;
  std::vector<Buffer> memory;
  for (int i = 0; i < pool.size(); ++i) {
    memory.emplace_back(static_cast<size_t>(bytes + kBehind));
    if (!huge_pages) madvise(memory.back().data(), memory.back().size(), MADV_NOHUGEPAGE);
  }
  const auto data = [&](int thread) { return static_cast<char*>(memory[static_cast<size_t>(thread)].data()); };
  pool.run(pool.size(), [&](int64_t i, int) { std::fill_n(data(static_cast<int>(i)), bytes + kBehind, '\1'); });
  return best_rate(pool, passes, static_cast<double>(bytes * repeats), [&](int thread) {
    for (int64_t i = 0; i < repeats; ++i) kernels().read(data(thread), bytes, streams);
  });
}

// One core alone may get more from several places at once than from one.
double memory_rate(ThreadPool& pool, int passes, int64_t bytes, bool huge_pages) {
  return std::max(read_rate(pool, passes, bytes, 1, huge_pages), read_rate(pool, passes, bytes, 1, huge_pages, 4));
}

// Of each thread: far more than the L3 holds, but a part of what there is.
int64_t memory_to_read(int n_threads) {
  const int64_t l3 = cache_bytes(_SC_LEVEL3_CACHE_SIZE, 32 * kMiB);
  const auto available = static_cast<int64_t>(std::min<uint64_t>(available_memory_bytes(), INT64_MAX));
  const int64_t wish = std::max(256 * kMiB, 2 * l3 / n_threads);
  return std::max(kMiB, std::min(wish, available / 4 / n_threads) / kMiB * kMiB);
}

}  // namespace

MachineRates measure_machine(ThreadPool& pool, MachineEffort effort) {
  const bool full = effort == MachineEffort::full;
  const int passes = full ? 9 : 4;
  const int64_t n = pool.size(), bytes = memory_to_read(pool.size());
  MachineRates rates;
  rates.memory_gbs = 1e-9 * memory_rate(pool, passes, bytes, true);
  rates.f32_gflops = 1e-9 * operations_rate(pool, passes, kernels().f32);
  rates.i8_gops = 1e-9 * operations_rate(pool, passes, kernels().i8);
  rates.i8_short_gops = 1e-9 * operations_rate(pool, passes, kernels().i8_short);
  if (kernels().has_i8_dot()) rates.i8_dot_gops = 1e-9 * operations_rate(pool, passes, kernels().i8_dot);
  if (!full) return rates;
  rates.memory_4k_gbs = 1e-9 * memory_rate(pool, passes, bytes, false);
  constexpr int64_t kReadOfPass = 1024 * kMiB;  // from caches
  constexpr int64_t kLeast = 64 << 10;
  // Virtual machines are told of more L3 than they have.
  const int64_t part_of_l3 = std::min(8 * kMiB, cache_bytes(_SC_LEVEL3_CACHE_SIZE, 32 * kMiB) / 4);
  const int64_t l3 = std::max(kLeast, part_of_l3 / n / kLeast * kLeast);
  const int64_t l2 = std::max(kLeast, cache_bytes(_SC_LEVEL2_CACHE_SIZE, kMiB / 2) / 2 / kLeast * kLeast);
  rates.l3_gbs = 1e-9 * read_rate(pool, passes, l3, kReadOfPass / l3, true);
  rates.l2_gbs = 1e-9 * read_rate(pool, passes, l2, kReadOfPass / l2, true);
  return rates;
}

double measure_f32_gflops(ThreadPool& pool) { return 1e-9 * operations_rate(pool, 4, kernels().f32); }

double memory_latency_ns() {
  // One ring through lines all over the memory, far more than a cache holds: each has where the next is.
  constexpr int64_t kLines = int64_t{1} << 22, kSteps = kLines / 4, kLine = 64;
  const int64_t distance = std::max(kLine, memory_to_read(1) / kLines / kLine * kLine);
  const Buffer memory(static_cast<size_t>(kLines * distance));
  char* const base = static_cast<char*>(memory.data());
  std::vector<uint32_t> order(static_cast<size_t>(kLines));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(i);
  Rng rng(1);
  for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[rng.below(i + 1)]);
  const auto line = [&](size_t i) { return base + distance * order[i % order.size()]; };
  for (size_t i = 0; i < order.size(); ++i) *reinterpret_cast<char**>(line(i)) = line(i + 1);
  const char* volatile end = nullptr;  // so that the walk is not left out
  const char* at = base;
  const double start = monotonic_s();
  for (int64_t i = 0; i < kSteps; ++i) at = *reinterpret_cast<char* const*>(at);
  end = at;
  (void)end;
  return 1e9 * (monotonic_s() - start) / static_cast<double>(kSteps);
}

}  // namespace fathom
