// Thoughts end where their budget does, and what stands in front of their end and behind it is the model's.
#include "infer/thinking_budget.h"

#include <gmock/gmock.h>

#include "infer/bytes_machine.h"
#include "text/gbnf.h"

namespace fathom {
namespace {

const std::vector<int32_t> kPrompt = {72, 105, 10};

ThinkingBudget budget_of(int64_t tokens) {
  return {.tokens = tokens, .end_ids = Tokenizer::bytes().encode("</think>"), .ends = {"</think>", "<call>"}};
}

// What is forced in front of each text that is taken, 0 for nothing, and behind the last.
std::vector<int32_t> forced_around(const ThinkingBudget& budget, const std::vector<const char*>& texts) {
  ThinkingBudgetState state(budget);
  std::vector<int32_t> forced;
  for (const char* text : texts) {
    forced.push_back(state.forced().value_or(0));
    state.take(text);
  }
  forced.push_back(state.forced().value_or(0));
  return forced;
}

TEST(ThinkingBudget, ItsEndComesOnce) {
  const ThinkingBudget two{.tokens = 2, .end_ids = {8, 9}, .ends = {"</think>"}};
  EXPECT_THAT(forced_around(two, {"a", "", "</th", "ink>", "b", "c", "d", "e"}),
              testing::ElementsAre(0, 0, 8, 9, 0, 0, 0, 0, 0))
      << "a token counts that ends no character";
  ThinkingBudget none = two;
  none.tokens = 0;
  EXPECT_THAT(forced_around(none, {"</th", "ink>", "b"}), testing::ElementsAre(8, 9, 0, 0));
}

TEST(ThinkingBudget, ThoughtsThatEndByThemselvesAreFree) {
  const ThinkingBudget four{.tokens = 4, .end_ids = {8}, .ends = {"</think>", "<call>"}};
  EXPECT_THAT(forced_around(four, {"a</", "think", ">b", "c", "d", "e", "f"}), testing::Each(0));
  EXPECT_THAT(forced_around(four, {"a <ca", "ll>", "c", "d", "e", "f"}), testing::Each(0)) << "a call ends them";
  EXPECT_THAT(forced_around(four, {"</th", "</", "thinks", ">"}), testing::ElementsAre(0, 0, 0, 0, 8));
}

TEST(ThinkingBudget, CountsBehindTheMarkWithWhichAnOutputBegins) {
  const ThinkingBudget one{.tokens = 1, .end_ids = {8}, .ends = {"</think>"}, .begin = "<think>"};
  EXPECT_THAT(forced_around(one, {"<th", "ink>a", "b", "</think>", "c", "d"}),
              testing::ElementsAre(0, 0, 0, 8, 0, 0, 0));
  EXPECT_THAT(forced_around(one, {"<think></think>", "b", "c"}), testing::Each(0));
  EXPECT_THAT(forced_around(one, {"<this>", "<think>", "b", "c"}), testing::Each(0)) << "it is content";
}

struct Machine : BytesMachine {
  Machine() : BytesMachine(256) {}

  Generation run(const GenerationOptions& options) {
    Sequence sequence{{}, make_latent_cache(model.config, 256)};
    return generate(ctx, model, &tokenizer, sequence, kPrompt, options);
  }
};

TEST(ThinkingBudget, EndsTheThoughtsOfAnOutput) {
  Machine m;
  for (const double temperature : {0.0, 0.9}) {
    GenerationOptions options{.sampler = {.temperature = temperature}, .max_tokens = 40, .seed = 3, .top_logprobs = 3};
    const Generation free = m.run(options);
    for (const int64_t tokens : {0, 1, 7}) {
      options.thinking_budget = budget_of(tokens);
      const Generation cut = m.run(options);
      const auto n = static_cast<size_t>(tokens);
      const std::vector<int32_t>& end = options.thinking_budget->end_ids;
      ASSERT_EQ(cut.ids.size(), 40u);
      EXPECT_TRUE(std::equal(free.ids.begin(), free.ids.begin() + tokens, cut.ids.begin()));
      EXPECT_TRUE(std::equal(end.begin(), end.end(), cut.ids.begin() + tokens));
      EXPECT_TRUE(std::equal(free.logprobs.begin(), free.logprobs.begin() + tokens, cut.logprobs.begin()));
      // Of the first token that is forced: as the model gave them.
      EXPECT_EQ(cut.logprobs[n].top, free.logprobs[n].top);
      EXPECT_LT(cut.logprobs[n].logprob, 0);
      EXPECT_EQ(cut.text.substr(cut.text.find("</think>")).find("</think>", 1), std::string::npos) << "only once";
    }
    options.thinking_budget = budget_of(1000);
    EXPECT_EQ(m.run(options).ids, free.ids);
  }
}

TEST(ThinkingBudget, EndsThoughtsThatNothingElseMayEnd) {
  Machine m;
  GenerationOptions options{.sampler = {.repetition_penalty = 1.3, .presence_penalty = 2, .logit_bias = {{'<', -100}}},
                            .max_tokens = 20,
                            .stop_ids = {'/'},
                            .min_tokens = 20};
  options.thinking_budget = budget_of(4);
  const std::vector<int32_t> ids = m.run(options).ids;
  EXPECT_EQ(std::string(ids.begin() + 4, ids.begin() + 6), "</") << "which its caller has as an end";
}

TEST(ThinkingBudget, AFormHoldsBehindTheThoughts) {
  Machine m;
  const auto trie = std::make_shared<TokenTrie>(m.tokenizer);
  const std::shared_ptr<const Grammar> grammar = parse_gbnf(R"(root ::= "yes" | "no")");
  GenerationOptions options{.max_tokens = 60, .thinking_budget = budget_of(6)};
  options.constraint =
      std::make_shared<Constraint>(Constraint{grammar, std::make_shared<TokenMasks>(grammar, trie), "</think>"});
  const Generation result = m.run(options);
  EXPECT_EQ(result.finish, FinishReason::stop);
  const std::string answer = result.text.substr(result.text.find("</think>"));
  EXPECT_TRUE(answer == "</think>yes" || answer == "</think>no") << result.text;
  EXPECT_EQ(std::ssize(result.ids), 6 + std::ssize(answer));
}

TEST(ThinkingBudget, AnEndThatTheModelDoesNotKnowIsAnError) {
  Machine m;
  GenerationOptions options{.max_tokens = 20};
  options.thinking_budget = ThinkingBudget{.tokens = 2, .end_ids = {300}, .ends = {"</think>"}};
  EXPECT_THROW(m.run(options), Error);
}

}  // namespace
}  // namespace fathom
