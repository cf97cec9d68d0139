// fathom bench: tokens a second of reading prompts and of writing; with --url, see cli/bench_serve.h.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/residency.h"
#include "base/rng.h"
#include "base/terminal.h"
#include "checkpoint/hf_model.h"
#include "checkpoint/random_model.h"
#include "cli/bench_serve.h"
#include "cli/command.h"
#include "infer/generation.h"
#include "infer/passes.h"
#include "ops/machine.h"

namespace fathom::cli {
namespace {

struct BenchCommandOptions {
  std::string model, model_config, weights = "q4_0", kv_type = "auto";
  std::string attention = "auto";
  int64_t prompt = 512, gen = 64, batch = 1, reps = 3;
  std::vector<int64_t> depths = {0};
  bool machine = false;
  DraftOptions draft;
  PlacementOptions placement;
  ServeBenchOptions serve;
};

// What a run works on: sequences of the same length, filled with random tokens.
struct Bench {
  Context& ctx;
  Model model;
  std::vector<LatentCache> caches;
  Rng rng;
  Passes passes{};

  std::vector<int32_t> random_tokens(int64_t n) {
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    for (int32_t& id : tokens) {
      id = static_cast<int32_t>(rng.uniform() * static_cast<double>(model.config.vocab_size));
    }
    return tokens;
  }
  // Appends n tokens to each sequence, a prompt's as generate() reads it, and makes the logits of the last ones.
  void read(int64_t n) {
    const size_t expand_from = n >= kExpandFrom ? kExpandAll : kExpandNone;
    for (; n > kPrefillTokens; n -= kPrefillTokens) {
      read_piece(kPrefillTokens, expand_from, 0);
      if (interrupted_by != 0) throw Interrupted{};
    }
    read_piece(n, expand_from, 1);
  }
  void read_piece(int64_t n, size_t expand_from, int64_t n_logits) {
    const ArenaScope scope(ctx.arena);
    std::vector<std::vector<int32_t>> tokens;
    std::vector<LatentCache*> pointers;
    for (LatentCache& cache : caches) {
      tokens.push_back(random_tokens(n));
      pointers.push_back(&cache);
    }
    passes.run(ctx, model, tokens, pointers, {.expand_from = expand_from, .n_logits = n_logits});
  }
  void cut(int64_t length) {
    for (LatentCache& cache : caches) cache.length = std::min(cache.length, length);
  }
  // Reads on until so many tokens stand in each sequence.
  void fill(int64_t depth) {
    Progress progress("reading the context", depth, caches[0].length);
    while (caches[0].length < depth) {
      read_piece(std::min(kPrefillTokens, depth - caches[0].length), kExpandAll, 0);
      progress.update(caches[0].length);
      if (interrupted_by != 0) throw Interrupted{};
    }
    progress.finish();
  }
};

void print_rates(const std::string& name, const std::vector<double>& rates, const nlohmann::ordered_json& more,
                 const std::string& remark, const CommonOptions& common) {
  const auto n = static_cast<double>(rates.size());
  const double mean = std::accumulate(rates.begin(), rates.end(), 0.0) / n;
  double squares = 0;
  for (const double rate : rates) squares += (rate - mean) * (rate - mean);
  const double deviation = n > 1 ? std::sqrt(squares / (n - 1)) : 0;
  if (!common.json) {
    return write_stdout(fmt::format("{:<16} {:>9.2f} tokens/s  ± {:.2f}{}\n", name, mean, deviation, remark));
  }
  nlohmann::ordered_json json{{"test", name}, {"avg_ts", mean}, {"stddev_ts", deviation}, {"samples_ts", rates}};
  json.update(more);
  write_stdout(json.dump() + "\n");
}

std::string behind(int64_t depth) { return depth > 0 ? fmt::format("@d{}", depth) : ""; }

// Runs `test` reps times, from the same depth, and prints tokens / second. Before that, once that is not counted, but
// for deeper ones than the first: the machine is warm, and they take long.
template <class Test>
void measure(const std::string& name, int64_t n_tokens, int64_t depth, const BenchCommandOptions& o,
             const CommonOptions& common, Bench& bench, const Test& test) {
  std::vector<double> rates;
  const ExpertReading* reading = bench.model.reading;
  ExpertBytes before, chosen;
  for (int64_t rep = depth == o.depths[0] ? -1 : 0; rep < o.reps; ++rep) {
    bench.cut(depth);
    if (rep == 0 && reading != nullptr) before = reading->seen;
    const double start = monotonic_s();
    test();
    if (rep >= 0) rates.push_back(static_cast<double>(n_tokens) / (monotonic_s() - start));
    if (interrupted_by != 0) throw Interrupted{};
  }
  if (reading != nullptr) chosen = reading->seen - before;
  const std::optional<double> expert_hit_rate = hit_rate(bench.model, chosen);
  nlohmann::ordered_json more = nlohmann::ordered_json::object();
  if (bench.model.config.is_sparse()) more["attention"] = bench.model.dense_attention ? "dense" : "sparse";
  if (expert_hit_rate) more["expert_hit_rate"] = *expert_hit_rate;
  print_rates(name, rates, more, "", common);
  if (expert_hit_rate) log("{}: {:.1f}% of the experts chosen were in memory", name, 100 * *expert_hit_rate);
}

constexpr int64_t kOpening = 64;

// Writing with drafts and without, turn about, greedily. What follows random tokens is no text, so that drafts would
// hit by chance: behind them stands an opening that the model draws itself, another one each time.
void measure_drafting(const BenchCommandOptions& o, const CommonOptions& common, Bench& bench, int64_t n_drafts) {
  const ModelConfig& config = bench.model.config;
  std::vector<int32_t> prompt = bench.random_tokens(std::max<int64_t>(o.depths[0], 1));
  if (config.bos_token_id >= 0) prompt[0] = static_cast<int32_t>(config.bos_token_id);
  const size_t depth = prompt.size();
  const Format cache_type = cache_format(o.kv_type, bench.ctx.device);
  Sequence sequence{
      {}, make_latent_cache(config, static_cast<int64_t>(depth) + kOpening + o.gen, cache_type, bench.ctx.device)};
  const auto write = [&](const GenerationOptions& options) {
    Generation result = generate(bench.ctx, bench.model, nullptr, sequence, prompt, options,
                                 {.on_text = {}, .interrupted = [] { return interrupted_by != 0; }});
    if (interrupted_by != 0) throw Interrupted{};
    return result;
  };
  std::vector<double> rates, plain_rates;
  int64_t accepted = 0, drafted = 0;
  for (int64_t rep = -1; rep < o.reps; ++rep) {
    prompt.resize(depth);
    const Generation opening = write({.sampler = {.temperature = 1},
                                      .max_tokens = kOpening,
                                      .seed = common.seed + static_cast<uint64_t>(rep + 1),
                                      .draft_tokens = n_drafts});
    prompt.insert(prompt.end(), opening.ids.begin(), opening.ids.end());
    Generation plain, with_drafts;
    for (const bool drafts : {rep % 2 == 0, rep % 2 != 0}) {
      (drafts ? with_drafts : plain) = write({.max_tokens = o.gen, .draft_tokens = drafts ? n_drafts : 0});
    }
    FATHOM_CHECK(with_drafts.ids == plain.ids, "drafts changed the output");
    if (rep < 0) continue;
    rates.push_back(with_drafts.tokens_per_s());
    plain_rates.push_back(plain.tokens_per_s());
    accepted += with_drafts.accepted;
    drafted += with_drafts.drafted;
  }
  print_rates(fmt::format("tg{}{}", o.gen, behind(o.depths[0])), plain_rates, nlohmann::ordered_json::object(), "",
              common);
  const double speedup =
      std::accumulate(rates.begin(), rates.end(), 0.0) / std::accumulate(plain_rates.begin(), plain_rates.end(), 0.0);
  const double acceptance = drafted > 0 ? static_cast<double>(accepted) / static_cast<double>(drafted) : 0;
  print_rates(fmt::format("tg{}+mtp{}{}", o.gen, n_drafts, behind(o.depths[0])), rates,
              {{"drafted", drafted}, {"accepted", accepted}, {"acceptance", acceptance}, {"speedup", speedup}},
              fmt::format("   {:.2f}x, {:.0f}% of the drafts accepted", speedup, 100 * acceptance), common);
}

ReadyModel ready_model(const BenchCommandOptions& o, const CommonOptions& common, ThreadPool& pool,
                       const Device* device) {
  if (o.model_config.empty()) return load_ready_model(o.model, o.placement, pool, device);
  const Recipe* const recipe = find_recipe(o.weights);
  if (recipe == nullptr) throw UsageError("--weights {}: must be one of {}", o.weights, recipe_names());
  const ModelConfig config = read_model_config(o.model_config);
  if (device != nullptr) require_dense_attention(config);
  check_gpu_memory(o.placement, device);
  if (o.placement.gpu_memory > 0) {
    return on_device(random_model(config, *recipe, common.seed, nullptr), o.placement, pool, *device);
  }
  PackedModel loaded = random_model(config, *recipe, common.seed, device);
  Model model = make_model(loaded.config, loaded.weights);
  return {std::move(loaded), nullptr, nullptr, std::move(model)};
}

void run(const BenchCommandOptions& o, const CommonOptions& common) {
  if (o.prompt == 0 && o.gen == 0) throw UsageError("bench: --prompt 0 and --gen 0 leave nothing to measure");
  if (o.draft.draft != "none" && (o.batch > 1 || o.gen < 2 || o.depths.size() > 1)) {
    throw UsageError(
        "bench: --draft is measured on one sequence, at one depth and two tokens or more: --batch 1, --gen 2");
  }
  if (!std::is_sorted(o.depths.begin(), o.depths.end(), std::less_equal<>())) {
    throw UsageError("bench: --depth names several depths from the least to the greatest");
  }
  ThreadPool pool = make_pool(o.placement, common);
  const std::unique_ptr<Device> device = open_device(common);
  const ReadyModel ready = ready_model(o, common, pool, device.get());
  const ModelConfig& config = ready.model.config;
  if (o.attention != "auto" && !config.is_sparse()) {
    throw UsageError("bench: --attention {} is for models with an indexer; this one attends to all tokens in any case",
                     o.attention);
  }
  const int64_t n_drafts = draft_tokens(o.draft, ready.model);
  const int64_t longest = std::max(o.prompt, n_drafts > 0 ? kOpening + o.gen : o.gen);
  const int64_t capacity = o.depths.back() + longest;
  if (capacity > config.max_position_embeddings) {
    throw UsageError("--depth {} and {} tokens are more than the {} that the model reads", o.depths.back(), longest,
                     config.max_position_embeddings);
  }
  Arena arena = make_arena(device.get());
  Context ctx{pool, arena, device.get()};
  Bench bench{ctx, ready.model, {}, Rng(common.seed)};
  bench.model.dense_attention = o.attention == "dense";
  for (int64_t s = 0; s < o.batch; ++s) {
    bench.caches.push_back(make_latent_cache(config, capacity, cache_format(o.kv_type, device.get()), device.get()));
  }
  // Sparse last, so that what it has read is context for the next depth.
  std::vector<bool> dense = {bench.model.dense_attention};
  if (o.attention == "both") dense = {true, false};
  const std::string batch = o.batch > 1 ? fmt::format("x{}", o.batch) : "";
  for (const int64_t depth : o.depths) {
    bench.fill(depth);
    const auto test = [&](const char* what, int64_t n, const auto& work) {
      if (n == 0) return;
      for (const bool is_dense : dense) {
        bench.model.dense_attention = is_dense;
        const char* const kind = is_dense && o.attention == "both" ? "+dense" : "";
        measure(fmt::format("{}{}{}{}{}", what, n, batch, behind(depth), kind), n * o.batch, depth, o, common, bench,
                work);
      }
    };
    // Where a list of depths goes on, prompts are read last.
    const auto read_prompts = [&] { test("pp", o.prompt, [&] { bench.read(o.prompt); }); };
    if (o.depths.size() == 1) read_prompts();
    if (n_drafts > 0) return measure_drafting(o, common, bench, n_drafts);
    test("tg", o.gen, [&] {
      for (int64_t i = 0; i < o.gen && interrupted_by == 0; ++i) bench.read(1);
    });
    if (o.depths.size() > 1) read_prompts();
  }
}

// What the machine itself does, with 1, 2, ... threads, each on a CPU of its own where there are enough.
void run_machine(const CommonOptions& common) {
  const int n_threads = thread_count(common);
  std::vector<int> cpus = usable_cpus();
  if (static_cast<int>(cpus.size()) < n_threads) cpus.clear();
  const double latency_ns = memory_latency_ns();
  if (!common.json) {
    write_stdout(
        fmt::format("random access to memory: {:.0f} ns\n{:<8} {:>7} {:>7} {:>7} {:>7}  {:>8} {:>7} {:>7} {:>7}\n",
                    latency_ns, "threads", "memory", "4K", "L3", "L2", "f32", "i8", "i8x4", "i8dot"));
  }
  for (int n = 1; n <= n_threads; ++n) {
    ThreadPool pool(n, cpus);
    const MachineRates r = measure_machine(pool);
    if (interrupted_by != 0) throw Interrupted{};
    if (common.json) {
      nlohmann::ordered_json json{{"test", "machine"},
                                  {"threads", n},
                                  {"memory_gbs", r.memory_gbs},
                                  {"memory_4k_gbs", r.memory_4k_gbs},
                                  {"l3_gbs", r.l3_gbs},
                                  {"l2_gbs", r.l2_gbs},
                                  {"f32_gflops", r.f32_gflops},
                                  {"i8_gops", r.i8_gops},
                                  {"i8_short_gops", r.i8_short_gops},
                                  {"i8_dot_gops", nullptr},
                                  {"latency_ns", latency_ns},
                                  {"memory_gib", static_cast<double>(memory_limit_bytes()) / (1 << 30)}};
      if (r.i8_dot_gops > 0) json["i8_dot_gops"] = r.i8_dot_gops;
      write_stdout(json.dump() + "\n");
    } else {
      write_stdout(fmt::format("{:<8} {:>7.1f} {:>7.1f} {:>7.1f} {:>7.1f}  {:>8.1f} {:>7.1f} {:>7.1f} {:>7}\n", n,
                               r.memory_gbs, r.memory_4k_gbs, r.l3_gbs, r.l2_gbs, r.f32_gflops, r.i8_gops,
                               r.i8_short_gops, r.i8_dot_gops > 0 ? fmt::format("{:.1f}", r.i8_dot_gops) : "-"));
    }
  }
  if (!common.json) log("reading in GB/s; f32 in GFLOP/s, i8 in Gop/s, a multiplication and an addition being two");
}

}  // namespace

void add_bench(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<BenchCommandOptions>();
  CLI::App* command =
      app.add_subcommand("bench", "Tokens a second of reading a prompt and of writing; or a load on a server (--url)");
  command->option_defaults()->always_capture_default();
  CLI::Option* model =
      command->add_option("--model", options->model, "Model directory or .gguf file; with --url, its name there");
  model->type_name("MODEL");
  CLI::Option* config =
      command->add_option("--model-config", options->model_config, "A Hugging Face config.json, with random weights");
  config->excludes(model)->type_name("FILE");
  command->add_option("--weights", options->weights, "Their formats, as of fathom convert --to")->needs(config);
  command->add_flag("--machine", options->machine, "Measure the machine, and no model: memory, caches, arithmetic")
      ->excludes(model)
      ->excludes(config);
  const auto up_to = [](int64_t least) { return CLI::Range(least, int64_t{1} << 24); };
  CLI::Option* prompt = command->add_option("--prompt", options->prompt, "Tokens read in one go (0: none)");
  prompt->check(up_to(0));
  CLI::Option* gen = command->add_option("--gen", options->gen, "Tokens written one by one (0: none)");
  gen->check(up_to(0));
  command->add_option("--depth", options->depths, "Tokens in the cache before; or several depths, as 0,8192,32768")
      ->delimiter(',')
      ->check(up_to(0));
  command->add_option("--batch", options->batch, "Sequences side by side")->check(CLI::Range(1, 1024));
  command
      ->add_option("--attention", options->attention,
                   "Of a model with an indexer: to what it chooses, to all tokens (dense), or both, to compare")
      ->check(CLI::IsMember({"auto", "dense", "both"}));
  add_draft_options(*command, options->draft);
  add_kv_type_option(*command, options->kv_type);
  command->add_option("--reps", options->reps, "How often; one run more is not counted")->check(CLI::Range(1, 1000));
  add_placement_options(*command, options->placement);
  add_gpu_memory_option(*command, options->placement);
  // What a model's own benchmark has and that of a server has not.
  std::vector<CLI::Option*> of_models = command->get_options();
  std::erase_if(of_models, [&](const CLI::Option* option) {
    return option == model || option == prompt || option == gen || option == command->get_help_ptr();
  });
  add_serve_bench_options(*command, options->serve, prompt);
  command->callback([options, of_models, &common] {
    if (!options->serve.url.empty()) {
      for (const CLI::Option* option : of_models) {
        if (option->count() > 0)
          throw UsageError("bench: {} is for a model of this program, not for --url", option->get_name());
      }
      return run_serve_bench(options->serve, options->model, options->prompt, options->gen, common);
    }
    if (options->machine) return run_machine(common);
    if (options->model.empty() && options->model_config.empty()) {
      throw UsageError(
          "bench: give --model PATH, --model-config FILE, --machine or --url URL (see fathom bench --help)");
    }
    run(*options, common);
  });
}

}  // namespace fathom::cli
