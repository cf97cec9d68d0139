// Conversations for templates that lack words for a part of them, so that nothing of it is lost.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace fathom {

// Does the Jinja source look at the list of tools? Templates released before V3.2 do not.
bool reads_tools(std::string_view chat_template);

// The list of tools as models of the template's family were taught to read it in their system text; empty for a family
// that has no calls. The marks in it are meant.
std::string tools_text(std::string_view chat_template, const nlohmann::ordered_json& tools);

// The same messages with `text` behind the last system message, or as one where there is none.
nlohmann::ordered_json with_system_text(nlohmann::ordered_json messages, const std::string& text);

// Developers' messages become the system's.
nlohmann::ordered_json with_developers_as_system(nlohmann::ordered_json messages);
// All system messages become one, where the first stands.
nlohmann::ordered_json with_one_system_message(const nlohmann::ordered_json& messages);

// Does an assistant say an empty text beside calls, or with `text` any other?
bool has_calls_beside(const nlohmann::ordered_json& messages, bool text);
// Calls beside an empty text are calls alone.
nlohmann::ordered_json with_calls_alone(nlohmann::ordered_json messages);
// Text and calls of one message become two messages.
nlohmann::ordered_json with_calls_behind_text(const nlohmann::ordered_json& messages);

// Arguments that are an object's JSON become the object.
nlohmann::ordered_json with_decoded_arguments(nlohmann::ordered_json messages);

// Results of tools in the order of the calls that they answer, by which the family's formats tell them apart. Error for
// a tool_call_id that none of these calls has.
nlohmann::ordered_json in_call_order(nlohmann::ordered_json messages);

}  // namespace fathom
