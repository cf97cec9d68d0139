#include "serve/messages_api.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"
#include "serve/job.h"
#include "serve/json_fields.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

std::string text_of(const ordered_json& content, const std::string& path) {
  return text_of_parts(content, path, "blocks", {"text"});
}

ordered_json call_of(const ordered_json& block, const std::string& path) {
  const ordered_json* input = find_field(block, "input");
  if (input != nullptr && !input->is_object()) refuse_field(path + ".input", "must be an object");
  return {{"id", text_field(block, "id", path)},
          {"type", "function"},
          {"function",
           {{"name", text_field(block, "name", path)}, {"arguments", input == nullptr ? "{}" : json_text(*input)}}}};
}

// One message becomes several where results of tools stand in it.
void add_message(ordered_json& messages, const ordered_json& message, const std::string& path, bool is_last) {
  if (!message.is_object()) refuse_field(path, "must be an object");
  const std::string role = text_field(message, "role", path);
  if (role != "user" && role != "assistant") refuse_field(path + ".role", "must be user or assistant");
  const ordered_json* content = find_field(message, "content");
  if (content == nullptr) refuse_field(path + ".content", "is missing");
  std::string text, thoughts;
  ordered_json calls = ordered_json::array();
  bool said = content->is_string(), answered = false;
  if (said) {
    text = content->get<std::string>();
  } else if (!content->is_array()) {
    refuse_field(path + ".content", "must be a string or a list of blocks");
  } else {
    for (size_t i = 0; i < content->size(); ++i) {
      const ordered_json& block = (*content)[i];
      const std::string at = fmt::format("{}.content[{}]", path, i);
      if (!block.is_object()) refuse_field(at, "must be an object");
      const std::string type = text_field(block, "type", at);
      if (type == "text") {
        text += text_field(block, "text", at);
        said = true;
      } else if (type == "thinking" && role == "assistant") {
        thoughts += text_field(block, "thinking", at);
      } else if (type == "redacted_thinking" && role == "assistant") {
        continue;  // another model's
      } else if (type == "tool_use" && role == "assistant") {
        calls.push_back(call_of(block, at));
      } else if (type == "tool_result" && role == "user") {
        const ordered_json* result = find_field(block, "content");
        messages.push_back({{"role", "tool"},
                            {"tool_call_id", text_field(block, "tool_use_id", at)},
                            {"content", result == nullptr ? "" : text_of(*result, at + ".content")}});
        answered = true;
      } else {
        refuse_field(at + ".type", fmt::format("{} cannot be read from {}", printable(type), role));
      }
    }
  }
  if (role == "user") {
    if (said || !answered) messages.push_back({{"role", "user"}, {"content", text}});
    return;
  }
  ordered_json answer{{"role", "assistant"}, {"content", said || calls.empty() ? ordered_json(text) : ordered_json()}};
  if (!thoughts.empty()) answer["reasoning_content"] = thoughts;
  if (!calls.empty()) {
    answer["tool_calls"] = std::move(calls);
  } else if (is_last) {
    answer["prefix"] = true;
  }
  messages.push_back(std::move(answer));
}

ordered_json messages_of(const ordered_json& body) {
  ordered_json messages = ordered_json::array();
  if (const ordered_json* system = find_field(body, "system")) {
    messages.push_back({{"role", "system"}, {"content", text_of(*system, "system")}});
  }
  const ordered_json* list = find_field(body, "messages");
  if (list == nullptr || !list->is_array() || list->empty())
    refuse_field("messages", "must be a list that is not empty");
  for (size_t i = 0; i < list->size(); ++i) {
    add_message(messages, (*list)[i], fmt::format("messages[{}]", i), i + 1 == list->size());
  }
  return messages;
}

void add_tools(const ordered_json& body, ordered_json& chat) {
  if (const ordered_json* tools = find_field(body, "tools")) {
    if (!tools->is_array()) refuse_field("tools", "must be a list");
    chat["tools"] = ordered_json::array();
    for (size_t i = 0; i < tools->size(); ++i) {
      const ordered_json& tool = (*tools)[i];
      const std::string at = fmt::format("tools[{}]", i);
      if (!tool.is_object()) refuse_field(at, "must be an object");
      if (const ordered_json* type = find_field(tool, "type"); type != nullptr && *type != "custom") {
        refuse_field(at + ".type", "must be custom: this server has no tools of its own");
      }
      ordered_json function{{"name", text_field(tool, "name", at)}};
      if (find_field(tool, "description") != nullptr) function["description"] = text_field(tool, "description", at);
      if (const ordered_json* schema = find_field(tool, "input_schema")) function["parameters"] = *schema;
      if (const ordered_json* strict = find_field(tool, "strict")) {
        if (!strict->is_boolean()) refuse_field(at + ".strict", "must be true or false");
        function["strict"] = *strict;
      }
      chat["tools"].push_back({{"type", "function"}, {"function", std::move(function)}});
    }
  }
  const ordered_json* choice = find_object(body, "tool_choice");
  if (choice == nullptr) return;
  if (const ordered_json* one = find_field(*choice, "disable_parallel_tool_use")) {
    if (!one->is_boolean()) refuse_field("tool_choice.disable_parallel_tool_use", "must be true or false");
    chat["parallel_tool_calls"] = !one->get<bool>();
  }
  const std::string type = text_field(*choice, "type", "tool_choice");
  if (type == "auto" || type == "none") {
    chat["tool_choice"] = type;
  } else if (type == "any") {
    chat["tool_choice"] = "required";
  } else if (type == "tool") {
    chat["tool_choice"] = {{"type", "function"}, {"function", {{"name", text_field(*choice, "name", "tool_choice")}}}};
  } else {
    refuse_field("tool_choice.type", "must be auto, any, tool or none");
  }
}

std::string event(const ordered_json& json) {
  return fmt::format("event: {}\ndata: {}\n\n", json["type"].get<std::string>(), json_text(json));
}

ordered_json usage_of(const Usage& usage) {
  return {{"input_tokens", usage.prompt_tokens - usage.cached_tokens},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", usage.cached_tokens},
          {"output_tokens", usage.completion_tokens}};
}

ordered_json reason_of(const MessageEnd& end) {
  if (end.finish == "tool_calls") return "tool_use";
  if (end.finish == "length") return "max_tokens";
  return end.stopped_by.empty() ? "end_turn" : "stop_sequence";
}

ordered_json stop_of(const MessageEnd& end) {
  // What ends a call that is to be the only one is no text that the request named.
  if (end.stopped_by.empty() || end.finish == "tool_calls") return nullptr;
  return end.stopped_by;
}

ordered_json envelope(const std::string& id, const std::string& model) {
  return {{"id", id},
          {"type", "message"},
          {"role", "assistant"},
          {"model", model},
          {"content", ordered_json::array()},
          {"stop_reason", nullptr},
          {"stop_sequence", nullptr}};
}

bool is_said(const ordered_json* text) { return text != nullptr && !text->get_ref<const std::string&>().empty(); }

// What a call was given, as an object; what is none, as a model may write it, under a name of its own.
ordered_json input_of(const std::string& arguments) {
  ordered_json input = ordered_json::parse(arguments, nullptr, false);
  if (input.is_object()) return input;
  return {{"arguments", arguments}};
}

}  // namespace

std::string chat_body_of_messages(std::string_view text, bool counts_tokens) {
  const ordered_json body = parse_object(text);
  ordered_json chat{{"messages", messages_of(body)}};
  add_tools(body, chat);
  pass_on(body,
          {"system", "stop_sequences", "metadata", "thinking", "output_config", "max_tokens", "max_completion_tokens",
           "n_predict", "service_tier"},
          chat);
  if (const ordered_json* stops = find_field(body, "stop_sequences")) {
    if (!stops->is_array()) refuse_field("stop_sequences", "must be a list");
    chat["stop"] = *stops;
  }
  if (const ordered_json* metadata = find_object(body, "metadata")) {
    if (const ordered_json* user = find_field(*metadata, "user_id")) chat["user_id"] = *user;
  }
  if (const ordered_json* thinking = find_object(body, "thinking")) {
    const std::string type = text_field(*thinking, "type", "thinking");
    if (type != "enabled" && type != "disabled" && type != "adaptive" && type != "between_tools") {
      refuse_field("thinking.type", "must be enabled, adaptive, between_tools or disabled");
    }
    chat["thinking"] = {{"type", type == "disabled" ? type : "enabled"}};
    if (const ordered_json* budget = find_field(*thinking, "budget_tokens"))
      chat["thinking"]["budget_tokens"] = *budget;
  }
  if (const ordered_json* output = find_object(body, "output_config")) {
    if (const ordered_json* format = find_field(*output, "format")) {
      if (!format->is_object() || text_field(*format, "type", "output_config.format") != "json_schema") {
        refuse_field("output_config.format", "must be a json_schema");
      }
      const ordered_json* schema = find_field(*format, "schema");
      if (schema == nullptr) refuse_field("output_config.format.schema", "is missing");
      chat["response_format"] = {{"type", "json_schema"}, {"json_schema", {{"name", "answer"}, {"schema", *schema}}}};
    }
  }
  if (const ordered_json* most = find_field(body, "max_tokens")) {
    chat["max_tokens"] = *most;
  } else if (!counts_tokens) {
    throw ApiError(400, "max_tokens: is missing", "max_tokens", "missing_required_parameter");
  }
  return json_text(chat);
}

ApiError messages_error(const ApiError& error) {
  const ApiError own = renamed(error, {{"stop", "stop_sequences"},
                                       {"user_id", "metadata.user_id"},
                                       {"response_format.json_schema", "output_config.format"},
                                       {"response_format", "output_config.format"},
                                       {"tool_choice.function", "tool_choice"}});
  std::string what = own.what();
  constexpr std::string_view kSchema = "].parameters";
  if (const size_t at = what.find(kSchema); what.starts_with("tools[") && at != std::string::npos)
    what.replace(at, kSchema.size(), "].input_schema");
  return {own.status, what, own.param, own.code};
}

std::string messages_error_json(const ApiError& error) {
  const char* type = "api_error";
  switch (error.status) {
    case 400:
      type = "invalid_request_error";
      break;
    case 401:
      type = "authentication_error";
      break;
    case 403:
      type = "permission_error";
      break;
    case 404:
      type = "not_found_error";
      break;
    case 413:
      type = "request_too_large";
      break;
    case 429:
      type = "rate_limit_error";
      break;
    case 503:
      type = "overloaded_error";
      break;
    default:
      break;
  }
  return json_text({{"type", "error"}, {"error", {{"type", type}, {"message", error.what()}}}});
}

ordered_json message_json(const std::string& id, const std::string& model, const ordered_json& choice,
                          const MessageEnd& end, const Usage& usage) {
  ordered_json message = envelope(id, model);
  ordered_json& content = message["content"];
  if (const ordered_json* thoughts = find_field(choice, "reasoning_content")) {
    content.push_back({{"type", "thinking"}, {"thinking", *thoughts}, {"signature", ""}});
  }
  if (const ordered_json* text = find_field(choice, "content"); is_said(text)) {
    content.push_back({{"type", "text"}, {"text", *text}});
  }
  if (const ordered_json* calls = find_field(choice, "tool_calls")) {
    for (const ordered_json& call : *calls) {
      content.push_back({{"type", "tool_use"},
                         {"id", call["id"]},
                         {"name", call["function"]["name"]},
                         {"input", input_of(call["function"]["arguments"])}});
    }
  }
  message["stop_reason"] = reason_of(end);
  message["stop_sequence"] = stop_of(end);
  message["usage"] = usage_of(usage);
  return message;
}

std::string MessageStream::begin(const std::string& id, const std::string& model, int64_t prompt_tokens) {
  ordered_json message = envelope(id, model);
  message["usage"] = usage_of({.prompt_tokens = prompt_tokens});
  return event({{"type", "message_start"}, {"message", std::move(message)}});
}

std::string MessageStream::end_block() {
  if (block_ == Block::none) return {};
  std::string events;
  if (block_ == Block::thinking) {  // nobody checks it, but clients wait for one
    events = event({{"type", "content_block_delta"},
                    {"index", n_blocks_},
                    {"delta", {{"type", "signature_delta"}, {"signature", ""}}}});
  }
  block_ = Block::none;
  return events + event({{"type", "content_block_stop"}, {"index", n_blocks_++}});
}

std::string MessageStream::begin_block(Block block, const ordered_json& content) {
  std::string events = end_block();
  block_ = block;
  return events + event({{"type", "content_block_start"}, {"index", n_blocks_}, {"content_block", content}});
}

std::string MessageStream::push(const ordered_json& delta) {
  std::string events;
  const auto add = [&](const char* type, const char* key, const std::string& text) {
    if (text.empty()) return;
    events += event({{"type", "content_block_delta"}, {"index", n_blocks_}, {"delta", {{"type", type}, {key, text}}}});
  };
  if (const ordered_json* thoughts = find_field(delta, "reasoning_content"); is_said(thoughts)) {
    if (block_ != Block::thinking) {
      events += begin_block(Block::thinking, {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
    }
    add("thinking_delta", "thinking", *thoughts);
  }
  if (const ordered_json* text = find_field(delta, "content"); is_said(text)) {
    if (block_ != Block::text) events += begin_block(Block::text, {{"type", "text"}, {"text", ""}});
    add("text_delta", "text", *text);
  }
  if (const ordered_json* calls = find_field(delta, "tool_calls")) {
    for (const ordered_json& call : *calls) {
      if (call.contains("id")) {
        events += begin_block(Block::tool_use, {{"type", "tool_use"},
                                                {"id", call["id"]},
                                                {"name", call["function"]["name"]},
                                                {"input", ordered_json::object()}});
      }
      add("input_json_delta", "partial_json", call["function"].value("arguments", ""));
    }
  }
  return events;
}

std::string MessageStream::finish(const MessageEnd& end, const Usage& usage) {
  return end_block() +
         event({{"type", "message_delta"},
                {"delta", {{"stop_reason", reason_of(end)}, {"stop_sequence", stop_of(end)}}},
                {"usage", usage_of(usage)}}) +
         event({{"type", "message_stop"}});
}

}  // namespace fathom::serve
