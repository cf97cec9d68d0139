// Marks in text that arrives in pieces.
#pragma once

#include <algorithm>
#include <string_view>

namespace fathom {

// How much of the end of `text` may be the beginning of `mark`, which is not all there yet.
inline size_t begun(std::string_view text, std::string_view mark) {
  for (size_t n = std::min(text.size(), mark.size() - 1); n > 0; --n) {
    if (text.ends_with(mark.substr(0, n))) return n;
  }
  return 0;
}

}  // namespace fathom
