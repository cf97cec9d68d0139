// What grammars make of texts, for comparing with other programs (tests/text/xgrammar_compare.py). Reads lines
// {"schema" or "gbnf" or "regex": ..., "text": ...}; writes for each {"accepted": bytes, "can_end": ...} or {"error":
// ...}.
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/gbnf.h"
#include "text/grammar_matcher.h"
#include "text/json_schema.h"
#include "text/regex_grammar.h"

namespace {

using namespace fathom;
using Json = nlohmann::ordered_json;

std::shared_ptr<const Grammar> grammar_of(const Json& line) {
  if (line.contains("gbnf")) return parse_gbnf(line["gbnf"].get<std::string>());
  if (line.contains("regex")) return regex_grammar(line["regex"].get<std::string>());
  return schema_grammar(line.at("schema"));
}

Json answer(const Json& line) {
  GrammarMatcher matcher(grammar_of(line));
  const std::string text = line.at("text").get<std::string>();
  size_t accepted = 0;
  while (accepted < text.size() && matcher.accept(std::string_view(text).substr(accepted, 1))) ++accepted;
  return {{"accepted", accepted}, {"can_end", matcher.can_end()}};
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    Json out;
    try {
      out = answer(Json::parse(line));
    } catch (const std::exception& error) {
      out = {{"error", error.what()}};
    }
    std::cout << out.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
  }
  return 0;
}
