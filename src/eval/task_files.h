// The files that benchmarks come as, read as untrusted: sizes and shapes are bounded, errors name file and line.
#pragma once

#include <filesystem>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace fathom::eval {

// The first of these names, below `data` and one level further down the folder named `task`, that is there. A file is
// taken as it is. Error, naming what was looked for, where none is.
std::filesystem::path find_task_file(const std::filesystem::path& data, std::string_view task,
                                     std::initializer_list<std::string_view> names);
// The same; nothing where none is.
std::optional<std::filesystem::path> look_for_task_file(const std::filesystem::path& data, std::string_view task,
                                                        std::initializer_list<std::string_view> names);

// The whole of a text file, unpacked where its name ends in .gz or .zst. Error for more than 1 GiB, and text that is
// not UTF-8.
std::string read_task_text(const std::filesystem::path& path);

// One object a line, or one list of objects. `use` gets each with "FILE: line N", and may throw.
void for_each_object(const std::filesystem::path& path,
                     const std::function<void(simdjson::dom::element object, const std::string& where)>& use);

// Fields; Error, beginning with `where`, for one that is missing or of another kind.
std::string text_field(simdjson::dom::element object, const char* key, const std::string& where);
int64_t integer_field(simdjson::dom::element object, const char* key, const std::string& where);
std::vector<std::string> texts_field(simdjson::dom::element object, const char* key, const std::string& where);
// Nothing where it is missing or null. A number is told as it would be written.
std::optional<std::string> find_text(simdjson::dom::element object, const char* key);

// Comma-separated values (RFC 4180): quoted fields may hold commas, line ends and doubled quotes. Error for a quote
// that does not close and for text behind one.
std::vector<std::vector<std::string>> parse_csv(std::string_view text, const std::string& where);

std::string lowered(std::string_view text);  // small letters for ASCII's capital ones
bool is_word(char c);                        // an ASCII letter or digit, or _
// How many characters it has, as Python's len() counts.
int64_t n_characters(std::string_view text);

}  // namespace fathom::eval
