// Files that are part of the program (cmake/embed.cmake): formulas, hardware, shapes of known models.
#pragma once

#include <string_view>
#include <utility>

namespace fathom::plan {

// By its name in src/CMakeLists.txt; empty: there is none.
std::string_view embedded_file(std::string_view name);

}  // namespace fathom::plan
