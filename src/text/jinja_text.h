// Text as Python sees it: code points, white space, case and what repr() shows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/utf8.h"

namespace fathom::jinja {

// `text` must be UTF-8 everywhere here; the template and its variables are checked when they enter.
size_t code_points(std::string_view text);
char32_t decode_at(std::string_view text, size_t& at);  // moves `at` behind the code point
// The byte where the n-th code point begins; text.size() when there are fewer.
size_t byte_offset(std::string_view text, size_t n);

bool is_space(char32_t c);
bool is_printable(char32_t c);
bool is_letter(char32_t c);
bool is_decimal(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_cased(char32_t c);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
void append_upper(std::string& out, char32_t c);
void append_lower(std::string& out, char32_t c);
void append_title(std::string& out, char32_t c);

// Without the characters of `chars` (nullptr: white space) at the ends asked for.
std::string_view strip(std::string_view text, const std::string* chars, bool left = true, bool right = true);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends = false);

}  // namespace fathom::jinja
