#include "text/gbnf.h"

#include <algorithm>

#include "base/error.h"
#include "base/utf8.h"
#include "text/regex_grammar.h"

namespace fathom {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '-' || c == '_'; }

class Parser {
 public:
  explicit Parser(std::string_view source) : source_(source) {}
  std::shared_ptr<const Grammar> parse();

 private:
  struct Rule {
    uint32_t number;
    size_t first_use;
    bool defined = false;
  };

  // 0 at the end, which no grammar has within.
  char at(size_t ahead = 0) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }
  bool take(std::string_view text);
  void skip_spaces(bool newlines);
  [[noreturn]] void fail(size_t at, const std::string& message);

  std::string_view read_name();
  uint64_t read_number();
  char32_t read_character();
  Rule& rule_named(std::string_view name, size_t at);
  GrammarBuilder::Piece read_literal();
  CodePoints read_class();
  void read_rules();
  void read_rule();
  bool read_item(ExpressionReader& reader);
  void read_repetition(ExpressionReader& reader);

  std::string_view source_;
  size_t at_ = 0, item_ = 0;  // item_: where errors are
  GrammarBuilder builder_;
  std::unordered_map<std::string_view, Rule> rules_;
  std::vector<size_t> groups_;  // where they begin
};

void Parser::fail(size_t at, const std::string& message) {
  item_ = at;
  throw Error(message);
}

bool Parser::take(std::string_view text) {
  const bool there = source_.substr(at_).starts_with(text);
  if (there) at_ += text.size();
  return there;
}

void Parser::skip_spaces(bool newlines) {
  for (;; ++at_) {
    if (at() == '#') at_ = std::min(source_.find_first_of("\r\n", at_), source_.size());
    const char c = at();
    if (c != ' ' && c != '\t' && !(newlines && (c == '\r' || c == '\n'))) return;
  }
}

std::string_view Parser::read_name() {
  const size_t begin = at_;
  while (is_word(at())) ++at_;
  return source_.substr(begin, at_ - begin);
}

uint64_t Parser::read_number() {
  if (!is_digit(at())) fail(at_, "a number of times is missing");
  uint64_t number = 0;
  for (; is_digit(at()); ++at_)
    number = std::min<uint64_t>(10 * number + static_cast<uint64_t>(at() - '0'), 1'000'000'000);
  return number;
}

// In a literal or a class.
char32_t Parser::read_character() {
  const size_t begin = at_;
  if (at_ == source_.size()) fail(at_, "the grammar ends within a literal or a class");
  if (at() != '\\') {
    const std::string_view rest = source_.substr(at_);
    at_ += utf8_unit(rest).bytes;
    return utf8_code_point(rest);
  }
  const char kind = at(1);
  at_ += 2;
  switch (kind) {
    case 't':
      return '\t';
    case 'r':
      return '\r';
    case 'n':
      return '\n';
    case '\\':
    case '"':
    case '[':
    case ']':
    case '-':
    case '^':
      return static_cast<char32_t>(kind);
    case 'x':
    case 'u':
    case 'U': {
      const size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : 8;
      char32_t code_point = 0;
      for (size_t i = 0; i < digits; ++i, ++at_) {
        const auto digit =
            std::string_view("0123456789abcdef").find(static_cast<char>(is_digit(at()) ? at() : at() | 0x20));
        if (digit == std::string_view::npos) fail(begin, fmt::format("\\{} needs {} hexadecimal digits", kind, digits));
        code_point = code_point << 4 | static_cast<char32_t>(digit);
      }
      if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point < 0xE000)) fail(begin, "this is no character");
      return code_point;
    }
    default:
      fail(begin, "unknown escape");
  }
}

Parser::Rule& Parser::rule_named(std::string_view name, size_t at) {
  const auto [found, is_new] = rules_.try_emplace(name, Rule{0, at});
  if (is_new) found->second.number = builder_.add_rule(std::string(name));
  return found->second;
}

GrammarBuilder::Piece Parser::read_literal() {
  std::string text;
  for (++at_; at() != '"' || at_ == source_.size();) append_utf8(text, read_character());
  ++at_;
  return builder_.text(text);
}

CodePoints Parser::read_class() {
  const size_t begin = at_++;
  const bool negated = take("^");
  CodePoints set;
  while (at() != ']' || at_ == source_.size()) {
    const size_t at_first = at_;
    const char32_t first = read_character();
    char32_t last = first;
    if (at() == '-' && at(1) != ']') {
      ++at_;
      last = read_character();
    }
    if (last < first) fail(at_first, "the range ends before it begins");
    set.add(first, last);
  }
  ++at_;
  if (set.ranges.empty()) fail(begin, "the class is empty");
  return negated ? set.complement() : set;
}

void Parser::read_repetition(ExpressionReader& reader) {
  const size_t begin = at_;
  uint64_t min = 0, max = GrammarBuilder::kUnlimited;
  const bool nested = !groups_.empty();
  if (at() == '{') {
    ++at_;
    skip_spaces(nested);
    min = max = read_number();
    skip_spaces(nested);
    if (take(",")) {
      skip_spaces(nested);
      max = is_digit(at()) ? read_number() : GrammarBuilder::kUnlimited;
      skip_spaces(nested);
    }
    if (!take("}")) fail(at_, "} is missing");
  } else {
    if (at() == '+') min = 1;
    if (at() == '?') max = 1;
    ++at_;
  }
  if (!reader.can_repeat()) fail(begin, "nothing stands in front that could be repeated");
  if (min > max) fail(begin, fmt::format("at least {} times but at most {}", min, max));
  reader.repeat(min, max);
}

// False where the alternatives end.
bool Parser::read_item(ExpressionReader& reader) {
  const bool nested = !groups_.empty();
  skip_spaces(nested);
  item_ = at_;
  const char c = at();
  if (c == '"') {
    reader.add(read_literal());
  } else if (c == '[') {
    reader.add(builder_.code_points(read_class()));
  } else if (c == '.') {
    ++at_;
    reader.add(builder_.code_points(CodePoints{}.complement()));
  } else if (is_word(c)) {
    reader.add(builder_.call(rule_named(read_name(), item_).number));
  } else if (c == '*' || c == '+' || c == '?' || c == '{') {
    read_repetition(reader);
  } else if (take("(")) {
    reader.open();
    groups_.push_back(item_);
  } else if (nested && take(")")) {
    reader.close();
    groups_.pop_back();
  } else if (take("|")) {
    reader.bar();
    skip_spaces(true);
  } else if (c == '<' || c == '!') {
    fail(at_, "tokens in grammars are not supported");
  } else if (at_ == source_.size()) {
    if (nested) fail(groups_.back(), "the group has no end");
    return false;
  } else if (c == '\r' || c == '\n') {
    skip_spaces(true);
    return at() == '|';
  } else {
    fail(at_,
         fmt::format("\"{}\" cannot stand here", printable(source_.substr(at_, utf8_unit(source_.substr(at_)).bytes))));
  }
  return true;
}

void Parser::read_rule() {
  const size_t begin = item_ = at_;
  const std::string_view name = read_name();
  if (name.empty()) fail(at_, "the name of a rule is missing");
  skip_spaces(false);
  if (!take("::=")) fail(at_, "::= is missing");
  skip_spaces(true);
  Rule& rule = rule_named(name, begin);
  if (rule.defined) fail(begin, fmt::format("the rule {} is defined twice", printable(name, 80)));
  rule.defined = true;
  ExpressionReader reader(builder_);
  while (read_item(reader)) {
  }
  builder_.define(rule.number, reader.finish());
}

void Parser::read_rules() {
  if (const size_t bad = first_invalid_utf8(source_); bad != kNoPosition) fail(bad, "not UTF-8");
  for (skip_spaces(true); at_ < source_.size(); skip_spaces(true)) read_rule();
  const auto first = std::ranges::min_element(rules_, {}, [](const auto& rule) {
    return rule.second.defined ? std::string_view::npos : rule.second.first_use;
  });
  if (first != rules_.end() && !first->second.defined) {
    fail(first->second.first_use, fmt::format("the rule {} is not defined", printable(first->first, 80)));
  }
}

std::shared_ptr<const Grammar> Parser::parse() {
  try {
    read_rules();
  } catch (const Error& error) {
    const std::string_view before = source_.substr(0, item_);
    throw Error("line {}, column {}: {}", std::ranges::count(before, '\n') + 1,
                before.size() - (before.rfind('\n') + 1) + 1, error.what());
  }
  const auto root = rules_.find("root");
  if (root == rules_.end()) throw Error("there is no rule root");
  return builder_.finish(root->second.number);
}

}  // namespace

std::shared_ptr<const Grammar> parse_gbnf(std::string_view source) { return Parser(source).parse(); }

}  // namespace fathom
