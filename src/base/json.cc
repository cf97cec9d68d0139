#include "base/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace fathom {
namespace {

namespace dom = simdjson::dom;

// Depth is bounded by the parser, so recursion is safe.
void refuse_duplicate_keys(dom::element element, const std::string& where) {
  if (element.is_array()) {
    for (dom::element child : dom::array(element)) refuse_duplicate_keys(child, where);
  } else if (element.is_object()) {
    const dom::object object(element);
    std::vector<std::string_view> keys;
    keys.reserve(object.size());
    for (const auto [key, value] : object) {
      keys.push_back(key);
      refuse_duplicate_keys(value, where);
    }
    std::ranges::sort(keys, [](std::string_view a, std::string_view b) {  // lengths differ more often than not
      return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) throw Error("{}: the key \"{}\" stands twice in one object", where, printable(*twice, 80));
  }
}

// Listens to nlohmann-json's parser for the one thing that simdjson does not tell: where a text stops being JSON.
struct ErrorFinder {
  size_t position = 0;  // bytes read, the one that did not fit included
  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(int64_t) { return true; }
  bool number_unsigned(uint64_t) { return true; }
  bool number_float(double, const std::string&) { return true; }
  bool string(std::string&) { return true; }
  bool binary(nlohmann::json::binary_t&) { return true; }
  bool start_object(size_t) { return true; }
  bool key(std::string&) { return true; }
  bool end_object() { return true; }
  bool start_array(size_t) { return true; }
  bool end_array() { return true; }
  bool parse_error(size_t at, const std::string&, const std::exception&) {
    position = at;
    return false;
  }
};

// ", at line 3, column 7", for one line (of a .jsonl file, say) ", at column 7", or nothing where the other parser
// finds no fault.
std::string place_of_error(std::string_view text) {
  ErrorFinder finder;
  if (nlohmann::json::sax_parse(text.begin(), text.end(), &finder)) return "";
  const std::string_view before = text.substr(0, std::max<size_t>(finder.position, 1) - 1);
  const size_t column = before.size() - (before.rfind('\n') + 1) + 1;
  if (text.find('\n') == std::string_view::npos) return fmt::format(", at column {}", column);
  return fmt::format(", at line {}, column {}", std::count(before.begin(), before.end(), '\n') + 1, column);
}

}  // namespace

JsonDocument JsonDocument::parse(std::string_view text, std::string where, size_t max_depth) {
  JsonDocument document;
  document.where_ = std::move(where);
  document.parser_ = std::make_unique<dom::parser>();
  const auto fail = [&](simdjson::error_code code) {
    if (code == simdjson::DEPTH_ERROR) throw Error("{}: JSON nested deeper than {} levels", document.where_, max_depth);
    if (code == simdjson::MEMALLOC) throw std::bad_alloc();  // no fault of the document
    const std::string_view reason = simdjson::error_message(code);
    throw Error("{}: not valid JSON{}: {}", document.where_, place_of_error(text),
                reason.substr(0, reason.find_last_not_of('.') + 1));
  };
  if (text.empty()) throw Error("{}: is empty, expected JSON", document.where_);
  if (text.starts_with("\xEF\xBB\xBF")) {
    throw Error("{}: begins with a byte order mark, which JSON has not; save it without", document.where_);
  }
  if (const auto code = document.parser_->allocate(text.size(), max_depth)) fail(code);
  if (const auto code = document.parser_->parse(text.data(), text.size()).get(document.root_)) fail(code);
  refuse_duplicate_keys(document.root_, document.where_);
  return document;
}

JsonDocument JsonDocument::read(const std::filesystem::path& path, size_t max_bytes, size_t max_depth) {
  return parse(read_file(path, max_bytes), printable(path.native()), max_depth);
}

}  // namespace fathom
