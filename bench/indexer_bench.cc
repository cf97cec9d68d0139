// The lightning indexer: GMAC/s of scores and selection together as part of what this machine multiplies at best, the
// rate at which keys are read as part of what its memory gives, and the part of the time that choosing takes beside
// scoring.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "limits.h"
#include "ops/attention.h"
#include "ops/indexer.h"
#include "tensors.h"

namespace fathom {
namespace {

double peak_gmacs(IndexFormat format) {
  const MachineRates& rates = machine_limits(ctx().pool.size());
  const double bytes = rates.i8_dot_gops > 0 ? rates.i8_dot_gops : rates.i8_gops;
  return (format == IndexFormat::i8 ? bytes : rates.f32_gflops) / 2;
}

double seconds_of(const std::function<void()>& work) {
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// Arguments: heads, format, new tokens, rows cached; dimension and topk of V3.2.
void indexer_select(benchmark::State& state) {
  const ArenaScope scope(ctx().arena);
  const int64_t n_new = state.range(2), length = state.range(3);
  const IndexerDims dims = {state.range(0), 128, 2048};
  const IndexKeyLayout layout{static_cast<IndexFormat>(state.range(1)), dims.head_dim};
  const int64_t bytes = index_block_bytes(layout), n_blocks = length / kIndexBlock;
  const Tensor blocks = new_tensor(ctx(), Format::u8, {n_blocks, bytes});
  const Tensor keys = random(kIndexBlock, dims.head_dim);
  std::vector<float> key(static_cast<size_t>(dims.head_dim));
  for (int64_t i = 0; i < length; ++i) {  // sums of two keys: none twice
    const float* const a = keys.f32_row(i % kIndexBlock);
    const float* const b = keys.f32_row(i / kIndexBlock % kIndexBlock);
    for (size_t d = 0; d < key.size(); ++d) key[d] = a[d] + b[(d + static_cast<size_t>(i / 4096)) % key.size()];
    write_index_key(layout, blocks.at(i / kIndexBlock * bytes), i % kIndexBlock, key.data());
  }
  LatentCacheView view;
  view.length = length;
  view.n_new = n_new;
  view.index_keys = layout;
  view.index_blocks = blocks.data;
  const Tensor q = random(n_new, dims.n_heads * dims.head_dim), w = random(n_new, dims.n_heads);
  const Tensor selected = new_i32(ctx(), {n_new, dims.topk}), scores = new_f32(ctx(), {n_new, length});
  const auto select = [&] { select_keys(ctx(), selected, q, w, std::span(&view, 1), dims); };
  for (auto _ : state) select();

  const double macs = static_cast<double>(n_new * dims.n_heads * dims.head_dim) * static_cast<double>(length);
  count_against(state, "GMAC/s", macs * 1e-9, peak_gmacs(layout.format));
  const auto read = static_cast<double>(n_blocks * bytes);
  using benchmark::Counter;
  state.counters["of memory"] =
      Counter(read * 1e-9 / machine_limits(ctx().pool.size()).memory_gbs, Counter::kIsIterationInvariantRate);
  const double scoring = seconds_of([&] { index_scores(ctx(), scores, q, w, std::span(&view, 1), dims); });
  state.counters["choosing"] = 1 - scoring / seconds_of(select);
}

BENCHMARK(indexer_select)
    ->ArgNames({"heads", "format", "new", "rows"})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->ArgsProduct({{8, 16, 64},
                   {static_cast<int64_t>(IndexFormat::i8), static_cast<int64_t>(IndexFormat::f8),
                    static_cast<int64_t>(IndexFormat::f32)},
                   {1, 64},
                   {8192, 32768, 131072}});

}  // namespace
}  // namespace fathom

BENCHMARK_MAIN();
