#include "text/deepseek_v32_encoding.h"

#include "base/error.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

namespace fathom {
namespace {

using nlohmann::ordered_json;

constexpr const char* kMark = "｜DSML｜";
constexpr const char* kUser = "<｜User｜>";
constexpr const char* kAssistant = "<｜Assistant｜>";
constexpr const char* kThink = "<think>";
constexpr const char* kEndThink = "</think>";

// What the model was trained to read before the schemas; {0} is the mark.
constexpr const char* kToolsHeader =
    R"(## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{0}function_calls>" block like the following as part of your reply to the user:
<{0}function_calls>
<{0}invoke name="$FUNCTION_NAME">
<{0}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{0}parameter>
...
</{0}invoke>
<{0}invoke name="$FUNCTION_NAME2">
...
</{0}invoke>
</{0}function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<{0}function_calls>
...
</{0}function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
)";

// As Python's json.dumps writes it with ensure_ascii false.
std::string to_json(const ordered_json& json) {
  jinja::Budget budget{50'000'000, 512LL << 20};
  return jinja::to_json(jinja::from_json(json, budget), {}, budget);
}

bool given(const ordered_json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->empty()) return false;  // null is empty, too
  if (found->is_string()) return !found->get_ref<const std::string&>().empty();
  return *found != false;
}

std::string text_of(const ordered_json& object, const char* key, size_t index) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return "";
  if (!found->is_string()) throw Error("messages[{}].{} must be a text", index, key);
  return found->get<std::string>();
}

const ordered_json& member(const ordered_json& object, const char* key, size_t index) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end()) throw Error("messages[{}]: a tool or tool call has no '{}'", index, key);
  return *found;
}

std::string tools_block(const ordered_json& tools, size_t index) {
  if (!tools.is_array()) throw Error("messages[{}].tools must be a list", index);
  std::string out = fmt::format(fmt::runtime(kToolsHeader), kMark);
  for (const ordered_json& tool : tools) {
    if (!out.ends_with('\n')) out += '\n';
    out += to_json(member(tool, "function", index));
  }
  return out + "\n</functions>\n";
}

// Tools and response format, each behind an empty line.
std::string instructions(const ordered_json& message, size_t index) {
  std::string out;
  if (given(message, "tools")) out += "\n\n" + tools_block(message["tools"], index);
  if (given(message, "response_format")) {
    out += "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n" +
           to_json(message["response_format"]);
  }
  return out;
}

// An element for each argument. What is no JSON object, as a model may write it or a limit cut it off, stands there as
// it is, which is how the model gave it: a call's body may be one text instead of elements.
std::string arguments_block(ordered_json arguments) {
  if (arguments.is_string()) {
    const std::string text = arguments.get<std::string>();
    arguments = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) arguments = ordered_json::object();
    if (!arguments.is_object()) return text;
  }
  if (!arguments.is_object()) return to_json(arguments);
  std::string out;
  for (const auto& [key, value] : arguments.items()) {
    out += fmt::format("{}<{}parameter name=\"{}\" string=\"{}\">{}</{}parameter>", out.empty() ? "" : "\n", kMark, key,
                       value.is_string(), value.is_string() ? value.get<std::string>() : to_json(value), kMark);
  }
  return out;
}

std::string call_block(const ordered_json& calls, size_t index) {
  if (!calls.is_array()) throw Error("messages[{}].tool_calls must be a list", index);
  std::string out = fmt::format("<{}function_calls>", kMark);
  for (const ordered_json& call : calls) {
    const ordered_json& function = member(call, "function", index);
    const ordered_json& name = member(function, "name", index);
    if (!name.is_string()) throw Error("messages[{}]: a tool call's name must be a text", index);
    out += fmt::format("\n<{}invoke name=\"{}\">\n", kMark, name.get<std::string>());
    out += arguments_block(member(function, "arguments", index));
    out += fmt::format("\n</{}invoke>", kMark);
  }
  return out + fmt::format("\n</{}function_calls>", kMark);
}

bool wants_thinking(const ordered_json& kwargs) {
  if (kwargs.contains("thinking_mode")) {
    const ordered_json& mode = kwargs["thinking_mode"];
    if (mode != "chat" && mode != "thinking") throw Error("thinking_mode must be chat or thinking");
    return mode == "thinking";
  }
  for (const char* name : {"thinking", "enable_thinking"}) {
    if (kwargs.contains(name)) return kwargs[name] == true;
  }
  return false;
}

bool is_user(const ordered_json& message) {
  const auto role = message.find("role");
  return role != message.end() && (*role == "user" || *role == "developer");
}

// Index of the last message of a user or developer, -1 without one.
int64_t last_user(const ordered_json& messages) {
  auto i = static_cast<int64_t>(messages.size()) - 1;
  while (i >= 0 && !is_user(messages[static_cast<size_t>(i)])) --i;
  return i;
}

// Reasoning of answers before the last question goes, and so do earlier messages of a developer.
ordered_json without_old_thinking(const ordered_json& messages) {
  ordered_json kept = ordered_json::array();
  const int64_t last = last_user(messages);
  for (size_t i = 0; i < messages.size(); ++i) {
    ordered_json message = messages[i];
    if (static_cast<int64_t>(i) < last) {
      if (text_of(message, "role", i) == "developer") continue;
      if (message["role"] == "assistant") message.erase("reasoning_content");
    }
    kept.push_back(std::move(message));
  }
  return kept;
}

std::string tool_result(const ordered_json& messages, size_t index, bool thinks) {
  size_t caller = index;
  while (caller > 0 && messages[caller].value("role", "") == "tool") --caller;
  const ordered_json& calls = messages[caller].value("tool_calls", ordered_json());
  const size_t order = index - caller;
  if (order == 0 || messages[caller].value("role", "") != "assistant" || !calls.is_array() || calls.size() < order) {
    throw Error("messages[{}]: a tool's result follows no tool call", index);
  }
  std::string out = order == 1 ? "\n\n<function_results>" : "";
  out += "\n<result>" + text_of(messages[index], "content", index) + "</result>";
  if (order == calls.size()) out += std::string("\n</function_results>\n\n") + (thinks ? kThink : kEndThink);
  return out;
}

std::string render(const ordered_json& messages, size_t index, int64_t last, bool thinking) {
  const ordered_json& message = messages[index];
  const std::string role = text_of(message, "role", index), content = text_of(message, "content", index);
  const auto at = static_cast<int64_t>(index);
  if (role == "system") return content + instructions(message, index);
  if (role == "user" || role == "developer") {
    if (role == "developer" && content.empty()) throw Error("messages[{}]: a developer's message is empty", index);
    const std::string text =
        role == "user" ? content : instructions(message, index) + "\n\n# The user's message is: " + content;
    return kUser + text + kAssistant + (at == last && thinking ? kThink : kEndThink);
  }
  if (role == "tool") return tool_result(messages, index, at >= last && thinking);
  if (role != "assistant") throw Error("messages[{}] has the unknown role '{}'", index, printable(role, 40));
  std::string out;
  const bool calls = given(message, "tool_calls");
  if (thinking && at > last) out += text_of(message, "reasoning_content", index) + kEndThink;
  out += content;
  if (calls) out += "\n\n" + call_block(message["tool_calls"], index);
  return out + "<｜end▁of▁sentence｜>";
}

}  // namespace

std::string encode_deepseek_v32(const ordered_json& messages, const ChatOptions& options) {
  const bool thinking = wants_thinking(options.kwargs);
  ordered_json all = messages;
  std::string out = "<｜begin▁of▁sentence｜>";
  if (given({{"tools", options.tools}}, "tools")) {
    if (!all.empty() && all[0].value("role", "") == "system") {
      all[0]["tools"] = options.tools;
    } else {  // as of a system that says nothing else
      out += instructions({{"tools", options.tools}}, 0);
    }
  }
  for (size_t i = 0; i < all.size(); ++i) {
    for (const char* key : {"role", "content", "reasoning_content"}) {
      if (first_invalid_utf8(text_of(all[i], key, i)) != kNoPosition)
        throw Error("messages[{}].{} is not UTF-8", i, key);
    }
  }
  if (thinking && options.kwargs.value("drop_thinking", ordered_json(true)) == true) all = without_old_thinking(all);
  const int64_t last = last_user(all);
  for (size_t i = 0; i < all.size(); ++i) out += render(all, i, last, thinking);
  return out;
}

}  // namespace fathom
