#include "text/chat_messages.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "text/answer_parser.h"
#include "text/jinja_lexer.h"
#include "text/jinja_text.h"
#include "text/jinja_value.h"

namespace fathom {
namespace {

using nlohmann::ordered_json;

// As Python's json.dumps writes it with ensure_ascii false.
std::string to_json(const ordered_json& json) {
  jinja::Budget budget{50'000'000, 512LL << 20};
  return jinja::to_json(jinja::from_json(json, budget), {}, budget);
}

bool is_from(const ordered_json& message, const char* role) {
  return message.is_object() && message.contains("role") && message["role"] == role;
}

std::string text_of(const ordered_json& object, const char* key) {
  return object.contains(key) && object[key].is_string() ? object[key].get<std::string>() : std::string();
}

// The object that `text` is the JSON of; null where it is none, or one too deep to be walked through.
ordered_json object_of(const std::string& text) {
  constexpr int kMaxDepth = 64;
  bool too_deep = false;
  const auto within = [&](int depth, ordered_json::parse_event_t, const ordered_json&) {
    too_deep |= depth > kMaxDepth;
    return !too_deep;
  };
  ordered_json object = ordered_json::parse(text, within, /*allow_exceptions=*/false);
  return object.is_object() && !too_deep ? object : ordered_json(nullptr);
}

// V3 (vLLM's tool_chat_template_deepseekv3.jinja).
std::string v3_tools(const ordered_json& tools) {
  std::string text =
      "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
      "You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
  for (const ordered_json& tool : tools) text += "\n" + to_json(tool);
  return text +
         "\n</tools>\n\nFor function call returns, you should first print <｜tool▁calls▁begin｜>\n\n"
         "For each function call, you should return object like:\n"
         "<｜tool▁call▁begin｜>function<｜tool▁sep｜><function_name>\n```json\n"
         "<function_arguments_in_json_format>\n```<｜tool▁call▁end｜>\n\n"
         "At the end of function call returns, you should print <｜tool▁calls▁end｜><｜end▁of▁sentence｜>";
}

// R1 (vLLM's tool_chat_template_deepseekr1.jinja).
std::string r1_tools(const ordered_json& tools) {
  std::string text =
      "You are a helpful assistant with tool calling capabilities. "
      "When a tool call is needed, you MUST use the following format to issue the call:\n"
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>FUNCTION_NAME\n"
      "```json\n{\"param1\": \"value1\", \"param2\": \"value2\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n\n"
      "Make sure the JSON is valid.## Tools\n\n### Function\n\nYou have the following functions available:\n\n";
  for (const ordered_json& tool : tools) text += "\n```json\n" + to_json(tool) + "\n```\n";
  return text;
}

// V3.1 (its model card).
std::string v3_1_tools(const ordered_json& tools) {
  std::string text = "## Tools\nYou have access to the following tools:\n";
  for (const ordered_json& tool : tools) {
    const ordered_json function = tool.value("function", ordered_json::object());
    const bool takes = function.contains("parameters") && !function["parameters"].is_null();
    text += "\n### " + text_of(function, "name") + "\nDescription: " + text_of(function, "description") +
            "\n\nParameters: " +
            to_json(takes ? function["parameters"]
                          : ordered_json{{"type", "object"}, {"properties", ordered_json::object()}}) +
            "\n";
  }
  return text +
         "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
         "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>"
         "{{additional_tool_calls}}<｜tool▁calls▁end｜>\n\nWhere:\n\n"
         "- `tool_call_name` must be an exact match to one of the available tools\n"
         "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
         "- For multiple tool calls, chain them directly without separators or spaces\n";
}

}  // namespace

bool reads_tools(std::string_view chat_template) {
  try {
    const std::vector<jinja::Token> tokens = jinja::tokenize(chat_template);
    return std::ranges::any_of(
        tokens, [](const auto& token) { return token.kind == jinja::TokenKind::kName && token.text == "tools"; });
  } catch (const Error&) {
    return true;  // rendering it says what is wrong
  }
}

std::string tools_text(std::string_view chat_template, const ordered_json& tools) {
  switch (answer_format_of(chat_template, "").calls) {
    case CallFormat::v3:
      return chat_template.find("<think>") == std::string_view::npos ? v3_tools(tools) : r1_tools(tools);
    case CallFormat::v3_1:
      return v3_1_tools(tools);
    case CallFormat::deepseek_v3_2:  // reads them
    case CallFormat::none:
      break;
  }
  return "";
}

ordered_json with_system_text(ordered_json messages, const std::string& text) {
  const auto last =
      std::find_if(messages.rbegin(), messages.rend(), [](const auto& m) { return is_from(m, "system"); });
  if (last == messages.rend()) {
    messages.insert(messages.begin(), ordered_json{{"role", "system"}, {"content", text}});
  } else {
    const std::string before = text_of(*last, "content");
    (*last)["content"] = before.empty() ? text : before + "\n\n" + text;
  }
  return messages;
}

ordered_json with_developers_as_system(ordered_json messages) {
  for (ordered_json& message : messages) {
    if (is_from(message, "developer")) message["role"] = "system";
  }
  return messages;
}

ordered_json with_one_system_message(const ordered_json& messages) {
  ordered_json kept = ordered_json::array();
  size_t first = messages.size();
  for (const ordered_json& message : messages) {
    if (!is_from(message, "system") || first == messages.size()) {
      if (is_from(message, "system")) first = kept.size();
      kept.push_back(message);
    } else {
      kept[first]["content"] = text_of(kept[first], "content") + "\n\n" + text_of(message, "content");
    }
  }
  return kept;
}

namespace {

// An assistant's that has both calls and a text, an empty one or another.
bool calls_beside(const ordered_json& message, bool text) {
  if (!is_from(message, "assistant") || !message.contains("tool_calls") || message["tool_calls"].empty()) return false;
  return message.contains("content") && message["content"].is_string() && (message["content"] != "") == text;
}

}  // namespace

bool has_calls_beside(const ordered_json& messages, bool text) {
  return std::any_of(messages.begin(), messages.end(), [&](const auto& m) { return calls_beside(m, text); });
}

ordered_json with_calls_alone(ordered_json messages) {
  for (ordered_json& message : messages) {
    if (calls_beside(message, false)) message["content"] = nullptr;
  }
  return messages;
}

ordered_json with_calls_behind_text(const ordered_json& messages) {
  ordered_json kept = ordered_json::array();
  for (const ordered_json& message : messages) {
    kept.push_back(message);
    if (!calls_beside(message, true)) continue;
    kept.back().erase("tool_calls");
    ordered_json& calls = kept.emplace_back(message);
    calls.erase("reasoning_content");  // the text's
    calls["content"] = nullptr;
  }
  return kept;
}

ordered_json with_decoded_arguments(ordered_json messages) {
  for (ordered_json& message : messages) {
    if (!is_from(message, "assistant") || !message.contains("tool_calls")) continue;
    for (ordered_json& call : message["tool_calls"]) {
      if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
      const std::string text = text_of(call["function"], "arguments");
      if (ordered_json object = object_of(text); object.is_object()) call["function"]["arguments"] = std::move(object);
    }
  }
  return messages;
}

namespace {

// Error for a result of which no call stands in front; where a call has no name any may be its.
void check_results(const ordered_json& messages) {
  std::set<std::string> called;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (is_from(messages[i], "assistant") && messages[i].contains("tool_calls")) {
      for (const ordered_json& call : messages[i]["tool_calls"])
        called.insert(call.is_object() ? text_of(call, "id") : std::string());
    }
    if (!is_from(messages[i], "tool") || called.contains("")) continue;
    const std::string id = text_of(messages[i], "tool_call_id");
    if (id.empty() || called.contains(id)) continue;
    throw Error("messages[{}].tool_call_id: none of the calls before it has the id '{}'", i, printable(id, 80));
  }
}

}  // namespace

ordered_json in_call_order(ordered_json messages) {
  check_results(messages);
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!is_from(messages[i], "assistant") || !messages[i].contains("tool_calls")) continue;
    std::vector<std::string> ids;
    for (const ordered_json& call : messages[i]["tool_calls"]) {
      ids.push_back(call.is_object() ? text_of(call, "id") : std::string());
    }
    if (ids.empty() || std::ranges::find(ids, "") != ids.end()) continue;
    std::vector<std::pair<size_t, ordered_json>> results;  // with the place of the call
    size_t end = i + 1;
    for (; end < messages.size() && is_from(messages[end], "tool"); ++end) {
      const std::string id = text_of(messages[end], "tool_call_id");
      const auto at = static_cast<size_t>(std::ranges::find(ids, id) - ids.begin());
      if (at == ids.size() && !id.empty()) {
        throw Error("messages[{}].tool_call_id: none of the calls before it has the id '{}'", end, printable(id, 80));
      }
      results.emplace_back(id.empty() ? results.size() : at, messages[end]);
    }
    std::ranges::stable_sort(results, {}, [](const auto& result) { return result.first; });
    for (size_t j = 0; j < results.size(); ++j) messages[i + 1 + j] = std::move(results[j].second);
    i = end - 1;
  }
  return messages;
}

}  // namespace fathom
