#include "text/jinja_lexer.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "text/jinja_text.h"

namespace fathom::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_byte(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

// Line ends become \n, and one at the very end is dropped.
std::string normalized(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      out += '\n';
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalized(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) root();
    tokens_.push_back({TokenKind::kEnd, line_});
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Error("line {}: {}", line_, what); }

  std::string_view rest() const { return std::string_view(source_).substr(at_); }

  void advance_to(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    if (end > at_) line_starting_ = source_[end - 1] == '\n';
    at_ = end;
  }

  size_t skip_space(size_t at) const {
    while (at < source_.size()) {
      size_t next = at;
      if (!is_space(decode_at(source_, next))) break;
      at = next;
    }
    return at;
  }

  // The data before a tag at `tag`, whose sign (-, + or neither) follows the two characters that open it.
  void data_before(size_t tag, bool is_variable) {
    std::string_view data = std::string_view(source_).substr(at_, tag - at_);
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign == '-') {
      data = strip(data, nullptr, false, true);
    } else if (sign != '+' && !is_variable) {
      const size_t begin = data.rfind('\n') + 1;  // 0 when there is none
      if ((begin > 0 || line_starting_) && strip(data.substr(begin), nullptr).empty()) data = data.substr(0, begin);
    }
    if (!data.empty()) tokens_.push_back({TokenKind::kData, line_, std::string(data)});
    advance_to(tag);
    line_starting_ = false;
  }

  // Behind the end of a tag that stands at `end`: "-" eats all white space, nothing eats one line end, "+" neither.
  size_t behind(size_t end, char sign, bool trims) const {
    const size_t next = end + 2;
    if (sign == '-') return skip_space(next);
    return trims && sign != '+' && next < source_.size() && source_[next] == '\n' ? next + 1 : next;
  }

  void root() {
    size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        tokens_.push_back({TokenKind::kData, line_, source_.substr(at_)});
        return advance_to(source_.size());
      }
      if (source_[tag + 1] == '%' || source_[tag + 1] == '{' || source_[tag + 1] == '#') break;
    }
    const char kind = source_[tag + 1];
    data_before(tag, kind == '{');
    size_t inside = tag + 2;
    if (inside < source_.size() && (source_[inside] == '-' || source_[inside] == '+')) ++inside;
    if (kind == '#') return comment(inside);
    if (kind == '%' && raw(inside)) return;
    tokens_.push_back({kind == '%' ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, line_});
    advance_to(inside);
    tag_body(kind == '%');
  }

  void comment(size_t inside) {
    const size_t end = source_.find("#}", inside);
    if (end == std::string::npos) fail("a comment is not closed with #}");
    advance_to(behind(end, end > inside ? source_[end - 1] : '\0', true));
  }

  // {% raw %} ... {% endraw %}, when one begins here.
  bool raw(size_t inside) {
    const auto word_then_end = [&](size_t at, std::string_view word, char& sign, size_t& end) {
      at = skip_space(at);
      if (std::string_view(source_).substr(at, word.size()) != word) return false;
      at = skip_space(at + word.size());
      sign = at < source_.size() ? source_[at] : '\0';
      end = at + (sign == '-' || sign == '+' ? 1 : 0);
      return std::string_view(source_).substr(end, 2) == "%}";
    };
    char sign = 0;
    size_t end = 0;
    if (!word_then_end(inside, "raw", sign, end) || sign == '+') return false;
    advance_to(behind(end, sign, false));
    for (size_t tag = at_;; tag += 2) {
      tag = source_.find("{%", tag);
      if (tag == std::string::npos) fail("a raw block is not closed with endraw");
      const bool signed_tag = tag + 2 < source_.size() && (source_[tag + 2] == '-' || source_[tag + 2] == '+');
      if (!word_then_end(tag + 2 + signed_tag, "endraw", sign, end)) continue;
      data_before(tag, false);
      advance_to(behind(end, sign, true));
      return true;
    }
  }

  void tag_body(bool is_block) {
    const std::string_view closing = is_block ? "%}" : "}}";
    std::string open;
    while (true) {
      advance_to(skip_space(at_));
      if (at_ >= source_.size()) fail(fmt::format("a tag is not closed with {}", closing));
      if (open.empty()) {
        const char sign = source_[at_];
        const bool has_sign = sign == '-' || (sign == '+' && is_block);
        const size_t end = at_ + (has_sign ? 1 : 0);
        if (std::string_view(source_).substr(end, 2) == closing) {
          tokens_.push_back({is_block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, line_});
          return advance_to(behind(end, has_sign ? sign : '\0', is_block));
        }
      }
      const char c = source_[at_];
      if (is_digit(c)) {
        number();
      } else if (is_name_byte(c)) {
        size_t end = at_;
        while (end < source_.size() && is_name_byte(source_[end])) ++end;
        tokens_.push_back({TokenKind::kName, line_, source_.substr(at_, end - at_)});
        advance_to(end);
      } else if (c == '\'' || c == '"') {
        text_literal(c);
      } else {
        operator_token(open);
      }
    }
  }

  // digits with single underscores between them; npos when none stand there
  size_t digits(size_t at) const {
    if (at >= source_.size() || !is_digit(source_[at])) return std::string::npos;
    while (at < source_.size() &&
           (is_digit(source_[at]) || (source_[at] == '_' && at + 1 < source_.size() && is_digit(source_[at + 1])))) {
      ++at;
    }
    return at;
  }

  void number() {
    const size_t whole = digits(at_);
    size_t end = whole;
    bool is_float = false;
    if (whole + 1 < source_.size() && source_[whole] == '.' && is_digit(source_[whole + 1])) {
      end = digits(whole + 1);
      is_float = true;
    }
    if (end < source_.size() && (source_[end] | 0x20) == 'e') {
      const size_t sign = end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
      if (const size_t exponent = digits(end + 1 + sign); exponent != std::string::npos) {
        end = exponent;
        is_float = true;
      }
    }
    if (at_ > 0 && source_[at_ - 1] == '.') is_float = false;
    if (!is_float) return integer(whole);
    std::string digits_only = source_.substr(at_, end - at_);
    std::erase(digits_only, '_');
    tokens_.push_back({TokenKind::kFloat, line_, "", Value(std::strtod(digits_only.c_str(), nullptr))});
    advance_to(end);
  }

  void integer(size_t end) {
    Int base = 10;
    size_t at = at_;
    const auto value_of = [](char c) {
      return is_digit(c) ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? (c | 0x20) - 'a' + 10 : 99;
    };
    if (source_[at_] == '0') {
      const char mark = at_ + 1 < source_.size() ? static_cast<char>(source_[at_ + 1] | 0x20) : '\0';
      const Int prefixed = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
      const auto fits = [&](size_t i) { return i < source_.size() && value_of(source_[i]) < prefixed; };
      if (prefixed != 10 && (fits(at_ + 2) || (at_ + 2 < source_.size() && source_[at_ + 2] == '_' && fits(at_ + 3)))) {
        base = prefixed;
        at = end = at_ + 2;
        while (fits(end) || (end < source_.size() && source_[end] == '_' && fits(end + 1))) ++end;
      } else {  // only zeros may follow a zero
        end = at_;
        while (end < source_.size() &&
               (source_[end] == '0' || (source_[end] == '_' && end + 1 < source_.size() && source_[end + 1] == '0'))) {
          ++end;
        }
      }
    }
    Int value = 0;
    for (; at < end; ++at) {
      if (source_[at] == '_') continue;
      if (__builtin_mul_overflow(value, base, &value) ||
          __builtin_add_overflow(value, Int(value_of(source_[at])), &value)) {
        fail("an integer is too large");
      }
    }
    tokens_.push_back({TokenKind::kInteger, line_, "", Value(value)});
    advance_to(end);
  }

  void text_literal(char quote) {
    std::string out;
    size_t at = at_ + 1;
    const auto coded = [&](size_t n_digits, int base) {
      size_t end = at;
      while (end < source_.size() && end - at < n_digits && std::isxdigit(static_cast<unsigned char>(source_[end])) &&
             (base == 16 || (source_[end] >= '0' && source_[end] < '8'))) {
        ++end;
      }
      if (base == 16 && end - at != n_digits) fail("an escape in a text literal is cut short");
      const auto c = static_cast<char32_t>(std::stoul(source_.substr(at, end - at), nullptr, base));
      if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) fail("an escape in a text literal is no character");
      append_utf8(out, c);
      at = end;
    };
    while (true) {
      if (at >= source_.size()) fail("a text literal is not closed");
      const char c = source_[at++];
      if (c == quote) break;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (at >= source_.size()) fail("a text literal is not closed");
      const char escaped = source_[at++];
      constexpr std::string_view kFrom = "abfnrtv\\'\"\n", kTo = "\a\b\f\n\r\t\v\\'\"";
      if (const size_t i = kFrom.find(escaped); i != std::string_view::npos) {
        if (escaped != '\n') out += kTo[i];
      } else if (escaped == 'x') {
        coded(2, 16);
      } else if (escaped == 'u') {
        coded(4, 16);
      } else if (escaped == 'U') {
        coded(8, 16);
      } else if (escaped >= '0' && escaped < '8') {
        --at;
        coded(3, 8);
      } else if (escaped == 'N') {
        fail("\\N{...} escapes are not known here");
      } else {
        out += '\\';
        out += escaped;
      }
    }
    tokens_.push_back({TokenKind::kText, line_, std::move(out)});
    advance_to(at);
  }

  void operator_token(std::string& open) {
    constexpr std::string_view kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    std::string_view op = rest().substr(0, 2);
    if (std::find(std::begin(kTwo), std::end(kTwo), op) == std::end(kTwo)) op = op.substr(0, 1);
    const char c = op[0];
    if (op.size() == 1 && std::string_view("+-/*%~[](){}><=.:|,;").find(c) == std::string_view::npos) {
      fail(fmt::format("unexpected character '{}'", printable(rest().substr(0, 1))));
    }
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty()) fail(fmt::format("unexpected '{}'", c));
      if (open.back() != c) fail(fmt::format("unexpected '{}', expected '{}'", c, open.back()));
      open.pop_back();
    }
    tokens_.push_back({TokenKind::kOperator, line_, std::string(op)});
    advance_to(at_ + op.size());
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace fathom::jinja
