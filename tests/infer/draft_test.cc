// Speculative decoding changes the number of passes and nothing else.
#include "infer/draft.h"

#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <numeric>
#include <set>

#include "base/file.h"
#include "checkpoint/hf_model.h"
#include "infer/generation.h"
#include "model/tiny_models.h"
#include "sanitized.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kMtpFixture = fs::path(FATHOM_TEST_DATA) / "oracle" / "v3_mtp";  // trained: drafts are often right
const fs::path kRoot = fs::path(FATHOM_TEST_DATA) / ".." / "..";

struct Machine {
  ThreadPool pool;
  Arena arena;
  Context ctx{pool, arena};
  ModelConfig config;
  Parameters parameters;
  Model model;
  Tokenizer tokenizer;

  explicit Machine(const fs::path& folder, int threads = 1) : pool(threads), tokenizer(Tokenizer::load(folder)) {
    LoadedModel loaded = load_model(folder, pool);
    config = loaded.config;
    parameters = std::move(loaded.parameters);
    model = make_model(config, parameters.weights);
  }
  explicit Machine(const ModelConfig& c)
      : pool(1),
        config(c),
        parameters(tiny_parameters(c)),
        model(make_model(c, parameters.weights)),
        tokenizer(Tokenizer::bytes()) {}

  Sequence sequence(int64_t capacity = 256) const { return {{}, make_latent_cache(config, capacity)}; }
  Generation run(Sequence& sequence, const std::vector<int32_t>& prompt, const GenerationOptions& options,
                 const GenerationCallbacks& callbacks = {}) {
    return generate(ctx, model, &tokenizer, sequence, prompt, options, callbacks);
  }
};

GenerationOptions with_drafts(GenerationOptions options, int64_t n) {
  options.draft_tokens = n;
  return options;
}

const std::vector<int32_t> kPrompt = {0, 71, 12, 330, 45, 18};

// The same call with and without drafts, each on a sequence of its own, and one more call on what these left behind.
void expect_no_difference(Machine& m, const std::vector<int32_t>& prompt, const GenerationOptions& options,
                          int64_t n_drafts, int64_t capacity = 256) {
  Sequence plain_sequence = m.sequence(capacity), sequence = m.sequence(capacity);
  std::string streamed;
  GenerationCallbacks callbacks;
  callbacks.on_text = [&](std::string_view piece) { streamed += piece; };
  const Generation plain = m.run(plain_sequence, prompt, options);
  const Generation drafted = m.run(sequence, prompt, with_drafts(options, n_drafts), callbacks);
  EXPECT_EQ(drafted.ids, plain.ids);
  EXPECT_EQ(drafted.text, plain.text);
  EXPECT_EQ(streamed, plain.text);
  EXPECT_EQ(drafted.finish, plain.finish);
  EXPECT_EQ(sequence.ids, plain_sequence.ids);
  EXPECT_EQ(sequence.cache.length, plain_sequence.cache.length);
  EXPECT_LE(sequence.mtp_cache.length, sequence.cache.length);

  std::vector<int32_t> longer = prompt;
  longer.insert(longer.end(), plain.ids.begin(), plain.ids.end());
  longer.push_back(7);
  if (static_cast<int64_t>(longer.size()) > capacity) return;
  const GenerationOptions more{.max_tokens = 6};
  EXPECT_EQ(m.run(sequence, longer, with_drafts(more, n_drafts)).ids, m.run(plain_sequence, longer, more).ids);
}

TEST(Draft, LimitsEndTheOutputWhereTheyEndItWithoutDrafts) {
  Machine m(kMtpFixture);
  for (const int64_t n_drafts : {1, 2, 3, 8}) {
    for (int64_t limit = 0; limit <= 14; ++limit) {
      SCOPED_TRACE(testing::Message() << n_drafts << " drafts, limit " << limit);
      expect_no_difference(m, kPrompt, {.max_tokens = limit}, n_drafts);
      expect_no_difference(m, kPrompt, {.max_tokens = 100}, n_drafts, static_cast<int64_t>(kPrompt.size()) + limit);
    }
  }
}

TEST(Draft, EndTokensEndTheOutputWhereTheyEndItWithoutDrafts) {
  Machine m(kMtpFixture);
  Sequence sequence = m.sequence();
  const Generation whole = m.run(sequence, kPrompt, {.max_tokens = 40});
  for (const int64_t n_drafts : {1, 2, 3, 8}) {
    for (const int32_t end : std::set<int32_t>(whole.ids.begin(), whole.ids.end())) {
      SCOPED_TRACE(testing::Message() << n_drafts << " drafts, end token " << end);
      expect_no_difference(m, kPrompt, {.max_tokens = 40, .eos_ids = {end}}, n_drafts);
    }
  }
}

TEST(Draft, StopTextsEndTheOutputWhereTheyEndItWithoutDrafts) {
  Machine m(kMtpFixture);
  Sequence sequence = m.sequence();
  const Generation whole = m.run(sequence, kPrompt, {.max_tokens = 40});
  ASSERT_GT(whole.text.size(), 50u);
  for (const int64_t n_drafts : {1, 2, 3, 8}) {
    for (size_t at = 0; at + 5 < whole.text.size(); at += 3) {
      const std::string stop = whole.text.substr(at, 1 + at % 5);
      SCOPED_TRACE(testing::Message() << n_drafts << " drafts, stop text '" << stop << "'");
      expect_no_difference(m, kPrompt, {.max_tokens = 40, .stop = {stop}}, n_drafts);
    }
  }
}

TEST(Draft, ThoughtsEndWhereTheyEndWithoutDrafts) {
  Machine m(kMtpFixture);
  for (const int64_t n_drafts : {1, 2, 3, 8}) {
    for (int64_t tokens = 0; tokens < 12; ++tokens) {
      SCOPED_TRACE(testing::Message() << n_drafts << " drafts, " << tokens << " tokens of thoughts");
      GenerationOptions options{.max_tokens = 40};
      options.thinking_budget = ThinkingBudget{.tokens = tokens, .end_ids = {40, 41, 42}, .ends = {"</think>"}};
      expect_no_difference(m, kPrompt, options, n_drafts);
    }
  }
}

TEST(Draft, PenaltiesSeeTheTokensBeforeEachDraft) {
  Machine m(kMtpFixture);
  for (const int64_t n_drafts : {1, 3}) {
    for (const SamplerOptions& sampler : {SamplerOptions{.repetition_penalty = 1.3},
                                          {.presence_penalty = 1.5},
                                          {.frequency_penalty = 0.7},
                                          {.frequency_penalty = -0.4}}) {
      expect_no_difference(m, kPrompt, {.sampler = sampler, .max_tokens = 60}, n_drafts);
    }
  }
}

TEST(Draft, OneCandidateLeavesNothingToChance) {
  Machine m(kMtpFixture);
  const SamplerOptions sampler{.temperature = 1, .top_k = 1};
  for (const int64_t n_drafts : {1, 3})
    expect_no_difference(m, kPrompt, {.sampler = sampler, .max_tokens = 60}, n_drafts);
}

TEST(Draft, EveryPassGivesItsKeptDraftsAndOneTokenMore) {
  Machine m(kMtpFixture);
  int64_t last_passes = 59;
  for (const int64_t n_drafts : {1, 2, 3}) {
    Sequence sequence = m.sequence();
    const Generation result = m.run(sequence, kPrompt, {.max_tokens = 60, .draft_tokens = n_drafts});
    EXPECT_EQ(result.main_passes + result.accepted, 60);
    EXPECT_LE(result.drafted, (result.main_passes - 1) * n_drafts);
    EXPECT_LE(result.main_passes, last_passes) << n_drafts;
    last_passes = result.main_passes;
  }
}

TEST(Draft, AnInterruptedOutputIsABeginningOfTheWhole) {
  Machine m(kMtpFixture);
  Sequence whole_sequence = m.sequence();
  const Generation whole = m.run(whole_sequence, kPrompt, {.max_tokens = 60});
  for (int passes = 0; passes < 12; ++passes) {
    int asked = 0;
    GenerationCallbacks callbacks;
    callbacks.interrupted = [&] { return ++asked > passes; };
    Sequence sequence = m.sequence();
    const Generation result = m.run(sequence, kPrompt, {.max_tokens = 60, .draft_tokens = 3}, callbacks);
    EXPECT_EQ(result.finish, FinishReason::interrupted);
    EXPECT_EQ(result.main_passes, passes);
    ASSERT_GE(result.ids.size(), static_cast<size_t>(passes));
    EXPECT_TRUE(std::equal(result.ids.begin(), result.ids.end(), whole.ids.begin()));
    EXPECT_EQ(m.run(sequence, kPrompt, {.max_tokens = 60, .draft_tokens = 3}).ids, whole.ids) << passes;
  }
}

TEST(Draft, ASequenceMayChangeBetweenCallsWithAndWithoutDrafts) {
  Machine m(kMtpFixture);
  Sequence sequence = m.sequence(), plain_sequence = m.sequence();
  std::vector<int32_t> prompt = kPrompt;
  for (const int64_t n_drafts : {0, 2, 2, 0, 1, 8}) {
    const Generation plain = m.run(plain_sequence, prompt, {.max_tokens = 12});
    const Generation drafted = m.run(sequence, prompt, {.max_tokens = 12, .draft_tokens = n_drafts});
    EXPECT_EQ(drafted.ids, plain.ids) << n_drafts;
    EXPECT_LE(drafted.cached_tokens, plain.cached_tokens);
    prompt.insert(prompt.end(), drafted.ids.begin(), drafted.ids.end() - n_drafts);  // the last are taken back
    prompt.push_back(9);
  }
}

TEST(Draft, WhatAConversationHasReadIsNotReadAgain) {
  Machine m(kMtpFixture);
  Sequence sequence = m.sequence();
  const GenerationOptions options{.max_tokens = 20, .draft_tokens = 2};
  const Generation first = m.run(sequence, kPrompt, options);
  std::vector<int32_t> longer = kPrompt;
  longer.insert(longer.end(), first.ids.begin(), first.ids.end());
  longer.push_back(9);
  // All but the last pass, whose hidden states the module had no use for.
  EXPECT_GE(m.run(sequence, longer, options).cached_tokens, static_cast<int64_t>(kPrompt.size()) + 19 - 3);
}

// What a module has read of a prompt that went on otherwise must not colour its drafts.
TEST(Draft, AUsedSequenceDraftsAsAFreshOne) {
  Machine m(kMtpFixture);
  std::vector<int32_t> other = kPrompt;
  other[4] = 500;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const GenerationOptions options{.sampler = {.temperature = 1}, .max_tokens = 12, .seed = seed, .draft_tokens = 2};
    Sequence used = m.sequence(), fresh = m.sequence();
    m.run(used, other, options);
    const Generation again = m.run(used, kPrompt, options), first = m.run(fresh, kPrompt, options);
    EXPECT_EQ(again.cached_tokens, 3);
    EXPECT_EQ(again.ids, first.ids) << seed;
    EXPECT_EQ(again.accepted, first.accepted) << seed;
  }
}

TEST(Draft, APromptReadInPiecesLeavesTheModuleWhatOnePassLeaves) {
  ModelConfig config = tiny_v3();
  config.max_position_embeddings = 5000;
  Machine m(config);
  const std::vector<int32_t> prompt = random_ids(4200, config.vocab_size, 8);  // more than one piece
  Sequence sequence = m.sequence(5000), plain = m.sequence(5000);
  const GenerationOptions options{.max_tokens = 4, .draft_tokens = 2};
  const Generation result = m.run(sequence, prompt, options);
  EXPECT_EQ(result.ids, m.run(plain, prompt, {.max_tokens = 4}).ids);
  EXPECT_EQ(result.main_passes + result.accepted, 4 + 1);

  const Tensor hidden = forward(m.ctx, m.model, make_batch(m.ctx, {&prompt, 1}));
  LatentCache cache = make_mtp_cache(config, 5000);
  read_mtp(m.ctx, m.model, cache, hidden.slice(0, 4199), std::span(prompt).subspan(1));
  ASSERT_GE(sequence.mtp_cache.length, cache.length);
  const auto* const generated = static_cast<const float*>(sequence.mtp_cache.rows(0));
  const auto* const read = static_cast<const float*>(cache.rows(0));
  for (int64_t i = 0; i < cache.length * cache.layout.dim(); ++i) {
    ASSERT_NEAR(generated[i], read[i], 1e-4f) << "row " << i / cache.layout.dim();
  }
}

TEST(Draft, SparseModelsSayTheSameWithDrafts) {
  ModelConfig config = tiny_v32();
  config.vocab_size = 300;
  config.max_position_embeddings = 5000;
  Machine m(config);
  for (const int64_t n : {3, 40, 150}) {
    const std::vector<int32_t> prompt = random_ids(n, 256, static_cast<uint64_t>(n));
    for (const int64_t n_drafts : {1, 4}) expect_no_difference(m, prompt, {.max_tokens = 60}, n_drafts);
  }
  expect_no_difference(m, random_ids(4200, 256, 8), {.max_tokens = 8}, 2, 5000);  // in pieces
}

TEST(Draft, PenaltiesCountTheDraftsBeforeOne) {
  Machine m(kMtpFixture);
  const Batch batch = make_batch(m.ctx, {&kPrompt, 1});
  const Tensor hidden = forward(m.ctx, m.model, batch);
  std::vector<int32_t> previous = kPrompt;
  previous.push_back(9);
  LatentCache cache = make_mtp_cache(m.config, 64);
  Rng rng(0);
  std::set<int32_t> ids = {9};
  for (const Draft& draft :
       draft_tokens(m.ctx, m.model, cache, hidden, previous, 1, 32, {.presence_penalty = 100}, rng)) {
    EXPECT_TRUE(ids.insert(draft.id).second) << draft.id << " twice";
  }
}

TEST(Draft, AModelWithoutAModuleGoesOnWithoutDrafts) {
  ModelConfig config = tiny_v2();
  config.vocab_size = 300;
  Machine m(config);
  Sequence sequence = m.sequence(), other = m.sequence();
  const Generation result = m.run(sequence, {1, 2, 3}, {.max_tokens = 9, .draft_tokens = 4});
  EXPECT_EQ(result.ids, m.run(other, {1, 2, 3}, {.max_tokens = 9}).ids);
  EXPECT_EQ(result.main_passes, 9);
  EXPECT_EQ(result.drafted, 0);
}

// Held-out text through the model that ships.
TEST(Draft, TheShippedModelSaysTheSameWithDrafts) {
  Machine m(kRoot / "models" / "shakespeare");
  const std::string text = read_file(kRoot / "data" / "tinyshakespeare-val.txt", 1 << 20);
  int64_t accepted = 0;
  constexpr int kPrompts = test::kSanitized ? 6 : 20;
  for (size_t p = 0; p < kPrompts; ++p) {
    const std::vector<int32_t> prompt = m.tokenizer.encode(text.substr(p * text.size() / kPrompts, 16 + 3 * p));
    Sequence plain_sequence = m.sequence();
    const Generation plain = m.run(plain_sequence, prompt, {.max_tokens = 64});
    for (const int64_t n_drafts : {1, 2, 3}) {
      Sequence sequence = m.sequence();
      const Generation drafted = m.run(sequence, prompt, {.max_tokens = 64, .draft_tokens = n_drafts});
      EXPECT_EQ(drafted.ids, plain.ids) << "prompt " << p << ", " << n_drafts << " drafts";
      accepted += drafted.accepted;
    }
  }
  EXPECT_GT(accepted, kPrompts * 3 * 20);
}

// A verifying pass must say what the passes over single tokens would have said, to the last bit.
TEST(Draft, TokensReadTogetherGetTheBitsOfTokensReadOneByOne) {
  const auto check = [](Machine& m, uint64_t seed, Format kv_type = Format::f32) {
    const auto ids = random_ids(40, m.config.vocab_size, seed);
    const auto read = [&](LatentCache& cache, size_t n) {  // logits of the next n tokens
      const ArenaScope scope(m.arena);
      const auto begin = ids.begin() + cache.length;
      const std::vector<int32_t> tokens(begin, begin + static_cast<std::ptrdiff_t>(n));
      const int64_t position = cache.length;
      LatentCache* const caches[] = {&cache};
      const Tensor hidden =
          forward(m.ctx, m.model, make_batch(m.ctx, {&tokens, 1}, {&position, 1}), {.caches = caches});
      const Tensor logits = head_logits(m.ctx, m.model, hidden);
      return std::vector<float>(logits.f32(), logits.f32() + logits.size());
    };
    for (size_t n = 2; n <= 9; ++n) {
      LatentCache together = make_latent_cache(m.config, 40, kv_type);
      LatentCache one_by_one = make_latent_cache(m.config, 40, kv_type);
      EXPECT_EQ(read(together, 13), read(one_by_one, 13));
      while (together.length + static_cast<int64_t>(n) <= 40) {
        const std::vector<float> many = read(together, n);
        std::vector<float> singles;
        for (size_t i = 0; i < n; ++i) {
          const auto one = read(one_by_one, 1);
          singles.insert(singles.end(), one.begin(), one.end());
        }
        ASSERT_EQ(many, singles) << n << " tokens up to " << together.length;
      }
    }
  };
  for (const ModelConfig& config : {tiny_v3(), tiny_v2(), tiny_dense(), tiny_v32()}) {
    Machine m(config);
    check(m, 5);
    check(m, 7, Format::f8_e4m3);
  }
  for (const fs::path& folder : {kMtpFixture, kRoot / "models" / "shakespeare"}) {
    for (const int threads : {1, 3}) {
      Machine m(folder, threads);
      check(m, 6);
    }
  }
}

// Sum of (seen - expected)^2 / expected over the cells that are expected, in standard deviations above its mean; cells
// expected less than ten times are counted as one.
double chi_square_deviations(const std::vector<double>& probability, const std::vector<int>& seen) {
  const double n = std::accumulate(seen.begin(), seen.end(), 0);
  double sum = 0, rare = 0, rarely_seen = 0;
  int cells = 0;
  const auto add = [&](double expected, double count) {
    sum += (count - expected) * (count - expected) / expected;
    ++cells;
  };
  for (size_t i = 0; i < seen.size(); ++i) {
    const double expected = n * probability[i];
    if (expected == 0 && seen[i] > 0) ADD_FAILURE() << "cell " << i << " is impossible";
    if (expected >= 10) {
      add(expected, seen[i]);
    } else {
      rare += expected;
      rarely_seen += seen[i];
    }
  }
  if (rare >= 10) add(rare, rarely_seen);
  const double freedom = cells - 1;
  return freedom > 0 ? (sum - freedom) / std::sqrt(2 * freedom) : 0;
}

Distribution random_distribution(Rng& rng, int n) {
  Distribution d;
  for (int32_t id = 0; id < n; ++id) {
    if (rng.uniform() < 0.7) d.push_back({id, std::exp(1.5 * rng.normal())});
  }
  if (d.empty()) d.push_back({0, 1});
  return d;
}

TEST(VerifyDraft, ResultsAreDistributedAsTheModelWantsWhateverTheDraft) {
  constexpr int kDraws = 20000;
  Rng rng(3);
  for (int round = 0; round < 40; ++round) {
    const Distribution p = random_distribution(rng, 8), q = random_distribution(rng, 8);
    std::vector<double> wanted(8);
    for (const Candidate& c : p) wanted[static_cast<size_t>(c.id)] = c.weight / total_weight(p);
    std::vector<int> seen(8);
    for (int i = 0; i < kDraws; ++i) ++seen[static_cast<size_t>(verify_draft(p, {draw(q, rng), q}, rng))];
    EXPECT_LT(chi_square_deviations(wanted, seen), 5) << round;
  }
}

TEST(VerifyDraft, AsOftenKeptAsTheDistributionsOverlap) {
  constexpr int kDraws = 20000;
  Rng rng(4);
  for (int round = 0; round < 20; ++round) {
    const Distribution p = random_distribution(rng, 6), q = round == 0 ? p : random_distribution(rng, 6);
    double overlap = 0;
    for (const Candidate& a : p) {
      for (const Candidate& b : q) {
        if (a.id == b.id) overlap += std::min(a.weight / total_weight(p), b.weight / total_weight(q));
      }
    }
    int kept = 0;
    for (int i = 0; i < kDraws; ++i) {
      const Draft draft{draw(q, rng), q};
      kept += verify_draft(p, draft, rng) == draft.id ? 1 : 0;
    }
    EXPECT_NEAR(static_cast<double>(kept) / kDraws, overlap, 5 * 0.5 / std::sqrt(kDraws)) << round;
  }
}

// Probabilities of all outputs of n tokens, from passes without cache.
std::vector<double> output_probabilities(Machine& m, const std::vector<int32_t>& prompt, int n,
                                         const SamplerOptions& sampler) {
  std::vector<double> all = {1};
  std::vector<std::vector<int32_t>> outputs = {{}};
  for (int i = 0; i < n; ++i) {
    std::vector<double> longer;
    std::vector<std::vector<int32_t>> longer_outputs;
    for (size_t o = 0; o < all.size(); ++o) {
      const ArenaScope scope(m.arena);
      std::vector<int32_t> ids = prompt;
      ids.insert(ids.end(), outputs[o].begin(), outputs[o].end());
      const Tensor hidden = forward(m.ctx, m.model, make_batch(m.ctx, {&ids, 1}));
      const Tensor logits = head_logits(m.ctx, m.model, hidden.slice(hidden.rows() - 1, 1));
      const Distribution d = distribution({logits.f32(), static_cast<size_t>(logits.cols())}, ids, i, sampler);
      const size_t base = longer.size();
      longer.resize(base + static_cast<size_t>(m.config.vocab_size));
      for (const Candidate& c : d) longer[base + static_cast<size_t>(c.id)] = all[o] * c.weight / total_weight(d);
      for (int32_t id = 0; id < m.config.vocab_size; ++id) {
        longer_outputs.push_back(outputs[o]);
        longer_outputs.back().push_back(id);
      }
    }
    all = longer;
    outputs = longer_outputs;
  }
  return all;
}

TEST(Draft, SampledOutputsAreDistributedAsTheModelSaysThem) {
  constexpr int kRuns = test::kSanitized ? 200 : 4000;
  ModelConfig config = tiny_v3();
  config.vocab_size = 5;
  config.initializer_range = 0.2;
  Machine m(config);
  const std::vector<int32_t> prompt = {1, 4, 2};
  constexpr int kTokens = 3;
  const SamplerOptions samplers[] = {
      {.temperature = 1},
      {.temperature = 1.5, .top_k = 4, .top_p = 0.9, .min_p = 0.05},
      {.temperature = 0.8, .repetition_penalty = 1.5, .presence_penalty = 0.3, .frequency_penalty = 0.6}};
  for (size_t s = 0; s < std::size(samplers); ++s) {
    const std::vector<double> wanted = output_probabilities(m, prompt, kTokens, samplers[s]);
    for (const int64_t n_drafts : {0, 1, 3}) {
      std::vector<int> seen(wanted.size());
      int64_t accepted = 0, drafted = 0;
      for (int run = 0; run < kRuns; ++run) {
        Sequence sequence = m.sequence(8);
        // One token more than is looked at: the last one is not drafted.
        const Generation result = generate(m.ctx, m.model, nullptr, sequence, prompt,
                                           {.sampler = samplers[s],
                                            .max_tokens = kTokens + 1,
                                            .seed = static_cast<uint64_t>(run),
                                            .draft_tokens = n_drafts});
        size_t cell = 0;
        for (size_t i = 0; i < kTokens; ++i) cell = cell * 5 + static_cast<size_t>(result.ids[i]);
        ++seen[cell];
        accepted += result.accepted;
        drafted += result.drafted;
      }
      EXPECT_LT(chi_square_deviations(wanted, seen), 4) << "sampler " << s << ", " << n_drafts << " drafts";
      EXPECT_EQ(accepted > 0 && accepted<drafted, n_drafts> 0);  // both ways were taken
    }
  }
}

}  // namespace
}  // namespace fathom
