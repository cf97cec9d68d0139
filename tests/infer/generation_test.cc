#include "infer/generation.h"

#include <gmock/gmock.h>

#include <cmath>

#include "base/error.h"
#include "infer/bytes_machine.h"

namespace fathom {
namespace {

struct Machine : BytesMachine {
  explicit Machine(const ModelConfig& like = tiny_v3()) : BytesMachine(96, like) {}
  Sequence sequence(int64_t capacity = 96) const { return {{}, make_latent_cache(config, capacity)}; }
  Generation run(const std::vector<int32_t>& prompt, const GenerationOptions& options,
                 const GenerationCallbacks& callbacks = {}) {
    Sequence fresh = sequence();
    return generate(ctx, model, &tokenizer, fresh, prompt, options, callbacks);
  }
};

const std::vector<int32_t> kPrompt = {256, 72, 101, 108, 108, 111, 44};

// The whole sequence through the model again for every token.
std::vector<int32_t> greedy_without_cache(Machine& m, std::vector<int32_t> ids, int n) {
  std::vector<int32_t> out;
  for (int i = 0; i < n; ++i) {
    const ArenaScope scope(m.arena);
    const Tensor hidden = forward(m.ctx, m.model, make_batch(m.ctx, {&ids, 1}));
    const Tensor logits = head_logits(m.ctx, m.model, hidden.slice(hidden.rows() - 1, 1));
    const float* row = logits.f32();
    out.push_back(static_cast<int32_t>(std::max_element(row, row + logits.cols()) - row));
    ids.push_back(out.back());
  }
  return out;
}

TEST(Generation, TellsLogProbabilitiesAsTheModelGaveThem) {
  Machine m;
  const Generation greedy = m.run(kPrompt, {.max_tokens = 12, .top_logprobs = 300});
  const Generation sampled =
      m.run(kPrompt,
            {.sampler = {.temperature = 3, .repetition_penalty = 1.5}, .max_tokens = 12, .seed = 5, .top_logprobs = 0});
  ASSERT_EQ(greedy.logprobs.size(), greedy.ids.size());
  ASSERT_EQ(sampled.logprobs.size(), sampled.ids.size());
  for (size_t i = 0; i < greedy.ids.size(); ++i) {
    const auto& [logprob, top, rank] = greedy.logprobs[i];
    ASSERT_EQ(top.size(), 300u);
    EXPECT_EQ(rank, 1);
    EXPECT_EQ(top[0], std::pair(greedy.ids[i], logprob));
    double sum = 0;
    for (size_t j = 0; j < top.size(); ++j) {
      sum += std::exp(top[j].second);
      EXPECT_TRUE(j == 0 || top[j].second <= top[j - 1].second);
    }
    EXPECT_NEAR(sum, 1, 1e-5);
  }
  // Neither temperature nor penalties are in them.
  const auto first = std::find_if(greedy.logprobs[0].top.begin(), greedy.logprobs[0].top.end(),
                                  [&](const auto& of) { return of.first == sampled.ids[0]; });
  EXPECT_EQ(sampled.logprobs[0].logprob, first->second);
  EXPECT_EQ(sampled.logprobs[0].rank, first - greedy.logprobs[0].top.begin() + 1);
  EXPECT_TRUE(sampled.logprobs[0].top.empty());
  EXPECT_TRUE(m.run(kPrompt, {.max_tokens = 3}).logprobs.empty());
}

TEST(Generation, CachedGreedyEqualsReadingEverythingAgain) {
  for (const ModelConfig& config : {tiny_v3(), tiny_v32()}) {
    Machine m(config);
    const Generation result = m.run(kPrompt, {.max_tokens = 40});
    EXPECT_EQ(result.ids, greedy_without_cache(m, kPrompt, 40));
    EXPECT_EQ(result.finish, FinishReason::length);
    EXPECT_EQ(result.prompt_tokens, 7);
    EXPECT_EQ(result.cached_tokens, 0);
  }
}

TEST(Generation, AKnownPrefixIsNotReadAgain) {
  Machine m;
  Sequence sequence = m.sequence();
  const Generation first = generate(m.ctx, m.model, &m.tokenizer, sequence, kPrompt, {.max_tokens = 9});
  EXPECT_EQ(sequence.ids.size(), kPrompt.size() + 8);  // the last token has not been read

  std::vector<int32_t> longer = kPrompt;
  longer.insert(longer.end(), first.ids.begin(), first.ids.end());
  longer.push_back(33);
  const Generation second = generate(m.ctx, m.model, &m.tokenizer, sequence, longer, {.max_tokens = 9});
  EXPECT_EQ(second.cached_tokens, static_cast<int64_t>(kPrompt.size() + 8));
  EXPECT_EQ(second.ids, m.run(longer, {.max_tokens = 9}).ids);

  // Another prompt shares the first three tokens alone; the same prompt is known but for its last token.
  const std::vector<int32_t> other = {256, 72, 101, 9, 9};
  const Generation third = generate(m.ctx, m.model, &m.tokenizer, sequence, other, {.max_tokens = 9});
  EXPECT_EQ(third.cached_tokens, 3);
  EXPECT_EQ(third.ids, m.run(other, {.max_tokens = 9}).ids);
  const Generation again = generate(m.ctx, m.model, &m.tokenizer, sequence, other, {.max_tokens = 9});
  EXPECT_EQ(again.cached_tokens, 4);
  EXPECT_EQ(again.ids, third.ids);
}

TEST(Generation, SameSeedSameTokensForAnyNumberOfThreads) {
  Machine m;
  const GenerationOptions options{.sampler = {.temperature = 1, .top_p = 0.95}, .max_tokens = 30, .seed = 5};
  const auto ids = m.run(kPrompt, options).ids;
  ThreadPool one(1);
  Context ctx{one, m.arena};
  Sequence sequence = m.sequence();
  EXPECT_EQ(generate(ctx, m.model, &m.tokenizer, sequence, kPrompt, options).ids, ids);
  GenerationOptions other = options;
  other.seed = 6;
  EXPECT_NE(m.run(kPrompt, other).ids, ids);
}

TEST(Generation, AnEndTokenEndsTheOutputAndIsItsLastId) {
  Machine m;
  const auto ids = m.run(kPrompt, {.max_tokens = 20}).ids;
  const int32_t end = ids[5];
  const auto first = static_cast<size_t>(std::find(ids.begin(), ids.end(), end) - ids.begin());
  const Generation result = m.run(kPrompt, {.max_tokens = 20, .eos_ids = {1000, end}});
  EXPECT_EQ(result.finish, FinishReason::eos);
  EXPECT_EQ(result.ids, std::vector<int32_t>(ids.begin(), ids.begin() + static_cast<int64_t>(first) + 1));
}

TEST(Generation, EndsCanBeHeldBackForSomeTokens) {
  Machine m;
  const Generation all = m.run(kPrompt, {.max_tokens = 20});
  for (const bool own : {true, false}) {
    GenerationOptions options{.max_tokens = 20};
    (own ? options.stop_ids : options.eos_ids) = {all.ids[4]};
    const Generation ended = m.run(kPrompt, options);
    const auto first = std::find(all.ids.begin(), all.ids.end(), all.ids[4]);
    EXPECT_EQ(ended.ids, std::vector<int32_t>(all.ids.begin(), first + 1));
    EXPECT_EQ(ended.finish, FinishReason::eos);
    options.min_tokens = 9;
    const Generation held = m.run(kPrompt, options);
    ASSERT_GE(held.ids.size(), 9u);
    for (size_t i = 0; i < 8; ++i) EXPECT_NE(held.ids[i], all.ids[4]);
  }
  const std::string stop = all.text.substr(0, 1);
  EXPECT_TRUE(m.run(kPrompt, {.max_tokens = 20, .stop = {stop}}).text.empty());
  const Generation late = m.run(kPrompt, {.max_tokens = 20, .stop = {stop}, .min_tokens = 9});
  EXPECT_GE(late.ids.size(), 9u);
  EXPECT_TRUE(late.text.starts_with(stop));
}

TEST(Generation, AStopTextEndsTheOutputAndDoesNotStandInIt) {
  Machine m;
  const GenerationOptions sampled{.sampler = {.temperature = 1}, .max_tokens = 60, .seed = 2};
  const Generation whole = m.run(kPrompt, sampled);
  ASSERT_GT(whole.text.size(), 12u);
  GenerationOptions options = sampled;
  options.stop = {whole.text.substr(6, 5)};
  const Generation stopped = m.run(kPrompt, options);
  EXPECT_EQ(stopped.finish, FinishReason::stop);
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find(options.stop[0])));
  EXPECT_LT(stopped.ids.size(), whole.ids.size());
}

TEST(Generation, StreamedPiecesMakeTheText) {
  Machine m;
  std::string streamed;
  GenerationCallbacks callbacks;
  callbacks.on_text = [&](std::string_view piece) { streamed += piece; };
  const Generation result = m.run(kPrompt, {.sampler = {.temperature = 1}, .max_tokens = 50}, callbacks);
  EXPECT_EQ(streamed, result.text);
  EXPECT_FALSE(streamed.empty());
}

TEST(Generation, StopsAtTheContextsEnd) {
  Machine m;
  const Generation whole = m.run(kPrompt, {.max_tokens = 1000});
  EXPECT_EQ(whole.finish, FinishReason::context);
  EXPECT_EQ(whole.ids.size(), 96 - kPrompt.size() + 1);  // 96 tokens are read; the last one predicts one more

  Sequence small = m.sequence(10);
  const Generation cut = generate(m.ctx, m.model, &m.tokenizer, small, kPrompt, {.max_tokens = 1000});
  EXPECT_EQ(cut.finish, FinishReason::context);
  EXPECT_EQ(cut.ids.size(), 10 - kPrompt.size() + 1);
}

TEST(Generation, CanBeInterruptedBetweenTokens) {
  Machine m;
  int asked = 0;
  GenerationCallbacks callbacks;
  callbacks.interrupted = [&] { return ++asked > 4; };
  const Generation result = m.run(kPrompt, {.max_tokens = 50}, callbacks);
  EXPECT_EQ(result.finish, FinishReason::interrupted);
  EXPECT_EQ(result.ids.size(), 4u);
}

TEST(Generation, PromptsThatCannotBeReadAreRefusedWithTheirNumbers) {
  Machine m;
  const auto message = [&](const std::vector<int32_t>& prompt, int64_t capacity) -> std::string {
    Sequence sequence = m.sequence(capacity);
    try {
      generate(m.ctx, m.model, &m.tokenizer, sequence, prompt, {});
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  using testing::AllOf;
  using testing::HasSubstr;
  EXPECT_THAT(message({}, 96), HasSubstr("empty"));
  EXPECT_THAT(message(std::vector<int32_t>(97, 1), 200), AllOf(HasSubstr("97"), HasSubstr("96")));
  EXPECT_THAT(message(std::vector<int32_t>(21, 1), 20), AllOf(HasSubstr("21"), HasSubstr("20")));
  EXPECT_THAT(message({1, 2, 300}, 96), AllOf(HasSubstr("300"), HasSubstr("position 2")));
  EXPECT_THAT(message({-1}, 96), HasSubstr("-1"));
}

TEST(Generation, WorksWithoutATokenizer) {
  Machine m;
  Sequence sequence = m.sequence();
  const Generation result = generate(m.ctx, m.model, nullptr, sequence, kPrompt, {.max_tokens = 5});
  EXPECT_EQ(result.ids.size(), 5u);
  EXPECT_EQ(result.text, "");
}

TEST(StopFilter, HoldsBackWhatMayBecomeAStopText) {
  StopFilter filter({"</end>", "STOP"});
  EXPECT_EQ(filter.push("hello <"), "hello ");
  EXPECT_EQ(filter.push("/en"), "");
  EXPECT_EQ(filter.push("!"), "</en!");
  EXPECT_EQ(filter.push("a ST"), "a ");
  EXPECT_EQ(filter.push("O"), "");
  EXPECT_FALSE(filter.stopped());
  EXPECT_EQ(filter.push("P and more"), "");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.push("nothing"), "");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopFilter, CutsBeforeTheFirstStopTextWhateverThePieces) {
  const std::string text = "one aab two aaab three";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    StopFilter filter({"three", "aaab"});
    std::string shown;
    for (size_t i = 0; i < text.size(); i += piece) shown += filter.push(text.substr(i, piece));
    shown += filter.finish();
    EXPECT_EQ(shown, "one aab two ") << piece;
    EXPECT_TRUE(filter.stopped());
  }
}

TEST(StopFilter, GivesBackWhatItHeldWhenTheTextEnds) {
  StopFilter filter({"abc"});
  EXPECT_EQ(filter.push("xab"), "x");
  EXPECT_EQ(filter.finish(), "ab");
  EXPECT_FALSE(filter.stopped());
}

TEST(StopFilter, RefusesAnEmptyStopText) { EXPECT_THROW(StopFilter({"a", ""}), UsageError); }

}  // namespace
}  // namespace fathom
