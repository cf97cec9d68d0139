// Products with weights in panels, every format: one row (decoding: the time is that of reading the weights) and many
// (prompts). Argument: threads. GB/s counts the weights' bytes, Gop/s multiplications and additions. The limit is
// reading memory for one row, and for many 8-bit products summed in 16 bits (block formats) or multiply-adds in f32.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "base/rng.h"
#include "limits.h"
#include "number/panels.h"
#include "ops/linear.h"

namespace fathom {
namespace {

constexpr Format kFormats[] = {Format::q8_0, Format::q4_0, Format::q5_0, Format::q4_k, Format::q5_k,
                               Format::q6_k, Format::f32,  Format::bf16, Format::f16,  Format::f8_e4m3};

void run(benchmark::State& state, Format format, int64_t tokens, int64_t out, int64_t in, int64_t matrices,
         int threads) {
  ThreadPool pool(threads);
  Arena arena;
  Context ctx{pool, arena};
  Tensor w = panel_tensor(nullptr, format, {matrices, out, in});
  const Buffer weights(static_cast<size_t>(w.size_bytes())), rows(static_cast<size_t>(tokens * in) * 4);
  const Buffer results(static_cast<size_t>(tokens * out) * 4);
  w.data = weights.data();
  Rng rng(1);
  for (int64_t i = 0; i < w.size_bytes(); i += 64) static_cast<uint8_t*>(w.data)[i] = static_cast<uint8_t>(i / 64 % 60);
  const Tensor x(rows.data(), Format::f32, {tokens, in}), y(results.data(), Format::f32, {tokens, out});
  for (int64_t i = 0; i < x.size(); ++i) x.f32()[i] = static_cast<float>(rng.normal());
  int64_t m = 0;
  for (auto _ : state) {
    const ArenaScope scope(arena);
    linear(ctx, y, make_linear_input(ctx, x, {w}), w[m]);
    m = (m + 1) % matrices;
  }
  const double gb = 1e-9 * static_cast<double>(w.size_bytes()) / static_cast<double>(matrices);
  const double gop = 2e-9 * static_cast<double>(tokens * out * in);
  const MachineRates& limits = machine_limits(threads);
  if (tokens == 1) {
    count_against(state, "GB/s", gb, limits.memory_gbs);
  } else {
    count_against(state, "Gop/s", gop, is_block_format(format) ? limits.i8_short_gops : limits.f32_gflops);
  }
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  using namespace fathom;
  benchmark::Initialize(&argc, argv);
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  for (const Format format : kFormats) {
    for (const int64_t tokens : {1, 2, 4, 5, 6, 8, 48, 512}) {
      const int64_t out = 2048, in = 2048, matrices = tokens == 1 ? 64 : 4;
      const std::string name = std::string(format_traits(format).name) + "/" + std::to_string(tokens);
      benchmark::RegisterBenchmark(
          name.c_str(), [=](benchmark::State& state) { run(state, format, tokens, out, in, matrices, threads); })
          ->UseRealTime()
          ->MinTime(0.3);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
