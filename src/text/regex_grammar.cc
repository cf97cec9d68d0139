#include "text/regex_grammar.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/utf8.h"

namespace fathom {
namespace {

using Piece = GrammarBuilder::Piece;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

const CodePoints kDigits{{{'0', '9'}}};
const CodePoints kWord{{{'0', '9'}, {'A', 'Z'}, {'a', 'z'}, {'_', '_'}}};
const CodePoints kSpace{{{'\t', '\r'},
                         {' ', ' '},
                         {0xA0, 0xA0},
                         {0x1680, 0x1680},
                         {0x2000, 0x200A},
                         {0x2028, 0x2029},
                         {0x202F, 0x202F},
                         {0x205F, 0x205F},
                         {0x3000, 0x3000},
                         {0xFEFF, 0xFEFF}}};
const CodePoints kLineEnds{{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}};

// One of the characters, as they stand in a JSON string.
Piece json_characters(GrammarBuilder& builder, const CodePoints& set) {
  CodePoints plain;
  std::vector<std::string> escaped;
  for (const auto& [first, last] : set.normalized().ranges) {
    char32_t next = first;
    for (char32_t c = first; c <= std::min<char32_t>(last, '\\'); ++c) {
      if (c >= 0x20 && c != '"' && c != '\\') continue;
      if (c > next) plain.add(next, c - 1);
      next = c + 1;
      const size_t letter = std::u32string_view(U"\b\f\n\r\t\"\\").find(c);
      escaped.push_back(letter == std::u32string_view::npos ? fmt::format("\\u{:04x}", static_cast<uint32_t>(c))
                                                            : std::string{'\\', "bfnrt\"\\"[letter]});
    }
    if (next <= last) plain.add(next, last);
  }
  if (escaped.empty()) return builder.code_points(plain);
  const Piece one = builder.code_points(plain);
  return builder.either(one, builder.one_of(escaped));
}

class Parser {
 public:
  Parser(GrammarBuilder& builder, std::string_view pattern, RegexText text, RegexMatch match)
      : builder_(builder), reader_(builder), pattern_(pattern), text_(text), match_(match) {}
  Piece parse();

 private:
  struct Ends {  // whether they are those of the text, by ^ and $
    bool begin = false, end = false;
    bool operator==(const Ends&) const = default;
  };
  struct Group {
    size_t at = 0;
    bool from_begin = true;  // nothing stands in front of it
    bool empty = true;       // its last alternative, up to now
    Ends ends;               // likewise
    std::optional<Ends> others;
  };

  char at(size_t ahead = 0) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }
  bool take(std::string_view text);
  [[noreturn]] void fail(size_t at, const std::string& message);
  char32_t read_plain();
  char32_t read_hex(size_t digits);
  char32_t read_code_unit(size_t begin);
  CodePoints read_escape(bool in_class);
  CodePoints read_class();
  bool read_bounds(uint64_t& min, uint64_t& max);
  void read_quantifier(uint64_t min, uint64_t max);
  void add_item();
  void add(const CodePoints& set);
  void begin_alternative();
  void end_alternative();
  void open_group();
  void close_group();
  void step();
  uint32_t anything();

  GrammarBuilder& builder_;
  ExpressionReader reader_;
  std::string_view pattern_;
  RegexText text_;
  RegexMatch match_;
  size_t at_ = 0, item_ = 0;  // item_: where errors are
  std::vector<Group> groups_ = {{}};
  bool can_repeat_ = false;
  std::map<decltype(CodePoints::ranges), uint32_t> json_sets_;  // and their rules
  std::optional<uint32_t> anything_;
  uint32_t before_ = 0;  // the rule for what stands in front of an alternative
};

void Parser::fail(size_t at, const std::string& message) {
  item_ = at;
  throw Error(message);
}

bool Parser::take(std::string_view text) {
  const bool there = pattern_.substr(at_).starts_with(text);
  if (there) at_ += text.size();
  return there;
}

char32_t Parser::read_plain() {
  const std::string_view rest = pattern_.substr(at_);
  at_ += utf8_unit(rest).bytes;
  return utf8_code_point(rest);
}

char32_t Parser::read_hex(size_t digits) {
  char32_t value = 0;
  for (size_t i = 0; i < digits; ++i, ++at_) {
    const char c = is_letter(at()) ? static_cast<char>(at() | 0x20) : at();
    const size_t digit = std::string_view("0123456789abcdef").find(c);
    if (at_ == pattern_.size() || digit == std::string_view::npos) {
      fail(item_, fmt::format("{} hexadecimal digits are missing", digits));
    }
    value = value << 4 | static_cast<char32_t>(digit);
  }
  return value;
}

// Behind \u.
char32_t Parser::read_code_unit(size_t begin) {
  char32_t c = 0;
  if (take("{")) {
    const size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos || end == at_ || end - at_ > 6) fail(begin, "\\u{...} needs 1 to 6 digits");
    c = read_hex(end - at_);
    ++at_;
  } else {
    c = read_hex(4);
    if (c >= 0xD800 && c < 0xDC00 && take("\\u")) {
      const char32_t low = read_hex(4);
      if (low < 0xDC00 || low >= 0xE000) fail(begin, "half of a surrogate pair is no character");
      return 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
  }
  if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) fail(begin, "half of a surrogate pair is no character");
  return c;
}

// From the backslash on.
CodePoints Parser::read_escape(bool in_class) {
  const size_t begin = at_++;
  if (at_ == pattern_.size()) fail(begin, "nothing follows the backslash");
  CodePoints set;
  const char kind = at();
  if (static_cast<unsigned char>(kind) >= 0x80) {
    set.add(read_plain());
    return set;
  }
  ++at_;
  switch (kind) {
    case 'd':
      return kDigits;
    case 'D':
      return kDigits.complement();
    case 'w':
      return kWord;
    case 'W':
      return kWord.complement();
    case 's':
      return kSpace;
    case 'S':
      return kSpace.complement();
    case 't':
      set.add('\t');
      break;
    case 'n':
      set.add('\n');
      break;
    case 'v':
      set.add('\v');
      break;
    case 'f':
      set.add('\f');
      break;
    case 'r':
      set.add('\r');
      break;
    case 'x':
      set.add(read_hex(2));
      break;
    case 'u':
      set.add(read_code_unit(begin));
      break;
    case 'c':
      if (!is_letter(at())) fail(begin, "\\c needs a letter");
      set.add(static_cast<char32_t>(pattern_[at_++] & 0x1F));
      break;
    case '0':
      if (is_digit(at())) fail(begin, "octal escapes are not supported");
      set.add(U'\0');
      break;
    case 'b':
      if (!in_class) fail(begin, "word boundaries are not supported");
      set.add('\b');
      break;
    case 'B':
      fail(begin, "word boundaries are not supported");
    case 'p':
    case 'P':
      fail(begin, "classes of Unicode's properties are not supported");
    case 'k':
      fail(begin, "back references are not supported");
    default:
      if (is_digit(kind)) fail(begin, "back references are not supported");
      if (is_letter(kind)) fail(begin, fmt::format("unknown escape \\{}", kind));
      set.add(static_cast<char32_t>(kind));
  }
  return set;
}

CodePoints Parser::read_class() {
  const size_t begin = at_++;
  const bool negated = take("^");
  CodePoints set;
  const auto read_one = [&] {
    if (at() == '\\') return read_escape(true);
    CodePoints one;
    one.add(read_plain());
    return one;
  };
  const auto is_one = [](const CodePoints& some) {
    return some.ranges.size() == 1 && some.ranges[0].first == some.ranges[0].second;
  };
  while (!take("]")) {
    if (at_ == pattern_.size()) fail(begin, "the class has no end");
    const size_t at_first = at_;
    const CodePoints first = read_one();
    if (at() != '-' || at(1) == ']' || at_ + 1 >= pattern_.size()) {
      set.add(first);
      continue;
    }
    ++at_;
    const CodePoints last = read_one();
    if (!is_one(first) || !is_one(last)) fail(at_first, "a range needs a character at either end");
    if (last.ranges[0].first < first.ranges[0].first) fail(at_first, "the range ends before it begins");
    set.add(first.ranges[0].first, last.ranges[0].first);
  }
  return negated ? set.complement() : set;
}

// {n}, {n,} or {n,m}; anything else that begins with { is text.
bool Parser::read_bounds(uint64_t& min, uint64_t& max) {
  const size_t begin = at_++;
  const auto number = [&] {
    uint64_t value = 0;
    for (; is_digit(at()); ++at_)
      value = std::min<uint64_t>(10 * value + static_cast<uint64_t>(at() - '0'), 1'000'000'000);
    return value;
  };
  if (is_digit(at())) {
    min = max = number();
    if (take(",")) max = is_digit(at()) ? number() : GrammarBuilder::kUnlimited;
    if (take("}")) return true;
  }
  at_ = begin;
  return false;
}

void Parser::read_quantifier(uint64_t min, uint64_t max) {
  take("?");  // whether as little as possible is read makes no difference to what matches
  if (!can_repeat_) fail(item_, "nothing stands in front that could be repeated");
  if (min > max) fail(item_, fmt::format("at least {} times but at most {}", min, max));
  reader_.repeat(min, max);
  can_repeat_ = false;
}

// In front of anything that reads text.
void Parser::add_item() {
  Group& group = groups_.back();
  if (group.ends.end) fail(item_, "something follows a $");
  group.empty = false;
  can_repeat_ = true;
}

void Parser::add(const CodePoints& set) {
  add_item();
  if (text_ == RegexText::plain) {
    reader_.add(builder_.code_points(set));
  } else if (set.ranges.size() == 1 && set.ranges[0].first == set.ranges[0].second) {
    reader_.add(json_characters(builder_, set));
  } else {
    // Many nodes, for as many repetitions as there may be: a rule, whose nodes come behind all that is repeated.
    const auto [found, is_new] = json_sets_.try_emplace(set.normalized().ranges, 0);
    if (is_new) found->second = builder_.add_rule("characters");
    reader_.add(builder_.call(found->second));
  }
}

uint32_t Parser::anything() {
  if (!anything_) {
    anything_ = builder_.add_rule("any text");
    const CodePoints all = CodePoints{}.complement();
    const Piece one = text_ == RegexText::plain ? builder_.code_points(all) : json_characters(builder_, all);
    builder_.define(*anything_, builder_.repeat(one, 0, GrammarBuilder::kUnlimited));
  }
  return *anything_;
}

void Parser::begin_alternative() {
  Group& group = groups_.back();
  group.empty = true;
  group.ends = {};
  can_repeat_ = false;
  if (groups_.size() > 1 || match_ == RegexMatch::whole) return;
  before_ = builder_.add_rule("text in front of a match");  // defined when it is known whether there may be some
  reader_.add(builder_.call(before_));
}

void Parser::end_alternative() {
  Group& group = groups_.back();
  const Ends before = group.others.value_or(group.ends);
  group.others = Ends{before.begin || group.ends.begin, before.end || group.ends.end};
  if (match_ == RegexMatch::whole) return;
  if (groups_.size() > 1) {
    if (before != group.ends) {
      fail(group.at, "^ or $ in some alternatives of a group and not in others is not supported");
    }
    return;
  }
  if (!group.ends.end) reader_.add(builder_.call(anything()));
  builder_.define(before_, group.ends.begin ? builder_.nothing() : builder_.call(anything()));
}

void Parser::open_group() {
  if (take("?")) {
    if (at() == '=' || at() == '!') fail(item_, "looking ahead is not supported");
    if (take("P<") || take("<")) {
      if (at() == '=' || at() == '!') fail(item_, "looking behind is not supported");
      const size_t end = pattern_.find('>', at_);
      if (end == std::string_view::npos) fail(item_, "the group's name has no end");
      at_ = end + 1;
    } else if (!take(":")) {
      const std::string kind = printable(pattern_.substr(at_, 1));
      fail(item_, fmt::format("groups that begin with (?{} are not supported", kind));
    }
  }
  const bool from_begin = groups_.back().from_begin && groups_.back().empty;
  add_item();
  reader_.open();
  groups_.push_back({.at = item_, .from_begin = from_begin});
  begin_alternative();
}

void Parser::close_group() {
  end_alternative();
  const Ends ends = *groups_.back().others;
  groups_.pop_back();
  reader_.close();
  Group& outer = groups_.back();
  outer.ends.begin |= ends.begin;
  outer.ends.end = ends.end;
  can_repeat_ = !ends.begin && !ends.end;
}

void Parser::step() {
  item_ = at_;
  Group& group = groups_.back();
  CodePoints set;
  uint64_t min = 0, max = GrammarBuilder::kUnlimited;
  switch (at()) {
    case '|':
      ++at_;
      end_alternative();
      reader_.bar();
      begin_alternative();
      return;
    case '(':
      ++at_;
      open_group();
      return;
    case ')':
      if (groups_.size() == 1) fail(at_, "there is no group that ends here");
      ++at_;
      close_group();
      return;
    case '^':
      ++at_;
      if (!group.from_begin || !group.empty) fail(item_, "something stands in front of a ^");
      group.ends.begin = true;
      return;
    case '$':
      ++at_;
      group.ends.end = true;
      can_repeat_ = false;
      return;
    case '*':
    case '+':
    case '?':
      if (at() == '+') min = 1;
      if (at() == '?') max = 1;
      ++at_;
      read_quantifier(min, max);
      return;
    case '{':
      if (read_bounds(min, max)) {
        read_quantifier(min, max);
        return;
      }
      break;
    case '.':
      ++at_;
      add(kLineEnds.complement());
      return;
    case '[':
      add(read_class());
      return;
    case '\\':
      add(read_escape(false));
      return;
    default:
      break;
  }
  set.add(read_plain());
  add(set);
}

Piece Parser::parse() {
  try {
    if (const size_t bad = first_invalid_utf8(pattern_); bad != kNoPosition) fail(bad, "not UTF-8");
    begin_alternative();
    while (at_ < pattern_.size()) step();
    if (groups_.size() > 1) fail(groups_.back().at, "the group has no end");
    end_alternative();
    const Piece whole = reader_.finish();
    for (const auto& [ranges, rule] : json_sets_) builder_.define(rule, json_characters(builder_, {ranges}));
    return whole;
  } catch (const Error& error) {
    throw Error("column {}: {}", item_ + 1, error.what());
  }
}

// Numbers between bounds, as regular expressions over their digits.

std::string times(std::string_view what, size_t min, size_t max) {
  if (max == 0) return "";
  return min == 1 && max == 1 ? std::string(what) : fmt::format("{}{{{},{}}}", what, min, max);
}

std::string digits(char first, char last) {
  return first == last ? std::string(1, first) : fmt::format("[{}-{}]", first, last);
}

// A number without its sign, and whether it belongs to what it bounds. Digits behind the point do not end in 0.
struct Bound {
  std::string whole = "0", fraction;
  bool exclusive = false;
};

bool less(const std::string& a, const std::string& b) { return a.size() != b.size() ? a.size() < b.size() : a < b; }

std::string successor(std::string number) {
  size_t i = number.size();
  while (i > 0 && number[i - 1] == '9') number[--i] = '0';
  if (i == 0) return "1" + number;
  ++number[i - 1];
  return number;
}

std::string predecessor(std::string number) {  // of one above 0
  size_t i = number.size();
  while (number[i - 1] == '0') number[--i] = '9';
  --number[i - 1];
  return number.size() > 1 && number[0] == '0' ? number.substr(1) : number;
}

// Of as many digits each.
std::string digits_between(const std::string& low, const std::string& high) {
  const size_t n = low.size();
  if (low == std::string(n, '0') && high == std::string(n, '9')) return times("[0-9]", n, n);
  const std::string low_rest = low.substr(1), high_rest = high.substr(1);
  if (low[0] == high[0]) return low[0] + digits_between(low_rest, high_rest);
  std::string ways = "(" + std::string(1, low[0]) + digits_between(low_rest, std::string(n - 1, '9'));
  if (low[0] + 1 < high[0]) {
    ways += "|" + digits(static_cast<char>(low[0] + 1), static_cast<char>(high[0] - 1)) + times("[0-9]", n - 1, n - 1);
  }
  return ways + "|" + std::string(1, high[0]) + digits_between(std::string(n - 1, '0'), high_rest) + ")";
}

// Whole numbers, not negative. Without `high`: all that have up to kMaxDigits digits.
std::string whole_between(const std::string& low, const std::optional<std::string>& high) {
  const size_t n = low.size(), n_high = high ? high->size() : kMaxDigits + 1;
  if (n == n_high) return digits_between(low, *high);
  std::string ways = "(" + digits_between(low, std::string(n, '9'));
  if (n + 1 < n_high) ways += "|[1-9]" + times("[0-9]", n, n_high - 2);
  if (high) ways += "|" + digits_between("1" + std::string(n_high - 1, '0'), *high);
  return ways + ")";
}

// Up to `left` digits behind the point whose value lies between the bounds, or nothing where there are none. An absent
// bound is none. At least one digit, unless may_be_empty.
std::optional<std::string> fraction_digits(const std::optional<Bound>& low, const std::optional<Bound>& high,
                                           size_t left, bool may_be_empty) {
  if (low && low->fraction.empty() && !low->exclusive) return fraction_digits({}, high, left, may_be_empty);
  const size_t min = may_be_empty ? 0 : 1;
  const bool above_0 = low.has_value(), below_0 = high && high->fraction.empty() && high->exclusive;
  if (below_0) return std::nullopt;
  if (!above_0 && !high) return times("[0-9]", min, left);
  std::vector<std::string> ways;
  if (may_be_empty && !above_0) ways.emplace_back();
  const auto first_of = [](const Bound& bound) { return bound.fraction.empty() ? '0' : bound.fraction[0]; };
  const auto rest_of = [&](const std::optional<Bound>& bound, char c) {
    std::optional<Bound> rest;
    if (bound && first_of(*bound) == c) {
      rest = *bound;
      if (!rest->fraction.empty()) rest->fraction.erase(0, 1);
    }
    return rest;
  };
  const char from = low ? first_of(*low) : '0', to = high ? first_of(*high) : '9';
  for (char c = from; left > 0 && c <= to;) {
    const bool tight = (low && c == from) || (high && c == to);
    const char last = tight ? c : high ? static_cast<char>(to - 1) : '9';  // of those with the same rest
    const auto rest = fraction_digits(rest_of(low, c), rest_of(high, c), left - 1, true);
    if (rest) ways.push_back(digits(c, last) + *rest);
    c = static_cast<char>(last + 1);
  }
  if (ways.empty()) return std::nullopt;
  return fmt::format("({})", fmt::join(ways, "|"));
}

// What follows the whole part: the point and digits, perhaps left out.
std::optional<std::string> fraction_between(const std::optional<Bound>& low, const std::optional<Bound>& high) {
  const bool above_0 = low && (!low->fraction.empty() || low->exclusive);
  const bool below_0 = high && high->fraction.empty() && high->exclusive;
  if (below_0) return std::nullopt;
  const auto some = fraction_digits(low, high, kMaxDigits, false);
  if (above_0) return some ? std::optional("\\." + *some) : std::nullopt;
  return some ? "(\\." + *some + ")?" : "";
}

// Numbers that are not negative. Nothing where there are none.
std::optional<std::string> between(const Bound& low, const std::optional<Bound>& high, bool integers) {
  std::vector<std::string> ways;
  const auto add = [&](const std::string& whole, const std::optional<std::string>& rest) {
    if (rest) ways.push_back(whole + *rest);
  };
  std::string first = low.whole;
  std::optional<std::string> last;
  if (high) last = high->whole;
  if (integers) {
    if (!low.fraction.empty() || low.exclusive) first = successor(first);
    if (high && high->fraction.empty() && high->exclusive) {
      if (*last == "0") return std::nullopt;
      last = predecessor(*last);
    }
    if (first.size() > kMaxDigits || (last && less(*last, first))) return std::nullopt;
    return whole_between(first, last);
  }
  if (high && first == *last) {
    add(first, fraction_between(low, high));
  } else if (!high || less(first, *last)) {
    add(first, fraction_between(low, {}));
    first = successor(first);
    if (high) add(*last, fraction_between({}, high));
    if (high) last = predecessor(*last);
    if (first.size() <= kMaxDigits && (!last || !less(*last, first))) {
      add(whole_between(first, last), fraction_between({}, {}));
    }
  }
  if (ways.empty()) return std::nullopt;
  return fmt::format("({})", fmt::join(ways, "|"));
}

struct SignedBound {
  Bound size;
  bool negative = false;
};

SignedBound bound_of(const NumberBound& given) {
  std::string_view text = given.number;
  const auto refuse = [&] { throw Error("the bound {} has more than {} digits", given.number, kMaxDigits); };
  SignedBound bound{.size = {.exclusive = given.exclusive}, .negative = text.starts_with('-')};
  if (bound.negative) text.remove_prefix(1);
  int exponent = 0;
  if (const size_t e = text.find_first_of("eE"); e != std::string_view::npos) {
    exponent = std::stoi(std::string(text.substr(e + 1)));
    text = text.substr(0, e);
  }
  const size_t point = std::min(text.find('.'), text.size());
  std::string all(text.substr(0, point));
  if (point < text.size()) all += text.substr(point + 1);
  const int n_whole = static_cast<int>(point) + exponent;
  if (n_whole < -static_cast<int>(kMaxDigits) || n_whole > static_cast<int>(kMaxDigits)) refuse();
  if (n_whole < 0) all.insert(0, static_cast<size_t>(-n_whole), '0');
  const auto at = static_cast<size_t>(std::max(n_whole, 0));
  if (all.size() < at) all.append(at - all.size(), '0');
  bound.size.whole = all.substr(0, at);
  bound.size.whole.erase(0, std::min(bound.size.whole.find_first_not_of('0'), bound.size.whole.size()));
  if (bound.size.whole.empty()) bound.size.whole = "0";
  bound.size.fraction = all.substr(at);
  bound.size.fraction.erase(bound.size.fraction.find_last_not_of('0') + 1);
  if (bound.size.fraction.size() > kMaxDigits) refuse();
  if (bound.size.whole == "0" && bound.size.fraction.empty()) bound.negative = false;
  return bound;
}

}  // namespace

ExpressionReader::ExpressionReader(GrammarBuilder& builder) : builder_(builder), groups_(1) {}

void ExpressionReader::flush(Group& group) {
  if (!group.last) return;
  group.sequence = group.sequence ? builder_.then(*group.sequence, *group.last) : *group.last;
  group.last.reset();
}

void ExpressionReader::add(Piece piece) {
  Group& group = groups_.back();
  flush(group);
  group.last = piece;
}

void ExpressionReader::repeat(uint64_t min, uint64_t max) {
  Group& group = groups_.back();
  group.last = builder_.repeat(*group.last, min, max);
}

Piece ExpressionReader::whole(Group& group) {
  flush(group);
  const Piece sequence = group.sequence ? *group.sequence : builder_.nothing();
  return group.alternatives ? builder_.either(*group.alternatives, sequence) : sequence;
}

void ExpressionReader::bar() {
  Group& group = groups_.back();
  group = {.alternatives = whole(group)};
}

void ExpressionReader::open() {
  if (groups_.size() > kMaxGrammarDepth) throw Error("groups are nested deeper than {} levels", kMaxGrammarDepth);
  flush(groups_.back());
  groups_.emplace_back();
}

void ExpressionReader::close() {
  const Piece group = whole(groups_.back());
  groups_.pop_back();
  add(group);
}

Piece ExpressionReader::finish() { return whole(groups_.back()); }

Piece regex_piece(GrammarBuilder& builder, std::string_view pattern, RegexText text, RegexMatch match) {
  return Parser(builder, pattern, text, match).parse();
}

std::shared_ptr<const Grammar> regex_grammar(std::string_view pattern) {
  GrammarBuilder builder;
  const uint32_t root = builder.add_rule("of the whole expression");
  builder.define(root, regex_piece(builder, pattern, RegexText::plain, RegexMatch::whole));
  return builder.finish(root);
}

std::optional<std::string> number_regex(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high,
                                        bool integers) {
  std::optional<SignedBound> least, most;
  if (low) least = bound_of(*low);
  if (high) most = bound_of(*high);
  const auto size_of = [](const std::optional<SignedBound>& bound) {
    return bound ? std::optional(bound->size) : std::nullopt;
  };
  std::optional<std::string> below, above;  // 0
  if (!least || least->negative) {
    const Bound nearest = most && most->negative ? most->size : Bound{.exclusive = true};
    below = between(nearest, size_of(least), integers);
  }
  if (!most || !most->negative) {
    above = between(least && !least->negative ? least->size : Bound{}, size_of(most), integers);
  }
  if (below && above) return fmt::format("(-{}|{})", *below, *above);
  return below ? "-" + *below : above;
}

}  // namespace fathom
