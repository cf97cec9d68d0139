#include "text/added_tokens.h"

#include <algorithm>

#include "base/utf8.h"

namespace fathom {
namespace {

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// Start of the character that ends before `at` > 0.
size_t character_before(std::string_view text, size_t at) {
  --at;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool is_word_character(std::string_view character) {
  static const Regex word("\\w", false, "added tokens");
  size_t begin, end;
  return Regex::Matcher(word).find(character, 0, begin, end);
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    const size_t before = character_before(text, begin);
    if (is_word_character(text.substr(before, begin - before))) return true;
  }
  return end < text.size() && is_word_character(text.substr(end, utf8_unit(text.substr(end)).bytes));
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens) : token_at_{-1}, tokens_(tokens) {
  for (size_t t = 0; t < tokens_.size(); ++t) {
    uint32_t node = 0;
    for (const char c : tokens_[t].content) {
      const uint32_t byte = static_cast<uint8_t>(c);
      if (node == 0) first_[byte] = true;
      uint32_t child = children_.find(node, byte);
      if (child == PairTable::kNone) {
        child = static_cast<uint32_t>(token_at_.size());
        children_.set(node, byte, child);
        token_at_.push_back(-1);
      }
      node = child;
    }
    token_at_[node] = static_cast<int32_t>(t);
  }
}

bool AddedTokenFinder::begins_mark(std::string_view text, std::span<const std::string_view> kept) const {
  if (text.empty() || !first_[static_cast<uint8_t>(text[0])]) return false;
  const auto is_mark = [&](const std::string& token) {
    return utf8_unit(token).bytes < token.size() && std::find(kept.begin(), kept.end(), token) == kept.end();
  };
  uint32_t node = 0;
  for (const char c : text) {
    node = children_.find(node, static_cast<uint8_t>(c));
    if (node == PairTable::kNone) return false;
    if (token_at_[node] >= 0 && is_mark(tokens_[static_cast<size_t>(token_at_[node])].content)) return true;
  }
  return true;
}

bool AddedTokenFinder::find(std::string_view text, size_t from, Match& match) const {
  if (tokens_.empty()) return false;
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_[static_cast<uint8_t>(text[begin])]) continue;
    const AddedToken* longest = nullptr;
    uint32_t node = 0;
    for (size_t i = begin; i < text.size(); ++i) {
      node = children_.find(node, static_cast<uint8_t>(text[i]));
      if (node == PairTable::kNone) break;
      if (token_at_[node] >= 0) longest = &tokens_[static_cast<size_t>(token_at_[node])];
    }
    if (longest == nullptr) continue;
    size_t end = begin + longest->content.size();
    if (longest->single_word && touches_word(text, begin, end)) {
      begin = end - 1;
      continue;
    }
    match = {begin, end, longest->id};
    if (longest->lstrip) {
      while (match.begin > from) {
        const size_t before = character_before(text, match.begin);
        if (!is_white_space(utf8_code_point(text.substr(before)))) break;
        match.begin = std::max(before, from);
      }
    }
    if (longest->rstrip) {
      while (match.end < text.size() && is_white_space(utf8_code_point(text.substr(match.end)))) {
        match.end += utf8_unit(text.substr(match.end)).bytes;
      }
    }
    return true;
  }
  return false;
}

}  // namespace fathom
