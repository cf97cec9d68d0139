// fathom bench: tokens a second of reading prompts and of writing.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/rng.h"
#include "base/terminal.h"
#include "checkpoint/packed_model.h"
#include "cli/command.h"
#include "model/forward.h"

namespace fathom::cli {
namespace {

struct Options {
  std::string model, kv_type = "f32";
  int64_t prompt = 512, gen = 64, depth = 0, batch = 1, reps = 3;
};

// What a run works on: sequences of the same length, filled with random tokens.
struct Bench {
  Context& ctx;
  const Model& model;
  std::vector<LatentCache> caches;
  Rng rng;

  // Appends n tokens to each sequence, in one pass, and makes the logits of the last ones.
  void read(int64_t n) {
    const ArenaScope scope(ctx.arena);
    std::vector<std::vector<int32_t>> tokens(caches.size());
    std::vector<int64_t> first;
    std::vector<LatentCache*> pointers;
    for (size_t s = 0; s < caches.size(); ++s) {
      for (int64_t i = 0; i < n; ++i) {
        tokens[s].push_back(static_cast<int32_t>(rng.uniform() * static_cast<double>(model.config.vocab_size)));
      }
      first.push_back(caches[s].length);
      pointers.push_back(&caches[s]);
    }
    const Batch batch = make_batch(ctx, tokens, first);
    const Tensor hidden = forward(ctx, model, batch, {.caches = pointers, .expand_caches = n >= kExpandFrom});
    Tensor last(hidden.at((n - 1) * hidden.row_stride), Format::f32,
                {static_cast<int64_t>(caches.size()), hidden.cols()});
    last.row_stride = n * hidden.row_stride;
    head_logits(ctx, model, last);
  }
  void cut(int64_t length) {
    for (LatentCache& cache : caches) cache.length = length;
  }
};

// Runs `test` reps times after one run that is not counted, from the same depth, and prints tokens / second.
template <class Test>
void measure(const std::string& name, int64_t n_tokens, const Options& o, const CommonOptions& common, Bench& bench,
             const Test& test) {
  std::vector<double> rates;
  for (int64_t rep = -1; rep < o.reps; ++rep) {
    bench.cut(o.depth);
    const double start = monotonic_s();
    test();
    if (rep >= 0) rates.push_back(static_cast<double>(n_tokens) / (monotonic_s() - start));
    if (interrupted_by != 0) throw Interrupted{};
  }
  const auto n = static_cast<double>(rates.size());
  const double mean = std::accumulate(rates.begin(), rates.end(), 0.0) / n;
  double squares = 0;
  for (const double rate : rates) squares += (rate - mean) * (rate - mean);
  const double deviation = n > 1 ? std::sqrt(squares / (n - 1)) : 0;
  if (common.json) {
    const nlohmann::ordered_json json{
        {"test", name}, {"avg_ts", mean}, {"stddev_ts", deviation}, {"samples_ts", rates}};
    write_stdout(json.dump() + "\n");
  } else {
    write_stdout(fmt::format("{:<16} {:>9.2f} tokens/s  ± {:.2f}\n", name, mean, deviation));
  }
}

void run(const Options& o, const CommonOptions& common) {
  if (o.prompt == 0 && o.gen == 0) throw UsageError("bench: --prompt 0 and --gen 0 leave nothing to measure");
  ThreadPool pool(thread_count(common));
  const PackedModel loaded = load_packed_model(o.model, pool);
  const Model model = make_model(loaded.config, loaded.weights);
  const int64_t capacity = o.depth + std::max(o.prompt, o.gen);
  if (capacity > model.config.max_position_embeddings) {
    throw UsageError("--depth {} and {} tokens are more than the {} that the model reads", o.depth,
                     std::max(o.prompt, o.gen), model.config.max_position_embeddings);
  }
  Arena arena;
  Context ctx{pool, arena};
  Bench bench{ctx, model, {}, Rng(common.seed)};
  for (int64_t s = 0; s < o.batch; ++s) {
    bench.caches.push_back(make_latent_cache(model.config, capacity, cache_format(o.kv_type)));
  }
  constexpr int64_t kPiece = 512;
  for (int64_t n = 0; n < o.depth; n += kPiece) bench.read(std::min(kPiece, o.depth - n));

  const std::string depth = o.depth > 0 ? fmt::format("@d{}", o.depth) : "";
  const std::string batch = o.batch > 1 ? fmt::format("x{}", o.batch) : "";
  if (o.prompt > 0) {
    measure(fmt::format("pp{}{}{}", o.prompt, batch, depth), o.prompt * o.batch, o, common, bench,
            [&] { bench.read(o.prompt); });
  }
  if (o.gen > 0) {
    measure(fmt::format("tg{}{}{}", o.gen, batch, depth), o.gen * o.batch, o, common, bench, [&] {
      for (int64_t i = 0; i < o.gen && interrupted_by == 0; ++i) bench.read(1);
    });
  }
}

}  // namespace

void add_bench(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("bench", "Tokens a second of reading a prompt and of writing");
  command->option_defaults()->always_capture_default();
  command->add_option("--model", options->model, "Model directory or .gguf file")->required()->type_name("PATH");
  const auto up_to = [](int64_t least) { return CLI::Range(least, int64_t{1} << 24); };
  command->add_option("--prompt", options->prompt, "Tokens read in one go (0: none)")->check(up_to(0));
  command->add_option("--gen", options->gen, "Tokens written one by one (0: none)")->check(up_to(0));
  command->add_option("--depth", options->depth, "Tokens in the cache before")->check(up_to(0));
  command->add_option("--batch", options->batch, "Sequences side by side")->check(CLI::Range(1, 1024));
  add_kv_type_option(*command, options->kv_type);
  command->add_option("--reps", options->reps, "How often; one run more is not counted")->check(CLI::Range(1, 1000));
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace fathom::cli
