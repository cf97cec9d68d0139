// The operators between the products: router, tokens to experts and back (and the experts' products), norm, SwiGLU,
// rotation, 8-bit activations, rows of the latent cache, the pool's meeting of threads, head with loss, AdamW.
// Argument: threads. GB/s counts each byte that a kernel touches once, be it read, written or both: a line that is
// written comes from where it lies like one that is read, and goes back beside other reading. One row is taken from
// many that lie in the L2 together, on one thread; 512 from many that only memory holds. GFLOP/s is printed instead
// where arithmetic takes longer than that at the machine's rates. The limit of memory moves where others use it too.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "base/terminal.h"
#include "limits.h"
#include "number/panels.h"
#include "ops/adamw.h"
#include "ops/cross_entropy.h"
#include "ops/experts.h"
#include "ops/latent_rows.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/router.h"
#include "ops/swiglu.h"

namespace fathom {
namespace {

constexpr int64_t kInL2 = 192 << 10, kInMemory = int64_t{256} << 20;  // bytes of what is worked on in turn
constexpr double kSigmoid = 28;                                       // operations, a fused multiply-add being two

struct Model {
  const char* name;
  int64_t hidden, expert_inter, heads;
  RouterConfig router;
};
const std::array<Model, 2> kModels = {
    Model{"v3", 7168, 2048, 128, {256, 8, 8, 4, Scoring::sigmoid, TopkMethod::noaux_tc, true, 2.5f}},
    Model{"v2-lite", 2048, 1408, 16, {64, 6, 1, 1, Scoring::softmax, TopkMethod::greedy, false, 1}}};

struct Work {
  double bytes = 0, flops = 0;  // of an iteration
};

// Against the slower of the two: where the bytes lie, or arithmetic.
void count(benchmark::State& state, const Work& work, int64_t rows, int threads) {
  const MachineRates& limits = machine_limits(rows == 1 ? 1 : threads, MachineEffort::full);
  const double gbs = rows == 1 ? limits.l2_gbs : limits.memory_gbs;
  if (work.bytes / gbs >= work.flops / limits.f32_gflops) {
    count_against(state, "GB/s", 1e-9 * work.bytes, gbs);
  } else {
    count_against(state, "GFLOP/s", 1e-9 * work.flops, limits.f32_gflops);
  }
}

// How many inputs of `bytes` each are worked on in turn.
int64_t n_inputs(int64_t rows, int64_t bytes) { return std::max<int64_t>(1, (rows == 1 ? kInL2 : kInMemory) / bytes); }

Tensor filled(Context& ctx, int64_t rows, int64_t cols) {
  constexpr int64_t kNumbers = 65521;  // a prime, so that rows differ
  static const std::vector<float> numbers = [] {
    std::vector<float> some(kNumbers);
    Rng rng(1);
    for (float& x : some) x = static_cast<float>(rng.normal());
    return some;
  }();
  const Tensor t = new_f32(ctx, {rows, cols});
  for (int64_t i = 0; i < t.size(); ++i) t.f32()[i] = numbers[static_cast<size_t>(i % kNumbers)];
  return t;
}

// call(first row) for each of the inputs in turn.
template <class Call>
void cycle(benchmark::State& state, int64_t inputs, int64_t rows, const Call& call) {
  int64_t i = 0;
  for (auto _ : state) {
    call(i * rows);
    i = i + 1 == inputs ? 0 : i + 1;
  }
}

// k different experts for each token, the last more often than the first.
Tensor uneven_choices(Context& ctx, int64_t rows, int64_t k, int64_t n_experts) {
  const Tensor ids = new_i32(ctx, {rows, k});
  Rng rng(1);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t choice = 0; choice < k;) {
      int32_t* const row = ids.i32() + t * k;
      const auto id = static_cast<int32_t>(static_cast<double>(n_experts) * std::sqrt(rng.uniform()));
      if (std::find(row, row + choice, id) == row + choice) row[choice++] = id;
    }
  }
  return ids;
}

// What bounds it is the arithmetic of the scores, and two comparisons of each of them; choosing compares and branches
// one after the other, which no rate of a machine tells.
void router(benchmark::State& state, Context& ctx, const RouterConfig& config, int64_t rows) {
  const ArenaScope scope(ctx.arena);
  const int64_t experts = config.n_routed_experts, inputs = std::max<int64_t>(1, 512 / rows);
  const Tensor logits = filled(ctx, inputs * rows, experts), scores = filled(ctx, rows, experts);
  const Tensor bias = filled(ctx, 1, experts), weights = filled(ctx, rows, config.num_experts_per_tok);
  const Tensor ids = new_i32(ctx, {rows, config.num_experts_per_tok});
  for (int64_t e = 0; e < experts; ++e) bias.f32()[e] *= 0.01f;
  cycle(state, inputs, rows,
        [&](int64_t first) { route(ctx, config, ids, weights, scores, logits.slice(first, rows), bias); });
  const int threads = rows < 512 ? 1 : ctx.pool.size();
  count(state, {0, static_cast<double>(rows * experts) * (kSigmoid + 3)}, rows, threads);
}

void norm(benchmark::State& state, Context& ctx, int64_t hidden, int64_t rows) {
  const ArenaScope scope(ctx.arena);
  const int64_t bytes = rows * hidden * 8, inputs = n_inputs(rows, bytes);
  const Tensor x = filled(ctx, inputs * rows, hidden), y = filled(ctx, inputs * rows, hidden);
  const Tensor w = filled(ctx, 1, hidden);
  cycle(state, inputs, rows,
        [&](int64_t first) { rms_norm(ctx, y.slice(first, rows), x.slice(first, rows), w, 1e-6f); });
  count(state, {static_cast<double>(bytes + hidden * 4), static_cast<double>(rows * hidden * 4)}, rows,
        ctx.pool.size());
}

void silu_product(benchmark::State& state, Context& ctx, int64_t inter, int64_t rows) {
  const ArenaScope scope(ctx.arena);
  const int64_t bytes = rows * inter * 12, inputs = n_inputs(rows, bytes);
  const Tensor gate_up = filled(ctx, inputs * rows, 2 * inter), y = filled(ctx, inputs * rows, inter);
  cycle(state, inputs, rows, [&](int64_t first) { swiglu(ctx, y.slice(first, rows), gate_up.slice(first, rows)); });
  count(state, {static_cast<double>(bytes), static_cast<double>(rows * inter) * (kSigmoid + 2)}, rows, ctx.pool.size());
}

// Of queries. Lines between the heads' rotated parts are not touched.
void rotation(benchmark::State& state, Context& ctx, int64_t heads, int64_t rows) {
  const ArenaScope scope(ctx.arena);
  constexpr int64_t kDim = 64, kStride = 192;
  const Rope angles = make_rope(kDim, 10000, true, {});
  const int64_t bytes = rows * heads * kDim * 4, inputs = n_inputs(rows, bytes);
  const Tensor q = filled(ctx, inputs * rows, heads * kStride), positions = new_i32(ctx, {rows});
  for (int64_t t = 0; t < rows; ++t) positions.i32()[t] = static_cast<int32_t>(4096 + t);
  cycle(state, inputs, rows, [&](int64_t first) {
    rope(ctx, angles, q.slice(first, rows), positions, {heads, kStride, kStride - kDim});
  });
  count(state, {static_cast<double>(bytes), static_cast<double>(rows * heads * kDim * 3)}, rows, ctx.pool.size());
}

// The form is made in the same place each time, which stays in a cache: only what is read counts. Of the weight, whose
// data nobody looks at, only the format matters.
void activation(benchmark::State& state, Context& ctx, Format format, int64_t cols, int64_t rows) {
  const ArenaScope scope(ctx.arena);
  const int64_t bytes = rows * cols * 4, inputs = n_inputs(rows, bytes);
  const Tensor x = filled(ctx, inputs * rows, cols), w = panel_tensor(x.data, format, {kPanelRows, cols});
  cycle(state, inputs, rows, [&](int64_t first) {
    const ArenaScope form(ctx.arena);
    benchmark::DoNotOptimize(make_linear_input(ctx, x.slice(first, rows), {w}));
  });
  count(state, {static_cast<double>(bytes), 0}, rows, ctx.pool.size());
}

// Tokens to their experts' order and back: rows go k times out and k times in.
void to_experts_and_back(benchmark::State& state, Context& ctx, const Model& model, int64_t rows) {
  const ArenaScope scope(ctx.arena);
  const int64_t k = model.router.num_experts_per_tok, n_experts = model.router.n_routed_experts;
  const Tensor x = filled(ctx, rows, model.hidden), y = filled(ctx, rows, model.hidden);
  const Tensor sorted = new_f32(ctx, {rows * k, model.hidden}), weights = filled(ctx, rows, k);
  const Dispatch d = make_dispatch(ctx, uneven_choices(ctx, rows, k, n_experts), n_experts);
  for (auto _ : state) {
    dispatch(ctx, sorted, x, d);
    combine(ctx, y, sorted, weights, d);
  }
  count(state, {static_cast<double>((2 * k + 2) * rows * model.hidden * 4), 0}, rows, ctx.pool.size());
}

// The experts' first products over a prompt's tokens: what panel_bench has for one matrix, cut into uneven groups.
void experts_product(benchmark::State& state, Context& ctx, const Model& model, Format format, int64_t rows) {
  const ArenaScope scope(ctx.arena);
  const int64_t k = model.router.num_experts_per_tok, n_experts = 32, out = 2 * model.expert_inter;
  Tensor w = panel_tensor(nullptr, format, {n_experts, out, model.hidden});
  const Buffer memory(static_cast<size_t>(w.size_bytes()));
  w.data = memory.data();
  for (int64_t i = 0; i < w.size_bytes(); i += 64) static_cast<uint8_t*>(w.data)[i] = static_cast<uint8_t>(i / 64 % 60);
  const Dispatch d = make_dispatch(ctx, uneven_choices(ctx, rows, k, n_experts), n_experts);
  const LinearInput x = make_linear_input(ctx, filled(ctx, rows, model.hidden), {w});
  const LinearInput sorted = dispatch(ctx, x, d, w);
  const Tensor y = new_f32(ctx, {rows * k, out});
  for (auto _ : state) linear(ctx, {{y, sorted, w, d.offsets}});
  const double gop = 2e-9 * static_cast<double>(rows * k * out * model.hidden);
  count_against(state, "Gop/s", gop, machine_limits(ctx.pool.size(), MachineEffort::full).i8_short_gops);
}

// Rows of V3's sizes that lie in the L2 with what they become: attention fetches those that come next from memory.
void latent_rows(benchmark::State& state, Context& ctx, Format format, bool encode) {
  const ArenaScope scope(ctx.arena);
  constexpr int64_t kRows = 32;
  const LatentRowLayout layout = {format, 512, 64};
  const int64_t row_bytes = latent_row_bytes(layout);
  const Tensor rows = filled(ctx, kRows, layout.dim()), stored = new_tensor(ctx, Format::u8, {kRows, row_bytes});
  const auto write = [&] {
    for (int64_t i = 0; i < kRows; ++i) {
      const float* c = rows.f32_row(i);
      write_latent_row(layout, stored.at(i * row_bytes), c, c + layout.kv_lora_rank);
    }
  };
  write();
  for (auto _ : state) {
    if (encode) {
      write();
    } else {
      read_latent_rows(layout, rows.f32(), stored.data, kRows);
    }
    benchmark::ClobberMemory();
  }
  count(state, {static_cast<double>(rows.size_bytes() + stored.size_bytes()), 0}, 1, 1);
}

// Seconds of one of `n` calls, the best of many passes: others may have a core meanwhile, and then threads wait for it.
template <class Call>
double best_s(int n, const Call& call) {
  double best = 1;
  for (int pass = 0; pass < 50; ++pass) {
    const double start = monotonic_s();
    for (int i = 0; i < n; ++i) call();
    best = std::min(best, (monotonic_s() - start) / n);
  }
  return best;
}

// A line that two cores write in turn, there and back.
double round_trip_s() {
  std::atomic<int> turn{0};  // odd: the other's
  std::thread other([&] {
    for (int seen = 0; seen >= 0; seen = turn.load(std::memory_order_acquire)) {
      if (seen % 2 == 1) turn.store(seen + 1, std::memory_order_release);
    }
  });
  int sent = -1;
  const double best = best_s(100, [&] {
    turn.store(sent += 2, std::memory_order_release);
    while (turn.load(std::memory_order_acquire) != sent + 1) continue;
  });
  turn.store(-1);
  other.join();
  return best;
}

// The least that threads take to meet is one round trip: another sees that there is work, and the caller that it is
// done. Where they need not, a caller that finds nobody there yet does all itself, and no such limit holds.
void pool_run(benchmark::State& state, int threads, bool meet) {
  ThreadPool pool(threads);
  std::atomic<int64_t> there{0};
  int64_t runs = 0;
  const auto task = [&](int64_t, int) {
    if (!meet) return;
    there.fetch_add(1);
    while (there.load() < runs * threads) continue;
  };
  for (auto _ : state) {
    state.SetIterationTime(best_s(20, [&] {
      ++runs;
      pool.run(threads, task);
    }));
  }
  if (threads == 1 || !meet) return;
  static const double trip_s = round_trip_s();
  count_against(state, "runs/s", 1, 1 / trip_s);
}

// Sizes of bench/peers/micro.json.
void head_loss(benchmark::State& state, Context& ctx, bool backward) {
  const ArenaScope scope(ctx.arena);
  constexpr int64_t kTokens = 2048, kHidden = 256, kVocab = 4096;
  const Tensor x = filled(ctx, kTokens, kHidden), w = filled(ctx, kVocab, kHidden), dx = filled(ctx, kTokens, kHidden);
  const Tensor dw = filled(ctx, kVocab, kHidden), loss = new_f32(ctx, {kTokens}), targets = new_i32(ctx, {kTokens});
  for (int64_t t = 0; t < kTokens; ++t) targets.i32()[t] = static_cast<int32_t>(t);
  for (auto _ : state) {
    if (backward) {
      head_cross_entropy_backward(ctx, loss, dx, dw, x, w, targets, 1e-4f);
    } else {
      head_cross_entropy(ctx, loss, x, w, targets);
    }
  }
  count(state, {0, (backward ? 6.0 : 2.0) * (kTokens * kHidden * kVocab)}, kTokens, ctx.pool.size());
}

void optimizer(benchmark::State& state, Context& ctx) {
  const ArenaScope scope(ctx.arena);
  constexpr int64_t kParams = kInMemory / 16;
  const auto values = [&] { return filled(ctx, 1, kParams); };
  const auto all = [](Tensor t) { return std::span<float>(t.f32(), static_cast<size_t>(t.size())); };
  const Tensor params = values(), grads = values(), m = values(), v = values();
  for (float& x : all(v)) x *= x;
  int64_t step = 0;
  for (auto _ : state) adamw_step(ctx, {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f}, ++step, all(params), all(grads), m, v, 1);
  count(state, {kParams * 16, 0}, kParams, ctx.pool.size());
}

void gradient_norm(benchmark::State& state, Context& ctx) {
  const ArenaScope scope(ctx.arena);
  const Tensor values = filled(ctx, 1, kInMemory / 4);
  const std::span<const float> all(values.f32(), static_cast<size_t>(values.size()));
  for (auto _ : state) benchmark::DoNotOptimize(sum_of_squares(ctx, all));
  count(state, {kInMemory, 0}, kInMemory, ctx.pool.size());
}

// One thread is timed by what it gets of its core, which others may want too.
template <class Run>
void add(const std::string& name, int threads, const Run& run) {
  auto* const registered = benchmark::RegisterBenchmark(name.c_str(), run)->MinTime(0.3);
  if (threads > 1) registered->UseRealTime();
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  using namespace fathom;
  using benchmark::State;
  benchmark::Initialize(&argc, argv);
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  ThreadPool pool(threads);
  Arena arena;
  Context ctx{pool, arena};
  for (const Model& model : kModels) {
    const std::string of = std::string("/") + model.name + "/";
    for (const int64_t rows : {1, 8, 512}) {
      add("router" + of + std::to_string(rows), rows < 512 ? 1 : threads,
          [=, &ctx](State& s) { router(s, ctx, model.router, rows); });
    }
    add("to_experts_and_back" + of + "512", threads, [=, &ctx](State& s) { to_experts_and_back(s, ctx, model, 512); });
    for (const Format format : {Format::q4_0, Format::q4_k}) {
      add(std::string("experts_") + format_traits(format).name + of + "512", threads,
          [=, &ctx](State& s) { experts_product(s, ctx, model, format, 512); });
    }
    for (const int64_t rows : {1, 512}) {
      const std::string name = of + std::to_string(rows);
      const int timed = rows == 1 ? 1 : threads;
      add("rms_norm" + name, timed, [=, &ctx](State& s) { norm(s, ctx, model.hidden, rows); });
      add("swiglu" + name, timed, [=, &ctx](State& s) { silu_product(s, ctx, model.expert_inter, rows); });
      add("rope" + name, timed, [=, &ctx](State& s) { rotation(s, ctx, model.heads, rows); });
      for (const Format format : {Format::q4_0, Format::q4_k, Format::f8_e4m3}) {
        add(std::string("input_of_") + format_traits(format).name + name, timed,
            [=, &ctx](State& s) { activation(s, ctx, format, model.hidden, rows); });
      }
    }
  }
  for (const Format format : {Format::f32, Format::bf16, Format::f16, Format::f8_e4m3, Format::q8_0}) {
    for (const bool encode : {true, false}) {
      add(std::string(encode ? "write_latent/" : "read_latent/") + format_traits(format).name, 1,
          [=, &ctx](State& s) { latent_rows(s, ctx, format, encode); });
    }
  }
  for (int n = 1; n <= threads; ++n) {
    for (const bool meet : {false, true}) {
      const std::string name = (meet ? "pool_meet/" : "pool_run/") + std::to_string(n);
      const auto run = [=](State& s) { pool_run(s, n, meet); };
      benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Iterations(2);
    }
  }
  add("head_loss", threads, [&ctx](State& s) { head_loss(s, ctx, false); });
  add("head_loss_backward", threads, [&ctx](State& s) { head_loss(s, ctx, true); });
  add("adamw", threads, [&ctx](State& s) { optimizer(s, ctx); });
  add("gradient_norm", threads, [&ctx](State& s) { gradient_norm(s, ctx); });
  benchmark::RunSpecifiedBenchmarks();
}
