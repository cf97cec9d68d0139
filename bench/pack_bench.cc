// Rows into panels (number/panels.h), every format, on one thread: what loading a model that is not packed does with
// its weights. Rows that lie in the cache with their panels, and rows and panels that only memory holds. MB/s counts
// the rows' bytes, the part of the limit those of rows and panels: what is written is fetched first, like what is read.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "limits.h"
#include "number/panels.h"

namespace fathom {
namespace {

constexpr int64_t kCached = 16, kMany = 4096;  // panels

void run(benchmark::State& state, Format format, int64_t n_panels) {
  const int64_t cols = 2048, row_bytes = format_bytes(format, cols);
  const Buffer stored(static_cast<size_t>(n_panels * kPanelRows * row_bytes));
  const Buffer panels(static_cast<size_t>(n_panels * panel_bytes(format, cols)));
  auto *const from = static_cast<uint8_t*>(stored.data()), *const to = static_cast<uint8_t*>(panels.data());
  const std::vector<float> scales(static_cast<size_t>(cols / kFp8PanelBlock), 1);
  for (size_t i = 0; i < stored.size(); ++i) from[i] = static_cast<uint8_t>(i * 37);
  std::fill_n(to, panels.size(), uint8_t{1});  // so that the system has given the memory
  for (auto _ : state) {
    for (int64_t p = 0; p < n_panels; ++p) {
      const void* rows[kPanelRows];
      for (int64_t r = 0; r < kPanelRows; ++r) rows[r] = from + (p * kPanelRows + r) * row_bytes;
      pack_panel(to + p * panel_bytes(format, cols), rows, kPanelRows, format, cols, scales.data());
    }
    benchmark::ClobberMemory();
  }
  const MachineRates& limits = machine_limits(1, MachineEffort::full);
  const auto read = static_cast<double>(stored.size()), written = static_cast<double>(panels.size());
  const double gbs = n_panels == kCached ? limits.l3_gbs : limits.memory_gbs;
  count_against(state, "MB/s", 1e-6 * read, 1e3 * gbs * read / (read + written));
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  using namespace fathom;
  benchmark::Initialize(&argc, argv);
  for (const Format format : {Format::q8_0, Format::q4_0, Format::q5_0, Format::q4_k, Format::q5_k, Format::q6_k,
                              Format::f32, Format::bf16, Format::f16, Format::f8_e4m3}) {
    for (const int64_t n_panels : {kCached, kMany}) {
      const std::string name = std::string(format_traits(format).name) + (n_panels == kCached ? "" : "/memory");
      benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
        run(state, format, n_panels);
      })->MinTime(0.2);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
