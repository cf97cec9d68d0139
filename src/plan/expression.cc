#include "plan/expression.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace fathom::plan {
namespace {

constexpr size_t kMostBytes = 4096;
constexpr int kMostDepth = 100;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Words that JavaScript would not take for a variable, and functions.
constexpr std::string_view kWords[] = {
    "await",  "break",    "case",    "catch",     "class",      "const",  "continue",   "debugger",  "default",
    "delete", "do",       "else",    "enum",      "eval",       "export", "extends",    "false",     "finally",
    "for",    "function", "if",      "import",    "implements", "in",     "instanceof", "interface", "let",
    "new",    "null",     "package", "private",   "protected",  "public", "return",     "static",    "super",
    "switch", "this",     "throw",   "true",      "try",        "typeof", "undefined",  "var",       "void",
    "while",  "with",     "yield",   "arguments", "min",        "max",    "ceil",       "floor",     "round",
    "sqrt",   "pow",      "log",     "exp",       "least_parts"};

// The least number of places, each with room for its share of `things` and of `others`, whole ones; 0 if there is none.
double least_parts(double things, double thing, double others, double other, double room) {
  const auto fits = [&](double n) { return std::ceil(things / n) * thing + std::ceil(others / n) * other <= room; };
  double low = 1, high = std::max({1.0, things, others});
  if (!(high <= 1e15) || !fits(high)) return 0;
  while (low < high) {
    const double middle = std::floor((low + high) / 2);
    if (fits(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace

bool is_formula_name(std::string_view name) {
  return !name.empty() && name.size() <= 100 && is_letter(name[0]) &&
         std::all_of(name.begin(), name.end(), [](char c) { return is_letter(c) || is_digit(c); }) &&
         std::find(std::begin(kWords), std::end(kWords), name) == std::end(kWords);
}

class ExpressionParser {
 public:
  explicit ExpressionParser(Expression& out) : out_(out), text_(out.text_) {}

  void parse() {
    if (text_.size() > kMostBytes) fail("a formula has at most 4096 characters");
    out_.root_ = choice();
    if (at_ < text_.size()) fail("an operator or the end should stand here");
  }

 private:
  using Op = Expression::Op;

  int choice() {
    const Depth depth(*this);
    const int condition = level(0);
    if (!accept("?")) return condition;
    const int yes = choice();
    if (!accept(":")) fail("':' is missing");
    return node({Op::choice, 0, condition, yes, choice()});
  }

  struct Infix {
    std::string_view sign;
    Op op;
  };
  // Operators of a level, the loosest first; of two that begin alike the longer one stands first.
  int level(size_t i) {
    static const std::vector<Infix> levels[] = {
        {{"||", Op::disjunction}},
        {{"&&", Op::conjunction}},
        {{"==", Op::equal}, {"!=", Op::unequal}},
        {{"<=", Op::less_equal}, {">=", Op::greater_equal}, {"<", Op::less}, {">", Op::greater}},
        {{"+", Op::add}, {"-", Op::subtract}},
        {{"*", Op::multiply}, {"/", Op::divide}}};
    if (i == std::size(levels)) return unary();
    int left = level(i + 1);
    for (bool more = true; more;) {
      more = false;
      for (const Infix& infix : levels[i]) {
        if (!accept(infix.sign)) continue;
        left = node({infix.op, 0, left, level(i + 1)});
        more = true;
        break;
      }
    }
    return left;
  }

  int unary() {
    const Depth depth(*this);
    if (accept("-")) return node({Op::negate, 0, unary()});
    if (accept("!")) return node({Op::invert, 0, unary()});
    return primary();
  }

  int primary() {
    if (accept("(")) {
      const int inner = choice();
      if (!accept(")")) fail("')' is missing");
      return inner;
    }
    skip_spaces();
    const size_t begin = at_;
    if (is_digit(peek())) return number();
    while (is_letter(peek()) || is_digit(peek())) ++at_;
    const std::string_view word = text_.substr(begin, at_ - begin);
    if (word.empty()) fail("a number, a name or '(' should stand here");
    static constexpr std::pair<std::string_view, Op> kFunctions[] = {
        {"min", Op::min},     {"max", Op::max},
        {"ceil", Op::ceil},   {"floor", Op::floor},
        {"round", Op::round}, {"sqrt", Op::sqrt},
        {"pow", Op::pow},     {"log", Op::log},
        {"exp", Op::exp},     {"least_parts", Op::least_parts}};
    for (const auto& [name, op] : kFunctions) {
      if (name == word) return call(op);
    }
    if (!is_formula_name(word)) {
      at_ = begin;
      fail("this word cannot be a name");
    }
    return node({Op::name, 0, -1, -1, -1, begin, at_});
  }

  int call(Op op) {
    if (!accept("(")) fail("'(' is missing behind a function");
    int left = choice();
    if (op == Op::min || op == Op::max || op == Op::pow) {
      if (!accept(",")) fail("a second number is missing");
      left = node({op, 0, left, choice()});
      while (op != Op::pow && accept(",")) left = node({op, 0, left, choice()});
    } else if (op == Op::least_parts) {
      int rest[4];
      for (int& each : rest) {
        if (!accept(",")) fail("five numbers should stand here");
        each = choice();
      }
      left = node({op, 0, left, rest[0], rest[1], 0, 0, rest[2], rest[3]});
    } else {
      left = node({op, 0, left});
    }
    if (!accept(")")) fail("')' is missing");
    return left;
  }

  int number() {
    const size_t begin = at_;
    while (is_digit(peek())) ++at_;
    if (at_ > begin + 1 && text_[begin] == '0') fail("a number begins with 0");
    if (peek() == '.') {
      ++at_;
      if (!is_digit(peek())) fail("a digit is missing behind '.'");
      while (is_digit(peek())) ++at_;
    }
    if (peek() == 'e') {
      ++at_;
      if (peek() == '-' || peek() == '+') ++at_;
      if (!is_digit(peek())) fail("a digit is missing behind 'e'");
      while (is_digit(peek())) ++at_;
    }
    if (is_letter(peek()) || peek() == '.') fail("a number should end here");
    double value = 0;
    const auto result = std::from_chars(text_.data() + begin, text_.data() + at_, value);
    if (result.ec != std::errc() || !std::isfinite(value)) fail("this number is too large");
    return node({Op::number, value});
  }

  int node(Expression::Node made) {
    out_.nodes_.push_back(made);
    return static_cast<int>(out_.nodes_.size()) - 1;
  }
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool accept(std::string_view sign) {
    skip_spaces();
    if (text_.substr(at_, sign.size()) != sign) return false;
    // "--" and "===" are something else to JavaScript.
    const char next = at_ + sign.size() < text_.size() ? text_[at_ + sign.size()] : '\0';
    if ((sign == "-" && next == '-') || (sign == "+" && next == '+') || (sign == "*" && next == '*') ||
        (sign == "/" && (next == '/' || next == '*')) || ((sign == "==" || sign == "!=") && next == '=') ||
        (sign == "?" && (next == '.' || next == '?'))) {
      fail("two signs in a row");
    }
    at_ += sign.size();
    return true;
  }
  [[noreturn]] void fail(std::string_view what) const {
    throw Error("formula '{}', character {}: {}", printable(text_, 120), at_ + 1, what);
  }

  struct Depth {
    explicit Depth(ExpressionParser& parser) : in(parser) {
      if (++in.depth_ > kMostDepth) in.fail("nested too deeply");
    }
    ~Depth() { --in.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    ExpressionParser& in;
  };

  Expression& out_;
  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

Expression::Expression(std::string text) : text_(std::move(text)) { ExpressionParser(*this).parse(); }

std::vector<std::string> Expression::names() const {
  std::vector<std::string> found;
  for (const Node& n : nodes_) {
    if (n.op != Op::name) continue;
    if (std::find(found.begin(), found.end(), name(n)) == found.end()) found.emplace_back(name(n));
  }
  return found;
}

double Expression::evaluate(const Values& values) const {
  FATHOM_CHECK(root_ >= 0, "an empty formula");
  return evaluate(root_, values);
}

double Expression::evaluate(int at, const Values& values) const {
  const Node& n = nodes_[static_cast<size_t>(at)];
  const auto a = [&] { return evaluate(n.a, values); };
  const auto b = [&] { return evaluate(n.b, values); };
  switch (n.op) {
    case Op::number:
      return n.number;
    case Op::name: {
      const auto found = values.find(name(n));
      if (found == values.end()) throw Error("formula '{}': {} has no value", printable(text_, 120), name(n));
      return found->second;
    }
    case Op::negate:
      return -a();
    case Op::invert: {
      const double x = a();
      return x == 0 || std::isnan(x) ? 1 : 0;
    }
    case Op::add:
      return a() + b();
    case Op::subtract:
      return a() - b();
    case Op::multiply:
      return a() * b();
    case Op::divide:
      return a() / b();
    case Op::less:
      return a() < b() ? 1 : 0;
    case Op::less_equal:
      return a() <= b() ? 1 : 0;
    case Op::greater:
      return a() > b() ? 1 : 0;
    case Op::greater_equal:
      return a() >= b() ? 1 : 0;
    case Op::equal:
      return a() == b() ? 1 : 0;
    case Op::unequal:
      return a() != b() ? 1 : 0;
    case Op::conjunction: {
      const double x = a();
      return x == 0 || std::isnan(x) ? x : b();
    }
    case Op::disjunction: {
      const double x = a();
      return x == 0 || std::isnan(x) ? b() : x;
    }
    case Op::choice: {
      const double x = a();
      return x == 0 || std::isnan(x) ? evaluate(n.c, values) : b();
    }
    case Op::min:
      return std::min(a(), b());
    case Op::max:
      return std::max(a(), b());
    case Op::ceil:
      return std::ceil(a());
    case Op::floor:
      return std::floor(a());
    case Op::round:
      return std::floor(a() + 0.5);
    case Op::sqrt:
      return std::sqrt(a());
    case Op::pow:
      return std::pow(a(), b());
    case Op::log:
      return std::log(a());
    case Op::exp:
      return std::exp(a());
    case Op::least_parts:
      return least_parts(a(), b(), evaluate(n.c, values), evaluate(n.d, values), evaluate(n.e, values));
  }
  return 0;
}

std::string Expression::with_numbers(const Values& values, const std::function<std::string(double)>& show) const {
  std::vector<const Node*> places;
  for (const Node& n : nodes_) {
    if (n.op == Op::name) places.push_back(&n);
  }
  std::sort(places.begin(), places.end(), [](const Node* x, const Node* y) { return x->begin < y->begin; });
  std::string out;
  size_t at = 0;
  for (const Node* n : places) {
    out += text_.substr(at, n->begin - at);
    const auto found = values.find(name(*n));
    out += found == values.end() ? std::string(name(*n)) : show(found->second);
    at = n->end;
  }
  return out + text_.substr(at);
}

}  // namespace fathom::plan
