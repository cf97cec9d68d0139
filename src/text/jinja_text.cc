#include "text/jinja_text.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <memory>

#include "base/error.h"

namespace fathom::jinja {
namespace {

// A character class of PCRE2, which carries Unicode's tables.
class CharacterClass {
 public:
  explicit CharacterClass(const char* pattern) {
    int error = 0;
    PCRE2_SIZE at = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED,
                          &error, &at, nullptr);
    FATHOM_CHECK(code_ != nullptr);
  }
  bool holds(char32_t c) const {
    std::string text;
    append_utf8(text, c);
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(pcre2_match_data_create(1, nullptr),
                                                                                    pcre2_match_data_free);
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, PCRE2_NO_UTF_CHECK,
                       match.get(), nullptr) > 0;
  }

 private:
  pcre2_code* code_;  // lives as long as the program
};

bool in_ascii(char32_t c, char first, char last) {
  return c >= static_cast<char32_t>(first) && c <= static_cast<char32_t>(last);
}

}  // namespace

char32_t decode_at(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const char32_t first = byte(at);
  const int length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  char32_t c = length == 1 ? first : first & (0x7fu >> length);
  for (int i = 1; i < length; ++i) c = c << 6 | (byte(at + static_cast<size_t>(i)) & 63u);
  at += static_cast<size_t>(length);
  if (at > text.size()) at = text.size();
  return c;
}

size_t code_points(std::string_view text) {
  size_t n = 0;
  for (const char c : text) n += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return n;
}

size_t byte_offset(std::string_view text, size_t n) {
  for (size_t at = 0; at < text.size(); ++at) {
    if ((static_cast<unsigned char>(text[at]) & 0xc0) != 0x80 && n-- == 0) return at;
  }
  return text.size();
}

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_printable(char32_t c) {
  if (c < 0x7f) return c >= 0x20;
  static const CharacterClass hidden("[\\p{C}\\p{Z}]");
  return !hidden.holds(c);
}

bool is_letter(char32_t c) {
  if (c < 0x80) return in_ascii(c | 0x20, 'a', 'z');
  static const CharacterClass letter("\\p{L}");
  return letter.holds(c);
}

bool is_decimal(char32_t c) {
  if (c < 0x80) return in_ascii(c, '0', '9');
  static const CharacterClass decimal("\\p{Nd}");
  return decimal.holds(c);
}

bool is_upper(char32_t c) {
  if (c < 0x80) return in_ascii(c, 'A', 'Z');
  static const CharacterClass upper_case("\\p{Lu}");
  return upper_case.holds(c);
}

bool is_lower(char32_t c) {
  if (c < 0x80) return in_ascii(c, 'a', 'z');
  static const CharacterClass lower_case("\\p{Ll}");
  return lower_case.holds(c);
}

bool is_cased(char32_t c) {
  if (c < 0x80) return in_ascii(c | 0x20, 'a', 'z');
  static const CharacterClass cased("[\\p{Lu}\\p{Ll}\\p{Lt}]");
  return cased.holds(c);
}

std::string upper(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) append_upper(out, decode_at(text, at));
  return out;
}

std::string lower(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) append_lower(out, decode_at(text, at));
  return out;
}

std::string capitalize(std::string_view text) {
  std::string out;
  size_t at = 0;
  if (!text.empty()) append_title(out, decode_at(text, at));
  return out + lower(text.substr(at));
}

std::string_view strip(std::string_view text, const std::string* chars, bool left, bool right) {
  const auto unwanted = [&](char32_t c) {
    if (!chars) return is_space(c);
    for (size_t at = 0; at < chars->size();) {
      if (decode_at(*chars, at) == c) return true;
    }
    return false;
  };
  size_t begin = 0;
  while (left && begin < text.size()) {
    size_t next = begin;
    if (!unwanted(decode_at(text, next))) break;
    begin = next;
  }
  size_t end = text.size();
  while (right && end > begin) {
    size_t last = end - 1;
    while (last > begin && (static_cast<unsigned char>(text[last]) & 0xc0) == 0x80) --last;
    size_t at = last;
    if (!unwanted(decode_at(text, at))) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = decode_at(text, at);
    const bool ends = (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!ends) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.push_back(text.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

}  // namespace fathom::jinja
