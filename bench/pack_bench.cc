// Rows into panels (number/panels.h), every format, on one thread: what loading a model that is not packed does with
// its weights. MB/s counts the rows' bytes.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "number/panels.h"

namespace fathom {
namespace {

void run(benchmark::State& state, Format format) {
  const int64_t n_panels = 16, cols = 2048, row_bytes = format_bytes(format, cols);
  std::vector<uint8_t> stored(static_cast<size_t>(n_panels * kPanelRows * row_bytes));
  std::vector<uint8_t> panels(static_cast<size_t>(n_panels * panel_bytes(format, cols)));
  const std::vector<float> scales(static_cast<size_t>(cols / kFp8PanelBlock), 1);
  for (size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<uint8_t>(i * 37);
  for (auto _ : state) {
    for (int64_t p = 0; p < n_panels; ++p) {
      const void* rows[kPanelRows];
      for (int64_t r = 0; r < kPanelRows; ++r) rows[r] = stored.data() + (p * kPanelRows + r) * row_bytes;
      pack_panel(panels.data() + p * panel_bytes(format, cols), rows, kPanelRows, format, cols, scales.data());
    }
    benchmark::ClobberMemory();
  }
  state.counters["MB/s"] =
      benchmark::Counter(1e-6 * static_cast<double>(stored.size()), benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  using namespace fathom;
  benchmark::Initialize(&argc, argv);
  for (const Format format : {Format::q8_0, Format::q4_0, Format::q5_0, Format::q4_k, Format::q5_k, Format::q6_k,
                              Format::f32, Format::bf16, Format::f16, Format::f8_e4m3}) {
    benchmark::RegisterBenchmark(std::string(format_traits(format).name).c_str(), [=](benchmark::State& state) {
      run(state, format);
    })->MinTime(0.2);
  }
  benchmark::RunSpecifiedBenchmarks();
}
