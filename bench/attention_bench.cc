// Attention alone: GFLOP/s of the expanded form at training and prefill sizes (causal work only, 4 flops a score and
// dimension pair forward, 10 backward), and of the absorbed form, in decoding with the rate at which it reads its
// cache, and with chosen rows.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/cpu.h"
#include "base/rng.h"
#include "limits.h"
#include "ops/attention.h"
#include "tensors.h"

namespace fathom {
namespace {

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

// Tokens that choose 2048 rows anywhere among `length` cached ones.
struct Chosen {
  MlaDims dims;
  Tensor q, kv_b, selected, o;
  LatentCacheView sequence;
};
Chosen make_chosen(const MlaDims& dims, int64_t length, int64_t n_new, Format format) {
  constexpr int64_t kChosen = 2048, kRandomRows = 1024;
  Chosen p{dims};
  const LatentRowLayout layout = dims.cached_row(format);
  const int64_t row_bytes = latent_row_bytes(layout);
  const Tensor rows = random(kRandomRows, layout.dim()), stored = new_tensor(ctx(), Format::u8, {length, row_bytes});
  for (int64_t i = 0; i < kRandomRows; ++i) {
    write_latent_row(layout, stored.at(i * row_bytes), rows.f32_row(i), rows.f32_row(i) + dims.kv_lora_rank);
  }
  for (int64_t i = kRandomRows; i < length; ++i) {
    std::memcpy(stored.at(i * row_bytes), stored.at(i % kRandomRows * row_bytes), static_cast<size_t>(row_bytes));
  }
  p.selected = new_i32(ctx(), {n_new, kChosen});
  Rng rng(2);
  for (int64_t i = 0; i < p.selected.size(); ++i) {  // ascending, one of each part of the context
    const double part = static_cast<double>(length - n_new) / kChosen;
    p.selected.i32()[i] = static_cast<int32_t>((static_cast<double>(i % kChosen) + rng.uniform()) * part);
  }
  p.q = random(n_new, dims.n_heads * (dims.qk_nope_head_dim + dims.qk_rope_head_dim));
  p.kv_b = random(dims.n_heads * (dims.qk_nope_head_dim + dims.v_head_dim), dims.kv_lora_rank);
  p.o = new_f32(ctx(), {n_new, dims.n_heads * dims.v_head_dim});
  p.sequence = {stored.data, length, n_new, format};
  return p;
}

// The absorbed form with chosen rows. Arguments: rows cached, heads, new tokens, the cache's format. Heads so narrow
// that the projections take no time; else V3's dimensions.
void absorbed_chosen(benchmark::State& state) {
  const ArenaScope scope(ctx().arena);
  const int64_t heads = state.range(1), n_new = state.range(2);
  const Chosen p = make_chosen({heads, 8, 64, 8, 512}, state.range(0), n_new, static_cast<Format>(state.range(3)));
  for (auto _ : state) {
    mla_attention_absorbed(ctx(), p.o, p.q, p.kv_b, {}, {&p.sequence, 1}, p.dims, 0.01f, p.selected);
  }
  const double flops = static_cast<double>(n_new * heads * p.selected.cols()) * static_cast<double>(2 * (576 + 512));
  // A dot product of pairs of bf16 takes as long as a multiply-add of floats, and does twice as much.
  const bool pairs = p.sequence.format != Format::f32 && cpu_has(Isa::avx512_bf16);
  const double limit = machine_limits(ctx().pool.size()).f32_gflops * (pairs ? 2 : 1);
  count_against(state, "GFLOP/s", flops * 1e-9, limit);
}

// The expanded form with chosen rows, which masks all others; the same arguments, V3's heads. Its work is that of
// scores and values alone, not what makes keys and values of rows again.
void expanded_chosen(benchmark::State& state) {
  const ArenaScope scope(ctx().arena);
  const int64_t length = state.range(0), heads = state.range(1), n_new = state.range(2);
  const Chosen p = make_chosen({heads, 128, 64, 128, 512}, length, n_new, static_cast<Format>(state.range(3)));
  for (auto _ : state) {
    mla_attention_expanded(ctx(), p.o, p.q, p.kv_b, {&p.sequence, 1}, p.dims, 0.01f, p.selected);
  }
  const double scores = static_cast<double>(heads * n_new) * (static_cast<double>(2 * length - n_new + 1) / 2);
  count_flops(state, scores * 2 * (192 + 128));
}

constexpr auto kF32 = static_cast<int64_t>(Format::f32);
constexpr auto kBf16 = static_cast<int64_t>(Format::bf16);
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
    ->Args({1, 4096, 16, 1, kBf16})
    ->Args({1, 4096, 16, 1, static_cast<int64_t>(Format::f8_e4m3)})
    ->Args({1, 4096, 16, 1, static_cast<int64_t>(Format::q8_0)})
    ->Args({1, 4096, 128, 1, kF32})
    ->Args({4, 256, 16, 1, kF32})
    ->Args({1, 4096, 16, 16, kF32});
BENCHMARK(absorbed_chosen)
    ->ArgNames({"len", "heads", "new", "format"})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->ArgsProduct({{32768, 131072}, {16, 128}, {1, 64}, {kBf16}})
    ->Args({32768, 16, 64, kF32})
    ->Args({32768, 128, 64, kF32})
    ->Args({32768, 16, 64, static_cast<int64_t>(Format::f8_e4m3)})
    ->Args({32768, 128, 64, static_cast<int64_t>(Format::f8_e4m3)});
BENCHMARK(expanded_chosen)
    ->ArgNames({"len", "heads", "new", "format"})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->Args({6144, 16, 2048, kBf16});

}  // namespace
}  // namespace fathom

BENCHMARK_MAIN();
