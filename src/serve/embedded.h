// Files that are part of the program (cmake/embed.cmake): the pages, what they are made with, and openapi.json.
#pragma once

#include <string_view>
#include <utility>

namespace fathom::serve {

// By its name in src/CMakeLists.txt; empty: there is none.
std::string_view embedded_file(std::string_view name);

}  // namespace fathom::serve
