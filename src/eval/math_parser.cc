#include "eval/math_parser.h"

#include <algorithm>
#include <array>
#include <utility>

#include "eval/math_lexer.h"
#include "eval/math_units.h"

namespace fathom::eval {
namespace {

using Kind = MathToken::Kind;

struct NotUnderstood {};

constexpr int kMostDepth = 60, kMostNodes = 4000;

MathNode number_node(std::string digits) { return math_node(MathKind::number, std::move(digits)); }

bool is_whole(const MathNode& node) {
  return node.kind == MathKind::number && node.text.find('.') == std::string::npos;
}

// Digits without zeros in front, compared by length first.
bool smaller(std::string_view a, std::string_view b) {
  while (a.starts_with('0')) a.remove_prefix(1);
  while (b.starts_with('0')) b.remove_prefix(1);
  return a.size() != b.size() ? a.size() < b.size() : a < b;
}

// The letters of a text, in lower case.
std::string letters_of(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if ('A' <= c && c <= 'Z')
      out += static_cast<char>(c - 'A' + 'a');
    else if ('a' <= c && c <= 'z')
      out += c;
  }
  return out;
}

bool is_half_of_day(std::string_view text) {
  const std::string letters = letters_of(text);
  return letters == "am" || letters == "pm";
}

// What is said of an equation that no number solves.
bool says_empty(std::string_view text) {
  const std::string letters = letters_of(text);
  return letters == "nosolution" || letters == "nosolutions" || letters == "emptyset" || letters == "theemptyset";
}

struct Parser {
  std::vector<MathToken> tokens;
  size_t at = 0;
  int depth = 0, nodes = 0;
  int bars = 0;         // |...| that are open: there a bar closes
  bool braces = false;  // in a set, where a bar is "such that"

  const MathToken& peek(size_t n = 0) const { return tokens[std::min(at + n, tokens.size() - 1)]; }
  bool is(std::string_view symbol, size_t n = 0) const {
    return peek(n).kind == Kind::symbol && peek(n).text == symbol;
  }
  bool take(std::string_view symbol) {
    if (!is(symbol)) return false;
    ++at;
    return true;
  }
  void expect(std::string_view symbol) {
    if (!take(symbol)) throw NotUnderstood{};
  }

  struct Deeper {
    Parser& parser;
    explicit Deeper(Parser& p) : parser(p) {
      if (++parser.depth > kMostDepth) throw NotUnderstood{};
    }
    ~Deeper() { --parser.depth; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;
  };

  MathNode make(MathKind kind, std::vector<MathNode> parts, std::string text = {}) {
    if (++nodes > kMostNodes) throw NotUnderstood{};
    return math_node(kind, std::move(text), std::move(parts));
  }

  template <class... Parts>
  static std::vector<MathNode> parts_of(Parts&&... parts) {
    std::vector<MathNode> out;
    (out.push_back(std::forward<Parts>(parts)), ...);
    return out;
  }

  // a, b and c
  MathNode list() {
    const Deeper deeper(*this);
    std::vector<MathNode> items = parts_of(relation());
    while (is(",") || is(";") || is("and") || is("or")) {
      while (take(",") || take(";") || take("and") || take("or")) {
      }
      if (peek().kind == Kind::end) break;
      items.push_back(relation());
    }
    return items.size() == 1 ? std::move(items[0]) : make(MathKind::list, std::move(items));
  }

  static std::string_view operator_of(const MathToken& token) {
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 12> kOperators = {{{"=", "="},
                                                                                                  {"<", "<"},
                                                                                                  {">", ">"},
                                                                                                  {"\\le", "<="},
                                                                                                  {"\\ge", ">="},
                                                                                                  {"\\ne", "!="},
                                                                                                  {"\\in", "in"},
                                                                                                  {"\\approx", "~"},
                                                                                                  {"\\equiv", "="},
                                                                                                  {"\\approxeq", "~"},
                                                                                                  {"\\simeq", "~"},
                                                                                                  {"\\doteq", "~"}}};
    if (token.kind != Kind::symbol) return {};
    for (const auto& [symbol, name] : kOperators) {
      if (symbol == token.text) return name;
    }
    return {};
  }

  MathNode relation() {
    std::vector<MathNode> sides = parts_of(set_expression());
    std::vector<std::string> operators;
    for (std::string_view name = operator_of(peek()); !name.empty(); name = operator_of(peek())) {
      ++at;
      operators.emplace_back(name);
      sides.push_back(set_expression());
    }
    if (operators.empty()) return std::move(sides[0]);
    MathNode out = make(MathKind::relation, std::move(sides));
    out.operators = std::move(operators);
    return out;
  }

  MathNode set_expression() {
    MathNode left = ratio();
    for (;;) {
      const bool joins = is("\\cup"), cuts = is("\\cap"), minus = is("\\setminus") || is("\\backslash");
      if (!joins && !cuts && !minus) return left;
      ++at;
      MathNode right = ratio();
      const MathKind kind = joins ? MathKind::set_union : cuts ? MathKind::intersection : MathKind::set_minus;
      if (kind == MathKind::set_union && left.kind == kind) {
        left.parts.push_back(std::move(right));
      } else {
        const Deeper deeper(*this);
        left = make(kind, parts_of(std::move(left), std::move(right)));
      }
    }
  }

  MathNode ratio() {
    std::vector<MathNode> parts = parts_of(sum());
    while (!braces && take(":")) parts.push_back(sum());
    if (parts.size() == 1) return std::move(parts[0]);
    // "7:30 PM" is one of the two times that "7:30" may be.
    if (parts.back().kind == MathKind::quantity && is_half_of_day(parts.back().text)) throw NotUnderstood{};
    return with_unit(make(MathKind::ratio, std::move(parts)));
  }

  MathNode sum() {
    std::vector<MathNode> parts;
    for (bool first = true;; first = false) {
      const bool minus = is("-"), plus = is("+"), both = is("\\pm"), mirrored = is("\\mp");
      if (!minus && !plus && !both && !mirrored && !first) break;
      if (minus || plus || both || mirrored) ++at;
      MathNode part = term();
      if (minus) part = make(MathKind::negative, parts_of(std::move(part)));
      if (both || mirrored) part = make(MathKind::plus_minus, parts_of(std::move(part)), both ? "+" : "-");
      parts.push_back(std::move(part));
    }
    return parts.size() == 1 ? std::move(parts[0]) : make(MathKind::sum, std::move(parts));
  }

  MathNode signed_factor() {
    if (take("-")) {
      const Deeper deeper(*this);
      return make(MathKind::negative, parts_of(signed_factor()));
    }
    if (take("+")) {
      const Deeper deeper(*this);
      return signed_factor();
    }
    return factor();
  }

  bool begins_factor() const {
    const MathToken& token = peek();
    if (token.kind == Kind::number || token.kind == Kind::based || token.kind == Kind::letter ||
        token.kind == Kind::name)
      return true;
    if (token.kind != Kind::symbol) return false;
    if (token.text == "|") return bars == 0 && !braces;
    static constexpr std::array<std::string_view, 18> kBeginnings = {
        "(",       "[",          "{",       "\\{",      "\\frac", "\\sqrt", "\\pi",    "\\binom",          "\\lfloor",
        "\\lceil", "\\overline", "\\infty", "\\langle", "\\vec",  "\\hat",  "\\imath", "\\overrightarrow", "\\bar"};
    return std::ranges::find(kBeginnings, token.text) != kBeginnings.end() || token.text.starts_with("\\begin{");
  }

  MathNode term() {
    const Deeper deeper(*this);
    MathNode left = signed_factor();
    int quotients = 0;
    for (;;) {
      if (take("*")) {
        left = product(std::move(left), signed_factor());
      } else if (is("/") && peek(1).kind != Kind::word) {
        ++at;
        MathNode under = signed_factor();
        // The depth grows to the left without recursion: it is bounded here.
        left = make(MathKind::quotient, parts_of(std::move(left), std::move(under)));
        if (++quotients > kMostDepth) throw NotUnderstood{};
      } else if (begins_factor()) {
        if (peek().kind == Kind::number && left.kind == MathKind::number) {
          left = mixed_or_fail(std::move(left));  // "1 1/2"
        } else if (is("\\frac") && is_whole(left)) {
          MathNode fraction = factor();
          left = is_whole_fraction(fraction) ? make(MathKind::sum, parts_of(std::move(left), std::move(fraction)))
                                             : product(std::move(left), std::move(fraction));
        } else {
          left = product(std::move(left), factor());
        }
      } else {
        return with_unit(std::move(left));
      }
    }
  }

  static bool is_whole_fraction(const MathNode& node) {
    return node.kind == MathKind::quotient && is_whole(node.parts[0]) && is_whole(node.parts[1]);
  }

  MathNode mixed_or_fail(MathNode whole) {
    MathNode top = number_node(peek().text);
    if (!is_whole(whole) || !is_whole(top) || !is("/", 1) || peek(2).kind != Kind::number) throw NotUnderstood{};
    MathNode bottom = number_node(peek(2).text);
    if (!is_whole(bottom) || !smaller(top.text, bottom.text)) throw NotUnderstood{};
    at += 3;
    MathNode fraction = make(MathKind::quotient, parts_of(std::move(top), std::move(bottom)));
    return make(MathKind::sum, parts_of(std::move(whole), std::move(fraction)));
  }

  MathNode product(MathNode left, MathNode right) {
    if (left.kind == MathKind::product) {
      left.parts.push_back(std::move(right));
      return left;
    }
    return make(MathKind::product, parts_of(std::move(left), std::move(right)));
  }

  // Words behind a value, with powers: "cm^2", "square inches", "m/s".
  MathNode with_unit(MathNode value) {
    std::string unit;
    const auto add = [&](std::string_view text) {
      if (!unit.empty()) unit += ' ';
      unit += text;
    };
    for (;;) {
      if (peek().kind == Kind::word) {
        add(tokens[at++].text);
      } else if (is("/") && peek(1).kind == Kind::word) {
        ++at;
        unit += '/';
      } else if (!unit.empty() && is("^") && peek(1).kind == Kind::number) {
        unit += "^" + peek(1).text;
        at += 2;
      } else if (!unit.empty() && is("^") && is("{", 1) && peek(2).kind == Kind::number && is("}", 3)) {
        unit += "^" + peek(2).text;
        at += 4;
      } else if (!unit.empty() && is(".")) {
        ++at;
      } else {
        break;
      }
    }
    if (unit.empty()) return value;
    const auto words = read_number_words(unit);
    if (!words) throw NotUnderstood{};
    if (words->power > 1) {
      value = make(MathKind::power, parts_of(std::move(value), number_node(std::to_string(words->power))));
    }
    if (words->top > 1) value = product(std::move(value), number_node(std::to_string(words->top)));
    if (words->bottom > 1) {
      value = make(MathKind::quotient, parts_of(std::move(value), number_node(std::to_string(words->bottom))));
    }
    if (words->rest.empty()) return value;
    return make(MathKind::quantity, parts_of(std::move(value)), words->rest);
  }

  MathNode factor() {
    MathNode out = primary();
    for (int postfixes = 0; postfixes < 8; ++postfixes) {
      if (is("^")) {
        ++at;
        if (is("\\circ") || is("°") || (is("{") && (is("\\circ", 1) || is("°", 1)) && is("}", 2))) {
          at += is("{") ? 3 : 1;
          out = make(MathKind::degree, parts_of(std::move(out)));
        } else {
          MathNode up = exponent();
          out = make(MathKind::power, parts_of(std::move(out), std::move(up)));
        }
      } else if (is("°") || is("\\circ")) {
        ++at;
        out = make(MathKind::degree, parts_of(std::move(out)));
      } else if (is("!") && !is("!", 1)) {
        ++at;
        out = make(MathKind::factorial, parts_of(std::move(out)));
      } else if (is("%")) {
        ++at;
        out = make(MathKind::percent, parts_of(std::move(out)));
      } else if (is("\\e") || is("\\e-")) {
        const bool negative = is("\\e-");
        MathNode power = number_node(peek(1).text);
        at += 2;
        if (negative) power = make(MathKind::negative, parts_of(std::move(power)));
        MathNode scale = make(MathKind::power, parts_of(number_node("10"), std::move(power)));
        out = make(MathKind::product, parts_of(std::move(out), std::move(scale)));
      } else {
        return out;
      }
    }
    throw NotUnderstood{};
  }

  MathNode exponent() {
    const Deeper deeper(*this);
    if (take("-")) return make(MathKind::negative, parts_of(exponent()));
    if (take("+")) return exponent();
    if (is("{")) return group("{", "}");
    MathNode out = primary();
    if (is("^")) {  // 2^3^4
      ++at;
      MathNode up = exponent();
      out = make(MathKind::power, parts_of(std::move(out), std::move(up)));
    }
    return out;
  }

  // What a command takes: a group, or one digit or letter: \frac12.
  MathNode argument() {
    const Deeper deeper(*this);
    if (is("{")) return group("{", "}");
    if (peek().kind == Kind::number && peek().text.size() > 1 && peek().text.find('.') == std::string::npos) {
      MathNode digit = number_node(peek().text.substr(0, 1));
      tokens[at].text.erase(0, 1);
      return digit;
    }
    return primary();
  }

  MathNode group(std::string_view open, std::string_view close) {
    const Deeper deeper(*this);
    expect(open);
    const int outer_bars = std::exchange(bars, 0);
    MathNode out = list();
    if (take("\\choose")) {  // {5 \choose 2}
      MathNode k = sum();
      out = make(MathKind::binomial, parts_of(std::move(out), std::move(k)));
    }
    bars = outer_bars;
    expect(close);
    if (out.kind == MathKind::list) {  // {1, 2} of plain text
      out.kind = MathKind::set;
    }
    return out;
  }

  MathNode bracketed() {
    const Deeper deeper(*this);
    const char open = tokens[at++].text[0];
    const int outer_bars = std::exchange(bars, 0);
    const bool outer_braces = std::exchange(braces, false);
    MathNode out = list();
    bars = outer_bars;
    braces = outer_braces;
    if (!is(")") && !is("]")) throw NotUnderstood{};
    const char close = tokens[at++].text[0];
    if (out.kind == MathKind::list) {
      out.kind = MathKind::tuple;
      out.open = open;
      out.close = close;
    } else if (open != (close == ')' ? '(' : '[')) {
      throw NotUnderstood{};
    }
    return out;
  }

  MathNode set() {
    const Deeper deeper(*this);
    ++at;
    const int outer_bars = std::exchange(bars, 0);
    const bool outer_braces = std::exchange(braces, true);
    MathNode out;
    if (is("\\}")) {
      out = make(MathKind::constant, {}, "empty");
    } else {
      out = list();
      if (take("|") || take("\\mid") || take(":")) {  // {x | x > 3} is its condition
        braces = false;
        out = list();
        if (out.kind != MathKind::relation) throw NotUnderstood{};
      } else if (out.kind == MathKind::list) {
        out.kind = MathKind::set;
      } else {
        out = make(MathKind::set, parts_of(std::move(out)));
      }
    }
    bars = outer_bars;
    braces = outer_braces;
    expect("\\}");
    return out;
  }

  MathNode matrix(const std::string& environment) {
    const Deeper deeper(*this);
    ++at;
    static constexpr std::array<std::string_view, 7> kMatrices = {"pmatrix", "bmatrix", "vmatrix",    "matrix",
                                                                  "Bmatrix", "array",   "smallmatrix"};
    if (std::ranges::find(kMatrices, environment) == kMatrices.end()) throw NotUnderstood{};
    std::vector<MathNode> rows;
    const std::string end = "\\end{" + environment + "}";
    while (!is(end)) {
      MathNode row = make(MathKind::tuple, parts_of(relation()));
      while (take("&")) row.parts.push_back(relation());
      rows.push_back(std::move(row));
      if (!take("\\\\") && !is(end)) throw NotUnderstood{};
    }
    ++at;
    if (rows.empty()) throw NotUnderstood{};
    for (const MathNode& row : rows) {
      if (row.parts.size() != rows[0].parts.size()) throw NotUnderstood{};
    }
    return make(MathKind::matrix, std::move(rows), environment == "vmatrix" ? "determinant" : "");
  }

  std::string subscript() {  // behind "_"
    std::string out;
    if (take("{")) {
      while (!is("}")) {
        if (peek().kind == Kind::end || out.size() > 40) throw NotUnderstood{};
        out += tokens[at++].text;
      }
      ++at;
      return out;
    }
    if (peek().kind == Kind::number && peek().text.size() > 1) {  // x_12 is x_1 times 2 in LaTeX, and nowhere else
      return tokens[at++].text;
    }
    if (peek().kind != Kind::number && peek().kind != Kind::letter) throw NotUnderstood{};
    return tokens[at++].text;
  }

  MathNode letter() {
    std::string name = tokens[at++].text;
    if (name == "π") return make(MathKind::constant, {}, "pi");
    while (is("'")) {
      ++at;
      name += '\'';
    }
    if (is("_")) {
      ++at;
      name += "_" + subscript();
    }
    if (name == "i" || name == "e") return make(MathKind::constant, {}, name);
    return make(MathKind::variable, {}, name);
  }

  // sin 3x, \sin^2 x, \log_2 8, \sqrt of plain text
  MathNode call() {
    const Deeper deeper(*this);
    std::string name = tokens[at++].text;
    if (name.ends_with("frac") || name.ends_with("binom")) throw NotUnderstood{};
    if (name == "sqrt" || name == "cbrt") {
      MathNode of = is("(") ? bracketed() : primary();
      return make(MathKind::root, parts_of(std::move(of), number_node(name == "sqrt" ? "2" : "3")));
    }
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kShort = {
        {{"asin", "arcsin"}, {"acos", "arccos"}, {"atan", "arctan"}}};
    for (const auto& [from, to] : kShort) {
      if (name == from) name = to;
    }
    MathNode base;
    const bool has_base = (name == "log" || name == "lg") && take("_");
    if (has_base) base = argument();
    MathNode power;
    bool has_power = false;
    if (name != "abs" && name != "floor" && name != "ceil" && take("^")) {
      power = exponent();
      has_power = true;
    }
    if (has_power && power.kind == MathKind::negative && power.parts[0].kind == MathKind::number &&
        power.parts[0].text == "1" && name.size() == 3 && name != "log" && name != "exp") {
      name = "arc" + name;
      has_power = false;
    }
    MathNode of;
    if (is("(") || is("[")) {
      of = bracketed();
    } else if (is("{")) {
      of = group("{", "}");
    } else {
      if (!begins_factor() || peek().kind == Kind::name) throw NotUnderstood{};
      of = factor();
      while (begins_factor() && peek().kind != Kind::name && !is("(") && !is("["))
        of = product(std::move(of), factor());
      if (is("/") && peek(1).kind == Kind::number && peek().space_before == peek(1).space_before &&
          of.kind != MathKind::degree) {
        ++at;  // sin pi/6
        of = make(MathKind::quotient, parts_of(std::move(of), factor()));
      }
    }
    if (of.kind == MathKind::tuple && (name == "max" || name == "min" || name == "log")) throw NotUnderstood{};
    if (name == "max" || name == "min") throw NotUnderstood{};
    std::vector<MathNode> arguments = parts_of(std::move(of));
    if (name == "log" || name == "lg") {
      name = "log";
      arguments.push_back(has_base ? std::move(base) : number_node("10"));
    }
    MathNode out = make(MathKind::call, std::move(arguments), name);
    return has_power ? make(MathKind::power, parts_of(std::move(out), std::move(power))) : out;
  }

  // 0.1\overline{6}: the digits that go on for ever are a fraction.
  MathNode repeating(const std::string& digits) {
    ++at;
    expect("{");
    const std::string period = peek().text;
    if (peek().kind != Kind::number || period.find('.') != std::string::npos || period.size() > 500)
      throw NotUnderstood{};
    ++at;
    expect("}");
    const size_t behind = digits.size() - digits.find('.') - 1;
    MathNode bottom = number_node(std::string(period.size(), '9') + std::string(behind, '0'));
    MathNode fraction = make(MathKind::quotient, parts_of(number_node(period), std::move(bottom)));
    return make(MathKind::sum, parts_of(number_node(digits), std::move(fraction)));
  }

  MathNode primary() {
    const Deeper deeper(*this);
    const MathToken token = peek();
    switch (token.kind) {
      case Kind::number:
        ++at;
        if (is("\\overline") && token.text.find('.') != std::string::npos) return repeating(token.text);
        if (is(".") && is("\\overline", 1)) {
          ++at;
          return repeating(token.text + ".");
        }
        return make(MathKind::number, {}, token.text);
      case Kind::based: {
        MathNode out = make(MathKind::based, {}, token.text);
        out.base = std::stoi(peek(1).text);
        at += 2;
        return out;
      }
      case Kind::letter:
        return letter();
      case Kind::name:
        return call();
      case Kind::word: {
        std::string words;
        while (peek().kind == Kind::word) words += (words.empty() ? "" : " ") + tokens[at++].text;
        return says_empty(words) ? make(MathKind::constant, {}, "empty") : make(MathKind::text, {}, words);
      }
      case Kind::end:
        throw NotUnderstood{};
      case Kind::symbol:
        return symbol(token.text);
    }
    throw NotUnderstood{};
  }

  MathNode symbol(const std::string& text) {
    if (text == "(" || text == "[") return bracketed();
    if (text == "{") return group("{", "}");
    if (text == "\\{") return set();
    if (text.starts_with("\\begin{")) return matrix(text.substr(7, text.size() - 8));
    ++at;
    if (text == "\\$") {
      MathNode value = signed_factor();
      return make(MathKind::quantity, parts_of(std::move(value)), "$");
    }
    if (text == "\\frac") {
      MathNode top = argument(), bottom = argument();
      return make(MathKind::quotient, parts_of(std::move(top), std::move(bottom)));
    }
    if (text == "\\sqrt") {
      MathNode index = number_node("2");
      if (take("[")) {
        index = sum();
        expect("]");
      }
      MathNode of = argument();
      return make(MathKind::root, parts_of(std::move(of), std::move(index)));
    }
    if (text == "\\binom") {
      MathNode n = argument(), k = argument();
      return make(MathKind::binomial, parts_of(std::move(n), std::move(k)));
    }
    if (text == "\\pi") return make(MathKind::constant, {}, "pi");
    if (text == "\\imath") return make(MathKind::constant, {}, "i");
    if (text == "\\infty") return make(MathKind::constant, {}, "infinity");
    if (text == "\\reals") return make(MathKind::constant, {}, "reals");
    if (text == "\\emptyset") return make(MathKind::constant, {}, "empty");
    if (text == "\\overline" || text == "\\bar" || text == "\\vec" || text == "\\hat" || text == "\\overrightarrow" ||
        text == "\\angle" || text == "\\triangle") {
      MathNode of = text == "\\angle" || text == "\\triangle" ? term() : argument();
      return make(MathKind::call, parts_of(std::move(of)), text.substr(1));
    }
    if (text == "\\lfloor" || text == "\\lceil") {
      MathNode of = sum();
      expect(text == "\\lfloor" ? "\\rfloor" : "\\rceil");
      return make(MathKind::call, parts_of(std::move(of)), text == "\\lfloor" ? "floor" : "ceil");
    }
    if (text == "|" && bars == 0) {
      ++bars;
      MathNode of = sum();
      --bars;
      expect("|");
      return make(MathKind::call, parts_of(std::move(of)), "abs");
    }
    if (text == "\\langle") {
      MathNode out = list();
      expect("\\rangle");
      if (out.kind != MathKind::list) throw NotUnderstood{};
      out.kind = MathKind::tuple;
      out.open = '<';
      out.close = '>';
      return out;
    }
    throw NotUnderstood{};
  }
};

}  // namespace

std::optional<MathNode> parse_math(std::string_view text) {
  Parser parser{.tokens = lex_math(text)};
  while (parser.tokens.size() > 1 && (parser.tokens.end()[-2].text == "." || parser.tokens.end()[-2].text == ",")) {
    parser.tokens.erase(parser.tokens.end() - 2);  // the end of a sentence
  }
  try {
    MathNode out = parser.list();
    if (parser.peek().kind != Kind::end) return std::nullopt;
    return out;
  } catch (const NotUnderstood&) {
    return std::nullopt;
  }
}

}  // namespace fathom::eval
