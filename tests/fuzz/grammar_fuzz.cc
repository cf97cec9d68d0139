// A grammar (GBNF, a JSON schema or a regular expression, as the first byte says) and behind a zero byte a text. It is
// made or refused in one line; texts are read the same however they are cut; masks are what accept takes; what a
// schema's grammar accepts is JSON.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/rng.h"
#include "text/gbnf.h"
#include "text/grammar_matcher.h"
#include "text/json_schema.h"
#include "text/regex_grammar.h"

namespace {

using namespace fathom;
using Json = nlohmann::ordered_json;

std::shared_ptr<const Grammar> grammar_of(unsigned kind, std::string_view source) {
  try {
    if (kind == 0) return parse_gbnf(source);
    if (kind == 2) return regex_grammar(source);
    const Json schema = Json::parse(source, nullptr, false);
    return schema.is_discarded() ? nullptr : schema_grammar(schema);
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
    return nullptr;
  }
}

void check_mask(const GrammarMatcher& matcher, TokenMasks& masks, Rng& rng, uint8_t next) {
  std::vector<uint64_t> mask;
  matcher.allowed(masks, mask);
  FATHOM_CHECK(std::ranges::any_of(mask, [](uint64_t word) { return word != 0; }) != matcher.must_end());
  FATHOM_CHECK(!matcher.must_end() || matcher.can_end());
  for (int i = 0; i < 16; ++i) {  // each of the 256 takes too long
    const auto byte = i == 0 ? next : static_cast<uint8_t>(i < 8 ? next + rng.below(8) : rng.below(256));
    const char c = static_cast<char>(byte);
    FATHOM_CHECK(GrammarMatcher(matcher).accept({&c, 1}) == ((mask[byte / 64] >> (byte % 64) & 1) != 0));
  }
}

void read(unsigned kind, const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  static const auto trie = std::make_shared<const TokenTrie>(Tokenizer::bytes());
  TokenMasks masks(grammar, trie, size_t{4} << 20);
  GrammarMatcher matcher(grammar);
  Rng rng(text.size());
  std::string accepted;
  for (const char c : text.substr(0, 400)) {
    if (accepted.size() < 8) check_mask(matcher, masks, rng, static_cast<uint8_t>(c));
    if (matcher.accept({&c, 1})) accepted += c;  // else it stays where it is
  }
  GrammarMatcher whole(grammar);
  FATHOM_CHECK(whole.accept(accepted));
  FATHOM_CHECK(whole.can_end() == matcher.can_end() && whole.must_end() == matcher.must_end());
  if (kind == 1 && whole.can_end()) FATHOM_CHECK(Json::accept(accepted), "{}", printable(accepted));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const unsigned kind = data[0] % 3;
  const std::string_view all(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string_view source = all.substr(0, all.find('\0'));
  const auto grammar = grammar_of(kind, source);
  if (!grammar) return 0;
  try {
    read(kind, grammar, all.substr(std::min(source.size() + 1, all.size())));
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).starts_with("the grammar is too ambiguous"), "{}", error.what());
  }
  return 0;
}
