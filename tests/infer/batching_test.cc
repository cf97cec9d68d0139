// Whatever runs beside a request, and whatever is found of its prompt: it gets the tokens that generate() gives it
// alone.
#include "infer/batching.h"

#include <gmock/gmock.h>

#include <cmath>
#include <map>
#include <numeric>

#include "base/error.h"
#include "checkpoint/packed_model.h"
#include "infer/bytes_machine.h"
#include "temporary_directory.h"

namespace fathom {
namespace {

using test::TemporaryDirectory;

struct Machine : BytesMachine {
  explicit Machine(const ModelConfig& like = tiny_v3()) : BytesMachine(1024, like) {}

  Generation alone(const BatchRequest& request, Format kv_type, int64_t context) {
    Sequence sequence{{}, make_latent_cache(model.config, context, kv_type)};
    return generate(ctx, model, &tokenizer, sequence, request.prompt, request.options);
  }
};

std::vector<int32_t> random_prompt(Rng& rng, int64_t n, int64_t vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab))));
  return ids;
}

// Requests of all sorts: long and short, of which many begin alike, greedy and sampled, with stop texts.
BatchRequest random_request(Rng& rng, const std::vector<std::vector<int32_t>>& beginnings, int64_t vocab,
                            int64_t draft_tokens) {
  BatchRequest request;
  if (rng.below(3) > 0) request.prompt = beginnings[rng.below(beginnings.size())];
  for (const int32_t id : random_prompt(rng, 1 + static_cast<int64_t>(rng.below(90)), vocab))
    request.prompt.push_back(id);
  request.options.max_tokens = 1 + static_cast<int64_t>(rng.below(40));
  request.options.seed = rng.below(1000);
  request.options.top_logprobs = 2;
  if (rng.below(2) == 0) request.options.sampler.temperature = 0.9;
  if (rng.below(4) == 0) request.options.sampler.repetition_penalty = 1.2;
  if (rng.below(4) == 0) request.options.stop = {"a", "th"};
  if (rng.below(3) == 0) request.options.eos_ids = {7, 8, 9};
  if (rng.below(3) == 0) request.cache_salt = "other";
  if (request.options.seed % 3 == 0) {
    request.options.thinking_budget = ThinkingBudget{
        .tokens = static_cast<int64_t>(request.options.seed % 20), .end_ids = {60, 47, 62}, .ends = {"</>", "e"}};
  }
  // Drafts change no greedy token; drawn ones keep their distribution alone.
  const bool greedy = request.options.sampler.temperature == 0;
  if (greedy && draft_tokens > 0 && rng.below(4) > 0)
    request.options.draft_tokens = 1 + static_cast<int64_t>(rng.below(3));
  return request;
}

struct Seen {
  BatchRequest request;
  std::string text;
  std::vector<int32_t> ids;
  int64_t read = -1;
  int ends = 0;
  bool cancelled = false;
  Generation result;
};

void watch(Seen& seen) {
  seen.request.on_tokens = [&seen](std::string_view text, std::span<const int32_t> ids, std::span<const TokenLogprobs>,
                                   const Timings& timings) {
    seen.text += text;
    seen.ids.insert(seen.ids.end(), ids.begin(), ids.end());
    EXPECT_EQ(timings.generated_tokens, std::ssize(seen.ids));
    EXPECT_EQ(timings.prompt_tokens, std::ssize(seen.request.prompt));
    EXPECT_LE(timings.accepted, timings.drafted);
    EXPECT_GT(timings.prefill_s, 0);
    EXPECT_EQ(seen.read, timings.prompt_tokens) << "all of it has been read";
  };
  seen.request.on_progress = [&seen](const PromptProgress& progress) {
    EXPECT_GT(progress.read, seen.read) << "each tells of more";
    EXPECT_LE(progress.cached, progress.read);
    EXPECT_EQ(progress.total, std::ssize(seen.request.prompt));
    EXPECT_TRUE(seen.ids.empty());
    seen.read = progress.read;
  };
  seen.request.on_end = [&seen](const Generation& result, const std::string& error) {
    EXPECT_EQ(error, "");
    ++seen.ends;
    seen.result = result;
  };
}

// Requests that come and go while others run, some cancelled; then each of them alone.
void expect_same_as_alone(Machine& m, const BatchingOptions& options, int n_requests, uint64_t seed, bool preempts,
                          PassCounts* counts = nullptr) {
  Rng rng(seed);
  const int64_t vocab = std::min<int64_t>(m.model.config.vocab_size, 256);
  const std::vector<std::vector<int32_t>> beginnings = {random_prompt(rng, 70, vocab), random_prompt(rng, 150, vocab),
                                                        random_prompt(rng, 260, vocab)};
  Batching batching(m.ctx, m.model, &m.tokenizer, options);
  std::map<Batching::Id, Seen> all;
  bool more = true;
  while (more || std::ssize(all) < n_requests) {
    if (std::ssize(all) < n_requests && rng.below(2) == 0) {
      Seen seen{random_request(rng, beginnings, vocab, options.draft_tokens)};
      const auto id = static_cast<Batching::Id>(all.size()) + 1;
      Seen& kept = all.emplace(id, std::move(seen)).first->second;
      watch(kept);
      ASSERT_EQ(batching.add(kept.request), id);
    }
    if (!all.empty() && rng.below(25) == 0) {
      const auto id = static_cast<Batching::Id>(1 + rng.below(all.size()));
      batching.cancel(id);
      if (all[id].ends == 0) all[id].cancelled = true;
    }
    more = batching.step();
  }
  EXPECT_EQ(batching.n_running() + batching.n_waiting(), 0);
  EXPECT_EQ(batching.pages().n_held(), 0);
  EXPECT_EQ(batching.n_preempted() > 0, preempts);
  if (counts != nullptr) *counts = batching.counts();
  int64_t cached = 0;
  for (auto& [id, seen] : all) {
    BatchRequest without_drafts = seen.request;
    without_drafts.options.draft_tokens = 0;
    const Generation want = m.alone(without_drafts, options.kv_type, options.context);
    ASSERT_EQ(seen.ends, seen.cancelled ? 0 : 1) << id;
    ASSERT_LE(seen.ids.size(), want.ids.size()) << id;
    EXPECT_TRUE(std::equal(seen.ids.begin(), seen.ids.end(), want.ids.begin())) << id;
    if (seen.cancelled) continue;
    EXPECT_EQ(seen.ids, want.ids) << id;
    EXPECT_EQ(seen.result.ids, want.ids) << id;
    EXPECT_EQ(seen.text, want.text) << id;
    EXPECT_TRUE(seen.result.logprobs == want.logprobs) << id << ": not the same bits";
    EXPECT_EQ(seen.result.text, want.text) << id;
    EXPECT_EQ(seen.result.finish, want.finish) << id;
    EXPECT_EQ(seen.result.prompt_tokens, want.prompt_tokens);
    cached += seen.result.cached_tokens;
  }
  EXPECT_GT(cached, 0) << "nothing was shared";
}

TEST(Batching, GivesEachRequestWhatItGetsAlone) {
  Machine m;
  expect_same_as_alone(m, {.pass_tokens = 48, .context = 700}, 60, 1, false);
  expect_same_as_alone(m, {.pass_tokens = 512, .context = 320, .kv_type = Format::bf16}, 40, 2, false);
}

TEST(Batching, TellsHowFarAPromptHasBeenRead) {
  Machine m;
  Batching batching(m.ctx, m.model, &m.tokenizer, {.pass_tokens = 64});
  std::vector<int32_t> prompt(200);
  std::iota(prompt.begin(), prompt.end(), 1);
  std::vector<int64_t> read, cached;
  const auto ask = [&] {
    read.clear();
    BatchRequest request{.prompt = prompt, .options = {.max_tokens = 3}};
    request.on_progress = [&](const PromptProgress& progress) {
      EXPECT_EQ(progress.total, 200);
      EXPECT_GE(progress.seconds, 0);
      read.push_back(progress.read);
      cached.push_back(progress.cached);
    };
    batching.add(request);
    while (batching.step()) continue;
  };
  ask();
  EXPECT_THAT(read, testing::ElementsAre(0, 64, 128, 192, 200));
  EXPECT_THAT(cached, testing::Each(0));
  ask();
  EXPECT_THAT(read, testing::ElementsAre(192, 200));
  EXPECT_EQ(cached.back(), 192);
}

TEST(Batching, RanksThePromptsTokens) {
  Machine m;
  Batching batching(m.ctx, m.model, &m.tokenizer, {.pass_tokens = 32});
  const int64_t vocab = m.model.config.vocab_size;
  Generation all;
  batching.add({.prompt = {72, 101, 108, 108, 111},
                .options = {.max_tokens = 0},
                .prompt_top_logprobs = vocab,
                .on_tokens = {},
                .on_end = [&](const Generation& result, const std::string&) { all = result; }});
  while (batching.step()) continue;
  ASSERT_EQ(all.prompt_logprobs.size(), 4u);
  const std::vector<int32_t> told = {101, 108, 108, 111};
  for (size_t i = 0; i < told.size(); ++i) {
    const TokenLogprobs& token = all.prompt_logprobs[i];
    ASSERT_EQ(std::ssize(token.top), vocab);
    EXPECT_EQ(token.top[static_cast<size_t>(token.rank) - 1], std::pair(told[i], token.logprob));
  }
}

TEST(Batching, RequestsGiveWayWhereCachesAreFullAndGoOnLater) {
  Machine m;
  expect_same_as_alone(m, {.pass_tokens = 64, .cache_tokens = 9 * kCachePageRows, .context = 500}, 40, 3, true);
}

TEST(Batching, DraftsChangeNoGreedyToken) {
  Machine m;
  expect_same_as_alone(m, {.pass_tokens = 48, .context = 700, .draft_tokens = 3, .draft_sequences = 100}, 60, 5, false);
  expect_same_as_alone(m, {.pass_tokens = 64, .cache_tokens = 9 * kCachePageRows, .context = 500, .draft_tokens = 2},
                       40, 6, true);
}

// Beginnings of prompts are found in files by whoever comes after them, be it after a restart or for want of memory.
TEST(Batching, BeginningsAreReadFromFiles) {
  Machine m;
  for (const int64_t drafts : {0, 2}) {
    const TemporaryDirectory folder;
    const auto loaded = [&](const char* name, int64_t cache_tokens, bool preempts) {
      BatchingOptions options{.pass_tokens = 48, .cache_tokens = cache_tokens, .context = 500, .draft_tokens = drafts};
      PageStore store(folder.path() / name, "a model", Batching::page_bytes(m.model, options), 1 << 30);
      options.store = &store;
      PassCounts counts;
      expect_same_as_alone(m, options, 40, 7, preempts, &counts);
      EXPECT_EQ(store.state().failed, 0);
      EXPECT_GE(store.state().read * kCachePageRows, counts.loaded_tokens);
      EXPECT_GE(counts.cached_tokens, counts.loaded_tokens);
      return counts.loaded_tokens;
    };
    EXPECT_EQ(loaded("a", 64 << 10, false), 0) << "all are in memory";
    EXPECT_GT(loaded("a", 64 << 10, false), 0) << "of the run before";
    loaded("b", 9 * kCachePageRows, true);  // memory is short: files may have been written in time, or not
    EXPECT_GT(loaded("b", 9 * kCachePageRows, true), 0);
  }
}

TEST(Batching, PagesInFilesAreOfOneSaltAndModel) {
  Machine m;
  const TemporaryDirectory folder;
  BatchingOptions options;
  const auto loaded = [&](const std::string& identity, const std::string& salt) {
    PageStore store(folder.path(), identity, Batching::page_bytes(m.model, options), 1 << 30);
    options.store = &store;
    Batching batching(m.ctx, m.model, &m.tokenizer, options);
    std::vector<int32_t> prompt(200);
    std::iota(prompt.begin(), prompt.end(), 1);
    batching.add({.prompt = prompt, .options = {.max_tokens = 1}, .cache_salt = salt});
    while (batching.step()) continue;
    return batching.counts().loaded_tokens;
  };
  EXPECT_EQ(loaded("a", "x"), 0);
  EXPECT_EQ(loaded("a", "x"), 192);
  EXPECT_EQ(loaded("a", "y"), 0);
  EXPECT_EQ(loaded("b", "x"), 0);
  EXPECT_EQ(loaded("a", "y"), 192);
}

// The model that ships drafts well: passes are saved, behind prompts that were found in pages too.
TEST(Batching, DraftsSavePasses) {
  ThreadPool pool(2);
  Arena arena;
  Context ctx{pool, arena};
  const auto folder = std::filesystem::path(FATHOM_TEST_DATA).parent_path().parent_path() / "models" / "shakespeare";
  const PackedModel packed = load_packed_model(folder, pool);
  const Model model = make_model(packed.config, packed.weights);
  const Tokenizer tokenizer = Tokenizer::load(folder);
  std::string text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n";
  const std::vector<int32_t> prompt = tokenizer.encode(text + text);
  Generation results[2];
  Batching batching(ctx, model, &tokenizer, {.context = 1024, .draft_tokens = 2});
  for (Generation& result : results) {
    BatchRequest request{.prompt = prompt, .options = {.max_tokens = 100, .draft_tokens = 2}, .count_experts = true};
    request.on_end = [&](const Generation& g, const std::string&) { result = g; };
    batching.add(request);
    while (batching.step()) continue;
    EXPECT_EQ(result.ids.size(), 100u);
    EXPECT_LT(result.main_passes, 70);
    EXPECT_GT(result.accepted, 30);
    const int64_t rows = std::ssize(result.ids) - 1 + result.drafted - result.accepted;
    EXPECT_EQ(std::ssize(result.expert_load), model.config.num_hidden_layers - model.config.first_k_dense_replace);
    for (const auto& layer : result.expert_load) {
      EXPECT_NEAR(std::accumulate(layer.begin(), layer.end(), int64_t{0}),
                  rows * model.config.router.num_experts_per_tok, 3 * model.config.router.num_experts_per_tok);
    }
  }
  EXPECT_EQ(results[0].cached_tokens, 0);
  EXPECT_EQ(results[1].cached_tokens, std::ssize(prompt) / kCachePageRows * kCachePageRows);
  EXPECT_EQ(results[0].ids, results[1].ids);
  EXPECT_EQ(results[0].accepted, results[1].accepted) << "the module has read what is found too";
  EXPECT_EQ(batching.counts().accepted, 2 * results[0].accepted);
}

// At the end of a page a sequence has no room for as many drafts as its neighbour.
TEST(Batching, SequencesDraftAsDeepAsTheyHaveRoom) {
  Machine m;
  for (const int64_t draft_tokens : {2, 3, 5}) {
    Batching batching(m.ctx, m.model, &m.tokenizer, {.context = 400, .draft_tokens = draft_tokens});
    Rng rng(8);
    std::vector<BatchRequest> requests;
    std::vector<Generation> results(3);
    for (size_t i = 0; i < results.size(); ++i) {
      BatchRequest& request = requests.emplace_back();
      request.prompt = random_prompt(rng, 5 + 9 * static_cast<int64_t>(i), 256);
      request.options.max_tokens = 150;
      request.options.draft_tokens = draft_tokens;
      BatchRequest asked = request;
      asked.on_end = [&results, i](const Generation& result, const std::string& error) {
        EXPECT_EQ(error, "");
        results[i] = result;
      };
      batching.add(std::move(asked));
    }
    while (batching.step()) {
    }
    for (size_t i = 0; i < results.size(); ++i) {
      EXPECT_EQ(results[i].ids, m.alone(requests[i], Format::f32, 400).ids) << draft_tokens << " " << i;
    }
  }
}

TEST(Batching, SoItIsWithPackedWeights) {
  for (const char* name : {"v3_mtp", "v32_dsa"}) {
    Machine m;
    PackedModel packed = load_packed_model(std::filesystem::path(FATHOM_TEST_DATA) / "oracle" / name, m.pool);
    m.model = make_model(packed.config, packed.weights);
    const int64_t context = std::min<int64_t>(m.model.config.max_position_embeddings, 500);
    expect_same_as_alone(m, {.pass_tokens = 40, .context = context}, 30, 4, false);
  }
}

// Prompts are longer than what their tokens attend to; pages carry index keys, which are found with them.
TEST(Batching, SoItIsWithSparseAttention) {
  Machine m(tiny_v32());
  expect_same_as_alone(m, {.pass_tokens = 48, .context = 700}, 40, 1, false);
  for (const Format kv_type : {Format::bf16, Format::f16, Format::f8_e4m3, Format::q8_0}) {
    expect_same_as_alone(m, {.pass_tokens = 100, .context = 500, .kv_type = kv_type}, 16, 2, false);
  }
  expect_same_as_alone(m, {.pass_tokens = 64, .cache_tokens = 9 * kCachePageRows, .context = 500}, 40, 3, true);
  expect_same_as_alone(m, {.pass_tokens = 48, .context = 700, .draft_tokens = 3, .draft_sequences = 100}, 40, 5, false);
  expect_same_as_alone(m,
                       {.pass_tokens = 64,
                        .cache_tokens = 9 * kCachePageRows,
                        .context = 500,
                        .kv_type = Format::bf16,
                        .draft_tokens = 2},
                       40, 6, true);
}

TEST(Batching, IndexKeysAreReadFromFiles) {
  Machine m(tiny_v32());
  for (const auto& [kv_type, drafts] : {std::pair{Format::f32, 0}, {Format::bf16, 2}, {Format::f8_e4m3, 0}}) {
    const TemporaryDirectory folder;
    BatchingOptions options{.pass_tokens = 48, .context = 500, .kv_type = kv_type, .draft_tokens = drafts};
    const auto loaded = [&](const std::string& identity) {
      PageStore store(folder.path(), identity, Batching::page_bytes(m.model, options), 1 << 30);
      options.store = &store;
      PassCounts counts;
      expect_same_as_alone(m, options, 25, 7, false, &counts);
      EXPECT_EQ(store.state().failed, 0);
      return counts.loaded_tokens;
    };
    EXPECT_EQ(loaded("a"), 0);
    EXPECT_GT(loaded("a"), 0) << "of the run before";
    EXPECT_EQ(loaded("b"), 0) << "of another model";
  }
}

// Of the same pages' size: f16 and bf16; a model that attends to all, whose pages have no index keys; other keys.
TEST(Batching, PagesOfOtherCachesAreNotTaken) {
  const TemporaryDirectory folder;
  const auto loaded = [&](const ModelConfig& config, Format kv_type) {
    Machine m(config);
    BatchingOptions options{.kv_type = kv_type};
    // As fathom serve has it, for one file of a model.
    PageStore store(folder.path(), fmt::format("{}\nmodel", format_traits(kv_type).name),
                    Batching::page_bytes(m.model, options), 1 << 30);
    options.store = &store;
    Batching batching(m.ctx, m.model, &m.tokenizer, options);
    std::vector<int32_t> prompt(200);
    std::iota(prompt.begin(), prompt.end(), 1);
    batching.add({.prompt = prompt, .options = {.max_tokens = 1}});
    while (batching.step()) continue;
    return batching.counts().loaded_tokens;
  };
  ModelConfig wider = tiny_v32();
  wider.indexer.head_dim = 12;
  EXPECT_EQ(loaded(tiny_v32(), Format::f16), 0);
  EXPECT_EQ(loaded(tiny_v32(), Format::bf16), 0);
  EXPECT_EQ(loaded(tiny_v3(), Format::f16), 0);
  EXPECT_EQ(loaded(wider, Format::f16), 0);
  EXPECT_EQ(loaded(tiny_v32(), Format::f16), 192);
  EXPECT_EQ(loaded(tiny_v32(), Format::bf16), 192);
  EXPECT_EQ(loaded(wider, Format::f16), 192);
}

TEST(Batching, LogProbabilitiesOfAPromptAreThoseOfAllItsPieces) {
  Machine m(tiny_v32());
  std::vector<int32_t> prompt(150);
  std::iota(prompt.begin(), prompt.end(), 3);
  const auto logprobs = [&](int64_t pass_tokens) {
    Batching batching(m.ctx, m.model, &m.tokenizer, {.pass_tokens = pass_tokens});
    Generation result;
    batching.add({.prompt = prompt,
                  .options = {.max_tokens = 2},
                  .prompt_top_logprobs = 3,
                  .on_tokens = {},
                  .on_end = [&](const Generation& g, const std::string&) { result = g; }});
    while (batching.step()) continue;
    return result.prompt_logprobs;
  };
  const std::vector<TokenLogprobs> whole = logprobs(512);
  ASSERT_EQ(whole.size(), 149u);
  for (const int64_t pass_tokens : {64, 7}) EXPECT_TRUE(logprobs(pass_tokens) == whole) << pass_tokens;
  // They are those of the pass that scores.
  const Tensor logits = head_logits(m.ctx, m.model, forward(m.ctx, m.model, make_batch(m.ctx, {&prompt, 1})));
  for (int64_t t = 0; t < 149; ++t) {
    double sum = 0;
    for (int64_t i = 0; i < logits.cols(); ++i) sum += std::exp(static_cast<double>(logits.f32(t, i)));
    EXPECT_NEAR(whole[static_cast<size_t>(t)].logprob,
                logits.f32(t, prompt[static_cast<size_t>(t) + 1]) - std::log(sum), 1e-4);
  }
}

// A request of many sequences does not keep others out, nor do many requests of one owner.
TEST(Batching, WhoHasLittleRunningIsAdmittedFirst) {
  Machine m;
  Batching batching(m.ctx, m.model, &m.tokenizer, {.max_sequences = 4});
  std::vector<std::string> ended;
  const auto add = [&](const std::string& owner, int64_t group, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      BatchRequest request{
          .prompt = {static_cast<int32_t>(i + 1)}, .options = {.max_tokens = 10}, .owner = owner, .group = group};
      request.on_end = [&ended, name = owner + std::to_string(group)](const Generation&, const std::string&) {
        ended.push_back(name);
      };
      batching.add(std::move(request));
    }
  };
  add("a", 1, 20);
  batching.step();
  add("a", 2, 1);
  for (int64_t group = 10; group < 20; ++group) add("b", group, 1);
  add("c", 3, 1);
  while (batching.step()) continue;
  const auto place = [&](const std::string& name) {
    return std::find(ended.begin(), ended.end(), name) - ended.begin();
  };
  EXPECT_LT(place("c3"), 9) << "an owner with nothing running";
  EXPECT_LT(place("b10"), 9);
  EXPECT_LT(place("a2"), 16) << "a request with nothing running, of an owner with much";
  EXPECT_EQ(ended.size(), 32u);
}

// Requests that come one behind the other, each of one sequence, go before the rest of those of many, and yet do not
// put them off for ever.
TEST(Batching, RequestsOfManySequencesLetOthersPassAndGoOn) {
  Machine m;
  Batching batching(m.ctx, m.model, &m.tokenizer, {.max_sequences = 4});
  std::map<int64_t, int64_t> ended;
  const auto add = [&](int64_t group, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      BatchRequest request{.prompt = {static_cast<int32_t>(i + 1)}, .options = {.max_tokens = 4}, .group = group};
      request.on_end = [&ended, group](const Generation&, const std::string&) { ++ended[group]; };
      batching.add(std::move(request));
    }
  };
  for (int64_t group = 0; group < 10; ++group) add(group, 20);
  for (int i = 0; i < 20; ++i) batching.step();
  EXPECT_EQ(ended.size(), 10u) << "one of each first";
  const auto n_ended = [&](int64_t from, int64_t to) {
    int64_t n = 0;
    for (int64_t group = from; group < to; ++group) n += ended[group];
    return n;
  };
  const int64_t n_before = n_ended(0, 10), n_steps = 150;
  for (int64_t i = 0; i < n_steps; ++i) {
    add(100 + i, 1);  // as many as there is room for
    batching.step();
  }
  EXPECT_GT(n_ended(0, 10) - n_before, n_steps / 10);
  EXPECT_GT(n_ended(100, 100 + n_steps), n_steps / 2);
}

// Places that one request or one owner has taken are shared as soon as others come, and outputs stay what they are.
TEST(Batching, WhoHasMuchRunningGivesWay) {
  Machine m;
  Batching batching(m.ctx, m.model, &m.tokenizer, {.max_sequences = 4});
  std::vector<std::string> ended;
  std::map<std::string, std::vector<std::vector<int32_t>>> ids;
  const auto add = [&](const std::string& owner, int64_t group, int64_t n, int64_t max_tokens) {
    for (int64_t i = 0; i < n; ++i) {
      BatchRequest request{.prompt = {static_cast<int32_t>(7 * i + 1), 5},
                           .options = {.max_tokens = max_tokens},
                           .owner = owner,
                           .group = group};
      request.on_end = [&, name = owner + std::to_string(group)](const Generation& result, const std::string&) {
        ended.push_back(name);
        ids[name].push_back(result.ids);
      };
      batching.add(std::move(request));
    }
  };
  add("a", 1, 4, 100);
  for (int i = 0; i < 10; ++i) batching.step();
  EXPECT_EQ(batching.n_running(), 4);
  add("a", 2, 1, 5);
  add("b", 3, 4, 5);
  for (int i = 0; i < 7; ++i) batching.step();
  ASSERT_GE(ended.size(), 2u) << "one of another request, one of another owner";
  EXPECT_TRUE(std::count(ended.begin(), ended.end(), "a2") == 1 && std::count(ended.begin(), ended.end(), "b3") > 0);
  EXPECT_EQ(batching.n_preempted(), 3) << "two places to each owner, and one of a's to its other request";
  while (batching.step()) continue;
  EXPECT_EQ(ended.size(), 9u);
  std::sort(ids["a1"].begin(), ids["a1"].end());
  const auto shared = std::exchange(ids["a1"], {});
  add("a", 1, 4, 100);
  while (batching.step()) continue;
  std::sort(ids["a1"].begin(), ids["a1"].end());
  EXPECT_EQ(ids["a1"], shared);
}

TEST(Batching, CountsPassesByTheirSize) {
  PassSizes sizes;
  for (const int64_t n : {1, 2, 3, 4, 5, 70000}) sizes.add(n);
  EXPECT_THAT(sizes.counts, testing::ElementsAre(1, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1));
  EXPECT_EQ(sizes.sum, 70015);
}

TEST(Batching, RefusesPromptsThatItCannotRead) {
  Machine m;
  Batching batching(m.ctx, m.model, &m.tokenizer, {.cache_tokens = 128});
  EXPECT_THROW(batching.add({}), Error);
  EXPECT_THROW(batching.add({.prompt = std::vector<int32_t>(129, 1)}), Error) << "more than all pages hold";
  EXPECT_THROW(batching.add({.prompt = {1, 300}}), Error);
  EXPECT_THROW(batching.add({.prompt = {1}, .options = {.sampler = {.temperature = -1}}}), UsageError);
  EXPECT_FALSE(batching.step());
}

// A model that gives no numbers fails the request that met it, and no other.
TEST(Batching, AFailureEndsItsRequestAlone) {
  Machine m;
  m.parameters.weights.embed.f32(5, 0) = NAN;
  Batching batching(m.ctx, m.model, &m.tokenizer, {});
  std::string failed, error;
  Generation whole;
  batching.add({.prompt = {1, 2, 5}, .on_end = [&](const Generation&, const std::string& e) { failed = e; }});
  batching.add({.prompt = {1, 2, 3},
                .options = {.max_tokens = 5},
                .on_end = [&](const Generation& result, const std::string& e) { whole = result, error = e; }});
  while (batching.step()) {
  }
  EXPECT_NE(failed, "");
  EXPECT_EQ(error, "");
  EXPECT_EQ(whole.ids.size(), 5u);
  EXPECT_EQ(batching.counts().corrupted, 1);
  EXPECT_EQ(batching.pages().n_held(), 0);
}

}  // namespace
}  // namespace fathom
