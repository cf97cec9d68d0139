// Time of one training step (loss, gradients, AdamW) of the sizes in bench/peers, by Google Benchmark, in each
// precision: beside each other with --benchmark_enable_random_interleaving=true --benchmark_repetitions=5.
//   train_step_bench MODEL_CONFIG.json SEQUENCES LENGTH [THREADS]
#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>

#include "checkpoint/hf_model.h"
#include "model/loss.h"
#include "ops/adamw.h"
#include "train/saved_state.h"
#include "train/train.h"

namespace fathom {
namespace {

void train_step(benchmark::State& state, const ModelConfig& config, int64_t n_sequences, int64_t length, int threads,
                Precision precision) {
  ThreadPool pool(threads);
  Arena arena;
  Context ctx{pool, arena};
  Parameters p = allocate_parameters(config);
  initialize(p, config, 1);
  Model model = make_model(config, p.weights);
  model.precision = precision;
  const Format moments = precision == Precision::f32 ? Format::f32 : Format::bf16;
  Parameters grads = allocate_parameters(config, false);
  const Moment m = allocate_moment(p.n_trained, moments), v = allocate_moment(p.n_trained, moments);
  Rng rng(1);
  std::vector<std::vector<int32_t>> sequences(static_cast<size_t>(n_sequences));
  for (auto& ids : sequences) {
    for (int64_t i = 0; i <= length; ++i)
      ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(config.vocab_size))));
  }
  const Batch batch = make_batch(ctx, sequences);
  const Targets targets = make_targets(ctx, batch);
  int64_t step = 0;
  const auto run_step = [&] {
    std::fill(grads.trained().begin(), grads.trained().end(), 0.0f);
    loss_and_gradients(ctx, model, grads.weights, batch, targets,
                       {.mtp_weight = config.num_nextn_predict_layers > 0 ? 0.3 : 0});
    adamw_step(ctx, {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f}, ++step, p.trained(), grads.trained(), m.values, v.values, 1);
  };
  run_step();  // the first takes its memory from the system
  for (auto _ : state) run_step();
  const auto tokens = static_cast<double>(state.iterations() * n_sequences * length);
  state.counters["tokens/s"] = benchmark::Counter(tokens, benchmark::Counter::kIsRate);
  // Three passes over the active weights, a multiply and an add each.
  state.counters["GFLOP/s"] = benchmark::Counter(6e-9 * tokens * static_cast<double>(count_parameters(config).active),
                                                 benchmark::Counter::kIsRate);
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s MODEL_CONFIG.json SEQUENCES LENGTH [THREADS]\n", argv[0]);
    return 2;
  }
  const fathom::ModelConfig config = fathom::read_model_config(argv[1]);
  const int threads = argc > 4 ? std::atoi(argv[4]) : fathom::usable_cores();
  for (const fathom::Precision precision : {fathom::Precision::f32, fathom::Precision::bf16, fathom::Precision::fp8}) {
    benchmark::RegisterBenchmark((std::string("train_step/") + fathom::precision_name(precision)).c_str(),
                                 fathom::train_step, config, std::atoll(argv[2]), std::atoll(argv[3]), threads,
                                 precision)
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  }
  benchmark::RunSpecifiedBenchmarks();
}
