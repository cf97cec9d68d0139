#include "serve/request.h"

#include <gmock/gmock.h>

#include "base/rng.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

// "STATUS CODE PARAM: message", or "accepted".
template <class Parse>
std::string refusal(const Parse& parse, const std::string& body) {
  try {
    parse(body);
  } catch (const ApiError& error) {
    const ordered_json json = ordered_json::parse(error_json(error));
    EXPECT_EQ(json["error"]["message"], error.what());
    EXPECT_EQ(json["error"]["type"], "invalid_request_error");
    return fmt::format("{} {} {}", error.status, error.code, error.what());
  }
  return "accepted";
}
std::string chat_refusal(const std::string& fields) {
  return refusal(parse_chat_request, R"({"messages": [{"role": "user", "content": "Hi"}])" + fields + "}");
}
std::string completion_refusal(const std::string& fields) {
  return refusal(parse_completion_request, R"({"prompt": "Hi")" + fields + "}");
}
ChatRequest chat(const std::string& fields) {
  return parse_chat_request(R"({"messages": [{"role": "user", "content": "Hi"}])" + fields + "}");
}

TEST(ChatRequest, DefaultsAreOpenAIs) {
  const ChatRequest r =
      chat(R"(, "model": "m", "stop": null, "tools": [], "tool_choice": "none", "unknown": {"a": 1})");
  EXPECT_EQ(r.model, "m");
  EXPECT_EQ(r.n, 1);
  EXPECT_FALSE(r.one_call || r.usage_in_chunks || r.stream || r.include_usage || r.continues_last || r.max_tokens ||
               r.seed || r.thinking);
  EXPECT_EQ(r.generation.sampler.temperature, 1);
  EXPECT_EQ(r.generation.sampler.top_p, 1);
  EXPECT_EQ(r.generation.sampler.top_k, 0);
  EXPECT_EQ(r.generation.top_logprobs, -1);
  EXPECT_TRUE(r.tools.is_null() && r.grammar.kind == GrammarRequest::Kind::none && r.generation.stop.empty());
  EXPECT_EQ(r.messages, ordered_json::parse(R"([{"role": "user", "content": "Hi"}])"));
  EXPECT_EQ(r.kwargs, ordered_json::object());
}

TEST(ChatRequest, ReadsEveryField) {
  const ChatRequest r = chat(
      R"(, "n": 3, "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "parallel_tool_calls": false, "max_tokens": 7,
    "max_completion_tokens": 9, "seed": -1, "temperature": 0, "top_p": 0, "top_k": -1, "min_p": 0.05,
    "presence_penalty": -2, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"50": -100, "7": 1.5},
    "stop": ["a", "bc"], "logprobs": true, "top_logprobs": 5, "user_id": "u", "thinking": {"type": "enabled"},
    "chat_template_kwargs": {"x": [1]}, "tool_choice": {"type": "function", "function": {"name": "f"}},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}})");
  const SamplerOptions& s = r.generation.sampler;
  EXPECT_EQ(r.n, 3);
  EXPECT_TRUE(r.stream && r.include_usage && r.usage_in_chunks && r.one_call);
  EXPECT_FALSE(chat(R"(, "stream": true, "stream_options": {"continuous_usage_stats": true})").usage_in_chunks);
  EXPECT_EQ(r.max_tokens, 9);
  EXPECT_EQ(r.seed, UINT64_MAX);
  EXPECT_EQ(s.temperature, 0);
  EXPECT_TRUE(s.top_p > 0 && s.top_p < 1e-6) << "the likeliest alone";
  EXPECT_EQ(s.top_k, 0);
  EXPECT_EQ(s.min_p, 0.05);
  EXPECT_EQ(s.presence_penalty, -2);
  EXPECT_EQ(s.frequency_penalty, 0.5);
  EXPECT_EQ(s.repetition_penalty, 1.1);
  EXPECT_EQ(s.logit_bias, (std::vector<std::pair<int32_t, float>>{{7, 1.5f}, {50, -100.0f}}));
  EXPECT_THAT(r.generation.stop, testing::ElementsAre("a", "bc"));
  EXPECT_EQ(r.generation.top_logprobs, 5);
  EXPECT_EQ(r.cache_salt, "u");
  EXPECT_EQ(r.thinking, true);
  EXPECT_EQ(r.kwargs, ordered_json::parse(R"({"x": [1]})"));
  EXPECT_EQ(r.tool_choice, ToolChoice::named);
  EXPECT_EQ(r.tool, "f");
  EXPECT_EQ(r.tools[0]["function"]["parameters"]["type"], "object");
  EXPECT_EQ(r.grammar.kind, GrammarRequest::Kind::json_schema);
  EXPECT_EQ(r.grammar.schema, ordered_json::parse(R"({"type": "object"})"));
  EXPECT_FALSE(r.return_progress || r.thinking_budget);
  EXPECT_EQ(r.prompt_logprobs, -1);
  EXPECT_TRUE(chat(R"(, "return_progress": true)").return_progress);
  EXPECT_EQ(chat(R"(, "prompt_logprobs": 20)").prompt_logprobs, 20);
  EXPECT_EQ(chat(R"(, "reasoning_effort": "none")").thinking, false);
  EXPECT_EQ(chat(R"(, "chat_template_kwargs": {"enable_thinking": true})").thinking, true);
}

TEST(ChatRequest, MessagesBecomeWhatTemplatesRead) {
  const ChatRequest r = parse_chat_request(R"({"messages": [
    {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
    {"role": "user", "content": "", "name": "ann", "weight": 1},
    {"role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [
      {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "4"},
    {"role": "assistant", "content": "It is", "prefix": true}]})");
  EXPECT_EQ(r.messages, ordered_json::parse(R"([
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "", "name": "ann"},
    {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
      {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
    {"role": "tool", "content": "4", "tool_call_id": "1"},
    {"role": "assistant", "content": "It is", "prefix": true}])"));
  EXPECT_TRUE(r.continues_last);
}

TEST(ChatRequest, AnEmptyListOfCallsIsNone) {
  const ChatRequest r = parse_chat_request(R"({"messages": [{"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "It is", "tool_calls": []}]})");
  EXPECT_EQ(r.messages[1], ordered_json::parse(R"({"role": "assistant", "content": "It is"})"));
}

TEST(ChatRequest, RefusesWithTheFieldInFront) {
  const auto body = [](const std::string& text) { return refusal(parse_chat_request, text); };
  EXPECT_THAT(body("{"), testing::StartsWith("400 invalid_json request body"));
  EXPECT_THAT(body("{\"messages\": [], \"messages\": []}"), testing::StartsWith("400 invalid_json"));
  EXPECT_EQ(body("[]"), "400 invalid_json the request body must be a JSON object");
  EXPECT_EQ(body("{}"), "400 missing_required_parameter messages: is missing");
  EXPECT_EQ(body(R"({"messages": []})"), "400 invalid_value messages: is an empty list");
  EXPECT_EQ(body(R"({"messages": "Hi"})"), "400 invalid_type messages: must be a list");
  EXPECT_EQ(body(R"({"messages": [1]})"), "400 invalid_type messages[0]: must be an object");
  EXPECT_EQ(body(R"({"messages": [{"content": "Hi"}]})"),
            "400 missing_required_parameter messages[0].role: is missing");
  EXPECT_EQ(body(R"({"messages": [{"role": "user"}]})"),
            "400 missing_required_parameter messages[0].content: is missing");
  EXPECT_EQ(body(R"({"messages": [{"role": "boss", "content": ""}]})"),
            "400 invalid_value messages[0].role: must be system, developer, user, assistant or tool");
  EXPECT_EQ(body(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"),
            "400 invalid_value messages[0].content[0].type: image_url cannot be read: the model reads text");
  EXPECT_EQ(
      body(R"({"messages": [{"role": "assistant", "content": "", "prefix": true}, {"role": "user", "content": ""}]})"),
      "400 invalid_value messages[0].prefix: only the last message can begin the answer");
  EXPECT_EQ(
      body(R"({"messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}]})"),
      "400 invalid_value messages[0].tool_calls[0].type: must be function");
  EXPECT_EQ(chat_refusal(R"(, "cache_salt": "s", "user_id": ")" + std::string(257, 'u') + "\""),
            "400 invalid_value user_id: at most 256 bytes");
  EXPECT_EQ(chat_refusal(R"(, "response_format": {"type": "text", "json_schema": []})"),
            "400 invalid_type response_format.json_schema: must be an object");
  EXPECT_EQ(chat_refusal(R"(, "n": 129)"), "400 invalid_value n: must be between 1 and 128");
  EXPECT_EQ(chat_refusal(R"(, "n": 1.5)"), "400 invalid_type n: must be an integer");
  EXPECT_THAT(chat_refusal(R"(, "n": -9223372036854775809)"), testing::StartsWith("400 invalid_json"));
  EXPECT_EQ(chat_refusal(R"(, "temperature": 2.5)"), "400 invalid_value temperature: must be between 0 and 2");
  EXPECT_EQ(chat_refusal(R"(, "temperature": "hot")"), "400 invalid_type temperature: must be a number");
  EXPECT_EQ(chat_refusal(R"(, "max_tokens": 0)"), "400 invalid_value max_tokens: must be 1 or more");
  EXPECT_EQ(chat_refusal(R"(, "logit_bias": {"x": 1})"), "400 invalid_value logit_bias: its keys must be token ids");
  EXPECT_EQ(chat_refusal(R"(, "logit_bias": {"1": 101})"),
            "400 invalid_value logit_bias: its values must be numbers between -100 and 100");
  EXPECT_EQ(chat_refusal(R"(, "stop": "")"), "400 invalid_value stop: a text has 1 to 256 bytes");
  EXPECT_EQ(chat_refusal(R"(, "stop": [1])"), "400 invalid_type stop: must be a string or a list of strings");
  EXPECT_EQ(chat_refusal(R"(, "top_logprobs": 2)"), "400 invalid_value top_logprobs: needs logprobs: true");
  EXPECT_EQ(chat_refusal(R"(, "logprobs": true, "top_logprobs": 21)"),
            "400 invalid_value top_logprobs: must be between 0 and 20");
  EXPECT_EQ(chat_refusal(R"(, "tools": [{"type": "function", "function": {"name": "a b"}}])"),
            "400 invalid_value tools[0].function.name: has 1 to 64 letters, digits, _, - and .");
  EXPECT_EQ(chat_refusal(R"(, "tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}])"),
            "400 invalid_value tools[0].function.parameters: must be of type object: arguments have names");
  EXPECT_EQ(chat_refusal(R"(, "tool_choice": "required")"),
            "400 invalid_value tool_choice: required, but there are no tools");
  EXPECT_EQ(chat_refusal(R"(, "tool_choice": {"function": {"name": "g"}})"),
            "400 invalid_value tool_choice: there is no tool g");
  EXPECT_EQ(chat_refusal(R"(, "chat_template_kwargs": {"messages": []})"),
            "400 invalid_value chat_template_kwargs.messages: is not the request's to set");
  EXPECT_EQ(chat_refusal(R"(, "thinking": {"type": "maybe"})"),
            "400 invalid_value thinking.type: must be enabled or disabled");
  EXPECT_EQ(chat_refusal(R"(, "response_format": {"type": "json_schema"})"),
            "400 missing_required_parameter response_format.json_schema.schema: is missing");
}

TEST(ChatRequest, EndsCanBeTokensAndWait) {
  const ChatRequest r = chat(R"(, "stop_token_ids": [7, 9.0], "min_tokens": 3, "n_predict": 5)");
  EXPECT_THAT(r.generation.stop_ids, testing::ElementsAre(7, 9));
  EXPECT_EQ(r.generation.min_tokens, 3);
  EXPECT_EQ(r.max_tokens, 5);
  EXPECT_EQ(chat(R"(, "n_predict": 5, "max_tokens": 6)").max_tokens, 6);
  EXPECT_GT(parse_completion_request(R"({"prompt": "a", "n_predict": -1})").max_tokens, 1 << 30);
  EXPECT_EQ(chat_refusal(R"(, "stop_token_ids": [-1])"),
            "400 invalid_value stop_token_ids: token ids are integers from 0 on");
  EXPECT_EQ(chat_refusal(R"(, "stop_token_ids": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17])"),
            "400 invalid_value stop_token_ids: at most 16 ids");
  EXPECT_EQ(chat_refusal(R"(, "stop_token_ids": 1)"), "400 invalid_type stop_token_ids: must be a list");
  EXPECT_EQ(chat_refusal(R"(, "min_tokens": 3, "max_tokens": 2)"),
            "400 invalid_value min_tokens: must be no more than max_tokens");
  EXPECT_EQ(completion_refusal(R"(, "min_tokens": 17)"),
            "400 invalid_value min_tokens: must be no more than max_tokens");
}

TEST(ChatRequest, ThoughtsHaveABudgetByEachName) {
  const auto budget = [](const std::string& fields) { return chat(", " + fields).thinking_budget; };
  EXPECT_EQ(budget(R"("thinking_token_budget": 0)"), 0);
  EXPECT_EQ(budget(R"("thinking_budget_tokens": 7)"), 7);
  EXPECT_EQ(budget(R"("thinking": {"type": "enabled", "budget_tokens": 1024})"), 1024);
  EXPECT_EQ(budget(R"("thinking_budget_tokens": 7, "thinking_token_budget": 5)"), 5) << "the least";
  EXPECT_EQ(budget(R"("thinking_budget_tokens": -1, "thinking_token_budget": null)"), std::nullopt);
  EXPECT_EQ(chat(R"(, "thinking_budget_tokens": 7)").thinking, std::nullopt) << "it does not ask for thoughts";
  EXPECT_EQ(chat_refusal(R"(, "thinking_token_budget": -2)"),
            "400 invalid_value thinking_token_budget: must be between -1 and 1099511627776");
  EXPECT_EQ(budget(R"("thinking": {"type": "enabled", "budget_tokens": -1})"), std::nullopt);
  EXPECT_EQ(chat_refusal(R"(, "thinking": {"type": "enabled", "budget_tokens": -2})"),
            "400 invalid_value thinking.budget_tokens: must be between -1 and 1099511627776");
  EXPECT_EQ(chat_refusal(R"(, "thinking_budget_tokens": "7")"),
            "400 invalid_type thinking_budget_tokens: must be an integer");
  EXPECT_THAT(completion_refusal(R"(, "thinking_budget_tokens": 7)"),
              testing::StartsWith("400 unsupported_parameter thinking_budget_tokens: is for chats"));
  EXPECT_EQ(completion_refusal(R"(, "thinking_budget_tokens": -1)"), "accepted");
}

TEST(Requests, LogProbabilitiesOfPromptsGoWithNoStream) {
  for (const auto& refused : {chat_refusal, completion_refusal}) {
    EXPECT_EQ(refused(R"(, "prompt_logprobs": 21)"), "400 invalid_value prompt_logprobs: must be between 0 and 20");
    EXPECT_EQ(refused(R"(, "prompt_logprobs": true)"), "400 invalid_type prompt_logprobs: must be an integer");
    EXPECT_EQ(refused(R"(, "prompt_logprobs": 1, "stream": true)"),
              "400 invalid_value prompt_logprobs: goes with no stream");
    EXPECT_EQ(refused(R"(, "prompt_logprobs": 0, "stream": true)"), "accepted") << "as vLLM does";
    EXPECT_EQ(refused(R"(, "prompt_logprobs": 20)"), "accepted");
  }
  EXPECT_EQ(completion_refusal(R"(, "prompt_logprobs": 0, "max_tokens": 0)"), "accepted")
      << "there is something to tell";
  EXPECT_THAT(chat_refusal(R"(, "prompt_logprobs": 0, "max_tokens": 0)"), testing::StartsWith("400 "));
}

TEST(Requests, WhatWouldChangeTheAnswerAndIsNotThereIsRefused) {
  for (const char* name : {"functions",
                           "function_call",
                           "modalities",
                           "audio",
                           "web_search_options",
                           "use_beam_search",
                           "bad_words",
                           "allowed_token_ids",
                           "include_stop_str_in_output",
                           "truncate_prompt_tokens",
                           "return_tokens_as_token_ids",
                           "chat_template",
                           "documents",
                           "ebnf",
                           "stop_regex",
                           "logits_processors",
                           "mirostat",
                           "dry_multiplier",
                           "xtc_probability",
                           "dynatemp_range"}) {
    for (const char* value : {"true", "1", "0.5", "\"a\"", "[0]", "{\"a\": 1}"}) {
      const std::string field = fmt::format(", \"{}\": {}", name, value);
      const std::string refused = fmt::format("400 unsupported_parameter {}: is not supported", name);
      EXPECT_EQ(chat_refusal(field), refused);
      EXPECT_EQ(completion_refusal(field), refused);
    }
    for (const char* value : {"null", "false", "0", "0.0", "\"\"", "[]", "{}"})
      EXPECT_EQ(chat_refusal(fmt::format(", \"{}\": {}", name, value)), "accepted") << name << value;
  }
  EXPECT_EQ(chat_refusal(R"(, "function_call": "none", "modalities": ["text"])"), "accepted");
  EXPECT_EQ(chat_refusal(R"(, "modalities": ["text", "audio"])"),
            "400 unsupported_parameter modalities: is not supported");
  EXPECT_EQ(chat_refusal(R"(, "structured_outputs": {"structural_tag": {"a": 1}})"),
            "400 unsupported_parameter structured_outputs.structural_tag: is not supported");
  EXPECT_EQ(
      chat_refusal(
          R"(, "tools": [{"function": {"name": "f"}}], "tool_choice": {"type": "custom", "function": {"name": "f"}})"),
      "400 invalid_value tool_choice.type: must be function");
  EXPECT_EQ(chat_refusal(R"(, "tools": [{"function": {"name": "f", "parameters": {"enum": [")" +
                         std::string(65536, 'x') + R"("]}}}])"),
            "400 invalid_value tools[0].function.parameters: a schema has at most 65536 bytes");
}

TEST(CompletionRequest, ReadsAllKindsOfPrompts) {
  const auto prompts = [](const std::string& prompt) {
    return parse_completion_request(R"({"prompt": )" + prompt + "}").prompts;
  };
  using Ids = std::vector<int32_t>;
  EXPECT_THAT(prompts(R"("Hi")"), testing::ElementsAre(Prompt("Hi")));
  EXPECT_THAT(prompts("[1, 2]"), testing::ElementsAre(Prompt(Ids{1, 2})));
  EXPECT_THAT(prompts(R"(["a", "b"])"), testing::ElementsAre(Prompt("a"), Prompt("b")));
  EXPECT_THAT(prompts("[[1], [2, 3]]"), testing::ElementsAre(Prompt(Ids{1}), Prompt(Ids{2, 3})));
  const CompletionRequest r = parse_completion_request(
      R"({"prompt": [[5]], "echo": true, "logprobs": 1, "max_tokens": 0, "best_of": 2, "n": 2, "seed": 1234})");
  EXPECT_TRUE(r.echo);
  EXPECT_EQ(r.generation.top_logprobs, 1);
  EXPECT_EQ(r.max_tokens, 0);
  EXPECT_EQ(parse_completion_request(R"({"prompt": "a"})").max_tokens, 16);
  EXPECT_THAT(prompts("[1.0, 2]"), testing::ElementsAre(Prompt(Ids{1, 2})));
  EXPECT_EQ(parse_completion_request(R"({"prompt": "a", "max_tokens": 5.0, "seed": 1e3})").max_tokens, 5);
  EXPECT_EQ(parse_completion_request(R"({"prompt": "a", "suffix": "b"})").suffix, "b");
}

TEST(CompletionRequest, RefusesWithTheFieldInFront) {
  const auto of_prompt = [](const std::string& prompt) {
    return refusal(parse_completion_request, R"({"prompt": )" + prompt + "}");
  };
  EXPECT_EQ(of_prompt("null"), "400 missing_required_parameter prompt: is missing");
  EXPECT_EQ(of_prompt("[]"), "400 invalid_value prompt: is an empty list");
  EXPECT_EQ(of_prompt("[1.5]"), "400 invalid_value prompt: token ids are integers from 0 on");
  EXPECT_EQ(of_prompt("\"a\", \"n\": 1.5"), "400 invalid_type n: must be an integer");
  EXPECT_EQ(of_prompt("\"a\", \"max_tokens\": 1e300"), "400 invalid_type max_tokens: must be an integer");
  EXPECT_EQ(of_prompt("[1, -2]"), "400 invalid_value prompt: token ids are integers from 0 on");
  EXPECT_EQ(of_prompt("[1, \"a\"]"), "400 invalid_value prompt: token ids are integers from 0 on");
  EXPECT_EQ(of_prompt("[{}]"), "400 invalid_type prompt: must be a string, a list of token ids, or a list of either");
  EXPECT_EQ(of_prompt("3000000000"),
            "400 invalid_type prompt: must be a string, a list of token ids, or a list of either");
  std::string many = "[\"a\"";
  for (int i = 0; i < 1024; ++i) many += ",\"a\"";
  EXPECT_EQ(of_prompt(many + "]"), "400 invalid_value prompt: at most 1024 prompts");
  EXPECT_EQ(completion_refusal(R"(, "max_tokens": 0)"),
            "400 invalid_value max_tokens: must be 1 or more, but for echo and prompt_logprobs");
  EXPECT_EQ(completion_refusal(R"(, "best_of": 2)"),
            "400 invalid_value best_of: must be the same as n: choices are not ranked");
  EXPECT_EQ(completion_refusal(R"(, "echo": true, "suffix": "x")"), "400 invalid_value echo: goes with no suffix");
}

// Bodies with fields of the wrong kind everywhere are refused or read, and never more than that.
TEST(Requests, AnyKindOfValueAnywhereIsReadOrRefused) {
  const std::vector<std::string> names = {"messages",
                                          "prompt",
                                          "model",
                                          "n",
                                          "stop",
                                          "logit_bias",
                                          "tools",
                                          "tool_choice",
                                          "stream",
                                          "stream_options",
                                          "response_format",
                                          "thinking",
                                          "reasoning_effort",
                                          "chat_template_kwargs",
                                          "logprobs",
                                          "top_logprobs",
                                          "seed",
                                          "top_k",
                                          "suffix"};
  const std::vector<std::string> values = {"null",
                                           "true",
                                           "0",
                                           "-1",
                                           "1e300",
                                           "18446744073709551615",
                                           "\"\"",
                                           "\"auto\"",
                                           "[]",
                                           "[1]",
                                           "[[]]",
                                           "[null]",
                                           "{}",
                                           "{\"type\": 1}",
                                           "{\"function\": null}",
                                           "[{\"role\": \"user\", \"content\": \"x\"}]",
                                           "[{\"type\": \"function\"}]"};
  Rng rng(1);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string body = "{";
    for (const std::string& name : names) {
      if (rng.below(4) == 0)
        body += (body.size() > 1 ? ", \"" : "\"") + name + "\": " + values[rng.below(values.size())];
    }
    body += "}";
    for (const std::string& outcome : {refusal(parse_chat_request, body), refusal(parse_completion_request, body)}) {
      ASSERT_TRUE(outcome == "accepted" || outcome.starts_with("400 ")) << body << ": " << outcome;
      accepted += outcome == "accepted" ? 1 : 0;
    }
  }
  EXPECT_GT(accepted, 80);
}

}  // namespace
}  // namespace fathom::serve
