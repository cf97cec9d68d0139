#include "serve/request.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <span>

#include "base/error.h"
#include "base/json.h"
#include "serve/json_fields.h"
#include "text/json_schema.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;
using simdjson::dom::element_type;

[[noreturn]] void refuse(const std::string& param, const std::string& message, const char* code = "invalid_value") {
  throw ApiError(400, param.empty() ? message : fmt::format("{}: {}", param, message), param, code);
}

// JSON knows one kind of number: 5.0, as some languages write 5, is an integer too.
std::optional<int64_t> integer_of(element value) {
  if (int64_t x; value.get_int64().get(x) == simdjson::SUCCESS) return x;
  constexpr double kExact = 9007199254740992;  // 2^53
  double x;
  if (value.get_double().get(x) != simdjson::SUCCESS || x != std::trunc(x) || std::abs(x) > kExact) return std::nullopt;
  return static_cast<int64_t>(x);
}

// An object of the body. Getters give nothing for a field that is absent or null.
struct Fields {
  simdjson::dom::object object;
  std::string path = {};  // "" or "messages[2]."

  std::string name_of(std::string_view name) const { return path + std::string(name); }
  std::optional<element> find(std::string_view name) const {
    element value;
    if (object[name].get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
    return value;
  }
  template <class T>
  std::optional<T> as(std::string_view name, const char* kind) const {
    const auto value = find(name);
    if (!value) return std::nullopt;
    T x;
    if (value->get(x) != simdjson::SUCCESS) refuse(name_of(name), fmt::format("must be {}", kind), "invalid_type");
    return x;
  }
  template <class T>
  std::optional<T> within(std::string_view name, std::optional<T> x, T least, T most) const {
    // Written so that NaN is refused too.
    if (x && !(*x >= least && *x <= most)) refuse(name_of(name), fmt::format("must be between {} and {}", least, most));
    return x;
  }
  std::optional<double> number(std::string_view name, double least, double most) const {
    return within(name, as<double>(name, "a number"), least, most);
  }
  std::optional<int64_t> integer(std::string_view name, int64_t least, int64_t most) const {
    const auto value = find(name);
    if (!value) return std::nullopt;
    const auto x = integer_of(*value);
    if (!x) refuse(name_of(name), "must be an integer", "invalid_type");
    return within(name, x, least, most);
  }
  std::optional<bool> boolean(std::string_view name) const { return as<bool>(name, "true or false"); }
  std::optional<std::string> text(std::string_view name) const {
    const auto x = as<std::string_view>(name, "a string");
    return x ? std::optional<std::string>(*x) : std::nullopt;
  }
  std::optional<Fields> fields(std::string_view name) const {
    const auto x = as<simdjson::dom::object>(name, "an object");
    return x ? std::optional<Fields>({*x, name_of(name) + "."}) : std::nullopt;
  }
  std::optional<simdjson::dom::array> list(std::string_view name) const {
    return as<simdjson::dom::array>(name, "a list");
  }
  ordered_json json(std::string_view name) const {
    const auto value = find(name);
    return value ? ordered_of(*value) : ordered_json(nullptr);
  }
};

Fields object_at(element value, const std::string& path) {
  simdjson::dom::object object;
  if (value.get_object().get(object) != simdjson::SUCCESS) refuse(path, "must be an object", "invalid_type");
  return {object, path + "."};
}

std::string required_text(const Fields& fields, std::string_view name) {
  auto text = fields.text(name);
  if (!text) refuse(fields.name_of(name), "is missing", "missing_required_parameter");
  return *std::move(text);
}

std::vector<int32_t> read_ids(element list, const std::string& param) {
  std::vector<int32_t> ids;
  for (const element value : list.get_array()) {
    const auto id = integer_of(value);
    if (!id || *id < 0 || *id > INT32_MAX) refuse(param, "token ids are integers from 0 on");
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

void read_stops(const Fields& body, GenerationOptions& generation) {
  const auto value = body.find("stop");
  if (!value) return;
  const auto add = [&](element stop) {
    std::string_view text;
    if (stop.get_string().get(text) != simdjson::SUCCESS)
      refuse("stop", "must be a string or a list of strings", "invalid_type");
    if (text.empty() || std::ssize(text) > kMaxStopBytes)
      refuse("stop", fmt::format("a text has 1 to {} bytes", kMaxStopBytes));
    generation.stop.emplace_back(text);
  };
  if (!value->is_array()) return add(*value);
  for (const element stop : value->get_array()) {
    if (std::ssize(generation.stop) == kMaxStops) refuse("stop", fmt::format("at most {} texts", kMaxStops));
    add(stop);
  }
}

void read_logit_bias(const Fields& body, SamplerOptions& sampler) {
  const auto biases = body.fields("logit_bias");
  if (!biases) return;
  for (const auto [key, value] : biases->object) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      refuse("logit_bias", "its keys must be token ids");
    }
    double bias;
    if (value.is_null()) continue;
    if (value.get(bias) != simdjson::SUCCESS || !(bias >= -100 && bias <= 100)) {
      refuse("logit_bias", "its values must be numbers between -100 and 100");
    }
    sampler.logit_bias.emplace_back(id, static_cast<float>(bias));
  }
  std::sort(sampler.logit_bias.begin(), sampler.logit_bias.end());
}

using Kind = GrammarRequest::Kind;

// A choice among texts, as a grammar.
std::string choice_of(const Fields& fields, std::string_view name) {
  std::string source = "root ::= ";
  int64_t n = 0;
  const simdjson::dom::array choices = *fields.list(name);
  for (const element value : choices) {
    std::string_view text;
    if (value.get_string().get(text) != simdjson::SUCCESS)
      refuse(fields.name_of(name), "must be a list of strings", "invalid_type");
    source += (n++ > 0 ? " | \"" : "\"");
    for (const char c : text) {
      const auto byte = static_cast<uint8_t>(c);
      if (c == '"' || c == '\\') source += '\\';
      source += byte < 0x20 ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
    }
    source += '"';
  }
  if (n == 0) refuse(fields.name_of(name), "is an empty list");
  return source;
}

void read_schema(const Fields& fields, std::string_view name, GrammarRequest& grammar) {
  if (const auto value = fields.find(name); value && !value->is_object() && !value->is_bool()) {
    refuse(fields.name_of(name), "must be a JSON schema", "invalid_type");
  }
  grammar.kind = Kind::json_schema;
  grammar.schema = fields.json(name);
}

void read_response_format(const Fields& body, GrammarRequest& grammar) {
  const auto format = body.fields("response_format");
  const std::string type = required_text(*format, "type");
  const auto named = format->fields("json_schema");
  if (type == "json_object") {
    grammar.kind = Kind::json_object;
  } else if (type == "json_schema") {
    if (!named || !named->find("schema")) {
      refuse("response_format.json_schema.schema", "is missing", "missing_required_parameter");
    }
    read_schema(*named, "schema", grammar);
  } else if (type != "text") {
    refuse("response_format.type", "must be text, json_object or json_schema");
  }
}

// OpenAI's field, llama.cpp's and vLLM's: one of them.
void read_grammar(const Fields& body, GrammarRequest& grammar) {
  const auto structured = body.fields("structured_outputs");
  const Fields in = structured.value_or(body);
  struct Field {
    Fields fields;
    const char* name;
    void (*read)(const Fields& fields, std::string_view name, GrammarRequest& grammar);
  };
  const auto schema = [](const Fields& f, std::string_view name, GrammarRequest& g) { read_schema(f, name, g); };
  const auto gbnf = [](const Fields& f, std::string_view name, GrammarRequest& g) {
    g.kind = Kind::gbnf;
    g.source = *f.text(name);
  };
  const auto regex = [](const Fields& f, std::string_view name, GrammarRequest& g) {
    g.kind = Kind::regex;
    g.source = *f.text(name);
  };
  const auto choice = [](const Fields& f, std::string_view name, GrammarRequest& g) {
    g.kind = Kind::gbnf;
    g.source = choice_of(f, name);
  };
  const auto format = [](const Fields& f, std::string_view, GrammarRequest& g) { read_response_format(f, g); };
  std::vector<Field> all = {{body, "response_format", format}, {body, "grammar", gbnf},
                            {body, "json_schema", schema},     {body, "guided_json", schema},
                            {body, "guided_regex", regex},     {body, "guided_choice", choice},
                            {body, "guided_grammar", gbnf},    {body, "regex", regex}};
  if (structured) {
    all.insert(all.end(), {{in, "json", schema}, {in, "regex", regex}, {in, "choice", choice}, {in, "grammar", gbnf}});
  }
  for (const Field& field : all) {
    if (!field.fields.find(field.name)) continue;
    if (grammar.kind != Kind::none) refuse(field.fields.name_of(field.name), "goes with no other form of the output");
    field.read(field.fields, field.name, grammar);
    grammar.param = field.fields.name_of(field.name);
  }
}

// Whether a value is none of null, false, 0, "", [] and {}.
bool asks(element value) {
  switch (value.type()) {
    case element_type::NULL_VALUE:
      return false;
    case element_type::BOOL:
      return value.get_bool().value_unsafe();
    case element_type::STRING:
      return !value.get_string().value_unsafe().empty();
    case element_type::ARRAY:
      return value.get_array().value_unsafe().size() > 0;
    case element_type::OBJECT:
      return value.get_object().value_unsafe().size() > 0;
    case element_type::INT64:
    case element_type::UINT64:
    case element_type::DOUBLE:
      break;
  }
  return value.get_double().value() != 0;
}

// Known elsewhere and not here: who asks for one would get another answer than was meant.
void refuse_unsupported(const Fields& body) {
  struct Unsupported {
    const char* name;
    const char* harmless = "";  // as JSON: what asks for nothing either
  };
  constexpr Unsupported kOfBody[] = {{"functions"},
                                     {"function_call", "\"none\""},
                                     {"modalities", "[\"text\"]"},
                                     {"audio"},
                                     {"web_search_options"},
                                     {"use_beam_search"},
                                     {"bad_words"},
                                     {"allowed_token_ids"},
                                     {"include_stop_str_in_output"},
                                     {"truncate_prompt_tokens"},
                                     {"return_tokens_as_token_ids"},
                                     {"chat_template"},
                                     {"documents"},
                                     {"ebnf"},
                                     {"stop_regex"},
                                     {"logits_processors"},
                                     {"mirostat"},
                                     {"dry_multiplier"},
                                     {"xtc_probability"},
                                     {"dynatemp_range"}};
  constexpr Unsupported kOfForm[] = {{"structural_tag"}};
  const auto check = [](const Fields& fields, std::span<const Unsupported> all) {
    for (const Unsupported& one : all) {
      const auto value = fields.find(one.name);
      if (value && asks(*value) && simdjson::to_string(*value) != one.harmless) {
        refuse(fields.name_of(one.name), "is not supported", "unsupported_parameter");
      }
    }
  };
  check(body, kOfBody);
  if (const auto form = body.fields("structured_outputs")) check(*form, kOfForm);
}

constexpr int64_t kMostTokens = int64_t{1} << 40;  // the context's limit comes later

void read_ends(const Fields& body, CommonRequest& request) {
  request.max_tokens = body.integer("max_completion_tokens", 1, kMostTokens);
  if (!request.max_tokens) request.max_tokens = body.integer("max_tokens", 0, kMostTokens);
  if (const auto n = body.integer("n_predict", -1, kMostTokens); n && !request.max_tokens) {
    request.max_tokens = *n < 0 ? kMostTokens : *n;
  }
  request.generation.min_tokens = body.integer("min_tokens", 0, kMostTokens).value_or(0);
  read_stops(body, request.generation);
  if (!body.list("stop_token_ids")) return;
  for (const int32_t id : read_ids(*body.find("stop_token_ids"), "stop_token_ids"))
    request.generation.stop_ids.push_back(id);
  if (std::ssize(request.generation.stop_ids) > kMaxStops)
    refuse("stop_token_ids", fmt::format("at most {} ids", kMaxStops));
}

void check_least(const CommonRequest& request) {
  if (request.max_tokens && request.generation.min_tokens > *request.max_tokens)
    refuse("min_tokens", "must be no more than max_tokens");
}

void read_common(const Fields& body, CommonRequest& request) {
  refuse_unsupported(body);
  request.model = body.text("model").value_or("");
  request.n = body.integer("n", 1, kMaxChoices).value_or(1);
  if (const auto best_of = body.integer("best_of", 1, kMaxChoices); best_of && *best_of != request.n) {
    refuse("best_of", "must be the same as n: choices are not ranked");
  }
  request.stream = body.boolean("stream").value_or(false);
  request.ignore_eos = body.boolean("ignore_eos").value_or(false);
  request.timings_per_token = body.boolean("timings_per_token").value_or(false);
  request.return_progress = body.boolean("return_progress").value_or(false);
  request.prompt_logprobs = body.integer("prompt_logprobs", 0, kMaxTopLogprobs).value_or(-1);
  if (request.stream && request.prompt_logprobs > 0) refuse("prompt_logprobs", "goes with no stream");
  if (request.stream) request.prompt_logprobs = -1;  // 0 is taken, as by vLLM
  request.expert_counts = body.boolean("expert_counts").value_or(false);
  if (const auto options = body.fields("stream_options")) {
    request.include_usage = options->boolean("include_usage").value_or(false);
    request.usage_in_chunks = options->boolean("continuous_usage_stats").value_or(false) && request.include_usage;
  }
  read_ends(body, request);
  if (const auto seed = body.integer("seed", INT64_MIN, INT64_MAX)) request.seed = static_cast<uint64_t>(*seed);
  SamplerOptions& sampler = request.generation.sampler;
  sampler.temperature = body.number("temperature", 0, 2).value_or(1);
  sampler.top_p = std::max(body.number("top_p", 0, 1).value_or(1), 1e-9);  // 0: the likeliest alone
  if (const auto top_k = body.integer("top_k", -1, INT32_MAX)) sampler.top_k = std::max<int64_t>(*top_k, 0);
  sampler.min_p = body.number("min_p", 0, 1).value_or(0);
  sampler.presence_penalty = body.number("presence_penalty", -2, 2).value_or(0);
  sampler.frequency_penalty = body.number("frequency_penalty", -2, 2).value_or(0);
  sampler.repetition_penalty = body.number("repetition_penalty", 0.01, 100).value_or(1);
  read_logit_bias(body, sampler);
  read_grammar(body, request.grammar);
  for (const char* name : {"user_id", "cache_salt"}) {
    const auto text = body.text(name);
    if (text && text->size() > 256) refuse(name, "at most 256 bytes");
    if (text) request.cache_salt = *text;
  }
}

// A text, ids, a list of texts or a list of lists of ids.
std::vector<Prompt> read_prompts(const Fields& body) {
  const auto value = body.find("prompt");
  if (!value) refuse("prompt", "is missing", "missing_required_parameter");
  std::vector<Prompt> prompts;
  const auto add = [&](element prompt) {
    if (std::ssize(prompts) == kMaxPrompts) refuse("prompt", fmt::format("at most {} prompts", kMaxPrompts));
    if (std::string_view text; prompt.get_string().get(text) == simdjson::SUCCESS) {
      prompts.emplace_back(std::string(text));
    } else if (prompt.is_array()) {
      prompts.emplace_back(read_ids(prompt, "prompt"));
    } else {
      refuse("prompt", "must be a string, a list of token ids, or a list of either", "invalid_type");
    }
  };
  simdjson::dom::array list;
  if (value->get_array().get(list) != simdjson::SUCCESS) {
    add(*value);
  } else if (list.begin() != list.end() && (*list.begin()).is_number()) {
    prompts.emplace_back(read_ids(*value, "prompt"));
  } else {
    for (const element prompt : list) add(prompt);
  }
  if (prompts.empty()) refuse("prompt", "is an empty list");
  return prompts;
}

// A string, null, or a list of parts, of which texts alone can be read.
ordered_json read_content(const Fields& message) {
  const auto value = message.find("content");
  if (!value) return nullptr;
  const std::string param = message.name_of("content");
  if (std::string_view text; value->get_string().get(text) == simdjson::SUCCESS) return std::string(text);
  simdjson::dom::array parts;
  if (value->get_array().get(parts) != simdjson::SUCCESS)
    refuse(param, "must be a string or a list of parts", "invalid_type");
  std::string joined;
  int64_t i = 0;
  for (const element part : parts) {
    const Fields fields = object_at(part, fmt::format("{}[{}]", param, i++));
    if (const std::string type = required_text(fields, "type"); type != "text") {
      refuse(fields.name_of("type"), fmt::format("{} cannot be read: the model reads text", printable(type)));
    }
    joined += required_text(fields, "text");
  }
  return joined;
}

ordered_json read_tool_calls(const Fields& message) {
  ordered_json calls = ordered_json::array();
  int64_t i = 0;
  const simdjson::dom::array list = *message.list("tool_calls");
  for (const element value : list) {
    if (i == kMaxTools) refuse(message.name_of("tool_calls"), fmt::format("at most {} calls", kMaxTools));
    const Fields call = object_at(value, fmt::format("{}[{}]", message.name_of("tool_calls"), i++));
    if (call.text("type").value_or("function") != "function") refuse(call.name_of("type"), "must be function");
    const auto function = call.fields("function");
    if (!function) refuse(call.name_of("function"), "is missing", "missing_required_parameter");
    calls.push_back(
        {{"id", call.text("id").value_or("")},
         {"type", "function"},
         {"function",
          {{"name", required_text(*function, "name")}, {"arguments", function->text("arguments").value_or("{}")}}}});
  }
  return calls;
}

ordered_json read_message(const Fields& message, bool is_last, bool& continues_last) {
  constexpr std::array roles = {"system", "developer", "user", "assistant", "tool"};
  const std::string role = required_text(message, "role");
  if (std::find(roles.begin(), roles.end(), role) == roles.end()) {
    refuse(message.name_of("role"), "must be system, developer, user, assistant or tool");
  }
  ordered_json read{{"role", role}, {"content", read_content(message)}};
  if (const auto name = message.text("name")) read["name"] = *name;
  auto thoughts = message.text("reasoning_content");
  if (!thoughts) thoughts = message.text("reasoning");
  // No calls are as good as none given: templates ask whether there is a list, and then for no text.
  const auto list = message.list("tool_calls");
  ordered_json calls = list && list->size() > 0 ? read_tool_calls(message) : ordered_json(nullptr);
  const bool begins_answer = message.boolean("prefix").value_or(false);
  if (role == "assistant") {
    if (thoughts) read["reasoning_content"] = *thoughts;
    if (!calls.is_null()) read["tool_calls"] = std::move(calls);
    if (begins_answer) {
      if (!is_last) refuse(message.name_of("prefix"), "only the last message can begin the answer");
      read["prefix"] = continues_last = true;
    }
  }
  if (role == "tool") read["tool_call_id"] = message.text("tool_call_id").value_or("");
  const bool says_nothing = read["content"].is_null() && !read.contains("tool_calls") && !read.contains("prefix");
  if (says_nothing && !(role == "assistant" && read.contains("reasoning_content"))) {
    refuse(message.name_of("content"), "is missing", "missing_required_parameter");
  }
  return read;
}

void read_messages(const Fields& body, ChatRequest& request) {
  const auto list = body.list("messages");
  if (!list) refuse("messages", "is missing", "missing_required_parameter");
  request.messages = ordered_json::array();
  const size_t n = list->size();
  if (n == 0) refuse("messages", "is an empty list");
  for (const element value : *list) {
    const size_t i = request.messages.size();
    const Fields message = object_at(value, fmt::format("messages[{}]", i));
    request.messages.push_back(read_message(message, i + 1 == n, request.continues_last));
  }
}

bool is_function_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.';
  });
}

void read_tools(const Fields& body, ChatRequest& request) {
  request.one_call = !body.boolean("parallel_tool_calls").value_or(true);
  if (const auto list = body.list("tools"); list && list->size() > 0) {
    request.tools = ordered_json::array();
    for (const element value : *list) {
      if (std::ssize(request.tools) == kMaxTools) refuse("tools", fmt::format("at most {} tools", kMaxTools));
      const Fields tool = object_at(value, fmt::format("tools[{}]", request.tools.size()));
      if (tool.text("type").value_or("function") != "function") refuse(tool.name_of("type"), "must be function");
      const auto function = tool.fields("function");
      if (!function) refuse(tool.name_of("function"), "is missing", "missing_required_parameter");
      if (!is_function_name(required_text(*function, "name"))) {
        refuse(function->name_of("name"), "has 1 to 64 letters, digits, _, - and .");
      }
      function->text("description");
      if (const auto parameters = function->fields("parameters"); parameters && parameters->find("type")) {
        std::string_view type;
        if (parameters->find("type")->get(type) == simdjson::SUCCESS && type != "object")
          refuse(function->name_of("parameters"), "must be of type object: arguments have names");
      }
      if (const auto schema = function->find("parameters");
          schema && simdjson::to_string(*schema).size() > kMaxSchemaBytes) {
        refuse(function->name_of("parameters"), fmt::format("a schema has at most {} bytes", kMaxSchemaBytes));
      }
      request.tools.push_back({{"type", "function"}, {"function", tool.json("function")}});
    }
  }
  const auto choice = body.find("tool_choice");
  if (!choice) return;
  if (choice->is_object()) {
    const Fields named = *body.fields("tool_choice");
    if (named.text("type").value_or("function") != "function") refuse("tool_choice.type", "must be function");
    const auto function = named.fields("function");
    if (!function) refuse("tool_choice.function", "is missing", "missing_required_parameter");
    request.tool_choice = ToolChoice::named;
    request.tool = required_text(*function, "name");
    const auto is_it = [&](const ordered_json& tool) { return tool["function"]["name"] == request.tool; };
    if (request.tools.is_null() || std::none_of(request.tools.begin(), request.tools.end(), is_it)) {
      refuse("tool_choice", fmt::format("there is no tool {}", printable(request.tool)));
    }
    return;
  }
  const std::string name = *body.text("tool_choice");
  if (name == "none") {
    request.tool_choice = ToolChoice::none;
  } else if (name == "required") {
    if (request.tools.is_null()) refuse("tool_choice", "required, but there are no tools");
    request.tool_choice = ToolChoice::required;
    if (request.tools.size() == 1) {  // no choice is left, and the form of its arguments is known
      request.tool_choice = ToolChoice::named;
      request.tool = request.tools[0]["function"]["name"];
    }
  } else if (name != "auto") {
    refuse("tool_choice", "must be none, auto, required or a function");
  }
}

// vLLM's name and llama.cpp's, and Anthropic's in `thinking`; -1 is no limit. Of several the least.
void read_thinking_budget(const Fields& body, ChatRequest& request) {
  std::vector<std::optional<int64_t>> budgets = {body.integer("thinking_token_budget", -1, kMostTokens),
                                                 body.integer("thinking_budget_tokens", -1, kMostTokens)};
  if (const auto thinking = body.fields("thinking")) {
    budgets.push_back(thinking->integer("budget_tokens", -1, kMostTokens));
  }
  for (const std::optional<int64_t>& budget : budgets) {
    if (budget.value_or(-1) < 0) continue;
    request.thinking_budget = std::min(*budget, request.thinking_budget.value_or(*budget));
  }
}

void read_thinking(const Fields& body, ChatRequest& request) {
  request.kwargs = ordered_json::object();
  if (const auto kwargs = body.fields("chat_template_kwargs")) {
    // What the template gets from elsewhere.
    for (const char* name : {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}) {
      if (kwargs->find(name)) refuse(kwargs->name_of(name), "is not the request's to set");
    }
    if (kwargs->object.size() > kMaxKwargs)
      refuse("chat_template_kwargs", fmt::format("at most {} fields", kMaxKwargs));
    request.kwargs = body.json("chat_template_kwargs");
    for (const char* name : {"thinking", "enable_thinking"}) {
      if (const auto on = kwargs->boolean(name)) request.thinking = *on;
    }
  }
  if (const auto effort = body.text("reasoning_effort")) {
    constexpr std::array off = {"none", "minimal"};
    constexpr std::array on = {"low", "medium", "high", "max", "xhigh"};
    if (std::find(off.begin(), off.end(), *effort) != off.end()) {
      request.thinking = false;
    } else if (std::find(on.begin(), on.end(), *effort) != on.end()) {
      request.thinking = true;
    } else {
      refuse("reasoning_effort", "must be none, minimal, low, medium, high, xhigh or max");
    }
  }
  if (const auto thinking = body.fields("thinking")) {
    const std::string type = required_text(*thinking, "type");
    if (type != "enabled" && type != "disabled") refuse("thinking.type", "must be enabled or disabled");
    request.thinking = type == "enabled";
  }
  read_thinking_budget(body, request);
}

void read_chat(const Fields& fields, ChatRequest& request) {
  read_common(fields, request);
  if (request.max_tokens == 0) refuse("max_tokens", "must be 1 or more");
  check_least(request);
  read_messages(fields, request);
  read_tools(fields, request);
  read_thinking(fields, request);
  const bool told = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, kMaxTopLogprobs);
  if (top && !told) refuse("top_logprobs", "needs logprobs: true");
  if (told) request.generation.top_logprobs = top.value_or(0);
}

// What read() makes of the body's object.
template <class Request, class Read>
Request parse(std::string_view body, const Read& read) {
  try {
    const JsonDocument document = JsonDocument::parse(body, "request body");
    simdjson::dom::object object;
    if (document.root().get_object().get(object) != simdjson::SUCCESS) {
      throw ApiError(400, "the request body must be a JSON object", "", "invalid_json");
    }
    Request request;
    read(Fields{object}, request);
    return request;
  } catch (const Error& error) {
    throw ApiError(400, error.what(), "", "invalid_json");
  }
}

}  // namespace

ApiError::ApiError(int http_status, const std::string& message, std::string field, std::string error_code)
    : std::runtime_error(message), status(http_status), param(std::move(field)), code(std::move(error_code)) {}

std::string error_json(const ApiError& error) {
  const char* type = "invalid_request_error";
  if (error.status == 401 || error.status == 403) type = "authentication_error";
  if (error.status == 429) type = "rate_limit_error";
  if (error.status == 500 || error.status == 503) type = "server_error";
  const auto or_null = [](const std::string& text) {
    return text.empty() ? ordered_json(nullptr) : ordered_json(text);
  };
  const ordered_json object{
      {"error",
       {{"message", error.what()}, {"type", type}, {"param", or_null(error.param)}, {"code", or_null(error.code)}}}};
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

CompletionRequest parse_completion_request(std::string_view body) {
  return parse<CompletionRequest>(body, [](const Fields& fields, CompletionRequest& request) {
    read_common(fields, request);
    request.prompts = read_prompts(fields);
    if (request.n * std::ssize(request.prompts) > kMaxSequences) {
      refuse("n", fmt::format("n times the number of prompts is at most {}", kMaxSequences));
    }
    for (const char* name : {"thinking_token_budget", "thinking_budget_tokens"}) {
      if (fields.integer(name, -1, kMostTokens).value_or(-1) < 0) continue;
      refuse(name, "is for chats: what of a text is thoughts is not known", "unsupported_parameter");
    }
    request.suffix = fields.text("suffix");
    request.echo = fields.boolean("echo").value_or(false);
    if (request.echo && request.suffix) refuse("echo", "goes with no suffix");
    request.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
    request.parse_special = fields.boolean("parse_special").value_or(true);
    request.generation.top_logprobs = fields.integer("logprobs", 0, kMaxTopLogprobs).value_or(-1);
    if (request.max_tokens == 0 && !request.echo && request.prompt_logprobs < 0)
      refuse("max_tokens", "must be 1 or more, but for echo and prompt_logprobs");
    if (!request.max_tokens) request.max_tokens = 16;  // OpenAI's default here
    check_least(request);
  });
}

ChatRequest parse_chat_request(std::string_view body) { return parse<ChatRequest>(body, read_chat); }

TokenizeRequest parse_tokenize_request(std::string_view body) {
  return parse<TokenizeRequest>(body, [](const Fields& fields, TokenizeRequest& request) {
    request.add_special_tokens =
        fields.boolean("add_special_tokens").value_or(fields.boolean("add_special").value_or(true));
    request.parse_special = fields.boolean("parse_special").value_or(true);
    request.return_token_strs = fields.boolean("return_token_strs").value_or(false);
    auto text = fields.text("prompt");
    const auto content = fields.text("content");
    if (fields.find("messages")) {
      read_chat(fields, request.chat.emplace());
      return;
    }
    if (!text) text = content;
    if (!text) refuse("prompt", "is missing", "missing_required_parameter");
    request.text = *std::move(text);
  });
}

std::vector<int32_t> parse_detokenize_request(std::string_view body) {
  return parse<std::vector<int32_t>>(body, [](const Fields& fields, std::vector<int32_t>& ids) {
    if (!fields.list("tokens")) refuse("tokens", "is missing", "missing_required_parameter");
    ids = read_ids(*fields.find("tokens"), "tokens");
  });
}

}  // namespace fathom::serve
