#include "serve/json_fields.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/json.h"

namespace fathom::serve {

using nlohmann::ordered_json;

void refuse_field(const std::string& path, const std::string& message) {
  throw ApiError(400, fmt::format("{}: {}", path, message), path, "invalid_value");
}

ordered_json ordered_of(simdjson::dom::element value) {
  using Type = simdjson::dom::element_type;
  switch (value.type()) {
    case Type::OBJECT: {
      ordered_json::object_t object;
      // Its base is a vector; that no key stands twice is known.
      std::vector<ordered_json::object_t::value_type>& fields = object;
      for (const auto [key, of_key] : simdjson::dom::object(value)) {
        fields.emplace_back(std::string(key), ordered_of(of_key));
      }
      return object;
    }
    case Type::ARRAY: {
      ordered_json list = ordered_json::array();
      for (const simdjson::dom::element of_list : simdjson::dom::array(value)) list.push_back(ordered_of(of_list));
      return list;
    }
    case Type::STRING:
      return std::string(std::string_view(value));
    case Type::INT64:
      return int64_t(value);
    case Type::UINT64:
      return uint64_t(value);
    case Type::DOUBLE:
      return double(value);
    case Type::BOOL:
      return bool(value);
    case Type::NULL_VALUE:
      break;
  }
  return nullptr;
}

ordered_json parse_object(std::string_view text) {
  ordered_json body;
  try {
    body = ordered_of(JsonDocument::parse(text, "request body").root());
  } catch (const Error& error) {
    throw ApiError(400, error.what(), "", "invalid_json");
  }
  if (!body.is_object()) throw ApiError(400, "the request body must be a JSON object", "", "invalid_json");
  return body;
}

const ordered_json* find_field(const ordered_json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

const ordered_json* find_object(const ordered_json& object, const char* key) {
  const ordered_json* found = find_field(object, key);
  if (found != nullptr && !found->is_object()) refuse_field(key, "must be an object");
  return found;
}

std::string text_field(const ordered_json& object, const char* key, const std::string& path) {
  const ordered_json* text = find_field(object, key);
  if (text == nullptr || !text->is_string()) refuse_field(path.empty() ? key : path + "." + key, "must be a string");
  return text->get<std::string>();
}

std::string text_of_parts(const ordered_json& content, const std::string& path, const char* name,
                          std::initializer_list<std::string_view> types) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) refuse_field(path, fmt::format("must be a string or a list of {}", name));
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string at = fmt::format("{}[{}]", path, i);
    if (!content[i].is_object()) refuse_field(at, "must be an object");
    const std::string type = text_field(content[i], "type", at);
    if (std::find(types.begin(), types.end(), type) == types.end()) {
      refuse_field(at + ".type", fmt::format("{} cannot be read: the model reads text", printable(type)));
    }
    text += text_field(content[i], "text", at);
  }
  return text;
}

void pass_on(const ordered_json& body, std::initializer_list<std::string_view> own, ordered_json& chat) {
  const auto has = [](std::initializer_list<std::string_view> names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const auto& [name, value] : body.items()) {
    if (value.is_null() || has(own, name) || chat.contains(name)) continue;
    if (has({"n", "best_of", "logprobs", "top_logprobs", "prompt_logprobs"}, name)) {
      // What is the same as nothing; openapi.json has it too.
      const int nothing = has({"n", "best_of"}, name) ? 1 : 0;
      if (name != "prompt_logprobs" && value.is_number() && value == nothing) continue;
      if (name == "logprobs" && value == false) continue;
      throw ApiError(400, name + ": is not supported here: chat completions have it", name, "unsupported_parameter");
    }
    chat[name] = value;
  }
}

namespace {

// `from` becomes `to` at the beginning of a field's place, and of what is said about it.
bool rename(std::string& text, const FieldName& name) {
  if (!text.starts_with(name.chat)) return false;
  const std::string_view rest = std::string_view(text).substr(name.chat.size());
  if (!rest.empty() && rest[0] != '.' && rest[0] != '[' && rest[0] != ':') return false;
  text.replace(0, name.chat.size(), name.own);
  return true;
}

}  // namespace

ApiError renamed(const ApiError& error, std::initializer_list<FieldName> names) {
  const auto by_own_name = [&](std::string text) {
    // "tools[3].function.name" is in these APIs "tools[3].name".
    if (const size_t at = text.find("].function."); text.starts_with("tools[") && at != std::string::npos)
      text.erase(at + 1, std::string_view(".function").size());
    std::any_of(names.begin(), names.end(), [&](const FieldName& name) { return rename(text, name); });
    return text;
  };
  return {error.status, by_own_name(error.what()), by_own_name(error.param), error.code};
}

}  // namespace fathom::serve
