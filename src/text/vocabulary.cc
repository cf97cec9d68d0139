#include "text/vocabulary.h"

#include "base/error.h"
#include "text/byte_alphabet.h"
#include "text/tokenizer_json.h"

namespace fathom {
namespace {

// The letters that DeepSeek-LLM and V2 make words of: those of scripts with upper and lower case. As code points, since
// Unicode normalization would change some of the characters.
constexpr const char* kCasedLetters =
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943";

std::vector<SplitRule> deepseek_v3() {
  return {{"\\p{N}{1,3}"},
          {"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"},
          {"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
           "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"}};
}

std::vector<SplitRule> deepseek_llm() {
  return {{"[\r\n]"},
          {fmt::format("\\s?[{}]+", kCasedLetters)},
          {"\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"},
          {"\\s+$"},
          {"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"},
          {"\\p{N}"}};
}

// Llama 3's, and but for the digits Qwen 2's.
std::vector<SplitRule> words_of_tiktoken(const char* digits) {
  return {
      {fmt::format("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|{}| ?[^\\s\\p{{L}}\\p{{N}}]+[\r\n]*"
                   "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
                   digits)}};
}
std::vector<SplitRule> llama_3() { return words_of_tiktoken("\\p{N}{1,3}"); }
std::vector<SplitRule> qwen_2() { return words_of_tiktoken("\\p{N}"); }

// The first that does what a tokenizer does gives it its name in files; llama.cpp has several for some.
struct Named {
  const char* name;
  std::vector<SplitRule> (*splits)();
  bool nfc = false, ignore_merges = false;

  TextRules rules() const { return {splits(), nfc, ignore_merges}; }
};
constexpr Named kPretokenizers[] = {{"deepseek-v3", deepseek_v3},
                                    {"deepseek-llm", deepseek_llm},
                                    {"llama-bpe", llama_3, false, true},
                                    {"qwen2", qwen_2, true},
                                    {"deepseek-r1-qwen", qwen_2, true}};
constexpr const char* kNames = "deepseek-v3, deepseek-llm, llama-bpe, qwen2 and deepseek-r1-qwen";

// Some files have line ends as escapes in the regex, others as they are.
std::vector<SplitRule> without_escapes(std::vector<SplitRule> splits) {
  for (SplitRule& split : splits) {
    for (const auto& [escape, character] : {std::pair{"\\r", '\r'}, {"\\n", '\n'}}) {
      for (size_t at = 0; (at = split.pattern.find(escape, at)) != std::string::npos; ++at) {
        // Behind another backslash it is a letter.
        if (at == 0 || split.pattern[at - 1] != '\\') split.pattern.replace(at, 2, 1, character);
      }
    }
  }
  return splits;
}

}  // namespace

std::string unused_token(size_t id) { return fmt::format("[PAD{}]", id); }

std::optional<TextRules> find_pretokenizer(std::string_view name) {
  for (const Named& known : kPretokenizers) {
    if (known.name == name) return known.rules();
  }
  return std::nullopt;
}

std::optional<std::string> name_of_pretokenizer(const TextRules& rules) {
  const TextRules plain{without_escapes(rules.splits), rules.nfc, rules.ignore_merges};
  for (const Named& known : kPretokenizers) {
    if (known.rules() == plain) return known.name;
  }
  return std::nullopt;
}

Vocabulary vocabulary_of(const TokenizerJson& json, const std::string& where) {
  Vocabulary v;
  // Without merges every byte is a token, wherever the text is cut.
  const auto name =
      json.merges.empty() ? kPretokenizers[0].name : name_of_pretokenizer({json.splits, json.nfc, json.ignore_merges});
  if (!name) {
    throw Error(
        "{}: its normalizer, pre-tokenizer and ignore_merges together have no name that a GGUF file could give; those "
        "of DeepSeek-V3, DeepSeek-LLM, Llama 3 and Qwen 2 do",
        where);
  }
  v.pretokenizer = *name;
  for (size_t id = 0; id < json.tokens.size(); ++id) {
    v.tokens.push_back(json.present[id] ? spell_bytes(json.tokens[id]) : unused_token(id));
    v.kinds.push_back(static_cast<int64_t>(json.present[id] ? TokenKind::normal : TokenKind::unused));
  }
  for (const AddedToken& token : json.added) {
    if (token.lstrip || token.rstrip || token.single_word) {
      throw Error("{}: lstrip, rstrip or single_word of \"{}\" cannot be said in a GGUF file", where,
                  printable(token.content, 80));
    }
    const auto id = static_cast<size_t>(token.id);
    v.tokens[id] = token.content;
    v.kinds[id] = static_cast<int64_t>(token.special ? TokenKind::control : TokenKind::user_defined);
  }
  v.merges.reserve(json.merges.size());
  for (const Merge& merge : json.merges) {
    v.merges.push_back(v.tokens[static_cast<size_t>(merge.left)] + " " + v.tokens[static_cast<size_t>(merge.right)]);
  }
  return v;
}

std::string tokenizer_json_of(const Vocabulary& v, const std::string& where) {
  const auto rules = find_pretokenizer(v.pretokenizer);
  if (!rules) {
    throw Error("{}: the pre-tokenizer {} is not supported; supported are {}", where, printable(v.pretokenizer, 80),
                kNames);
  }
  FATHOM_CHECK(v.kinds.size() == v.tokens.size());
  if (static_cast<int64_t>(v.tokens.size()) > kMaxVocabSize) {
    throw Error("{}: has {} tokens, more than {}", where, v.tokens.size(), kMaxVocabSize);
  }
  std::vector<std::string> spelled(v.tokens.size());
  std::vector<AddedToken> added;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const std::string& token = v.tokens[id];
    switch (static_cast<TokenKind>(v.kinds[id])) {
      case TokenKind::normal:
        if (token.empty()) throw Error("{}: the token of id {} is empty", where, id);
        spelled[id] = token;
        continue;
      case TokenKind::unused:
        continue;
      case TokenKind::unknown:
      case TokenKind::control:
      case TokenKind::user_defined:
        added.push_back({.id = static_cast<int32_t>(id),
                         .content = token,
                         .special = static_cast<TokenKind>(v.kinds[id]) != TokenKind::user_defined,
                         .normalized = false});
        continue;
      default:
        break;
    }
    throw Error("{}: the token of id {} is of the kind {}; byte-level BPE has kinds 1 to 5", where, id, v.kinds[id]);
  }
  return spelled_tokenizer_json(*rules, spelled, v.merges, added);
}

}  // namespace fathom
