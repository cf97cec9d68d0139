#include "serve/response.h"

#include <gmock/gmock.h>

#include "base/rng.h"
#include "serve/tool_calls.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

ordered_json json(const char* text) { return ordered_json::parse(text); }

constexpr const char* kAnswer =
    "hm</think>\n\nI look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": \"ü\"}<｜tool▁call▁end｜>"
    "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

// What a client makes of the deltas.
ordered_json joined(const std::vector<ordered_json>& deltas) {
  ordered_json message{{"role", "assistant"}, {"content", nullptr}, {"refusal", nullptr}};
  for (const ordered_json& delta : deltas) {
    for (const char* name : {"content", "reasoning_content"}) {
      if (!delta.contains(name)) continue;
      if (!message.contains(name) || message[name].is_null()) message[name] = "";
      message[name] = message[name].get<std::string>() + delta[name].get<std::string>();
    }
    if (!delta.contains("tool_calls")) continue;
    for (const ordered_json& call : delta["tool_calls"]) {
      const auto index = call["index"].get<size_t>();
      if (call.contains("id")) {
        EXPECT_EQ(index, message.contains("tool_calls") ? message["tool_calls"].size() : 0);
        message["tool_calls"].push_back({{"id", call["id"]}, {"type", call["type"]}, {"function", call["function"]}});
      } else {
        ordered_json& arguments = message["tool_calls"].at(index)["function"]["arguments"];
        arguments = arguments.get<std::string>() + call["function"]["arguments"].get<std::string>();
      }
    }
  }
  return message;
}

// Where one call is all there may be, its end mark is a stop text, which is cut away.
TEST(ChatChoice, ACallThatItsEndStopsIsWhole) {
  struct Case {
    CallFormat format;
    std::string answer, arguments;
  };
  const std::string v3 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>";
  for (const auto& [format, answer, arguments] :
       {Case{CallFormat::v3, v3 + "function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜> more",
             "{\"a\": 1}"},
        Case{CallFormat::v3_1, v3 + "f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜> more", "{\"a\": 1}"},
        Case{CallFormat::deepseek_v3_2,
             "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" "
             "string=\"false\">1</｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" "
             "string=\"true\">x</｜DSML｜parameter>\n</｜DSML｜invoke> more",
             "{\"a\": 1, \"b\": \"x\"}"},
        Case{CallFormat::deepseek_v3_2, "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n</｜DSML｜invoke> more",
             "{}"}}) {
    for (const size_t piece : {answer.size(), size_t{1}, size_t{5}}) {
      StopFilter filter({call_end(format)});
      ChatChoice choice({.calls = format}, "call_");
      std::vector<ordered_json> deltas;
      const auto add = [&](const std::vector<ordered_json>& more) {
        deltas.insert(deltas.end(), more.begin(), more.end());
      };
      for (size_t at = 0; at < answer.size(); at += piece) add(choice.push(filter.push(answer.substr(at, piece))));
      ASSERT_TRUE(filter.stopped());
      add(choice.finish(filter.stopped_by()));
      EXPECT_EQ(choice.message()["tool_calls"][0]["function"]["arguments"], arguments) << answer;
      EXPECT_EQ(joined(deltas), choice.message()) << answer;
      EXPECT_TRUE(choice.message()["content"].is_null()) << choice.message();
    }
  }
  ChatChoice silent({.calls = CallFormat::v3_1}, "call_");
  silent.push("Hi");
  silent.finish("<｜tool▁call▁end｜>");
  EXPECT_EQ(silent.message()["content"], "Hi") << "no call, no end of one";
}

TEST(ChatChoice, DeltasAddUpToTheMessage) {
  const ordered_json want =
      json(R"({"role": "assistant", "content": "I look.", "refusal": null, "reasoning_content": "hm", "tool_calls": [
    {"id": "call_7_0", "type": "function", "function": {"name": "f", "arguments": "{\"a\": \"ü\"}"}},
    {"id": "call_7_1", "type": "function", "function": {"name": "g", "arguments": "{}"}}]})");
  const std::string answer = kAnswer;
  for (const size_t piece : {answer.size(), size_t{1}, size_t{7}}) {
    ChatChoice choice({CallFormat::v3_1, true}, "call_7_");
    std::vector<ordered_json> deltas;
    const auto add = [&](const std::vector<ordered_json>& more) {
      deltas.insert(deltas.end(), more.begin(), more.end());
    };
    for (size_t at = 0; at < answer.size(); at += piece) add(choice.push(answer.substr(at, piece)));
    add(choice.finish());
    EXPECT_EQ(joined(deltas), want) << piece;
    EXPECT_EQ(choice.message(), want) << piece;
    EXPECT_TRUE(choice.calls_tools());
  }
}

// Drafts bring several tokens at a time, and the end of thoughts among them.
TEST(ReasoningCount, IsTheSameHoweverManyTokensCome) {
  const Tokenizer bytes = Tokenizer::bytes();
  const std::string answer = kAnswer;
  std::vector<int32_t> ids;
  for (const char byte : answer) ids.push_back(static_cast<uint8_t>(byte));
  for (const size_t piece : {ids.size(), size_t{1}, size_t{3}, size_t{7}}) {
    ReasoningCount count(bytes, {CallFormat::v3_1, true}, "");
    for (size_t at = 0; at < ids.size(); at += piece)
      count.take(std::span(ids).subspan(at, std::min(piece, ids.size() - at)));
    EXPECT_EQ(count.tokens(), std::ssize(std::string("hm</think"))) << piece;
  }
  ReasoningCount begun(bytes, {CallFormat::v3_1, true}, "</think>");
  begun.take(ids);
  EXPECT_EQ(begun.tokens(), 0);
}

TEST(ChatChoice, SaysWhatIsMissingAsOpenAIDoes) {
  ChatChoice nothing({}, "call_");
  EXPECT_TRUE(nothing.finish().empty());
  EXPECT_EQ(nothing.message(), json(R"({"role": "assistant", "content": "", "refusal": null})"));
  ChatChoice only_calls({CallFormat::v3_1}, "call_");
  only_calls.push("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}");
  only_calls.finish();
  EXPECT_TRUE(only_calls.message()["content"].is_null());
}

TEST(Response, UsageHasBothNamesOfCachedTokens) {
  Usage usage{.prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 5, .reasoning_tokens = 2};
  usage += {.prompt_tokens = 1, .completion_tokens = 1};
  EXPECT_EQ(usage_json(usage), json(R"({"prompt_tokens": 11, "completion_tokens": 6, "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2},
    "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 7})"));
}

TEST(Response, FinishReasons) {
  EXPECT_STREQ(finish_reason_json(FinishReason::eos, false), "stop");
  EXPECT_STREQ(finish_reason_json(FinishReason::stop, false), "stop");
  EXPECT_STREQ(finish_reason_json(FinishReason::eos, true), "tool_calls");
  EXPECT_STREQ(finish_reason_json(FinishReason::length, true), "length");
  EXPECT_STREQ(finish_reason_json(FinishReason::context, false), "length");
}

TEST(Response, LogprobsOfBothApis) {
  const Tokenizer bytes = Tokenizer::bytes();
  const std::vector<int32_t> ids = {'a', 0xC3, 0xBC, 'b'};
  const std::vector<TokenLogprobs> logprobs = {
      {-0.5f, {{'a', -0.5f}, {'z', -2}}}, {-1, {{0xC4, -0.75f}, {0xC3, -1}}}, {-3, {{'x', -0.25f}}}, {-1.5f, {}}};
  const ordered_json chat = chat_logprobs_json(bytes, ids, logprobs);
  ASSERT_EQ(chat["content"].size(), 4u);
  EXPECT_EQ(chat["content"][0], json(R"({"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
    {"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "z", "logprob": -2.0, "bytes": [122]}]})"));
  EXPECT_EQ(chat["content"][1]["bytes"], json("[195]"));
  TextOffset offset(bytes, false);
  const ordered_json completion = completion_logprobs_json(bytes, ids, logprobs, offset);
  EXPECT_EQ(completion["token_logprobs"], json("[-0.5, -1.0, -3.0, -1.5]"));
  EXPECT_EQ(completion["text_offset"], json("[0, 1, 1, 2]")) << "a character of two tokens";
  EXPECT_EQ(completion_logprobs_json(bytes, ids, logprobs, offset)["text_offset"], json("[3, 4, 4, 5]"));
  TextOffset echoed(bytes, true);
  const std::vector<int32_t> broken = {'a', 0xe6, 0x97};  // U+FFFD where it ends
  EXPECT_EQ(prompt_logprobs_json(bytes, broken, {logprobs.begin(), 2}, echoed)["text_offset"], json("[0, 1, 1]"));
  EXPECT_EQ(completion_logprobs_json(bytes, ids, logprobs, echoed)["text_offset"], json("[2, 3, 3, 4]"));
  EXPECT_EQ(completion["top_logprobs"][0], json(R"({"a": -0.5, "z": -2.0})"));
  EXPECT_EQ(completion["top_logprobs"][1], json(R"({"bytes:\\xc4": -0.75, "bytes:\\xc3": -1.0})"))
      << "parts of characters";
  EXPECT_EQ(completion["top_logprobs"][2], json(R"({"x": -0.25, "bytes:\\xbc": -3.0})")) << "its own is there too";
  EXPECT_EQ(completion["tokens"], json(R"(["a", "bytes:\\xc3", "bytes:\\xbc", "b"])"));
  EXPECT_EQ(completion["top_logprobs"][3], json(R"({"b": -1.5})"));
}

TEST(Response, ABeginTokenThatNobodyGaveTakesNoPlace) {
  const Tokenizer bytes = Tokenizer::bytes();
  const std::vector<int32_t> prompt = {bytes.eos_id(), 'a', 'b'};
  const std::vector<TokenLogprobs> logprobs = {{-0.5f, {}}, {-1, {}}, {-2, {}}};
  TextOffset unsaid(bytes, true, true);
  EXPECT_EQ(prompt_logprobs_json(bytes, prompt, {logprobs.begin(), 2}, unsaid)["text_offset"], json("[0, 0, 1]"));
  EXPECT_EQ(unsaid.before('c'), 2);
}

TEST(Response, RankedLogprobsOfPrompts) {
  const Tokenizer bytes = Tokenizer::bytes();
  const std::vector<int32_t> prompt = {'a', 'b', 0xC3};
  const std::vector<TokenLogprobs> logprobs = {{-0.5f, {{'b', -0.5f}, {'z', -2}}, 1}, {-4, {{'x', -1}, {'y', -1}}, 9}};
  EXPECT_EQ(ranked_logprobs_json(bytes, prompt, logprobs, 2), json(R"([null,
    {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}, "122": {"logprob": -2.0, "rank": 2, "decoded_token": "z"}},
    {"195": {"logprob": -4.0, "rank": 9, "decoded_token": "�"}, "120": {"logprob": -1.0, "rank": 1, "decoded_token": "x"},
     "121": {"logprob": -1.0, "rank": 2, "decoded_token": "y"}}])"));
  EXPECT_EQ(ranked_logprobs_json(bytes, {prompt.begin(), 2}, {logprobs.begin(), 1}, 0),
            json(R"([null, {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}])"))
      << "no more than asked for";
  EXPECT_EQ(ranked_logprobs_json(bytes, {prompt.begin(), 1}, {}, 2), json("[null]"));
}

}  // namespace
}  // namespace fathom::serve
