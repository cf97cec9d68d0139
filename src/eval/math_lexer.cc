#include "eval/math_lexer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/utf8.h"
#include "eval/math_units.h"
#include "eval/task_files.h"

namespace fathom::eval {
namespace {

using Kind = MathToken::Kind;

bool is_digit(char c) { return '0' <= c && c <= '9'; }
bool is_lower(char c) { return 'a' <= c && c <= 'z'; }
bool is_upper(char c) { return 'A' <= c && c <= 'Z'; }
bool is_letter(char c) { return is_lower(c) || is_upper(c); }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

template <size_t n>
bool among(const std::array<std::string_view, n>& names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

constexpr std::array<std::string_view, 36> kFunctions = {
    "sin",   "cos",  "tan",  "cot",   "sec",    "csc",    "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc",
    "asin",  "acos", "atan", "sinh",  "cosh",   "tanh",   "ln",     "log",    "exp",    "sqrt",   "cbrt",   "abs",
    "floor", "ceil", "lg",   "binom", "dbinom", "tbinom", "frac",   "dfrac",  "tfrac",  "cfrac",  "max",    "min"};

// Commands that only move or style what they stand before.
constexpr std::array<std::string_view, 34> kSpacing = {
    "left",        "right",  "big",      "Big",    "bigg",  "Bigg",      "bigl",      "bigr",         "Bigl",
    "Bigr",        "biggl",  "biggr",    "Biggl",  "Biggr", "quad",      "qquad",     "displaystyle", "textstyle",
    "scriptstyle", "limits", "nolimits", "middle", "hfill", "thinspace", "medspace",  "enspace",      "space",
    "rm",          "bf",     "it",       "cal",    "tiny",  "large",     "allowbreak"};

constexpr std::array<std::string_view, 13> kTexts = {"text",   "mbox",         "textbf",    "textit", "textrm",
                                                     "mathrm", "operatorname", "textsf",    "texttt", "hbox",
                                                     "mathsf", "emph",         "textnormal"};

// Styles of mathematics: their argument counts as it is.
constexpr std::array<std::string_view, 10> kStyles = {"mathbf",     "mathit", "boldsymbol", "bm",      "mathnormal",
                                                      "ensuremath", "boxed",  "fbox",       "mathcal", "pmb"};

constexpr std::array<std::pair<std::string_view, std::string_view>, 29> kSynonyms = {{
    {"\\geq", "\\ge"},       {"\\leq", "\\le"},       {"\\neq", "\\ne"},      {"\\geqslant", "\\ge"},
    {"\\leqslant", "\\le"},  {"\\dfrac", "\\frac"},   {"\\tfrac", "\\frac"},  {"\\cfrac", "\\frac"},
    {"\\dbinom", "\\binom"}, {"\\tbinom", "\\binom"}, {"\\times", "*"},       {"\\cdot", "*"},
    {"\\ast", "*"},          {"\\div", "/"},          {"\\lbrace", "\\{"},    {"\\rbrace", "\\}"},
    {"\\lbrack", "["},       {"\\rbrack", "]"},       {"\\lt", "<"},          {"\\gt", ">"},
    {"\\vert", "|"},         {"\\lvert", "|"},        {"\\rvert", "|"},       {"\\mid", "\\mid"},
    {"\\colon", ":"},        {"\\percent", "%"},      {"\\degree", "\\circ"}, {"\\varnothing", "\\emptyset"},
    {"\\lnot", "\\neg"},
}};

// Characters beyond ASCII, as what they are in LaTeX.
constexpr std::array<std::pair<std::string_view, std::string_view>, 39> kCharacters = {{
    {"−", "-"},          {"–", "-"},        {"—", "-"},        {"×", "*"},      {"·", "*"},       {"⋅", "*"},
    {"∙", "*"},          {"÷", "/"},        {"π", "\\pi"},     {"√", "\\sqrt"}, {"∞", "\\infty"}, {"≤", "\\le"},
    {"≥", "\\ge"},       {"≠", "\\ne"},     {"∪", "\\cup"},    {"∩", "\\cap"},  {"°", "°"},       {"±", "\\pm"},
    {"∓", "\\mp"},       {"∈", "\\in"},     {"ℝ", "\\reals"},  {"²", "^2"},     {"³", "^3"},      {"≈", "\\approx"},
    {"∅", "\\emptyset"}, {"⟨", "\\langle"}, {"⟩", "\\rangle"}, {"（", "("},     {"）", ")"},      {"，", ","},
    {"：", ":"},         {"；", ";"},       {"＝", "="},       {"％", "%"},     {"、", ","},      {"⌊", "\\lfloor"},
    {"⌋", "\\rfloor"},   {"⌈", "\\lceil"},  {"⌉", "\\rceil"},
}};

constexpr std::array<std::pair<std::string_view, std::string_view>, 7> kUnicodeFractions = {
    {{"½", "1/2"}, {"¼", "1/4"}, {"¾", "3/4"}, {"⅓", "1/3"}, {"⅔", "2/3"}, {"⅕", "1/5"}, {"⅛", "1/8"}}};

constexpr std::array<std::string_view, 30> kGreek = {
    "alpha", "beta",   "gamma",  "delta", "epsilon", "varepsilon", "zeta",  "eta",   "theta", "vartheta",
    "iota",  "kappa",  "lambda", "mu",    "nu",      "xi",         "rho",   "sigma", "tau",   "upsilon",
    "phi",   "varphi", "chi",    "psi",   "omega",   "Gamma",      "Delta", "Theta", "Omega", "ell"};

// The same as characters.
constexpr std::array<std::pair<std::string_view, std::string_view>, 20> kGreekCharacters = {
    {{"α", "alpha"}, {"β", "beta"},  {"γ", "gamma"},  {"δ", "delta"}, {"ε", "epsilon"}, {"ζ", "zeta"}, {"η", "eta"},
     {"θ", "theta"}, {"κ", "kappa"}, {"λ", "lambda"}, {"μ", "mu"},    {"ν", "nu"},      {"ξ", "xi"},   {"ρ", "rho"},
     {"σ", "sigma"}, {"τ", "tau"},   {"φ", "phi"},    {"χ", "chi"},   {"ψ", "psi"},     {"ω", "omega"}}};

struct Lexer {
  std::string_view text;
  size_t at = 0;
  int brackets = 0;  // ( [ \{ that are open: there a comma is never one of thousands
  bool space = false;
  int depth = 0;      // of \text{\text{...}}
  bool joins = true;  // whether a bare comma may be one of thousands
  std::vector<MathToken> out = {};

  bool begins(std::string_view what) const { return text.substr(at).starts_with(what); }
  char peek(size_t n = 0) const { return at + n < text.size() ? text[at + n] : '\0'; }

  void put(Kind kind, std::string what) {
    out.push_back({kind, std::move(what), space});
    space = false;
  }
  void symbol(std::string_view what) {
    if (what == "(" || what == "[" || what == "\\{") ++brackets;
    if ((what == ")" || what == "]" || what == "\\}") && brackets > 0) --brackets;
    put(Kind::symbol, std::string(what));
  }

  bool behind_value() const {
    if (out.empty()) return false;
    const MathToken& last = out.back();
    if (last.kind == Kind::number || last.kind == Kind::word || last.kind == Kind::letter) return true;
    return last.text == "}" || last.text == ")" || last.text == "/" || last.text == "]";
  }

  // A comma (or a thin space) and three digits that go on a number: how many bytes come before the digits, or 0.
  size_t thousands(size_t from) const {
    size_t i = from;
    const auto spaces = [&] {
      const size_t begin = i;
      while (i < text.size() && is_space(text[i])) ++i;
      return i > begin;
    };
    bool certain = false;  // a bare comma may separate a list as well
    if (text.substr(i).starts_with("{,}")) {
      i += 3;
      certain = true;
    } else if (text.substr(i).starts_with("\\,")) {
      i += 2;
      certain = true;
    } else if (i < text.size() && text[i] == ',') {
      ++i;
      const bool spaced = spaces();
      if (text.substr(i).starts_with("\\!") || (!spaced && text.substr(i).starts_with("\\,"))) {
        i += 2;
        certain = true;
        spaces();
      } else if (spaced) {
        return 0;
      }
    } else {
      return 0;
    }
    if (!certain && (brackets > 0 || !joins)) return 0;
    for (size_t n = 0; n < 3; ++n) {
      if (i + n >= text.size() || !is_digit(text[i + n])) return 0;
    }
    return i + 3 < text.size() && is_digit(text[i + 3]) ? 0 : i - from;
  }

  // "152A_{11}": digits and capitals, all digits of the base that stands behind.
  bool read_based() {
    size_t end = at;
    bool point = false;
    while (end < text.size() && (is_digit(text[end]) || is_upper(text[end]) || (text[end] == '.' && !point))) {
      point |= text[end++] == '.';
    }
    size_t i = end;
    if (i >= text.size() || text[i] != '_') return false;
    ++i;
    const bool braced = i < text.size() && text[i] == '{';
    i += braced;
    int base = 0;
    const size_t begin = i;
    while (i < text.size() && is_digit(text[i]) && i - begin < (braced ? 2U : 1U)) base = base * 10 + (text[i++] - '0');
    if (i == begin || base < 2 || base > 36 || (braced && (i >= text.size() || text[i++] != '}'))) return false;
    bool digit = false;
    for (const char c : text.substr(at, end - at)) {
      if (c != '.' && (is_digit(c) ? c - '0' : c - 'A' + 10) >= base) return false;
      digit |= is_digit(c);
    }
    if (!digit && end - at < 2) return false;
    put(Kind::based, std::string(text.substr(at, end - at)));
    put(Kind::number, std::to_string(base));
    at = i;
    return true;
  }

  void read_number() {
    if (read_based()) return;
    std::string digits;
    while (is_digit(peek())) digits += text[at++];
    const bool may_have = !digits.empty() && digits.size() <= 3 && digits[0] != '0';
    while (may_have) {
      const size_t separator = thousands(at);
      if (separator == 0) break;
      digits += text.substr(at + separator, 3);
      at += separator + 3;
    }
    if (peek() == '.' && is_digit(peek(1))) {
      digits += text[at++];
      while (is_digit(peek())) digits += text[at++];
    } else if (peek() == '.' && !digits.empty() && !is_letter(peek(1)) && !begins(".\\overline")) {
      ++at;  // "5." is 5
    }
    const bool point = digits.find('.') != std::string::npos;
    put(Kind::number, std::move(digits));
    // 1.5e-7, 1E5; but 4e+3 may be a sum with a variable e.
    if (peek() != 'e' && peek() != 'E') return;
    const bool sign = peek(1) == '-' || peek(1) == '+';
    size_t n = 1 + (sign ? 1 : 0);
    const size_t begin = n;
    while (is_digit(peek(n))) ++n;
    if (n == begin || n - begin > 6 || is_letter(peek(n)) || (sign && !point && n - begin < 2 && peek() == 'e')) return;
    put(Kind::symbol, "\\e");
    put(Kind::number, std::string(text.substr(at + begin, n - begin)));
    if (peek(1) == '-') out[out.size() - 2].text = "\\e-";
    at += n;
  }

  // Words that mean something else, functions, units, letters of products.
  void read_letters() {
    if (is_upper(peek()) && read_based()) return;
    size_t n = 0;
    while (is_letter(peek(n))) ++n;
    const std::string_view run = text.substr(at, n);
    const std::string lower = lowered(run);
    if (n == 1) {
      at += 1;
      // Between brackets, "(1, 2) U (3, 4)".
      if (run == "U" && !out.empty() && (out.back().text == ")" || out.back().text == "]")) return symbol("\\cup");
      if ((run == "m" || run == "g" || run == "s" || run == "h" || run == "L") && space && !out.empty() &&
          out.back().kind == Kind::number && stripped(text.substr(at)).size() <= 1) {  // "5 m", but not "5 m + 1"
        return put(Kind::word, std::string(run));
      }
      return put(Kind::letter, std::string(run));
    }
    if (lower == "and" || lower == "or") return at += n, symbol(lower);
    if (lower == "pi") return at += n, symbol("\\pi");
    if (lower == "inf" || lower == "infinity" || lower == "infty" || run == "oo") return at += n, symbol("\\infty");
    if (lower == "percent") return at += n, symbol("%");
    if (lower == "union") return at += n, symbol("\\cup");
    if (lower == "degrees" || lower == "degree") return at += n, symbol("°");
    if (among(kFunctions, lower)) return at += n, put(Kind::name, lower);
    if (behind_value() && (is_unit_name(lower) || lower == "per")) return at += n, put(Kind::word, std::string(run));
    static constexpr std::array<std::string_view, 7> kShortWords = {"no", "yes", "on", "odd", "not", "all", "one"};
    if (out.empty() && among(kShortWords, lower)) return at += n, put(Kind::word, std::string(run));
    if (peek(n) != '_' && !(n <= 3 && std::ranges::all_of(run, is_lower))) {
      for (const std::string_view function : kFunctions) {  // "sinx", "2cosx"
        if (n == function.size() + 1 && lower.starts_with(function) && function.size() >= 3) {
          at += n - 1;
          return put(Kind::name, std::string(function));
        }
      }
      if (n >= 4) return at += n, put(Kind::word, std::string(run));
    }
    for (const char c : run) put(Kind::letter, std::string(1, c));
    at += n;
  }

  // The group behind a command, with its braces balanced.
  std::string_view group() {
    while (is_space(peek())) ++at;
    if (peek() != '{') return {};
    int open = 0;
    const size_t begin = at + 1;
    for (; at < text.size(); ++at) {
      if (text[at] == '\\' && at + 1 < text.size()) {
        ++at;
        continue;
      }
      open += text[at] == '{' ? 1 : text[at] == '}' ? -1 : 0;
      if (open == 0) return text.substr(begin, at++ - begin);
    }
    return text.substr(std::min(begin, text.size()));
  }

  void lex_inside(std::string_view inside) {
    if (depth >= 4) return symbol("\\text");
    Lexer inner{.text = inside, .brackets = brackets, .space = space, .depth = depth + 1, .joins = joins};
    inner.run();
    for (MathToken& token : inner.out) out.push_back(std::move(token));
    space = false;
  }

  void read_text(std::string_view command) {
    const std::string_view raw = group(), inside = stripped(raw);
    if (inside.empty()) {
      space = true;
      return;
    }
    const std::string lower = lowered(inside);
    if (lower == "and" || lower == "or" || lower == ", and" || lower == ", or")
      return symbol(lower.substr(lower[0] == ',' ? 2 : 0));
    if (among(kFunctions, lower)) return put(Kind::name, lower);
    if (command == "mathrm" && inside.size() == 1 && !behind_value()) return lex_inside(inside);
    bool words = false;  // two letters one behind the other
    for (size_t i = 0; i + 1 < inside.size(); ++i) words |= is_letter(inside[i]) && is_letter(inside[i + 1]);
    const bool mathematics = inside.find_first_of("\\^=$") != std::string_view::npos;
    const bool unit = behind_value() && is_letter(inside[0]);
    if ((!words && !unit) || (mathematics && !unit) || lower == "pi" || lower == "degrees" || lower == "percent") {
      return lex_inside(inside);
    }
    // "5 (five)"
    if (inside.starts_with('(') && inside.ends_with(')') && !out.empty() && out.back().kind == Kind::number) {
      const auto number = small_number(std::string_view(lower).substr(1, lower.size() - 2));
      if (number && std::to_string(*number) == out.back().text) return static_cast<void>(space = true);
    }
    // "3 cm": a number with words behind.
    if (is_digit(inside[0]) || inside[0] == '-' || inside[0] == '.' || inside[0] == '(' || inside[0] == '$')
      return lex_inside(inside);
    put(Kind::word, std::string(inside));
  }

  void read_command() {
    if (at + 1 >= text.size()) return static_cast<void>(++at);
    const char next = text[at + 1];
    if (!is_letter(next)) {
      at += 2;
      if (next == '{' || next == '}' || next == '\\') return symbol(std::string{'\\', next});
      if (next == '%') return symbol("%");
      if (next == '$') return symbol("\\$");
      if (next == '|') return symbol("|");
      space = true;  // \, \; \! \( \[ and the like
      return;
    }
    size_t n = 1;
    while (is_letter(peek(n))) ++n;
    const std::string_view name = text.substr(at + 1, n - 1);
    at += n;
    if (among(kSpacing, name)) {
      space = true;
      if ((name == "left" || name == "right") && peek() == '.') ++at;
      return;
    }
    if (among(kTexts, name)) return read_text(name);
    if (among(kStyles, name)) {
      while (is_space(peek())) ++at;
      return;  // the group behind it is one as it is
    }
    if (name == "begin" || name == "end") {
      const std::string_view environment = stripped(group());
      if (environment == "array" && name == "begin") group();  // its columns
      return symbol("\\" + std::string(name) + "{" + std::string(environment.substr(0, 20)) + "}");
    }
    if (name == "hspace" || name == "vspace" || name == "phantom" || name == "label") {
      group();
      return;
    }
    if (name == "mathbb") {
      const std::string_view which = group();
      return symbol(which == "R" ? "\\reals" : "\\mathbb{" + std::string(which.substr(0, 4)) + "}");
    }
    if (among(kFunctions, name) && name != "frac" && !name.ends_with("frac") && !name.ends_with("binom") &&
        name != "sqrt") {
      return put(Kind::name, std::string(name));
    }
    const std::string whole = "\\" + std::string(name);
    for (const auto& [from, to] : kSynonyms) {
      if (from == whole) return symbol(to);
    }
    if (among(kGreek, name)) return put(Kind::letter, whole);
    symbol(whole);
  }

  // A character beyond ASCII.
  void read_character() {
    for (const auto& [from, to] : kCharacters) {
      if (!begins(from)) continue;
      at += from.size();
      if (to.size() == 2 && to[0] == '^') {
        symbol("^");
        return put(Kind::number, std::string(to.substr(1)));
      }
      return symbol(to);
    }
    for (const auto& [from, to] : kGreekCharacters) {
      if (!begins(from)) continue;
      at += from.size();
      return put(Kind::letter, "\\" + std::string(to));
    }
    for (const auto& [from, to] : kUnicodeFractions) {
      if (!begins(from)) continue;
      at += from.size();
      symbol("\\frac");
      put(Kind::number, std::string(to.substr(0, 1)));
      return put(Kind::number, std::string(to.substr(2)));
    }
    size_t n = 1;
    while (at + n < text.size() && (static_cast<unsigned char>(text[at + n]) & 0x80) != 0) {
      const bool known = (static_cast<unsigned char>(text[at + n]) & 0xC0) != 0x80 &&
                         std::ranges::any_of(kCharacters, [&](const auto& pair) {
                           return text.substr(at + n).starts_with(pair.first);
                         });
      if (known) break;
      ++n;
    }
    const std::string_view run = text.substr(at, n);
    at += n;
    const bool greek =
        n == 2 && (static_cast<unsigned char>(run[0]) == 0xCE || static_cast<unsigned char>(run[0]) == 0xCF);
    put(greek ? Kind::letter : Kind::word, std::string(run));
  }

  void run() {
    while (at < text.size()) {
      const char c = text[at];
      if (is_space(c) || c == '~' || c == '$') {
        space = true;
        ++at;
      } else if (is_digit(c) || (c == '.' && is_digit(peek(1)))) {
        read_number();
      } else if (is_letter(c)) {
        read_letters();
      } else if (c == '\\') {
        read_command();
      } else if ((static_cast<unsigned char>(c) & 0x80) != 0) {
        read_character();
      } else {
        static constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kTwo = {
            {{"**", "^"}, {"<=", "\\le"}, {">=", "\\ge"}, {"!=", "\\ne"}, {"==", "="}, {"=<", "\\le"}}};
        const auto two = std::ranges::find_if(kTwo, [&](const auto& pair) { return begins(pair.first); });
        if (two != kTwo.end()) {
          at += 2;
          symbol(two->second);
        } else {
          ++at;
          symbol(std::string(1, c));
        }
      }
    }
  }
};

}  // namespace

std::vector<MathToken> lex_math(std::string_view text) {
  Lexer lexer{.text = text};
  // In "1,2,100" no comma is one of thousands: another one has no three digits behind it.
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] != ',' || is_space(text[i + 1]) || text[i + 1] == '\\' || text[i + 1] == '}') continue;
    size_t digits = 0;
    while (i + 1 + digits < text.size() && digits < 4 && is_digit(text[i + 1 + digits])) ++digits;
    if (digits != 3) lexer.joins = false;
  }
  lexer.run();
  lexer.put(Kind::end, "");
  return std::move(lexer.out);
}

}  // namespace fathom::eval
