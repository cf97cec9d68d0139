// Fields of bodies that become bodies of another API: null is as good as absent, what has the wrong kind is refused
// with its place.
#pragma once

#include <simdjson.h>

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "serve/request.h"

namespace fathom::serve {

[[noreturn]] void refuse_field(const std::string& path, const std::string& message);  // ApiError 400

// What a parsed value is, its keys in their order. In one pass: the class looks through all keys for each that is put
// in.
nlohmann::ordered_json ordered_of(simdjson::dom::element value);
// The body's object, within the limits of all bodies.
nlohmann::ordered_json parse_object(std::string_view body);

const nlohmann::ordered_json* find_field(const nlohmann::ordered_json& object, const char* key);
const nlohmann::ordered_json* find_object(const nlohmann::ordered_json& object, const char* key);
std::string text_field(const nlohmann::ordered_json& object, const char* key, const std::string& path);
// The text of a string, or of a list of parts {type, text} that all have one of these types. name: of many such.
std::string text_of_parts(const nlohmann::ordered_json& content, const std::string& path, const char* name,
                          std::initializer_list<std::string_view> types);

// What of `body` neither this API reads by itself (`own`) nor the chat has by now: a chat knows or refuses it. Refused
// here is what a chat would tell beside its choices and this API has no place for.
void pass_on(const nlohmann::ordered_json& body, std::initializer_list<std::string_view> own,
             nlohmann::ordered_json& chat);

// A field of the chat, and what it is called in the body that became one.
struct FieldName {
  std::string_view chat, own;
};
// The same refusal about the body's own field.
ApiError renamed(const ApiError& error, std::initializer_list<FieldName> names);

}  // namespace fathom::serve
