// Anthropic's bodies and events in terms of OpenAI's.
#include "serve/messages_api.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

ordered_json chat_of(const char* body, bool counts = false) {
  return ordered_json::parse(chat_body_of_messages(body, counts));
}

std::string refusal(const std::string& body) {
  try {
    return "took it: " + chat_body_of_messages(body, false);
  } catch (const ApiError& error) {
    return error.what();
  }
}

TEST(Messages, AskForTheSameAsAChat) {
  EXPECT_EQ(
      chat_of(R"({"model": "m", "max_tokens": 9, "system": "Be brief.", "messages": [{"role": "user", "content": "Hi"}],
                        "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop_sequences": ["x"], "stream": true,
                        "metadata": {"user_id": "u"}, "thinking": {"type": "enabled", "budget_tokens": 2000}})"),
      ordered_json::parse(
          R"({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
                        "model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stream": true, "stop": ["x"], "user_id": "u",
                        "thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 9})"));
  EXPECT_EQ(
      chat_of(
          R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
                        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]})",
          true),
      ordered_json::parse(R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "ab"}]})"));
}

TEST(Messages, ToolsAndTheirResults) {
  const ordered_json chat = chat_of(R"({"max_tokens": 1, "messages": [
      {"role": "user", "content": "weather?"},
      {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "Let me see."},
                                        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}]},
      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
                                   {"type": "text", "text": "and?"}]}],
      "tools": [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any", "disable_parallel_tool_use": true}})");
  EXPECT_EQ(chat["messages"], ordered_json::parse(R"([
      {"role": "user", "content": "weather?"},
      {"role": "assistant", "content": "Let me see.", "reasoning_content": "hm", "tool_calls":
          [{"id": "t1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Rome\"}"}}]},
      {"role": "tool", "tool_call_id": "t1", "content": "sun"},
      {"role": "user", "content": "and?"}])"));
  EXPECT_EQ(chat["tools"], ordered_json::parse(R"([{"type": "function", "function":
      {"name": "weather", "description": "d", "parameters": {"type": "object"}}}])"));
  EXPECT_EQ(chat["tool_choice"], "required");
  EXPECT_EQ(chat["parallel_tool_calls"], false);
  EXPECT_EQ(chat_of(R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}],
                        "tool_choice": {"type": "tool", "name": "f"}})")["tool_choice"]["function"]["name"],
            "f");
}

TEST(Messages, WhatAChatKnowsIsPassedOn) {
  const ordered_json chat = chat_of(R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "seed": 3,
      "presence_penalty": 1, "max_completion_tokens": 9, "tools": [{"name": "f", "strict": true}]})");
  EXPECT_EQ(chat, ordered_json::parse(R"({"messages": [{"role": "user", "content": "a"}],
      "tools": [{"type": "function", "function": {"name": "f", "strict": true}}], "seed": 3, "presence_penalty": 1,
      "max_tokens": 1})"));
}

TEST(Messages, WhatIsWrongHasTheNameOfTheField) {
  const auto said = [](const std::string& what, const std::string& param) {
    const ApiError own = messages_error({400, what, param});
    return own.param + " | " + own.what();
  };
  EXPECT_EQ(said("stop: at most 16 texts", "stop"), "stop_sequences | stop_sequences: at most 16 texts");
  EXPECT_EQ(said("response_format: x", "response_format"), "output_config.format | output_config.format: x");
  EXPECT_EQ(said("tools[2].function.parameters: x", "tools"), "tools | tools[2].input_schema: x");
  EXPECT_EQ(said("temperature: x", "temperature"), "temperature | temperature: x");
}

TEST(Messages, ALastAnswerIsGoneOnWith) {
  const ordered_json chat = chat_of(
      R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})");
  EXPECT_EQ(chat["messages"][1], ordered_json::parse(R"({"role": "assistant", "content": "b", "prefix": true})"));
  EXPECT_NO_THROW(parse_chat_request(chat.dump()));
}

TEST(Messages, SayWhatIsWrong) {
  const std::string user = R"("messages": [{"role": "user", "content": "a"}])";
  for (
      const auto& [body, what] : std::initializer_list<std::pair<std::string, const char*>>{
          {"[]", "the request body must be a JSON object"},
          {"{", "request body"},
          {"{" + user + "}", "max_tokens: is missing"},
          {R"({"max_tokens": 1})", "messages: must be a list that is not empty"},
          {R"({"max_tokens": 1, "messages": []})", "messages: must be a list that is not empty"},
          {R"({"max_tokens": 1, "messages": [1]})", "messages[0]: must be an object"},
          {R"({"max_tokens": 1, "messages": [{"role": "system", "content": "a"}]})",
           "messages[0].role: must be user or assistant"},
          {R"({"max_tokens": 1, "messages": [{"role": "user"}]})", "messages[0].content: is missing"},
          {R"({"max_tokens": 1, "messages": [{"role": "user", "content": 5}]})",
           "messages[0].content: must be a string or a list"},
          {R"({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]})",
           "messages[0].content[0].type: image cannot be read"},
          {R"({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "tool_result"}]}]})",
           "messages[0].content[0].tool_use_id: must be a string"},
          {R"({"max_tokens": 1, "messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": 3}]}]})",
           "messages[0].content[0].input: must be an object"},
          {"{" + user + R"(, "max_tokens": 1, "system": 5})", "system: must be a string or a list"},
          {"{" + user + R"(, "max_tokens": 1, "tools": {}})", "tools: must be a list"},
          {"{" + user + R"(, "max_tokens": 1, "tools": [{"type": "web_search_20250305", "name": "w"}]})",
           "tools[0].type: must be custom"},
          {"{" + user + R"(, "max_tokens": 1, "tool_choice": "any"})", "tool_choice: must be an object"},
          {"{" + user + R"(, "max_tokens": 1, "thinking": {"type": "on"}})", "thinking.type: must be enabled"},
          {"{" + user + R"(, "max_tokens": 1, "tools": [{"name": "f", "strict": 1}]})",
           "tools[0].strict: must be true or false"},
          {"{" + user + R"(, "max_tokens": 1, "logprobs": true})", "logprobs: is not supported here"},
          {"{" + user + R"(, "max_tokens": 1, "stop_sequences": "x"})", "stop_sequences: must be a list"},
      }) {
    EXPECT_EQ(refusal(body).find(what), 0u) << body << ": " << refusal(body);
  }
}

// Any value anywhere is refused or becomes what a chat may be.
TEST(Messages, AnyKindOfValueAnywhere) {
  const ordered_json whole =
      ordered_json::parse(R"({"model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "s"}], "messages":
      [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}, {"type": "text", "text": "a"}]},
       {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "tool_use", "id": "t", "name": "f", "input": {}}]}],
      "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}], "tool_choice": {"type": "tool", "name": "f"},
      "stop_sequences": ["x"], "metadata": {"user_id": "u"}, "thinking": {"type": "enabled"}, "temperature": 1})");
  const std::vector<ordered_json> values = {
      nullptr, true, 5, -1.5, "x", "", ordered_json::array(), ordered_json::object(), ordered_json::array({1})};
  const ordered_json flat = whole.flatten();
  std::vector<std::string> paths;
  for (const auto& [path, value] : flat.items()) {
    for (size_t end = path.size(); end != std::string::npos && end > 0; end = path.rfind('/', end - 1))
      paths.push_back(path.substr(0, end));
  }
  int taken = 0, refused = 0;
  for (const std::string& path : paths) {
    for (const ordered_json& value : values) {
      ordered_json body = whole;
      body[ordered_json::json_pointer(path)] = value;
      try {
        parse_chat_request(chat_body_of_messages(body.dump(), false));
        ++taken;
      } catch (const ApiError& error) {
        EXPECT_EQ(error.status, 400);
        ++refused;
      }
    }
  }
  EXPECT_GT(taken, 50);
  EXPECT_GT(refused, 200);
}

TEST(Messages, WholeAnswers) {
  const ordered_json choice =
      ordered_json::parse(R"({"role": "assistant", "content": "Yes.", "reasoning_content": "hm", "tool_calls":
      [{"id": "c0", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
       {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{\"a\": "}}]})");
  EXPECT_EQ(message_json("msg_1", "m", choice, {"tool_calls", ""},
                         {.prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 7}),
            ordered_json::parse(R"({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [
      {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "Yes."},
      {"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}},
      {"type": "tool_use", "id": "c1", "name": "g", "input": {"arguments": "{\"a\": "}}],
      "stop_reason": "tool_use", "stop_sequence": null,
      "usage": {"input_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 7}})"));
  const ordered_json empty = ordered_json::parse(R"({"role": "assistant", "content": ""})");
  const auto reason = [&](const char* finish, const char* stop) {
    return message_json("", "", empty, {finish, stop}, {})["stop_reason"];
  };
  EXPECT_EQ(reason("stop", ""), "end_turn");
  EXPECT_EQ(reason("stop", "x"), "stop_sequence");
  EXPECT_EQ(reason("length", ""), "max_tokens");
}

// The blocks that the events build, as clients put them together.
ordered_json blocks_of(const std::string& events) {
  ordered_json blocks = ordered_json::array();
  std::vector<bool> ended;
  for (size_t at = 0; at < events.size();) {
    const size_t end = events.find("\n\n", at), data = events.find("\ndata: ", at);
    const ordered_json event = ordered_json::parse(events.substr(data + 7, end - data - 7));
    EXPECT_EQ(events.substr(at, data - at), "event: " + event["type"].get<std::string>());
    at = end + 2;
    const std::string type = event["type"];
    if (type == "content_block_start") {
      EXPECT_EQ(event["index"], blocks.size());
      EXPECT_TRUE(ended.empty() || ended.back());
      blocks.push_back(event["content_block"]);
      ended.push_back(false);
    } else if (type == "content_block_delta") {
      EXPECT_EQ(event["index"], blocks.size() - 1);
      EXPECT_FALSE(ended.back());
      const ordered_json& delta = event["delta"];
      if (delta["type"] == "input_json_delta") {
        blocks.back()["input"] = (blocks.back()["input"].is_string() ? blocks.back()["input"].get<std::string>() : "") +
                                 delta["partial_json"].get<std::string>();
      } else if (delta["type"] == "text_delta") {
        blocks.back()["text"] = blocks.back()["text"].get<std::string>() + delta["text"].get<std::string>();
      } else if (delta["type"] == "thinking_delta") {
        blocks.back()["thinking"] = blocks.back()["thinking"].get<std::string>() + delta["thinking"].get<std::string>();
      }
    } else if (type == "content_block_stop") {
      ended.back() = true;
    }
  }
  for (const bool one : ended) EXPECT_TRUE(one);
  return blocks;
}

TEST(Messages, StreamsAreBlocksOneBehindTheOther) {
  MessageStream stream;
  std::string events = stream.begin("msg_1", "m", 10);
  for (
      const char* delta :
      {R"({"reasoning_content": "h"})", R"({"reasoning_content": "m"})", R"({"content": "Y"})", R"({"content": "es."})",
       "{}",
       R"({"tool_calls": [{"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}}]})",
       R"({"tool_calls": [{"index": 0, "function": {"arguments": "{\"a\""}}]})",
       R"({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]})",
       R"({"tool_calls": [{"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": ""}}]})"}) {
    events += stream.push(ordered_json::parse(delta));
  }
  events += stream.finish({"tool_calls", ""}, {.prompt_tokens = 10, .completion_tokens = 3});
  EXPECT_EQ(
      blocks_of(events),
      ordered_json::parse(R"([{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "Yes."},
      {"type": "tool_use", "id": "c0", "name": "f", "input": "{\"a\":1}"}, {"type": "tool_use", "id": "c1", "name": "g", "input": {}}])"));
  EXPECT_EQ(events.find("event: message_start\n"), 0u);
  EXPECT_TRUE(events.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"));
  EXPECT_NE(events.find("\"stop_reason\":\"tool_use\""), std::string::npos);
}

}  // namespace
}  // namespace fathom::serve
