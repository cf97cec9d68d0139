#include "base/json.h"

#include <algorithm>
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
    std::vector<std::string_view> keys;
    for (const auto [key, value] : dom::object(element)) {
      keys.push_back(key);
      refuse_duplicate_keys(value, where);
    }
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) throw Error("{}: the key \"{}\" stands twice in one object", where, printable(*twice, 80));
  }
}

}  // namespace

JsonDocument JsonDocument::parse(std::string_view text, std::string where, size_t max_depth) {
  JsonDocument document;
  document.where_ = std::move(where);
  document.parser_ = std::make_unique<dom::parser>();
  const auto fail = [&](simdjson::error_code code) {
    if (code == simdjson::DEPTH_ERROR) throw Error("{}: JSON nested deeper than {} levels", document.where_, max_depth);
    throw Error("{}: not valid JSON: {}", document.where_, simdjson::error_message(code));
  };
  if (text.empty()) throw Error("{}: is empty, expected JSON", document.where_);
  if (const auto code = document.parser_->allocate(text.size(), max_depth)) fail(code);
  if (const auto code = document.parser_->parse(text.data(), text.size()).get(document.root_)) fail(code);
  refuse_duplicate_keys(document.root_, document.where_);
  return document;
}

JsonDocument JsonDocument::read(const std::filesystem::path& path, size_t max_bytes, size_t max_depth) {
  return parse(read_file(path, max_bytes), printable(path.native()), max_depth);
}

}  // namespace fathom
