// JSON Schema -> grammar of the JSON texts that are valid, or of a part of them that is enough for writing one:
//   - properties come in the order of the schema, then additional ones; keys, enum and const as the schema spells them;
//   - objects that name properties, and lists with prefixItems, have no others unless additionalProperties and items
//     say so, as OpenAI's strict schemas want it;
//   - a schema without type is of those types that its keywords speak of; oneOf is anyOf;
//   - white space between the parts is nothing, a space, or a line's end or two and up to 40 blanks;
//   - numbers have up to 20 digits in front of the point and behind it, and exponents of up to 2 digits; between bounds
//     they have no exponent;
//   - of formats date, time, date-time (without leap seconds), uuid, ipv4 and email are kept, unless there is a pattern
//     or a length.
// What changes which texts are valid and cannot be kept is refused.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "text/grammar.h"

namespace fathom {

inline constexpr size_t kMaxSchemaBytes = size_t{64} << 10;
inline constexpr size_t kMaxSchemaDepth = 64;

// Error with the path inside of the schema and the keyword.
std::shared_ptr<const Grammar> schema_grammar(const nlohmann::ordered_json& schema);

std::shared_ptr<const Grammar> any_json_object();

}  // namespace fathom
