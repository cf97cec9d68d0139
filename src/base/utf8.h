// UTF-8 (RFC 3629): where it breaks and how to mend it; a text without the white space around it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fathom {

inline constexpr size_t kNoPosition = static_cast<size_t>(-1);

// What stands at the start of a text.
struct Utf8Unit {
  size_t bytes;     // of the character, or of the broken piece that one U+FFFD replaces; 0 at the end of the text
  bool valid;       // a whole character
  bool incomplete;  // broken only because the text ends: more bytes could complete it
};
Utf8Unit utf8_unit(std::string_view text);

// Position of the first byte that does not belong to a character, or kNoPosition.
size_t first_invalid_utf8(std::string_view text);

// `text` with every broken piece replaced by U+FFFD.
std::string mend_utf8(std::string_view text);

void append_utf8(std::string& out, char32_t code_point);

// The code point at the start of valid, non-empty text.
char32_t utf8_code_point(std::string_view text);

// Without the white space around it, as Python's strip() has it for ASCII.
std::string_view stripped(std::string_view text);

}  // namespace fathom
