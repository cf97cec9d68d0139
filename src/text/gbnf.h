// Grammars as llama.cpp writes them (GBNF): rules `name ::= alternatives`, from the rule `root`.
#pragma once

#include <memory>
#include <string_view>

#include "text/grammar.h"

namespace fathom {

// "literals", [classes], `.` for any character, groups, * + ? {n} {n,} {n,m}, # comments. A line may begin with `|`,
// and names may have underscores. Error with line and column; <tokens> are refused, and repetitions are never cut
// short.
std::shared_ptr<const Grammar> parse_gbnf(std::string_view source);

}  // namespace fathom
