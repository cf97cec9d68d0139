// A grammar (GBNF, a JSON schema or a regular expression, as the first byte says) and behind a zero byte a text. It is
// made or refused in one line; texts are read the same however they are cut; masks of a vocabulary with long tokens are
// what accept takes, and empty where the text must end; what a schema's grammar accepts is JSON.
#include <algorithm>
#include <map>
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

const Tokenizer& tokenizer() {
  static const Tokenizer tiny = Tokenizer::load(FATHOM_TEST_DATA "/text/tiny");
  return tiny;
}

// Some of the tokens, tried on copies, since all of them take too long: those that the rest of the text begins with,
// what structures are made of, some that the mask has, some others.
void check_mask(const GrammarMatcher& matcher, TokenMasks& masks, std::string_view rest, Rng& rng) {
  static const auto id_of = [] {
    std::map<std::string, int32_t, std::less<>> ids;
    for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
      if (!tokenizer().is_mark(id)) ids.emplace(tokenizer().token_bytes(id), id);
    }
    return ids;
  }();
  std::vector<uint64_t> mask;
  matcher.allowed(masks, mask);
  std::vector<int32_t> allowed, tried;
  for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
    if ((mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1) != 0) allowed.push_back(id);
  }
  // Each byte is a token: what has no next one is at its end.
  FATHOM_CHECK(allowed.empty() == matcher.must_end());
  FATHOM_CHECK(!matcher.must_end() || matcher.can_end());
  const auto try_text = [&](std::string_view bytes) {
    if (const auto found = id_of.find(bytes); found != id_of.end()) tried.push_back(found->second);
  };
  for (size_t n = 1; n <= std::min<size_t>(rest.size(), 8); ++n) try_text(rest.substr(0, n));
  for (const char c : std::string_view("\"{}[]():,\\0a -")) try_text({&c, 1});
  for (int i = 0; i < 8; ++i) {
    if (!allowed.empty()) tried.push_back(allowed[rng.below(allowed.size())]);
    tried.push_back(static_cast<int32_t>(rng.below(static_cast<uint64_t>(tokenizer().vocab_size()))));
  }
  for (const int32_t id : tried) {
    const std::string bytes = tokenizer().token_bytes(id);
    const bool takes = !tokenizer().is_mark(id) && !bytes.empty() && GrammarMatcher(matcher).accept(bytes);
    FATHOM_CHECK(takes == std::ranges::binary_search(allowed, id), "{} {}", id, printable(bytes));
  }
}

void read(unsigned kind, const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  static const auto trie = std::make_shared<const TokenTrie>(tokenizer());
  TokenMasks masks(grammar, trie, size_t{8} << 20);
  GrammarMatcher matcher(grammar);
  Rng rng(text.size());
  std::string accepted;
  text = text.substr(0, 200);
  const uint64_t n_checks = 4;  // each may take tenths of a second
  for (size_t i = 0; i < text.size(); ++i) {
    if (rng.below(text.size()) < n_checks) check_mask(matcher, masks, text.substr(i), rng);
    if (matcher.accept(text.substr(i, 1))) accepted += text[i];  // else it stays where it is
  }
  check_mask(matcher, masks, "", rng);
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
