// TOML as the planner reads it: a document becomes JSON, whose values are then checked by name.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace fathom::plan {

// Error, beginning with `where` and naming the line, for what is no TOML, more than 1 MiB or nested deeply. Dates and
// numbers that are not finite are refused. Keys of a table come sorted, elements of a list in their order.
nlohmann::json read_toml(std::string_view text, std::string_view where);

}  // namespace fathom::plan
