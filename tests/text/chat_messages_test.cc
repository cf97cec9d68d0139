#include "text/chat_messages.h"

#include <gmock/gmock.h>

#include "refusal.h"
#include "text/chat.h"
#include "tokenizer_fixture.h"

namespace fathom {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;

std::string source_of(const std::string& name) {
  return name == kDeepseekV32Encoding ? name : test::slurp(std::string(FATHOM_TEST_DATA) + "/chat/" + name + ".jinja");
}

ordered_json json(const char* text) { return ordered_json::parse(text); }

std::string rendered(const std::string& name, const char* messages, const ordered_json& tools = nullptr) {
  return render_chat(source_of(name), json(messages), {.tools = tools, .bos_token = "B", .eos_token = "E"});
}

const ordered_json kTools = json(R"([
  {"type": "function", "function": {"name": "get_weather", "description": "Of a city",
   "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}},
  {"type": "function", "function": {"name": "now"}}])");

TEST(ChatMessages, ToolsAreToldInTheWordsOfTheFamily) {
  EXPECT_EQ(
      rendered("deepseek-v3.1", R"([{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}])", kTools),
      R"(BS

## Tools
You have access to the following tools:

### get_weather
Description: Of a city

Parameters: {"type": "object", "properties": {"city": {"type": "string"}}}

### now
Description: 

Parameters: {"type": "object", "properties": {}}

IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>{{additional_tool_calls}}<｜tool▁calls▁end｜>

Where:

- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces
<｜User｜>Q<｜Assistant｜></think>)");
  const std::string tool =
      R"({"type": "function", "function": {"name": "get_weather", "description": "Of a city", "parameters": )"
      R"({"type": "object", "properties": {"city": {"type": "string"}}}}})";
  for (const char* name : {"deepseek-v3", "deepseek-v3-api-zip"}) {
    const std::string text = rendered(name, R"([{"role": "user", "content": "Q"}])", kTools);
    EXPECT_TRUE(text.starts_with("B# Tools\n\nYou may call one or more functions")) << text;
    EXPECT_THAT(text, HasSubstr("<tools>\n" + tool + "\n"));
    EXPECT_THAT(text, HasSubstr("<｜tool▁call▁begin｜>function<｜tool▁sep｜><function_name>\n```json\n"));
    EXPECT_TRUE(text.ends_with("<｜end▁of▁sentence｜><｜User｜>Q<｜Assistant｜>")) << text;
  }
  for (const char* name : {"deepseek-r1", "deepseek-r1-distill-qwen"}) {
    const std::string text =
        rendered(name, R"([{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}])", kTools);
    EXPECT_TRUE(text.starts_with("BS\n\nYou are a helpful assistant with tool calling capabilities.")) << text;
    EXPECT_THAT(text, HasSubstr("\n```json\n" + tool + "\n```\n"));
  }
}

TEST(ChatMessages, TemplatesThatReadToolsTellOfThemThemselves) {
  for (const char* name : {"deepseek-v3.2", "kimi-k2"}) {
    EXPECT_TRUE(reads_tools(source_of(name))) << name;
    const std::string text = rendered(name, R"([{"role": "user", "content": "Q"}])", kTools);
    EXPECT_EQ(text.find("get_weather"), text.rfind("get_weather")) << text;
  }
  for (const char* name : {"deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1", "deepseek-v3-api-zip"}) {
    EXPECT_FALSE(reads_tools(source_of(name))) << name;
  }
}

TEST(ChatMessages, NoDeveloperIsPassedOver) {
  for (const char* name : {"deepseek-v2", "deepseek-v3", "deepseek-v3-api-zip", "deepseek-v3.1", "deepseek-r1",
                           "deepseek-v3.2", "kimi-k2"}) {
    const std::string text = rendered(name, R"([{"role": "system", "content": "Sys"},
        {"role": "developer", "content": "Dev"}, {"role": "user", "content": "Q"}])");
    EXPECT_THAT(text, HasSubstr("Sys")) << name;
    EXPECT_THAT(text, HasSubstr("Dev")) << name;
    EXPECT_EQ(text,
              rendered(name, std::string(name) == "deepseek-r1"
                                 ? R"([{"role": "system", "content": "Sys\n\nDev"}, {"role": "user", "content": "Q"}])"
                                 : R"([{"role": "system", "content": "Sys"},
        {"role": "system", "content": "Dev"}, {"role": "user", "content": "Q"}])"))
        << name;
  }
  EXPECT_THAT(rendered(std::string(kDeepseekV32Encoding), R"([{"role": "developer", "content": "Dev"}])"),
              HasSubstr("# The user's message is: Dev"));
}

// Clients send back calls beside the empty text of a stream's first delta, or the text that came in front of them.
TEST(ChatMessages, CallsAreToldWhateverStandsBesideThem) {
  const auto conversation = [](const std::string& content) {
    return R"([{"role": "user", "content": "Q"}, {"role": "assistant", "content": )" + content + R"(, "tool_calls": [
      {"id": "a", "type": "function", "function": {"name": "hunt", "arguments": "{\"x\": 7}"}}]},
      {"role": "tool", "tool_call_id": "a", "content": "R"}])";
  };
  for (const char* name : {"deepseek-v3", "deepseek-v3-api-zip", "deepseek-r1", "deepseek-v3.1", "deepseek-v3.2",
                           "deepseek-r1-distill-qwen", "kimi-k2"}) {
    const std::string alone = rendered(name, conversation("null").c_str());
    EXPECT_EQ(rendered(name, conversation("\"\"").c_str()), alone) << name;
    const std::string text = rendered(name, conversation("\"I look.\"").c_str());
    const size_t said = text.find("I look."), call = text.find("hunt", said), result = text.find("R", call);
    EXPECT_TRUE(said != std::string::npos && call != std::string::npos && result != std::string::npos)
        << name << ": " << text;
    EXPECT_EQ(text.find("I look.", said + 1), std::string::npos) << name << ": " << text;
    EXPECT_EQ(text.find("hunt", call + 4), std::string::npos) << name << ": " << text;
  }
  EXPECT_THAT(rendered("deepseek-v3", conversation("\"\"").c_str()),
              HasSubstr("<｜tool▁sep｜>hunt\n```json\n{\"x\": 7}\n```<｜tool▁call▁end｜>"));
  EXPECT_EQ(rendered("deepseek-v3-api-zip", conversation("\"I look.\"").c_str()).find("E<｜Assistant｜>"),
            std::string::npos)
      << "a template that has words for both";
}

TEST(ChatMessages, ArgumentsAreMadeJsonOnce) {
  const auto conversation = [](const std::string& arguments) {
    return R"([{"role": "user", "content": "Q"}, {"role": "assistant", "content": null, "tool_calls": [
      {"id": "a", "type": "function", "function": {"name": "fun", "arguments": )" +
           arguments + "}}]}]";
  };
  EXPECT_THAT(rendered("kimi-k2", conversation(R"("{\"x\": [7]}")").c_str()),
              HasSubstr(R"(<|tool_call_argument_begin|>{"x": [7]}<|tool_call_end|>)"));
  EXPECT_THAT(rendered("kimi-k2", conversation(R"("{three}")").c_str()),
              HasSubstr(R"(<|tool_call_argument_begin|>"{three}"<|tool_call_end|>)"));
  EXPECT_THAT(rendered("deepseek-v3.2", conversation(R"("{\"x\": [7]}")").c_str()),
              HasSubstr(R"(<｜DSML｜parameter name="x" string="false">[7]</｜DSML｜parameter>)"));
}

// Models break JSON, limits cut it, and who asks for no thoughts sends none back.
TEST(ChatMessages, TheEncodingTakesBackEveryAnswer) {
  const auto with = [](const ordered_json& arguments, const ordered_json& kwargs = ordered_json::object()) {
    ordered_json messages = json(R"([{"role": "user", "content": "Q"}, {"role": "assistant", "content": null,
      "tool_calls": [{"id": "a", "type": "function", "function": {"name": "fun"}}]},
      {"role": "tool", "tool_call_id": "a", "content": "R"}])");
    messages[1]["tool_calls"][0]["function"]["arguments"] = arguments;
    return render_chat(kDeepseekV32Encoding, messages, {.tools = kTools, .kwargs = kwargs});
  };
  for (const char* arguments : {R"({"days": three})", R"({"city": "Pa)", "[1, 2]", "three"}) {
    const std::string text = with(arguments);
    const std::string begin = "<｜DSML｜invoke name=\"fun\">\n", end = "\n</｜DSML｜invoke>";
    EXPECT_THAT(text, HasSubstr(begin + arguments + end));
    EXPECT_THAT(with(arguments, {{"thinking", true}}), HasSubstr(arguments));
  }
  EXPECT_EQ(with(""), with("{}"));
  EXPECT_EQ(with(" \n"), with("{}"));
  const ordered_json said = json(R"([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])");
  EXPECT_TRUE(render_chat(kDeepseekV32Encoding, said, {.kwargs = {{"thinking", true}}})
                  .ends_with("<｜Assistant｜><think></think>A<｜end▁of▁sentence｜>"));
  EXPECT_EQ(refusal([&] {
              render_chat(kDeepseekV32Encoding, json(R"([{"role": "user", "content": "Q"}, {"role": "boss"}])"),
                          {.tools = kTools});
            }),
            "messages[1] has the unknown role 'boss'");
}

TEST(ChatMessages, ResultsComeInTheOrderOfTheirCalls) {
  const std::string begin = R"([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": [
      {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
      {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]}, )";
  const auto results = [&](const char* one, const char* other) { return begin + one + ", " + other + "]"; };
  const char *a = R"({"role": "tool", "tool_call_id": "a", "content": "first"})",
             *b = R"({"role": "tool", "tool_call_id": "b", "content": "second"})",
             *unknown = R"({"role": "tool", "tool_call_id": "c", "content": "third"})",
             *nameless = R"({"role": "tool", "content": "some"})";
  for (const char* name : {"deepseek-v3.2-encoding", "deepseek-v3.1", "deepseek-v3-api-zip"}) {
    EXPECT_EQ(rendered(name, results(b, a).c_str()), rendered(name, results(a, b).c_str())) << name;
    EXPECT_EQ(refusal([&] { rendered(name, results(a, unknown).c_str()); }),
              "messages[3].tool_call_id: none of the calls before it has the id 'c'");
    const std::string orphan = std::string(R"([{"role": "user", "content": "Q"}, )") + a + "]";
    EXPECT_EQ(refusal([&] { rendered(name, orphan.c_str()); }),
              "messages[1].tool_call_id: none of the calls before it has the id 'a'");
  }
  EXPECT_THAT(rendered("deepseek-v3.2-encoding", results(b, a).c_str()),
              HasSubstr("<result>first</result>\n<result>second</result>\n</function_results>"));
  rendered("deepseek-v3.2-encoding", results(nameless, nameless).c_str());
}

}  // namespace
}  // namespace fathom
