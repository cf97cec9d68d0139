#include "plan/toml.h"

#include <cmath>
#define TOML_HEADER_ONLY 1
#include <toml++/toml.h>

#include "base/error.h"

namespace fathom::plan {
namespace {

constexpr size_t kMostBytes = size_t{1} << 20;
constexpr int kMostDepth = 16;

nlohmann::json to_json(const toml::node& node, int depth, std::string_view where) {
  const auto line = node.source().begin.line;
  if (depth > kMostDepth) throw Error("{}, line {}: nested too deeply", where, line);
  if (const auto* table = node.as_table()) {
    nlohmann::json out = nlohmann::json::object();
    for (const auto& [key, value] : *table) out[std::string(key.str())] = to_json(value, depth + 1, where);
    return out;
  }
  if (const auto* list = node.as_array()) {
    nlohmann::json out = nlohmann::json::array();
    for (const auto& value : *list) out.push_back(to_json(value, depth + 1, where));
    return out;
  }
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* whole = node.as_integer()) return whole->get();
  if (const auto* flag = node.as_boolean()) return flag->get();
  if (const auto* number = node.as_floating_point()) {
    if (std::isfinite(number->get())) return number->get();
    throw Error("{}, line {}: a number is not finite", where, line);
  }
  throw Error("{}, line {}: dates have no meaning here", where, line);
}

}  // namespace

nlohmann::json read_toml(std::string_view text, std::string_view where) {
  if (text.size() > kMostBytes) throw Error("{}: has more than {} bytes", where, kMostBytes);
  try {
    return to_json(toml::parse(text), 0, where);
  } catch (const toml::parse_error& error) {
    throw Error("{}, line {}: {}", where, error.source().begin.line, printable(error.description()));
  }
}

}  // namespace fathom::plan
