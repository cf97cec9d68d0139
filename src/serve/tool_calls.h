// Calls of tools that must come, as models of the family write them.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "serve/request.h"
#include "text/answer_parser.h"
#include "text/grammar.h"

namespace fathom::serve {

// What stands in front of a call's arguments; without a name, what stands in front of the name. ApiError for a format
// that has no calls.
std::string call_head(CallFormat format, const std::string& name);
// What ends a call; empty for a format that has none.
std::string call_end(CallFormat format);

// What the arguments of the named function must be.
GrammarRequest arguments_of(const nlohmann::ordered_json& tools, const std::string& name);
// What follows call_head(format, ""): the name of one of the tools, and its arguments. strict_alone: arguments of
// functions that are not strict are not spoken of. Throws ApiError.
std::shared_ptr<const Grammar> call_grammar(CallFormat format, const nlohmann::ordered_json& tools,
                                            bool strict_alone = false);

bool has_strict(const nlohmann::ordered_json& tools);
// What stands in front of the name in each call.
std::string call_begin(CallFormat format);

}  // namespace fathom::serve
