#include "serve/responses_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "serve/job.h"
#include "serve/json_fields.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

std::string text_of(const ordered_json& content, const std::string& path) {
  return text_of_parts(content, path, "parts", {"input_text", "output_text", "reasoning_text", "text"});
}

// Items become messages: thoughts, text and calls of one turn are one message of the assistant's.
struct Messages {
  ordered_json all = ordered_json::array();
  bool is_open = false;  // the last is the assistant's, and may get more

  ordered_json& assistant() {
    if (!is_open) all.push_back({{"role", "assistant"}, {"content", nullptr}});
    is_open = true;
    return all.back();
  }
  void add(const ordered_json& item, const std::string& path) {
    if (!item.is_object()) refuse_field(path, "must be an object");
    const std::string type = find_field(item, "type") == nullptr ? "message" : text_field(item, "type", path);
    if (type == "message") {
      add_message(item, path);
    } else if (type == "reasoning") {
      if (const ordered_json* content = find_field(item, "content")) {
        if (is_open && !all.back()["content"].is_null()) is_open = false;
        ordered_json& turn = assistant();
        turn["reasoning_content"] = turn.value("reasoning_content", "") + text_of(*content, path + ".content");
      }
    } else if (type == "function_call") {
      assistant()["tool_calls"].push_back(
          {{"id", text_field(item, "call_id", path)},
           {"type", "function"},
           {"function",
            {{"name", text_field(item, "name", path)}, {"arguments", text_field(item, "arguments", path)}}}});
    } else if (type == "function_call_output") {
      const ordered_json* output = find_field(item, "output");
      if (output == nullptr) refuse_field(path + ".output", "is missing");
      is_open = false;
      all.push_back({{"role", "tool"},
                     {"tool_call_id", text_field(item, "call_id", path)},
                     {"content", text_of(*output, path + ".output")}});
    } else {
      refuse_field(path + ".type", fmt::format("{} is not known here", printable(type)));
    }
  }
  void add_message(const ordered_json& item, const std::string& path) {
    const std::string role = text_field(item, "role", path);
    const ordered_json* content = find_field(item, "content");
    if (content == nullptr) refuse_field(path + ".content", "is missing");
    const std::string text = text_of(*content, path + ".content");
    if (role != "assistant") {
      is_open = false;
      all.push_back({{"role", role}, {"content", text}});
      return;
    }
    if (is_open && (!all.back()["content"].is_null() || all.back().contains("tool_calls"))) is_open = false;
    assistant()["content"] = text;
  }
};

ordered_json messages_of(const ordered_json& body) {
  Messages messages;
  if (const ordered_json* instructions = find_field(body, "instructions")) {
    messages.all.push_back({{"role", "system"}, {"content", text_of(*instructions, "instructions")}});
  }
  const ordered_json* input = find_field(body, "input");
  if (input == nullptr) refuse_field("input", "is missing");
  if (input->is_string()) {
    messages.all.push_back({{"role", "user"}, {"content", *input}});
  } else if (input->is_array() && !input->empty()) {
    for (size_t i = 0; i < input->size(); ++i) messages.add((*input)[i], fmt::format("input[{}]", i));
  } else {
    refuse_field("input", "must be a string or a list that is not empty");
  }
  return messages.all;
}

void add_tools(const ordered_json& body, ordered_json& chat) {
  if (const ordered_json* tools = find_field(body, "tools")) {
    if (!tools->is_array()) refuse_field("tools", "must be a list");
    chat["tools"] = ordered_json::array();
    for (size_t i = 0; i < tools->size(); ++i) {
      const std::string at = fmt::format("tools[{}]", i);
      if (!(*tools)[i].is_object()) refuse_field(at, "must be an object");
      ordered_json function = (*tools)[i];
      if (text_field(function, "type", at) != "function") {
        refuse_field(at + ".type", "must be function: this server has no tools of its own");
      }
      function.erase("type");
      chat["tools"].push_back({{"type", "function"}, {"function", std::move(function)}});
    }
  }
  if (const ordered_json* several = find_field(body, "parallel_tool_calls")) chat["parallel_tool_calls"] = *several;
  const ordered_json* choice = find_field(body, "tool_choice");
  if (choice == nullptr) return;
  if (choice->is_object()) {
    if (text_field(*choice, "type", "tool_choice") != "function") {
      refuse_field("tool_choice.type", "must be function");
    }
    chat["tool_choice"] = {{"type", "function"}, {"function", {{"name", text_field(*choice, "name", "tool_choice")}}}};
  } else {
    chat["tool_choice"] = *choice;
  }
}

void add_format(const ordered_json& body, ordered_json& chat) {
  const ordered_json* text = find_object(body, "text");
  const ordered_json* format = text == nullptr ? nullptr : find_field(*text, "format");
  if (format == nullptr) return;
  if (!format->is_object()) refuse_field("text.format", "must be an object");
  const std::string type = text_field(*format, "type", "text.format");
  ordered_json asked{{"type", type}};
  if (type == "json_schema") {
    asked["json_schema"] = *format;
    asked["json_schema"].erase("type");
  }
  chat["response_format"] = std::move(asked);
}

// Known in this API and not here: who asks for one would get another answer than was meant.
void refuse_unsupported(const ordered_json& body) {
  if (const ordered_json* most = find_field(body, "max_tool_calls"); most != nullptr) {
    throw ApiError(400, "max_tool_calls: is not supported", "max_tool_calls", "unsupported_parameter");
  }
  if (const ordered_json* cut = find_field(body, "truncation"); cut != nullptr && *cut != "disabled") {
    throw ApiError(400, "truncation: must be disabled: nothing of a conversation is left out", "truncation",
                   "unsupported_parameter");
  }
  const ordered_json* include = find_field(body, "include");
  if (include == nullptr) return;
  if (!include->is_array()) refuse_field("include", "must be a list");
  if (std::find(include->begin(), include->end(), "message.output_text.logprobs") != include->end()) {
    throw ApiError(400, "include: message.output_text.logprobs is not supported", "include", "unsupported_parameter");
  }
}

}  // namespace

ApiError response_error(const ApiError& error) {
  // Messages are not items of the input one by one, so that a place among them says nothing.
  if (error.param.starts_with("messages")) {
    std::string what = error.what();
    for (const char* place : {"messages: ", "messages["}) {
      if (what.starts_with(place)) what.erase(0, std::min(what.find(": "), what.size() - 2) + 2);
    }
    return {error.status, "input: " + what, "input", error.code};
  }
  return renamed(error, {{"max_completion_tokens", "max_output_tokens"},
                         {"response_format.json_schema", "text.format"},
                         {"response_format", "text.format"},
                         {"reasoning_effort", "reasoning.effort"},
                         {"tool_choice.function", "tool_choice"}});
}

ResponseInput response_input(std::string_view text) {
  const ordered_json body = parse_object(text);
  for (const char* stored : {"previous_response_id", "conversation", "prompt"}) {
    if (find_field(body, stored) != nullptr) refuse_field(stored, "nothing is stored here: send the conversation");
  }
  if (const ordered_json* background = find_field(body, "background"); background != nullptr && *background != false) {
    refuse_field("background", "answers come with the request alone");
  }
  ordered_json chat{{"messages", messages_of(body)}};
  add_tools(body, chat);
  add_format(body, chat);
  refuse_unsupported(body);
  pass_on(body,
          {"input", "instructions", "max_output_tokens", "text", "reasoning", "include", "truncation", "metadata",
           "store", "background", "max_tool_calls", "service_tier", "safety_identifier", "prompt_cache_key"},
          chat);
  if (const ordered_json* most = find_field(body, "max_output_tokens")) chat["max_completion_tokens"] = *most;
  if (const ordered_json* key = find_field(body, "prompt_cache_key"); key != nullptr && !chat.contains("cache_salt")) {
    chat["cache_salt"] = *key;
  }
  if (const ordered_json* reasoning = find_object(body, "reasoning")) {
    if (const ordered_json* effort = find_field(*reasoning, "effort")) chat["reasoning_effort"] = *effort;
  }
  ordered_json echo{{"instructions", nullptr},
                    {"max_output_tokens", nullptr},
                    {"parallel_tool_calls", true},
                    {"previous_response_id", nullptr},
                    {"temperature", 1.0},
                    {"top_p", 1.0},
                    {"tool_choice", "auto"},
                    {"tools", ordered_json::array()},
                    {"text", {{"format", {{"type", "text"}}}}},
                    {"reasoning", {{"effort", nullptr}, {"summary", nullptr}}},
                    {"truncation", "disabled"},
                    {"metadata", ordered_json::object()}};
  find_object(body, "metadata");
  for (const auto& [key, value] : echo.items()) {
    if (const ordered_json* given = find_field(body, key.c_str())) value = *given;
  }
  echo["store"] = false;
  return {json_text(chat), std::move(echo)};
}

ResponseStream::ResponseStream(std::string id, std::string model, int64_t created, ordered_json echo)
    : id_(std::move(id)), model_(std::move(model)), created_(created), echo_(std::move(echo)) {}

ordered_json ResponseStream::response() const {
  ordered_json response{{"id", id_},         {"object", "response"}, {"created_at", created_},
                        {"status", status_}, {"error", error_},      {"incomplete_details", incomplete_},
                        {"model", model_},   {"output", output_},    {"usage", usage_}};
  response.update(echo_);
  return response;
}

std::string ResponseStream::event(ordered_json fields) {
  fields["sequence_number"] = n_events_++;
  return fmt::format("event: {}\ndata: {}\n\n", fields["type"].get<std::string>(), json_text(fields));
}

std::string ResponseStream::begin() {
  std::string events = event({{"type", "response.created"}, {"response", response()}});
  return events += event({{"type", "response.in_progress"}, {"response", response()}});
}

// Of the open item, in events about it.
ordered_json ResponseStream::place() const {
  ordered_json place{{"item_id", output_.back()["id"]}, {"output_index", output_.size() - 1}};
  if (open_ != Kind::call) place["content_index"] = 0;
  return place;
}

std::string ResponseStream::begin_item(Kind kind, ordered_json item) {
  std::string events = end_item("completed");
  output_.push_back(std::move(item));
  open_ = kind;
  events +=
      event({{"type", "response.output_item.added"}, {"output_index", output_.size() - 1}, {"item", output_.back()}});
  if (kind == Kind::call) return events;
  ordered_json part{{"type", "output_text"},
                    {"text", ""},
                    {"annotations", ordered_json::array()},
                    {"logprobs", ordered_json::array()}};
  if (kind == Kind::reasoning) part = {{"type", "reasoning_text"}, {"text", ""}};
  ordered_json added{{"type", "response.content_part.added"}};
  added.update(place());
  added["part"] = part;
  output_.back()["content"].push_back(std::move(part));
  return events += event(std::move(added));
}

std::string ResponseStream::end_item(const char* status) {
  if (open_ == Kind::none) return {};
  ordered_json& item = output_.back();
  item["status"] = status;
  ordered_json done = place();
  std::string events;
  if (open_ == Kind::call) {
    done["name"] = item["name"];
    done["arguments"] = item["arguments"];
    done["type"] = "response.function_call_arguments.done";
    events = event(std::move(done));
  } else {
    const ordered_json part = item["content"][0];
    ordered_json text = done;
    text["text"] = part["text"];
    if (open_ == Kind::message) text["logprobs"] = ordered_json::array();
    text["type"] = open_ == Kind::message ? "response.output_text.done" : "response.reasoning_text.done";
    done["part"] = part;
    done["type"] = "response.content_part.done";
    events = event(std::move(text));
    events += event(std::move(done));
  }
  open_ = Kind::none;
  return events += event({{"type", "response.output_item.done"}, {"output_index", output_.size() - 1}, {"item", item}});
}

std::string ResponseStream::add(Kind kind, const std::string& text) {
  if (text.empty()) return {};
  std::string events;
  if (open_ != kind) {
    const bool thinks = kind == Kind::reasoning;
    ordered_json item{{"type", thinks ? "reasoning" : "message"},
                      {"id", random_id(thinks ? "rs_" : "msg_")},
                      {"status", "in_progress"}};
    if (thinks) {
      item["summary"] = ordered_json::array();
    } else {
      item["role"] = "assistant";
    }
    item["content"] = ordered_json::array();
    events = begin_item(kind, std::move(item));
  }
  ordered_json& said = output_.back()["content"][0]["text"];
  said.get_ref<std::string&>() += text;
  ordered_json delta{{"type", kind == Kind::message ? "response.output_text.delta" : "response.reasoning_text.delta"}};
  delta.update(place());
  delta["delta"] = text;
  if (kind == Kind::message) delta["logprobs"] = ordered_json::array();
  return events += event(std::move(delta));
}

std::string ResponseStream::push(const ordered_json& delta) {
  std::string events;
  if (const ordered_json* thoughts = find_field(delta, "reasoning_content")) events += add(Kind::reasoning, *thoughts);
  if (const ordered_json* text = find_field(delta, "content")) events += add(Kind::message, *text);
  const ordered_json* calls = find_field(delta, "tool_calls");
  if (calls == nullptr) return events;
  for (const ordered_json& call : *calls) {
    if (call.contains("id")) {
      events += begin_item(Kind::call, {{"type", "function_call"},
                                        {"id", random_id("fc_")},
                                        {"call_id", call["id"]},
                                        {"name", call["function"]["name"]},
                                        {"arguments", ""},
                                        {"status", "in_progress"}});
    }
    const std::string arguments = call["function"].value("arguments", "");
    if (arguments.empty()) continue;
    output_.back()["arguments"].get_ref<std::string&>() += arguments;
    ordered_json told{{"type", "response.function_call_arguments.delta"}};
    told.update(place());
    told["delta"] = arguments;
    events += event(std::move(told));
  }
  return events;
}

std::string ResponseStream::finish(const std::string& finish_reason, const Usage& usage) {
  const bool is_whole = finish_reason != "length";
  std::string events = end_item(is_whole ? "completed" : "incomplete");
  status_ = is_whole ? "completed" : "incomplete";
  if (!is_whole) incomplete_ = {{"reason", "max_output_tokens"}};
  usage_ = {{"input_tokens", usage.prompt_tokens},
            {"input_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
            {"output_tokens", usage.completion_tokens},
            {"output_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}},
            {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
  return events += event({{"type", is_whole ? "response.completed" : "response.incomplete"}, {"response", response()}});
}

std::string ResponseStream::fail(const std::string& message, const std::string& code) {
  status_ = "failed";
  error_ = {{"code", code}, {"message", message}};
  return event({{"type", "response.failed"}, {"response", response()}});
}

}  // namespace fathom::serve
