// OpenAI's Responses in terms of its chats.
#include "serve/responses_api.h"

#include <gtest/gtest.h>

#include "serve/request.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

ordered_json chat_of(const char* body) { return ordered_json::parse(response_input(body).chat); }

std::string refusal(const std::string& body) {
  try {
    return "took it: " + response_input(body).chat;
  } catch (const ApiError& error) {
    return error.what();
  }
}

TEST(Responses, AskForTheSameAsAChat) {
  EXPECT_EQ(
      chat_of(
          R"({"model": "m", "input": "Hi", "instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0.5, "stream": true,
              "reasoning": {"effort": "high"}, "text": {"format": {"type": "json_schema", "name": "n", "strict": true, "schema": {}}},
              "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true}],
              "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false, "store": true, "metadata": {"a": "b"}})"),
      ordered_json::parse(
          R"({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
              "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true}}],
              "parallel_tool_calls": false, "tool_choice": {"type": "function", "function": {"name": "f"}},
              "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {}}},
              "model": "m", "temperature": 0.5, "stream": true, "max_completion_tokens": 9, "reasoning_effort": "high"})"));
  const ordered_json echo = response_input(R"({"input": "a", "temperature": 0.25, "metadata": {"a": "b"}})").echo;
  EXPECT_EQ(echo["temperature"], 0.25);
  EXPECT_EQ(echo["metadata"]["a"], "b");
  EXPECT_EQ(echo["store"], false);
}

TEST(Responses, ItemsOfOneTurnAreOneMessage) {
  const ordered_json chat = chat_of(R"({"input": [
      {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
      {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
      {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
      {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}"},
      {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
      {"type": "function_call_output", "call_id": "c1", "output": "sun"},
      {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
      {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "and?"}]})");
  EXPECT_EQ(chat["messages"], ordered_json::parse(R"([
      {"role": "user", "content": "weather?"},
      {"role": "assistant", "content": "Let me see.", "reasoning_content": "hm", "tool_calls": [
          {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
          {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}}]},
      {"role": "tool", "tool_call_id": "c1", "content": "sun"}, {"role": "tool", "tool_call_id": "c2", "content": "noon"},
      {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "and?"}])"));
  EXPECT_NO_THROW(parse_chat_request(chat.dump()));
}

TEST(Responses, SayWhatIsWrong) {
  for (const auto& [body, what] : std::initializer_list<std::pair<std::string, const char*>>{
           {"[]", "the request body must be a JSON object"},
           {"{}", "input: is missing"},
           {R"({"input": []})", "input: must be a string or a list that is not empty"},
           {R"({"input": 5})", "input: must be a string or a list"},
           {R"({"input": [5]})", "input[0]: must be an object"},
           {R"({"input": [{"content": "a"}]})", "input[0].role: must be a string"},
           {R"({"input": [{"role": "user"}]})", "input[0].content: is missing"},
           {R"({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})",
            "input[0].content[0].type: input_image cannot be read"},
           {R"({"input": [{"type": "web_search_call"}]})", "input[0].type: web_search_call is not known here"},
           {R"({"input": [{"type": "function_call", "name": "f"}]})", "input[0].call_id: must be a string"},
           {R"({"input": [{"type": "function_call_output", "call_id": "c"}]})", "input[0].output: is missing"},
           {R"({"input": "a", "previous_response_id": "resp_1"})", "previous_response_id: nothing is stored here"},
           {R"({"input": "a", "background": true})", "background: answers come with the request alone"},
           {R"({"input": "a", "tools": [{"type": "web_search"}]})", "tools[0].type: must be function"},
           {R"({"input": "a", "text": {"format": 5}})", "text.format: must be an object"},
           {R"({"input": "a", "max_tool_calls": 2})", "max_tool_calls: is not supported"},
           {R"({"input": "a", "truncation": "auto"})", "truncation: must be disabled"},
           {R"({"input": "a", "include": ["message.output_text.logprobs"]})",
            "include: message.output_text.logprobs is not supported"},
           {R"({"input": "a", "top_logprobs": 2})", "top_logprobs: is not supported here"},
           {R"({"input": "a", "logprobs": true})", "logprobs: is not supported here"},
           {R"({"input": "a", "n": 2})", "n: is not supported here"},
           {R"({"input": "a", "n": false})", "n: is not supported here"},
           {R"({"input": "a", "best_of": 0})", "best_of: is not supported here"},
           {R"({"input": "a", "reasoning": "high"})", "reasoning: must be an object"},
       }) {
    EXPECT_EQ(refusal(body).find(what), 0u) << body << ": " << refusal(body);
  }
}

TEST(Responses, WhatAChatKnowsIsPassedOn) {
  const ordered_json chat = chat_of(R"({"input": "a", "stop": ["x"], "presence_penalty": 1, "frequency_penalty": 0.5,
      "thinking_token_budget": 7, "bad_words": ["y"], "n": 1, "best_of": 1, "logprobs": false, "top_logprobs": 0, "truncation": "disabled",
      "include": ["reasoning.encrypted_content"], "messages": [], "store": false})");
  EXPECT_EQ(chat, ordered_json::parse(R"({"messages": [{"role": "user", "content": "a"}], "stop": ["x"],
      "presence_penalty": 1, "frequency_penalty": 0.5, "thinking_token_budget": 7, "bad_words": ["y"]})"));
}

TEST(Responses, WhatIsWrongHasTheNameOfTheField) {
  const auto said = [](const std::string& fields) {
    try {
      parse_chat_request(response_input(R"({"input": "a")" + fields + "}").chat);
    } catch (const ApiError& error) {
      const ApiError own = response_error(error);
      return own.param + " | " + own.what();
    }
    return std::string("took it");
  };
  EXPECT_EQ(said(R"(, "max_output_tokens": "9")"), "max_output_tokens | max_output_tokens: must be an integer");
  EXPECT_EQ(said(R"(, "bad_words": ["y"])"), "bad_words | bad_words: is not supported");
  EXPECT_EQ(said(R"(, "text": {"format": {"type": "x"}})"),
            "text.format.type | text.format.type: must be text, json_object or json_schema");
  EXPECT_EQ(said(R"(, "text": {"format": {"type": "json_schema"}})"),
            "text.format.schema | text.format.schema: is missing");
  EXPECT_EQ(said(R"(, "tools": [{"type": "function", "name": "a b"}])"),
            "tools[0].name | tools[0].name: has 1 to 64 letters, digits, _, - and .");
  EXPECT_EQ(said(R"(, "reasoning": {"effort": "x"})").find("reasoning.effort | reasoning.effort: must be none"), 0u);
  const ApiError place = response_error({400, "messages: messages[2].x: is not there", "messages", "c"});
  EXPECT_EQ(std::string(place.what()), "input: is not there");
  EXPECT_EQ(place.param + place.code, "inputc");
  EXPECT_STREQ(response_error({400, "too long", "messages"}).what(), "input: too long");
}

std::vector<ordered_json> events_of(const std::string& text) {
  std::vector<ordered_json> events;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find("\n\n", at), data = text.find("\ndata: ", at);
    events.push_back(ordered_json::parse(text.substr(data + 7, end - data - 7)));
    EXPECT_EQ(text.substr(at, data - at), "event: " + events.back()["type"].get<std::string>());
    EXPECT_EQ(events.back()["sequence_number"], events.size() - 1);
    at = end + 2;
  }
  return events;
}

TEST(Responses, StreamsAreItemsOneBehindTheOther) {
  ResponseStream stream("resp_1", "m", 5, {{"temperature", 1}});
  std::string text = stream.begin();
  for (const char* delta :
       {R"({"reasoning_content": "h"})", R"({"reasoning_content": "m"})", R"({"content": "Y"})",
        R"({"content": "es."})", "{}",
        R"({"tool_calls": [{"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}}]})",
        R"({"tool_calls": [{"index": 0, "function": {"arguments": "{\"a\""}}]})",
        R"({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]})"}) {
    text += stream.push(ordered_json::parse(delta));
  }
  text += stream.finish("tool_calls", {.prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 3});
  const std::vector<ordered_json> events = events_of(text);
  std::vector<std::string> types;
  for (const ordered_json& event : events) types.push_back(event["type"]);
  EXPECT_EQ(types, (std::vector<std::string>{"response.created",
                                             "response.in_progress",
                                             "response.output_item.added",
                                             "response.content_part.added",
                                             "response.reasoning_text.delta",
                                             "response.reasoning_text.delta",
                                             "response.reasoning_text.done",
                                             "response.content_part.done",
                                             "response.output_item.done",
                                             "response.output_item.added",
                                             "response.content_part.added",
                                             "response.output_text.delta",
                                             "response.output_text.delta",
                                             "response.output_text.done",
                                             "response.content_part.done",
                                             "response.output_item.done",
                                             "response.output_item.added",
                                             "response.function_call_arguments.delta",
                                             "response.function_call_arguments.delta",
                                             "response.function_call_arguments.done",
                                             "response.output_item.done",
                                             "response.completed"}));
  const ordered_json whole = events.back()["response"];
  EXPECT_EQ(whole, stream.response());
  EXPECT_EQ(whole["status"], "completed");
  EXPECT_EQ(whole["output"][0]["content"][0]["text"], "hm");
  EXPECT_EQ(whole["output"][1]["content"][0]["text"], "Yes.");
  EXPECT_EQ(whole["output"][2]["arguments"], "{\"a\":1}");
  EXPECT_EQ(whole["output"][2]["call_id"], "c0");
  EXPECT_EQ(whole["usage"]["input_tokens_details"]["cached_tokens"], 4);
  for (const ordered_json& item : whole["output"]) EXPECT_EQ(item["status"], "completed");
  // What the events tell of an item is what it is in the end.
  std::vector<ordered_json> done;
  for (const ordered_json& event : events) {
    if (event["type"] == "response.output_item.done") done.push_back(event["item"]);
  }
  EXPECT_EQ(ordered_json(done), whole["output"]);
}

TEST(Responses, WhatIsCutOffOrFailsSaysSo) {
  ResponseStream cut("resp_1", "m", 5, ordered_json::object());
  cut.push({{"content", "Yes"}});
  const std::vector<ordered_json> first = events_of(ResponseStream("r", "m", 5, ordered_json::object()).begin());
  EXPECT_EQ(first[0]["response"]["status"], "in_progress");
  cut.finish("length", {});
  EXPECT_EQ(cut.response()["status"], "incomplete");
  EXPECT_EQ(cut.response()["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(cut.response()["output"][0]["status"], "incomplete");
  ResponseStream failed("resp_1", "m", 5, ordered_json::object());
  const ordered_json event = events_of(failed.fail("no", "server_error"))[0];
  EXPECT_EQ(event["type"], "response.failed");
  EXPECT_EQ(event["response"]["error"]["message"], "no");
}

}  // namespace
}  // namespace fathom::serve
