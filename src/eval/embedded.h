// Files that are part of the program (cmake/embed.cmake): what judges programs in Python.
#pragma once

#include <string_view>
#include <utility>

namespace fathom::eval {

// By its name in src/CMakeLists.txt; empty: there is none.
std::string_view embedded_file(std::string_view name);

}  // namespace fathom::eval
