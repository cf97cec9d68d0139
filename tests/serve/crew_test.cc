// Several processes that generate together: whoever generates an answer, it is the one that its request gets alone.
#include "serve/crew.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <semaphore>

#include "infer/bytes_machine.h"
#include "parallel/in_process_ranks.h"
#include "text/gbnf.h"

namespace fathom::serve {
namespace {

constexpr int64_t kContext = 256;

struct Machine : BytesMachine {
  Machine() : BytesMachine(kContext) {}
};

// Of all kinds: some begin alike, some are drawn, some have drafts or a grammar, some want all log probabilities.
BatchRequest request_of(uint64_t seed, const TokenTries& tries) {
  Rng rng(seed);
  BatchRequest request;
  if (seed % 3 > 0) {
    request.prompt.resize(kCachePageRows + 1);
    std::iota(request.prompt.begin(), request.prompt.end(), static_cast<int32_t>(seed % 3));
  }
  for (uint64_t i = 0, n = 1 + rng.below(70); i < n; ++i)
    request.prompt.push_back(static_cast<int32_t>(rng.below(200)));
  GenerationOptions& options = request.options;
  options.max_tokens = 1 + static_cast<int64_t>(rng.below(12));
  options.seed = seed;
  options.sampler.temperature = seed % 2 == 0 ? 0 : 0.8;
  options.sampler.logit_bias = {{5, 1.5f}};
  options.top_logprobs = seed % 5 == 0 ? 3 : -1;
  if (seed % 4 == 0) options.draft_tokens = 2;
  if (seed % 7 == 0) request.prompt_top_logprobs = 1;
  request.count_experts = seed % 2 == 0;
  if (seed % 6 == 1) {
    const auto grammar = parse_gbnf("root ::= [a-z]{3} | \"x\" [0-9]+ ");
    const auto& trie = tries[seed % tries.size()];
    options.constraint = std::make_shared<Constraint>(Constraint{grammar, std::make_shared<TokenMasks>(grammar, trie)});
  }
  return request;
}

TEST(Crew, AnswersAsOneProcessDoes) {
  constexpr uint64_t kRequests = 60;
  Machine alone;
  const TokenTries tries_alone(2, std::make_shared<TokenTrie>(alone.tokenizer));
  std::map<uint64_t, Generation> wanted;
  for (uint64_t seed = 0; seed < kRequests; ++seed) {
    const BatchRequest request = request_of(seed, tries_alone);
    Sequence sequence{{}, make_latent_cache(alone.model.config, kContext)};
    wanted[seed] = generate(alone.ctx, alone.model, &alone.tokenizer, sequence, request.prompt, request.options);
  }
  std::map<uint64_t, std::vector<int32_t>> streamed;
  std::map<uint64_t, Generation> ended;
  std::map<uint64_t, int64_t> n_prompt_logprobs;
  EngineState state;
  PassCounts counts;
  test::on_ranks(3, [&](Communicator& comm) {
    Machine m;
    SpreadExperts experts(comm, m.model, {.redundant_experts = 1});
    const PassesTogether together = passes_together(experts);
    const BatchingOptions options{.max_sequences = 5,
                                  .cache_tokens = 12 * kCachePageRows,
                                  .context = kContext,
                                  .draft_tokens = 2,
                                  .together = &together};
    const TokenTries tries = {std::make_shared<TokenTrie>(m.tokenizer), std::make_shared<TokenTrie>(m.tokenizer)};
    if (comm.rank() > 0) {
      if (!await_loading(comm)) throw Error("it is not to load");
      return work_in_crew(comm, {m.ctx, m.model, &m.tokenizer, options, experts, tries});
    }
    Crew crew(comm);
    crew.begin_loading();
    crew.set_up(experts, tries, 1e-3, options);  // they move all the time
    crew.await_loaded();
    std::mutex mutex;
    std::counting_semaphore<> done(0);
    Engine engine(
        m.ctx, m.model, &m.tokenizer, options, 1000,
        [&](Engine::Events events) {
          const std::lock_guard lock(mutex);
          for (const auto& event : events) event();
        },
        &crew);
    for (uint64_t seed = 0; seed < kRequests; ++seed) {
      BatchRequest request = request_of(seed, tries);
      request.on_tokens = [&, seed](auto, std::span<const int32_t> ids, auto, auto) {
        streamed[seed].insert(streamed[seed].end(), ids.begin(), ids.end());
      };
      request.on_prompt = [&, seed](std::span<const TokenLogprobs> all) { n_prompt_logprobs[seed] = std::ssize(all); };
      request.on_end = [&, seed](const Generation& result, const std::string& error) {
        EXPECT_EQ(error, "");
        ended[seed] = result;
        done.release();
      };
      BatchRequest cancelled = request_of(seed, tries);
      cancelled.options.max_tokens = 100;
      cancelled.options.constraint = nullptr;
      const auto tickets = engine.submit({std::move(cancelled)});
      engine.submit({std::move(request)});
      engine.cancel(tickets.at(0));
    }
    for (uint64_t i = 0; i < kRequests; ++i) done.acquire();
    while (engine.state().running + engine.state().waiting > 0) std::this_thread::yield();
    state = engine.state();
    counts = engine.counts();
    const auto own_pages = Batching(m.ctx, m.model, &m.tokenizer, options).pages().n_pages();
    EXPECT_EQ(state.pages, 3 * own_pages);
  });
  for (const auto& [seed, result] : wanted) {
    EXPECT_EQ(ended[seed].ids, result.ids) << seed;
    EXPECT_EQ(ended[seed].text, result.text) << seed;
    EXPECT_EQ(ended[seed].logprobs, result.logprobs) << seed;
    EXPECT_EQ(ended[seed].finish, result.finish) << seed;
    EXPECT_EQ(streamed[seed], result.ids) << seed;
    EXPECT_EQ(n_prompt_logprobs[seed], seed % 7 == 0 ? ended[seed].prompt_tokens - 1 : 0) << seed;
    EXPECT_EQ(ended[seed].expert_load.empty(), seed % 2 != 0 || result.ids.size() < 2) << seed;
  }
  EXPECT_EQ(state.pages_held, 0);
  EXPECT_GE(counts.generated_tokens,
            std::accumulate(ended.begin(), ended.end(), int64_t{0},
                            [](int64_t n, const auto& each) { return n + std::ssize(each.second.ids); }));
  EXPECT_GT(counts.cached_tokens, 0);
  EXPECT_GT(counts.accepted + counts.drafted, 0);
}

TEST(Crew, GivesABeginningToWhomHasReadIt) {
  test::on_ranks(3, [&](Communicator& comm) {
    if (comm.rank() > 0) {
      EXPECT_FALSE(await_loading(comm));
      return;
    }
    Crew crew(comm);
    BatchRequest request;
    request.prompt.assign(3 * kCachePageRows, 7);
    const int first = crew.place(request);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(crew.place(request), first);
    std::vector<int> n(3);
    for (int i = 0; i < 60; ++i) ++n[static_cast<size_t>(crew.place(request))];
    for (const int each : n) EXPECT_GT(each, 15) << "but nobody gets much more than others";
    request.cache_salt = "other";
    EXPECT_LE(crew.place(request), 2);
  });
}

}  // namespace
}  // namespace fathom::serve
