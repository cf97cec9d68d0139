#include "serve/prompt.h"

#include <gmock/gmock.h>

#include <set>

#include "base/rng.h"
#include "serve/response.h"
#include "text/tokenizer_fixture.h"

namespace fathom::serve {
namespace {

const Tokenizer& deepseek_v3() {
  static const Tokenizer tokenizer = test::released_tokenizer("deepseek-v3");
  return tokenizer;
}

PromptSource source_of(const std::string& name) {
  const std::string file = std::string(FATHOM_TEST_DATA) + "/chat/" + name + ".jinja";
  static const auto trie = std::make_shared<TokenTrie>(deepseek_v3());
  const std::string chat_template = name == kDeepseekV32Encoding ? name : test::slurp(file);
  static const auto with_mark = call_trie(deepseek_v3(), test::slurp(FATHOM_TEST_DATA "/chat/deepseek-v3.1.jinja"));
  return {deepseek_v3(),
          trie,
          chat_template,
          {.bos_token = "<｜begin▁of▁sentence｜>", .eos_token = "<｜end▁of▁sentence｜>"},
          name == "deepseek-v3.1" ? with_mark : nullptr};
}
ChatInput chat(const PromptSource& source, const std::string& messages, const std::string& fields = "") {
  return chat_input(source, parse_chat_request(R"({"messages": )" + messages + fields + "}"));
}

const std::string kHi = R"([{"role": "user", "content": "Hi"}])";
const std::string kTwoTools =
    R"(, "tools": [{"function": {"name": "get_weather"}}, {"function": {"name": "get_time"}}])";
const std::string kTools =
    R"(, "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}])";

TEST(ChatInput, AnAnswerThatHasBegunIsGoneOnWith) {
  const PromptSource v3 = source_of("deepseek-v3"), v3_1 = source_of("deepseek-v3.1");
  const std::string begun =
      R"([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He<｜User｜>", "prefix": true}])";
  const ChatInput plain = chat(v3, kHi), gone_on = chat(v3, begun);
  EXPECT_EQ(gone_on.text, plain.text + "He<｜User｜>");
  EXPECT_EQ(std::count(gone_on.ids.begin(), gone_on.ids.end(), deepseek_v3().id_of("<｜User｜>")), 1)
      << "spelled, not meant";
  EXPECT_FALSE(gone_on.format.begins_in_reasoning);

  const auto with = [&](const std::string& parts) {
    return chat(v3_1, R"([{"role": "user", "content": "Hi"}, {"role": "assistant", "prefix": true, )" + parts + "}]");
  };
  const ChatInput thinking = with(R"("content": "", "reasoning_content": "Hm")");
  EXPECT_TRUE(thinking.text.ends_with("<｜Assistant｜><think>Hm")) << thinking.text;
  EXPECT_TRUE(thinking.format.begins_in_reasoning);
  const ChatInput thought = with(R"("content": "It", "reasoning_content": "Hm")");
  EXPECT_TRUE(thought.text.ends_with("<think>Hm</think>It")) << thought.text;
  EXPECT_FALSE(thought.format.begins_in_reasoning);
  EXPECT_TRUE(with(R"("content": "It")").text.ends_with("<｜Assistant｜></think>It"));
  EXPECT_THROW(chat(v3, R"([{"role": "assistant", "content": "He", "prefix": true}])"), ApiError);
}

TEST(ChatInput, ThoughtsAreSwitchedByRequest) {
  const PromptSource v3_1 = source_of("deepseek-v3.1");
  EXPECT_TRUE(chat(v3_1, kHi).text.ends_with("</think>"));
  for (const char* fields : {R"(, "thinking": {"type": "enabled"})", R"(, "reasoning_effort": "high")",
                             R"(, "chat_template_kwargs": {"thinking": true})"}) {
    const ChatInput input = chat(v3_1, kHi, fields);
    EXPECT_TRUE(input.text.ends_with("<think>")) << fields;
    EXPECT_TRUE(input.format.begins_in_reasoning);
  }
}

// A mark that somebody spells at the prompt's end begins no thoughts, in front of which a form would not hold.
TEST(ChatInput, TheTemplateAloneBeginsThoughts) {
  PromptSource plain = source_of("deepseek-v3");
  plain.chat_template = default_template(Tokenizer::bytes(), "");
  const std::string json = R"(, "response_format": {"type": "json_object"})";
  for (const char* said : {"<think>", "so <think>\\n", "</think>"}) {
    const ChatInput input = chat(plain, fmt::format(R"([{{"role": "user", "content": "{}"}}])", said), json);
    EXPECT_FALSE(input.format.begins_in_reasoning || input.format.behind_thoughts) << said;
    EXPECT_EQ(input.constraint->behind, "") << said;
  }
  const PromptSource v3_1 = source_of("deepseek-v3.1"), v3 = source_of("deepseek-v3");
  const std::string thinks = R"(, "thinking": {"type": "enabled"})";
  const std::string asked = R"([{"role": "user", "content": "<think>"}])";
  EXPECT_TRUE(chat(v3_1, asked, thinks).format.begins_in_reasoning);
  EXPECT_TRUE(chat(v3_1, asked).format.behind_thoughts);
  const auto begun = [&](const PromptSource& source, const std::string& fields) {
    return chat(source, R"([{"role": "user", "content": "Hi"},
      {"role": "assistant", "content": "He said <think>", "prefix": true}])",
                fields);
  };
  for (const PromptSource* source : {&v3, &v3_1}) {
    const ChatInput input = begun(*source, thinks);
    EXPECT_FALSE(input.format.begins_in_reasoning || input.format.behind_thoughts);
    EXPECT_TRUE(input.text.ends_with("He said <think>"));
  }
}

TEST(ChatInput, BudgetsHoldWhereAnAnswerMayThink) {
  const PromptSource v3_1 = source_of("deepseek-v3.1");
  const auto budget = [&](const std::string& fields) {
    return chat(v3_1, kHi, R"(, "thinking_token_budget": 5)" + fields).thinking_budget;
  };
  const std::string thinks = R"(, "thinking": {"type": "enabled"})",
                    json = R"(, "response_format": {"type": "json_object"})";
  const auto thoughts = budget(thinks);
  ASSERT_TRUE(thoughts);
  EXPECT_EQ(thoughts->tokens, 5);
  EXPECT_EQ(thoughts->end_ids, std::vector{deepseek_v3().id_of("</think>")});
  EXPECT_EQ(thoughts->begin, "");
  EXPECT_THAT(thoughts->ends, testing::ElementsAre("</think>"));
  EXPECT_EQ(budget("")->begin, "<think>") << "the answer may begin them by itself";
  EXPECT_EQ(budget(thinks + json)->begin, "") << "a form speaks of what is behind them";
  EXPECT_FALSE(budget(json)) << "of all";
  EXPECT_THAT(budget(thinks + kTools)->ends, testing::ElementsAre("</think>", "<｜tool▁calls▁begin｜>"));
  EXPECT_FALSE(budget(thinks + kTools + R"(, "tool_choice": "required")"));
  EXPECT_FALSE(budget(thinks + kTwoTools + R"(, "tool_choice": "required")"));
  EXPECT_FALSE(chat(v3_1, kHi, thinks).thinking_budget);
  const ChatInput begun = chat(v3_1, R"([{"role": "user", "content": "Hi"},
    {"role": "assistant", "prefix": true, "content": "", "reasoning_content": "Hm"}])",
                               R"(, "thinking_token_budget": 5)");
  EXPECT_EQ(begun.thinking_budget->begin, "");
}

// Whose call the answer must be stands in the prompt, as the model would write it, and the answer goes on behind it.
TEST(ChatInput, ACallThatMustComeHasBegun) {
  struct Case {
    std::string name, end, rest;
  };
  for (const auto& [name, end, rest] :
       {Case{"deepseek-v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n",
             "{\"x\": 1}\n```<｜tool▁call▁end｜>"},
        Case{"deepseek-v3.1", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>",
             "{\"x\": 1}<｜tool▁call▁end｜>"},
        Case{std::string(kDeepseekV32Encoding), "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n",
             "{\"x\": 1}</｜DSML｜invoke>"}}) {
    const PromptSource source = source_of(name);
    const ChatInput named =
        chat(source, kHi, kTools + R"(, "tool_choice": {"type": "function", "function": {"name": "get_weather"}})");
    EXPECT_TRUE(named.text.ends_with(end)) << name << ": " << named.text;
    EXPECT_TRUE(named.begun.ends_with(end)) << name;
    EXPECT_EQ(deepseek_v3().decode(named.ids), named.text) << name;
    ChatChoice choice(named.format, "call_");
    choice.push(named.begun);
    choice.push(rest);
    choice.finish();
    const auto message = choice.message();
    ASSERT_TRUE(choice.calls_tools()) << name;
    EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "get_weather");
    EXPECT_EQ(nlohmann::json::parse(message["tool_calls"][0]["function"]["arguments"].get<std::string>()),
              nlohmann::json({{"x", 1}}))
        << name;

    const ChatInput required = chat(source, kHi, kTwoTools + R"(, "tool_choice": "required")");
    ASSERT_FALSE(required.begun.empty());
    EXPECT_EQ(required.begun.find("get_weather"), std::string::npos);
    EXPECT_TRUE(named.begun.starts_with(required.begun)) << name;
    EXPECT_EQ(chat(source, kHi, kTools + R"(, "tool_choice": "required")").begun, named.begun) << "one tool alone";
    const ChatInput none = chat(source, kHi, kTools + R"(, "tool_choice": "none")");
    EXPECT_EQ(none.text, chat(source, kHi).text);
    EXPECT_EQ(none.format.calls, CallFormat::none);
    EXPECT_NE(chat(source, kHi, kTools).format.calls, CallFormat::none);
    EXPECT_EQ(chat(source, kHi, kTools).call_end, "");
    const ChatInput one = chat(source, kHi, kTools + R"(, "parallel_tool_calls": false)");
    EXPECT_TRUE(!one.call_end.empty() && rest.ends_with(one.call_end)) << name << ": " << one.call_end;
    EXPECT_EQ(chat(source, kHi, R"(, "parallel_tool_calls": false)").call_end, "") << "no tools, no calls";
  }
  EXPECT_THROW(chat(source_of("deepseek-v2"), kHi, kTools + R"(, "tool_choice": "required")"), ApiError);
}

bool is_allowed(const std::vector<uint64_t>& mask, int32_t id) {
  return (mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1) != 0;
}

// One of the tokens that may come, all as likely.
int32_t drawn(const std::vector<uint64_t>& mask, Rng& rng) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < std::ssize(mask) * 64; ++id) {
    if (is_allowed(mask, id)) ids.push_back(id);
  }
  return ids.at(rng.below(ids.size()));
}

// Of several tools the model has the choice, and no other: one that knows nothing at all makes a call that is one.
TEST(ChatInput, ACallThatMustComeIsOfOneOfTheTools) {
  const std::string fields = R"(, "tool_choice": "required", "tools": [
    {"function": {"name": "get", "parameters": {"type": "object", "required": ["days", "city"],
       "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 99}, "city": {"enum": ["Paris", "Rome"]}}}}},
    {"function": {"name": "get_time", "parameters": {"properties": {"zone": {"type": "string", "maxLength": 3}}}}}])";
  for (const std::string& name :
       {std::string("deepseek-v3"), std::string("deepseek-v3.1"), std::string(kDeepseekV32Encoding)}) {
    const PromptSource source = source_of(name);
    const ChatInput input = chat(source, kHi, fields);
    ASSERT_NE(input.constraint, nullptr);
    std::vector<uint64_t> mask;
    std::set<std::string> called;
    for (uint64_t seed = 0; seed < 24; ++seed) {
      Rng rng(seed, 0);
      GrammarMatcher matcher(input.constraint->grammar);
      ChatChoice choice(input.format, "call_");
      choice.push(input.begun);
      std::string text;
      while (!matcher.must_end()) {
        ASSERT_LT(text.size(), 2000u);
        matcher.allowed(*input.constraint->masks, mask);
        const std::string bytes = deepseek_v3().token_bytes(drawn(mask, rng));
        ASSERT_TRUE(matcher.accept(bytes));
        text += bytes;
      }
      choice.push(text);
      choice.finish();
      ASSERT_TRUE(choice.calls_tools()) << text;
      const auto function = choice.message()["tool_calls"][0]["function"];
      const auto arguments = nlohmann::json::parse(function["arguments"].get<std::string>());
      called.insert(function["name"]);
      if (function["name"] == "get") {
        EXPECT_TRUE(arguments["days"].is_number_integer() && arguments["city"].is_string()) << text;
      } else {
        EXPECT_EQ(function["name"], "get_time") << text;
        EXPECT_TRUE(arguments.is_object()) << text;
      }
    }
    EXPECT_EQ(called.size(), 2u) << name;
    GrammarMatcher named(input.constraint->grammar);
    ASSERT_TRUE(named.accept("get"));
    named.allowed(*input.constraint->masks, mask);
    EXPECT_EQ(is_allowed(mask, deepseek_v3().id_of("<｜tool▁sep｜>")), name == "deepseek-v3.1");
    const ChatInput any = chat(source, kHi, kTwoTools + R"(, "tool_choice": "required")");
    GrammarMatcher matcher(any.constraint->grammar);
    const std::string between = name == "deepseek-v3"     ? "\n```json\n"
                                : name == "deepseek-v3.1" ? "<｜tool▁sep｜>"
                                                          : "\">\n";
    EXPECT_TRUE(matcher.accept("get_weather" + between + "{\"x\": [1]}") && matcher.must_end());
    EXPECT_FALSE(GrammarMatcher(any.constraint->grammar).accept("get_news"));
  }
  try {
    chat(source_of("deepseek-v3"), kHi, R"(, "tool_choice": "required", "tools": [{"function": {"name": "a"}},
      {"function": {"name": "b", "parameters": {"type": "thing"}}}])");
    FAIL();
  } catch (const ApiError& error) {
    EXPECT_THAT(error.what(), testing::StartsWith("tools[1].function.parameters: "));
  }
}

// Whether there is a call is the model's choice; of a strict function it is a valid one, and others stay free.
TEST(ChatInput, ArgumentsOfStrictFunctionsFollowTheirSchema) {
  const std::string fields = R"(, "tools": [{"function": {"name": "now"}}, {"function": {"name": "get", "strict": true,
    "parameters": {"type": "object", "required": ["days"], "properties": {"days": {"type": "integer"}}}}}])";
  struct Case {
    std::string name, begin, between, end;
  };
  for (const auto& [name, begin, between, end] :
       {Case{"deepseek-v3", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>"},
        Case{"deepseek-v3.1", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"},
        Case{std::string(kDeepseekV32Encoding), "<｜DSML｜invoke name=\"", "\">\n", "\n</｜DSML｜invoke>"}}) {
    const PromptSource source = source_of(name);
    const ChatInput input = chat(source, kHi, fields);
    ASSERT_NE(input.constraint, nullptr) << name;
    ConstraintState state(*input.constraint);
    const auto says = [&](const std::string& text) {
      for (const int32_t id : deepseek_v3().encode(text)) state.take(deepseek_v3().token_bytes(id));
    };
    const auto may_come = [&](const char* token) {
      std::vector<float> logits(static_cast<size_t>(deepseek_v3().vocab_size()));
      state.mask(logits, std::vector<int64_t>{1});
      return logits[static_cast<size_t>(deepseek_v3().id_of(token))] == 0;
    };
    says("I look. " + begin);
    EXPECT_TRUE(may_come("get") && may_come("now") && !may_come("I") && !may_come("<｜end▁of▁sentence｜>")) << name;
    says("get" + between);
    EXPECT_TRUE(may_come("{") && !may_come("[") && !may_come("<｜tool▁call▁end｜>")) << name;
    says("{\"days\": 2");
    EXPECT_FALSE(may_come("x"));
    says("}");
    EXPECT_FALSE(state.is_whole());
    EXPECT_TRUE(may_come("x") && may_come("<｜tool▁call▁end｜>") && may_come("<｜end▁of▁sentence｜>")) << name;
    says(end + "\n" + begin + "now" + between);
    EXPECT_TRUE(may_come("x") && may_come("[")) << name;
    says("what it likes" + end + begin);
    EXPECT_FALSE(may_come("x")) << name;
    EXPECT_EQ(chat(source, kHi, kTwoTools).constraint, nullptr) << "none is strict";
  }
}

// A form of the output speaks of what has begun and what follows together.
TEST(ChatInput, WhatHasBegunIsAPartOfTheForm) {
  const PromptSource v3 = source_of("deepseek-v3"), v3_1 = source_of("deepseek-v3.1");
  const auto with = [](const PromptSource& source, const std::string& parts) {
    return chat(source, R"([{"role": "user", "content": "Hi"}, {"role": "assistant", "prefix": true, )" + parts + "}]",
                R"(, "response_format": {"type": "json_object"})");
  };
  ConstraintState state(*with(v3, R"("content": "{\"a\": [1")").constraint);
  state.take("2]}");
  EXPECT_TRUE(state.is_whole());
  EXPECT_EQ(with(v3_1, R"("content": null, "reasoning_content": "{")").constraint->behind, "</think>");
  for (const char* content : {"Sure: {", "{]", R"({\"a\": 1})"}) {
    try {
      with(v3, std::string(R"("content": ")") + content + '"');
      FAIL() << content;
    } catch (const ApiError& error) {
      EXPECT_EQ(error.status, 400);
      EXPECT_THAT(error.what(), testing::StartsWith("response_format: the last message, which begins the answer, "));
    }
  }
}

TEST(ChatInput, ToolsAndDevelopersComeToEveryTemplate) {
  for (const char* name : {"deepseek-v3", "deepseek-v3.1", "deepseek-r1", "deepseek-v3-api-zip", "kimi-k2"}) {
    const ChatInput input = chat(source_of(name), R"([{"role": "developer", "content": "Be brief."},
      {"role": "user", "content": "Hi"}])",
                                 kTools);
    EXPECT_THAT(input.text, testing::HasSubstr("get_weather")) << name;
    EXPECT_THAT(input.text, testing::HasSubstr("Be brief.")) << name;
  }
}

TEST(ChatInput, AResultThatNobodyAskedForIsRefused) {
  const std::string messages = R"([{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [
    {"id": "a", "function": {"name": "f"}}]}, {"role": "tool", "tool_call_id": "b", "content": "1"}])";
  try {
    chat(source_of(std::string(kDeepseekV32Encoding)), messages);
    FAIL();
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 400);
    EXPECT_THAT(error.what(), testing::HasSubstr("messages[2].tool_call_id: none of the calls"));
  }
}

TEST(ChatInput, ATemplatesComplaintIsTheRequestsFault) {
  PromptSource source = source_of("deepseek-v3");
  source.chat_template = "{{ raise_exception('no ' ~ messages[0].role) }}";
  try {
    chat(source, kHi);
    FAIL();
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 400);
    EXPECT_THAT(error.what(), testing::HasSubstr("no user"));
  }
}

TEST(CompletionInputs, TextsIdsAndWhatStandsBetween) {
  const PromptSource source = source_of("deepseek-v3");
  const Tokenizer& t = deepseek_v3();
  const auto inputs = [&](const std::string& fields) {
    return completion_inputs(source, parse_completion_request("{" + fields + "}"));
  };
  const std::vector<int32_t> hi = t.encode("Hi");
  std::vector<int32_t> with_bos = hi;
  with_bos.insert(with_bos.begin(), t.bos_id());
  EXPECT_EQ(inputs(R"("prompt": ["Hi", "<｜begin▁of▁sentence｜>Hi"])"), (std::vector{with_bos, with_bos}));
  EXPECT_EQ(inputs(R"("prompt": [1, 2])"), (std::vector<std::vector<int32_t>>{{1, 2}}));
  EXPECT_EQ(inputs(R"("prompt": "Hi", "add_special_tokens": false)").at(0), hi);
  EXPECT_EQ(inputs(R"("prompt": "<｜User｜>", "add_special_tokens": false)").at(0), std::vector{t.id_of("<｜User｜>")});
  EXPECT_GT(inputs(R"("prompt": "<｜User｜>", "add_special_tokens": false, "parse_special": false)").at(0).size(), 1u);
  const auto between = inputs(R"("prompt": "a<｜fim▁hole｜>", "suffix": "b")").at(0);
  const std::vector<int32_t> marks = {t.id_of("<｜fim▁begin｜>"), t.id_of("<｜fim▁hole｜>"), t.id_of("<｜fim▁end｜>")};
  EXPECT_EQ(between[1], marks[0]);
  EXPECT_EQ(between.back(), marks[2]);
  EXPECT_EQ(std::count(between.begin(), between.end(), marks[1]), 1) << "what is spelled is none";
  EXPECT_EQ(t.decode(between), "<｜begin▁of▁sentence｜><｜fim▁begin｜>a<｜fim▁hole｜><｜fim▁hole｜>b<｜fim▁end｜>");
}

// A prompt that is told again is what was given.
TEST(CompletionInputs, KnowWhichBeginTokensNobodyGave) {
  const auto unsaid = [&](const std::string& fields) {
    return unsaid_begins(deepseek_v3(), parse_completion_request("{" + fields + "}"));
  };
  EXPECT_THAT(unsaid(R"("prompt": ["Hi", "<｜begin▁of▁sentence｜>Hi", ""])"), testing::ElementsAre(true, false, true));
  EXPECT_THAT(unsaid(R"("prompt": "<｜begin▁of▁sentence｜>Hi", "parse_special": false)"), testing::ElementsAre(true));
  EXPECT_THAT(unsaid(R"("prompt": "Hi", "add_special_tokens": false)"), testing::ElementsAre(false));
  EXPECT_THAT(unsaid(R"("prompt": [0, 1])"), testing::ElementsAre(false));
}

TEST(DefaultTemplate, IsThatOfTheFamilyOrNone) {
  const auto render = [](const Tokenizer& tokenizer, const std::string& type) {
    const PromptSource source{
        tokenizer, nullptr, default_template(tokenizer, type), {.bos_token = "<s>", .eos_token = "</s>"}};
    return chat(
               source,
               R"([{"role": "system", "content": "S"}, {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}])")
        .text;
  };
  EXPECT_EQ(render(deepseek_v3(), "deepseek_v3"), "<s>S<｜User｜>A<｜Assistant｜>B</s><｜User｜>C<｜Assistant｜>");
  EXPECT_EQ(render(Tokenizer::bytes(), "deepseek_v3"), "S\nAB\nC");
  EXPECT_EQ(default_template(deepseek_v3(), "deepseek_v32"), kDeepseekV32Encoding);
}

}  // namespace
}  // namespace fathom::serve
