// Tokenizers on any text. What the input is, its first byte says:
//   `{`  a tokenizer.json, a zero byte, and a text;
//   `#`  a recipe of a tokenizer.json (see cook), an empty line, and a text: so that changes do not end in broken JSON;
//   else a text for the tokenizer of tests/data/text/tiny and for plain bytes.
//
// The laws:
// 1. A tokenizer.json is refused with one line, or every text that is UTF-8 becomes ids of the vocabulary, or is
//    refused with one line (for a byte that has no token, or a regex without end).
// 2. decode(encode(text, parse_special = false)) is the text, if no Split removes anything and every token is what its
//    byte or its merge says; with parse_special too, if moreover no added token takes white space along.
// 3. For the tiny tokenizer 2. always holds; for plain bytes it holds for any bytes.
// 4. StreamDecoder, one id at a time, gives what decode gives, and never a broken character.
// 5. What write_tokenizer_json writes, parse_tokenizer_json reads back.
#include <algorithm>
#include <set>
#include <unordered_map>

#include "base/error.h"
#include "base/utf8.h"
#include "text/byte_alphabet.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json.h"

namespace fathom {
namespace {

void check_one_line(const Error& error) {
  FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
}

void check_stream(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  StreamDecoder stream(tokenizer, false);
  std::string joined;
  for (const int32_t id : ids) {
    const std::string piece = stream.push(id);
    FATHOM_CHECK(first_invalid_utf8(piece) == kNoPosition);
    joined += piece;
  }
  joined += stream.finish();
  FATHOM_CHECK(joined == tokenizer.decode(ids));
}

// Encodes and decodes; `inverse`: the text must come back.
void check_text(const Tokenizer& tokenizer, std::string_view text, bool parse_special, bool inverse) {
  const std::vector<int32_t> ids = tokenizer.encode(text, parse_special);
  for (const int32_t id : ids) FATHOM_CHECK(id >= 0 && id < tokenizer.vocab_size());
  const std::string back = tokenizer.decode(ids, false, true);
  FATHOM_CHECK(!inverse || back == text, "{} became {}", printable(text), printable(back));
  check_stream(tokenizer, ids);
}

// Law 2's condition on vocabulary and splits.
bool is_invertible(const TokenizerJson& json) {
  const auto token = [&](int32_t id) -> const std::string& { return json.tokens[static_cast<size_t>(id)]; };
  for (int byte = 0; byte < 256; ++byte) {
    const int32_t id = json.byte_ids[static_cast<size_t>(byte)];
    if (id >= 0 && token(id) != std::string(1, static_cast<char>(byte))) return false;
  }
  return std::ranges::none_of(json.splits, [](const SplitRule& s) { return s.behavior == SplitBehavior::removed; }) &&
         std::ranges::all_of(json.merges,
                             [&](const Merge& m) { return token(m.result) == token(m.left) + token(m.right); });
}

void check_tokenizer(const std::string& json_text, const TokenizerJson& json, std::string_view text) {
  const Tokenizer tokenizer = Tokenizer::parse(json_text, "tokenizer.json");
  const bool inverse = is_invertible(json);
  const bool greedy = std::ranges::any_of(json.added, [](const AddedToken& t) { return t.lstrip || t.rstrip; });
  for (const bool parse_special : {false, true}) {
    try {
      check_text(tokenizer, text, parse_special, inverse && !(parse_special && greedy));
    } catch (const Error& error) {
      check_one_line(error);
    }
  }
}

// Law 5: anything that refuses this is a bug.
TokenizerJson read_back(const std::string& json_text) {
  try {
    return parse_tokenizer_json(json_text, "written");
  } catch (const Error& error) {
    FATHOM_CHECK(false, "{}", error.what());
    throw;
  }
}

// Lines of the recipe, told by their first letter; the second is a number of bits:
//   s  a Split: behaviour (3 bits), invert, literal; then the pattern
//   a  an added token: special, lstrip, rstrip, single_word, normalized; then the content
//   m  a merge: no bits; then its two tokens in one, cut where both are tokens
// The vocabulary is the bytes of the input and the merges.
void cook(std::string_view input) {
  std::vector<std::string> tokens;
  std::unordered_map<std::string, int32_t> ids;
  const auto add_token = [&](const std::string& token) {
    if (ids.emplace(token, static_cast<int32_t>(tokens.size())).second) tokens.push_back(token);
  };
  for (const char c : std::set<char>(input.begin(), input.end())) add_token({c});
  std::vector<SplitRule> splits;
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
  std::set<std::string> contents;
  while (!input.empty() && input[0] != '\n') {
    const std::string_view line = input.substr(0, input.find('\n'));
    input.remove_prefix(std::min(line.size() + 1, input.size()));
    if (line.size() < 3) continue;
    const auto bit = [bits = line[1]](int i) { return (bits >> i & 1) != 0; };
    const std::string rest(line.substr(line[0] == 'm' ? 1 : 2));
    if (line[0] != 'm' && first_invalid_utf8(rest) != kNoPosition) continue;
    if (line[0] == 's' && splits.size() < 63) {  // and ByteLevel: more steps are refused
      splits.push_back({rest, bit(4), static_cast<SplitBehavior>((line[1] & 7) % 5), bit(3)});
    } else if (line[0] == 'a' && contents.insert(rest).second) {
      added.push_back({0, rest, bit(0), bit(1), bit(2), bit(3), bit(4)});
    } else if (line[0] == 'm' && !ids.contains(rest)) {
      for (size_t cut = rest.size() - 1; cut > 0; --cut) {
        const auto left = ids.find(rest.substr(0, cut)), right = ids.find(rest.substr(cut));
        if (left == ids.end() || right == ids.end()) continue;
        merges.push_back({left->second, right->second, static_cast<int32_t>(tokens.size())});
        add_token(rest);
        break;
      }
    }
  }
  if (tokens.empty()) return;
  // An added token that reads like another's spelling would have to be that one. A gap is left before the others.
  for (const std::string& token : tokens) {
    std::erase_if(added, [spelled = spell_bytes(token)](const AddedToken& a) { return a.content == spelled; });
  }
  for (AddedToken& token : added) token.id = static_cast<int32_t>(tokens.size() + (&token - added.data()) + 1);
  const std::string json = write_tokenizer_json(splits, tokens, merges, added);
  const TokenizerJson read = read_back(json);
  FATHOM_CHECK(read.splits.size() == splits.size() && read.merges.size() == merges.size());
  FATHOM_CHECK(std::equal(tokens.begin(), tokens.end(), read.tokens.begin()));
  FATHOM_CHECK(std::ranges::equal(added, read.added, {}, &AddedToken::content, &AddedToken::content));
  check_tokenizer(json, read, input.substr(input.empty() ? 0 : 1));
}

void check_fixed(std::string_view text) {
  static const Tokenizer tiny = Tokenizer::load(FATHOM_TEST_DATA "/text/tiny"), bytes = Tokenizer::bytes();
  check_text(bytes, text, true, true);
  for (const bool parse_special : {false, true}) {
    try {
      check_text(tiny, text, parse_special, true);
      FATHOM_CHECK(first_invalid_utf8(text) == kNoPosition);
    } catch (const Error& error) {
      check_one_line(error);
      FATHOM_CHECK(first_invalid_utf8(text) != kNoPosition, "{}", error.what());
    }
  }
}

}  // namespace
}  // namespace fathom

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    if (input.starts_with('{')) {
      const size_t end = std::min(input.find('\0'), size);
      const std::string json(input.substr(0, end));
      check_tokenizer(json, parse_tokenizer_json(json, "tokenizer.json"), input.substr(std::min(size, end + 1)));
    } else if (input.starts_with('#')) {
      cook(input.substr(1));
    } else {
      check_fixed(input);
    }
  } catch (const Error& error) {
    check_one_line(error);
  }
  return 0;
}
