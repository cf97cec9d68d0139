// tokenizer.json, read and checked: afterwards every id is in range and every merge names tokens that exist.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/bpe.h"
#include "text/pretokenizer.h"

namespace fathom {

inline constexpr size_t kMaxTokenizerJsonBytes = size_t{64} << 20;
inline constexpr int64_t kMaxVocabSize = int64_t{1} << 20;

struct AddedToken {
  int32_t id;
  std::string content;
  bool special = false;
  bool lstrip = false, rstrip = false;  // takes the white space before / after it along
  bool single_word = false;             // only where no word character touches it
  bool normalized = true;               // looked for after those that are not
};

struct TokenizerJson {
  std::vector<SplitRule> splits;
  std::vector<AddedToken> added;    // by id
  std::vector<std::string> tokens;  // [id]: the bytes it stands for
  std::vector<bool> present;        // [id]: false in a gap
  std::array<int32_t, 256> byte_ids;
  std::vector<Merge> merges;   // lowest rank first
  bool ignore_merges = false;  // a word that is a token becomes that token
  bool nfc = false;            // text is put into Unicode's normalization form C first
};

// `where` begins every message. Unknown kinds of components are refused by name.
TokenizerJson parse_tokenizer_json(std::string_view text, const std::string& where);

// The JSON of a byte-level BPE. Added tokens with the ids 0, 1, .. come first; `tokens` (bytes) have the ids that
// follow, or begin at 0; other added tokens keep their ids behind them.
std::string write_tokenizer_json(const std::vector<SplitRule>& splits, const std::vector<std::string>& tokens,
                                 const std::vector<Merge>& merges, const std::vector<AddedToken>& added);

// What a tokenizer does to a text before it looks for merges.
struct TextRules {
  std::vector<SplitRule> splits;
  bool nfc = false, ignore_merges = false;  // see TokenizerJson
  bool operator==(const TextRules&) const = default;
};

// The same from lists: `tokens` by id, spelled in the byte alphabet (empty: not in the vocabulary), merges "a b".
std::string spelled_tokenizer_json(const TextRules& rules, const std::vector<std::string>& tokens,
                                   const std::vector<std::string>& merges, const std::vector<AddedToken>& added);

}  // namespace fathom
