// What the machine does cannot be asserted; that the measurements are of what they say can, roughly.
#include "ops/machine.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/terminal.h"
#include "ops/cpu/machine_kernels.h"
#include "ops/each_isa.h"

namespace fathom {
namespace {

// A loop that the compiler sees through is done at once.
TEST(Machine, NoLoopIsOptimizedAway) {
  constexpr int64_t kRounds = int64_t{1} << 20;
  constexpr double kFastest = 1e14;  // operations a second that no core will do for long
  for (const auto& [isa, k] :
       each_isa(cpu::baseline::machine_kernels, cpu::avx2::machine_kernels, cpu::avx512::machine_kernels)) {
    std::vector<cpu::MachineLoop> loops = {k.f32, k.i8, k.i8_short};
    if (k.has_i8_dot()) loops.push_back(k.i8_dot);
    for (const cpu::MachineLoop& loop : loops) {
      const double start = monotonic_s();
      loop.run(kRounds);
      EXPECT_GT(monotonic_s() - start, static_cast<double>(kRounds) * loop.operations / kFastest) << isa;
    }
    std::vector<char> bytes((1 << 20) + 4096);
    const double start = monotonic_s();
    for (int i = 0; i < 100; ++i) k.read(bytes.data(), 1 << 20, i % 2 == 0 ? 1 : 4);
    EXPECT_GT(monotonic_s() - start, 100 * static_cast<double>(bytes.size()) / kFastest) << isa;
  }
}

TEST(Machine, EveryRateIsMeasured) {
  ThreadPool pool(2);
  const MachineRates r = measure_machine(pool, MachineEffort::quick);
  for (const double rate : {r.memory_gbs, r.f32_gflops, r.i8_gops, r.i8_short_gops}) EXPECT_GT(rate, 0.01);
  EXPECT_GE(r.i8_dot_gops, 0);
  EXPECT_EQ(r.l2_gbs, 0) << "left out by a quick measurement";
}

}  // namespace
}  // namespace fathom
