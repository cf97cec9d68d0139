// Attention alone: GFLOP/s of the expanded form at training and prefill sizes (causal work only, 4 flops a score and
// dimension pair forward, 10 backward), and of the absorbed form in decoding, with the rate at which it reads its
// cache.
#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "base/rng.h"
#include "limits.h"
#include "ops/attention.h"

namespace fathom {
namespace {

Context& ctx() {
  static ThreadPool pool(usable_cores());
  static Arena arena;
  static Context context{pool, arena};
  return context;
}

Tensor random(int64_t rows, int64_t cols) {
  static Rng rng(1);
  const Tensor t = new_f32(ctx(), {rows, cols});
  for (int64_t i = 0; i < t.size(); ++i) t.f32()[i] = static_cast<float>(rng.normal());
  return t;
}

struct Expanded {
  MlaDims dims;
  Tensor q, kv, k_rope, seq_offsets, o, lse;
  double scores;  // of all heads
  float scale;
};

// Arguments: sequences, tokens of each, heads, nope, rope, v.
Expanded make_expanded(const benchmark::State& state) {
  const int64_t n_sequences = state.range(0), length = state.range(1), n_tokens = n_sequences * length;
  Expanded p;
  p.dims = {state.range(2), state.range(3), state.range(4), state.range(5), 0};
  const int64_t heads = p.dims.n_heads, key_dim = p.dims.qk_nope_head_dim + p.dims.qk_rope_head_dim;
  p.q = random(n_tokens, heads * key_dim);
  p.kv = random(n_tokens, heads * (p.dims.qk_nope_head_dim + p.dims.v_head_dim));
  p.k_rope = random(n_tokens, p.dims.qk_rope_head_dim);
  p.o = new_f32(ctx(), {n_tokens, heads * p.dims.v_head_dim});
  p.lse = new_f32(ctx(), {n_tokens, heads});
  p.seq_offsets = new_i32(ctx(), {n_sequences + 1});
  for (int64_t s = 0; s <= n_sequences; ++s) p.seq_offsets.i32()[s] = static_cast<int32_t>(s * length);
  p.scores = static_cast<double>(n_sequences * heads) * static_cast<double>(length * (length + 1)) / 2;
  p.scale = 1 / std::sqrt(static_cast<float>(key_dim));
  return p;
}

void count_flops(benchmark::State& state, double flops) {
  count_against(state, "GFLOP/s", flops * 1e-9, machine_limits(ctx().pool.size()).f32_gflops);
}

void expanded_forward(benchmark::State& state) {
  const ArenaScope scope(ctx().arena);
  const Expanded p = make_expanded(state);
  for (auto _ : state) mla_attention(ctx(), p.o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, p.lse);
  const int64_t key_dim = p.dims.qk_nope_head_dim + p.dims.qk_rope_head_dim;
  count_flops(state, p.scores * static_cast<double>(2 * (key_dim + p.dims.v_head_dim)));
}

void expanded_backward(benchmark::State& state) {
  const ArenaScope scope(ctx().arena);
  const Expanded p = make_expanded(state);
  const Tensor d_o = random(p.o.rows(), p.o.cols()), dq = random(p.q.rows(), p.q.cols());
  const Tensor dkv = random(p.kv.rows(), p.kv.cols()), dk_rope = random(p.k_rope.rows(), p.k_rope.cols());
  mla_attention(ctx(), p.o, p.q, p.kv, p.k_rope, p.seq_offsets, p.dims, p.scale, p.lse);
  for (auto _ : state) {
    mla_attention_backward(ctx(), dq, dkv, dk_rope, d_o, p.o, p.q, p.kv, p.k_rope, p.lse, p.seq_offsets, p.dims,
                           p.scale);
  }
  const int64_t key_dim = p.dims.qk_nope_head_dim + p.dims.qk_rope_head_dim;
  count_flops(state, p.scores * static_cast<double>(2 * (3 * key_dim + 2 * p.dims.v_head_dim)));
}

// Arguments: sequences, rows cached, heads, new tokens, the cache's format. Dimensions of V3: rank 512, 128 / 64 / 128.
void absorbed_decode(benchmark::State& state) {
  const ArenaScope scope(ctx().arena);
  const int64_t n_sequences = state.range(0), length = state.range(1), heads = state.range(2), n_new = state.range(3);
  const MlaDims dims = {heads, 128, 64, 128, 512};
  const int64_t row_dim = dims.kv_lora_rank + dims.qk_rope_head_dim;
  const LatentRowLayout layout = dims.cached_row(static_cast<Format>(state.range(4)));
  std::vector<LatentCacheView> sequences;
  for (int64_t s = 0; s < n_sequences; ++s) {
    const Tensor rows = random(length, row_dim),
                 stored = new_tensor(ctx(), Format::u8, {length, latent_row_bytes(layout)});
    for (int64_t i = 0; i < length; ++i) {
      write_latent_row(layout, stored.at(i * stored.cols()), rows.f32_row(i), rows.f32_row(i) + dims.kv_lora_rank);
    }
    sequences.push_back({stored.data, length, n_new, layout.format});
  }
  const Tensor q = random(n_sequences * n_new, heads * 192), kv_b = random(heads * 256, dims.kv_lora_rank);
  const Tensor o = new_f32(ctx(), {n_sequences * n_new, heads * dims.v_head_dim});
  for (auto _ : state) mla_attention_absorbed(ctx(), o, q, kv_b, {}, sequences, dims, 0.01f);
  const auto rows = static_cast<double>(n_sequences * length), queries = static_cast<double>(n_new * heads);
  count_flops(state, rows * queries * static_cast<double>(2 * (row_dim + dims.kv_lora_rank)));
  const double bytes = rows * static_cast<double>(latent_row_bytes(layout)) + 4.0 * static_cast<double>(kv_b.size());
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

constexpr auto kF32 = static_cast<int64_t>(Format::f32);
const std::vector<std::string> kExpandedNames = {"seqs", "len", "heads", "nope", "rope", "v"};
BENCHMARK(expanded_forward)
    ->ArgNames(kExpandedNames)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Args({8, 256, 4, 64, 32, 64})
    ->Args({1, 4096, 4, 128, 64, 128})
    ->Args({1, 1024, 16, 128, 64, 128});
BENCHMARK(expanded_backward)
    ->ArgNames(kExpandedNames)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Args({8, 256, 4, 64, 32, 64})
    ->Args({1, 4096, 4, 128, 64, 128})
    ->Args({1, 2048, 1, 128, 64, 128});
BENCHMARK(absorbed_decode)
    ->ArgNames({"seqs", "len", "heads", "new", "format"})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Args({1, 4096, 16, 1, kF32})
    ->Args({1, 4096, 16, 1, static_cast<int64_t>(Format::bf16)})
    ->Args({1, 4096, 16, 1, static_cast<int64_t>(Format::f8_e4m3)})
    ->Args({1, 4096, 16, 1, static_cast<int64_t>(Format::q8_0)})
    ->Args({1, 4096, 128, 1, kF32})
    ->Args({4, 256, 16, 1, kF32})
    ->Args({1, 4096, 16, 16, kF32});

}  // namespace
}  // namespace fathom

BENCHMARK_MAIN();
