#include "text/jinja_parser.h"

#include <algorithm>
#include <initializer_list>

#include "base/error.h"
#include "text/jinja_lexer.h"

namespace fathom::jinja {
namespace {

constexpr int kMaxNesting = 100;

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Block run() {
    Block body = block({});
    if (!unknown_.empty()) throw Error("{}", unknown_.front());
    return body;
  }

 private:
  using Words = std::initializer_list<std::string_view>;

  // ---- tokens
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  [[noreturn]] void fail(std::string_view what) const { throw Error("line {}: {}", now().line, what); }

  static std::string describe(const Token& token) {
    switch (token.kind) {
      case TokenKind::kEnd:
        return "the end of the template";
      case TokenKind::kBlockEnd:
        return "the end of the tag, %}";
      case TokenKind::kVariableEnd:
        return "the end of the tag, }}";
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        return "a number";
      case TokenKind::kText:
        return "a text literal";
      default:
        return fmt::format("'{}'", printable(token.text, 40));
    }
  }
  bool at_operator(std::string_view op) const { return now().kind == TokenKind::kOperator && now().text == op; }
  bool at_word(std::string_view word) const { return now().kind == TokenKind::kName && now().text == word; }
  bool skip_operator(std::string_view op) { return at_operator(op) && (take(), true); }
  bool skip_word(std::string_view word) { return at_word(word) && (take(), true); }
  void expect_operator(std::string_view op) {
    if (!skip_operator(op)) fail(fmt::format("expected '{}', found {}", op, describe(now())));
  }
  void expect_word(std::string_view word) {
    if (!skip_word(word)) fail(fmt::format("expected '{}', found {}", word, describe(now())));
  }
  void expect(TokenKind kind, const char* what) {
    if (now().kind != kind) fail(fmt::format("expected {}, found {}", what, describe(now())));
    take();
  }
  std::string expect_name() {
    if (now().kind != TokenKind::kName) fail(fmt::format("expected a name, found {}", describe(now())));
    return take().text;
  }

  class Level {
   public:
    explicit Level(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxNesting) parser_.fail("the template is nested too deep");
    }
    ~Level() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  // ---- statements
  // Until a tag whose name is one of `ends` (its name is the current token then), or the end of the template if none.
  Block block(Words ends) {
    const Level level(*this);
    Block body;
    while (now().kind != TokenKind::kEnd) {
      const int line = now().line;
      if (now().kind == TokenKind::kData) {
        body.push_back(make(StatementKind::kData, line));
        body.back()->data = take().text;
      } else if (now().kind == TokenKind::kVariableBegin) {
        take();
        body.push_back(make(StatementKind::kOutput, line));
        body.back()->expressions.push_back(tuple());
        expect(TokenKind::kVariableEnd, "the end of the tag, }}");
      } else {
        take();
        for (const std::string_view end : ends) {
          if (at_word(end)) return body;
        }
        body.push_back(statement());
        expect(TokenKind::kBlockEnd, "the end of the tag, %}");
      }
    }
    if (ends.size()) fail(fmt::format("the template ends where '{}' is missing", *(ends.end() - 1)));
    return body;
  }

  // The body of a statement: behind its tag's end, up to one of `ends`. `soft`: a branch that may never run, where an
  // unknown filter is no error until it is reached.
  Block body_of(Words ends, bool soft = false) {
    skip_operator(":");
    expect(TokenKind::kBlockEnd, "the end of the tag, %}");
    const bool before = soft_;
    soft_ = soft;
    Block body = block(ends);
    soft_ = before;
    return body;
  }
  Block last_body_of(std::string_view end) {
    Block body = body_of({end});
    take();
    return body;
  }

  static std::unique_ptr<Statement> make(StatementKind kind, int line) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = line;
    return statement;
  }

  std::unique_ptr<Statement> statement() {
    const int line = now().line;
    if (now().kind != TokenKind::kName) fail(fmt::format("expected a tag's name, found {}", describe(now())));
    const std::string tag = now().text;
    if (tag == "if") return if_statement();
    if (tag == "for") return for_statement();
    if (tag == "set") return set_statement();
    if (tag == "with") return with_statement();
    if (tag == "macro") return macro_statement();
    if (tag == "call") return call_statement();
    take();
    if (tag == "print") {
      auto out = make(StatementKind::kOutput, line);
      while (now().kind != TokenKind::kBlockEnd) {
        if (!out->expressions.empty()) expect_operator(",");
        out->expressions.push_back(expression());
      }
      return out;
    }
    if (tag == "filter") {
      auto filter = make(StatementKind::kFilter, line);
      filter->expressions.push_back(filter_chain(nullptr, true));
      filter->blocks.push_back(last_body_of("endfilter"));
      return filter;
    }
    if (tag == "generation") {
      auto scope = make(StatementKind::kScope, line);
      const int loops = std::exchange(loops_, 0);
      scope->blocks.push_back(last_body_of("endgeneration"));
      loops_ = loops;
      return scope;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) throw Error("line {}: '{}' stands outside a loop", line, tag);
      return make(tag == "break" ? StatementKind::kBreak : StatementKind::kContinue, line);
    }
    throw Error("line {}: unknown or misplaced tag '{}'", line, printable(tag, 40));
  }

  std::unique_ptr<Statement> if_statement() {
    auto result = make(StatementKind::kIf, now().line);
    const bool before = soft_;
    do {
      take();  // if, elif
      soft_ = true;
      result->expressions.push_back(tuple(false));
      result->blocks.push_back(body_of({"elif", "else", "endif"}, true));
    } while (at_word("elif"));
    if (skip_word("else")) result->blocks.push_back(body_of({"endif"}, true));
    soft_ = before;
    expect_word("endif");
    return result;
  }

  std::unique_ptr<Statement> for_statement() {
    auto result = make(StatementKind::kFor, take().line);
    result->targets.push_back(target(false));
    expect_word("in");
    result->expressions.push_back(tuple(false));
    result->expressions.push_back(skip_word("if") ? expression() : nullptr);
    result->recursive = skip_word("recursive");
    ++loops_;
    result->blocks.push_back(body_of({"endfor", "else"}));
    --loops_;
    if (skip_word("else")) result->blocks.push_back(body_of({"endfor"}));
    expect_word("endfor");
    return result;
  }

  std::unique_ptr<Statement> set_statement() {
    auto result = make(StatementKind::kSet, take().line);
    result->targets.push_back(target(true));
    if (skip_operator("=")) {
      result->expressions.push_back(tuple());
      return result;
    }
    result->kind = StatementKind::kSetBlock;
    result->expressions.push_back(at_operator("|") ? filter_chain(nullptr, false) : nullptr);
    result->blocks.push_back(last_body_of("endset"));
    return result;
  }

  std::unique_ptr<Statement> with_statement() {
    auto result = make(StatementKind::kWith, take().line);
    while (now().kind != TokenKind::kBlockEnd) {
      if (!result->targets.empty()) expect_operator(",");
      result->targets.push_back(target(false));
      expect_operator("=");
      result->expressions.push_back(expression());
    }
    result->blocks.push_back(last_body_of("endwith"));
    return result;
  }

  void signature(MacroDefinition& macro) {
    expect_operator("(");
    while (!at_operator(")")) {
      if (!macro.parameters.empty()) expect_operator(",");
      macro.parameters.push_back(variable_name());
      if (skip_operator("=")) {
        macro.defaults.push_back(expression());
      } else if (!macro.defaults.empty()) {
        fail("a parameter without default follows one with a default");
      }
    }
    take();
  }

  void macro_body(MacroDefinition& macro, std::string_view end) {
    macros_.push_back(&macro);
    const int loops = std::exchange(loops_, 0);
    macro.body = last_body_of(end);
    loops_ = loops;
    macros_.pop_back();
  }

  std::unique_ptr<Statement> macro_statement() {
    auto result = make(StatementKind::kMacro, take().line);
    result->macro = std::make_unique<MacroDefinition>();
    result->macro->name = variable_name();
    signature(*result->macro);
    macro_body(*result->macro, "endmacro");
    return result;
  }

  std::unique_ptr<Statement> call_statement() {
    auto result = make(StatementKind::kCall, take().line);
    result->macro = std::make_unique<MacroDefinition>();
    result->macro->name = "caller";
    if (at_operator("(")) signature(*result->macro);
    result->expressions.push_back(expression());
    if (result->expressions[0]->kind != ExpressionKind::kCall) fail("the call tag needs a call");
    macro_body(*result->macro, "endcall");
    return result;
  }

  std::string variable_name() {
    std::string name = expect_name();
    for (const char* constant : {"true", "false", "none", "True", "False", "None"}) {
      if (name == constant) fail(fmt::format("cannot assign to '{}'", name));
    }
    return name;
  }

  Target one_target(bool allow_attribute) {
    const Level level(*this);
    if (skip_operator("(")) {
      Target inner = target(allow_attribute);
      expect_operator(")");
      return inner;
    }
    Target result{.name = variable_name()};
    if (allow_attribute && skip_operator(".")) result.attribute = expect_name();
    return result;
  }

  Target target(bool allow_attribute) {
    Target first = one_target(allow_attribute);
    if (!at_operator(",")) return first;
    Target result{.is_tuple = true};
    result.parts.push_back(std::move(first));
    while (skip_operator(",")) {
      if (now().kind != TokenKind::kName && !at_operator("(")) break;
      if (at_word("in")) break;
      result.parts.push_back(one_target(allow_attribute));
    }
    return result;
  }

  // ---- expressions
  static ExpressionRef node(ExpressionKind kind, int line) {
    auto result = std::make_unique<Expression>();
    result->kind = kind;
    result->line = line;
    return result;
  }
  static ExpressionRef node(ExpressionKind kind, int line, ExpressionRef part) {
    auto result = node(kind, line);
    result->parts.push_back(std::move(part));
    return result;
  }

  bool at_tuple_end() const {
    return now().kind == TokenKind::kVariableEnd || now().kind == TokenKind::kBlockEnd || at_operator(")") ||
           at_word("recursive");
  }

  // One expression, or several with commas between them.
  ExpressionRef tuple(bool with_condition = true, bool in_parentheses = false) {
    const int line = now().line;
    auto result = node(ExpressionKind::kTuple, line);
    bool is_tuple = false;
    while (!at_tuple_end()) {
      result->parts.push_back(expression(with_condition));
      if (!skip_operator(",")) break;
      is_tuple = true;
    }
    if (is_tuple || (result->parts.empty() && in_parentheses)) return result;
    if (result->parts.empty()) fail(fmt::format("expected an expression, found {}", describe(now())));
    return std::move(result->parts[0]);
  }

  ExpressionRef expression(bool with_condition = true) {
    const Level level(*this);
    return with_condition ? condition() : any_of();
  }

  ExpressionRef condition() {
    const size_t unknown_before = unknown_.size();
    const int line = now().line;
    ExpressionRef value = any_of();
    while (skip_word("if")) {
      auto result = node(ExpressionKind::kCondition, line, any_of());
      result->parts.push_back(std::move(value));
      result->parts.push_back(skip_word("else") ? expression() : nullptr);
      value = bounded(std::move(result));
      unknown_.resize(unknown_before);  // whatever is unknown in there fails when it runs
    }
    return value;
  }

  ExpressionRef any_of() {
    const int line = now().line;
    ExpressionRef left = all_of();
    if (!at_word("or")) return left;
    auto result = node(ExpressionKind::kOr, line, std::move(left));
    while (skip_word("or")) result->parts.push_back(all_of());
    return result;
  }

  ExpressionRef all_of() {
    const int line = now().line;
    ExpressionRef left = negation();
    if (!at_word("and")) return left;
    auto result = node(ExpressionKind::kAnd, line, std::move(left));
    while (skip_word("and")) result->parts.push_back(negation());
    return result;
  }

  ExpressionRef unary(std::string op, int line, ExpressionRef operand) {
    auto result = node(ExpressionKind::kUnary, line, std::move(operand));
    result->operators.push_back(std::move(op));
    return result;
  }

  ExpressionRef negation() {
    if (!at_word("not")) return comparison();
    const Level level(*this);
    const int line = take().line;
    return unary("not", line, negation());
  }

  ExpressionRef comparison() {
    const int line = now().line;
    ExpressionRef left = chain(0);
    auto result = node(ExpressionKind::kCompare, line);
    while (true) {
      std::string op;
      if (now().kind == TokenKind::kOperator && (now().text == "==" || now().text == "!=" || now().text == "<" ||
                                                 now().text == "<=" || now().text == ">" || now().text == ">=")) {
        op = take().text;
      } else if (skip_word("in")) {
        op = "in";
      } else if (at_word("not") && ahead().kind == TokenKind::kName && ahead().text == "in") {
        take(), take();
        op = "not in";
      } else {
        break;
      }
      if (result->parts.empty()) result->parts.push_back(std::move(left));
      result->operators.push_back(op);
      result->parts.push_back(chain(0));
    }
    return result->parts.empty() ? std::move(left) : std::move(result);
  }

  // The operators that go from left to right, loosest first: + -, ~, * / // %, **.
  ExpressionRef chain(int tightness) {
    static const std::vector<std::vector<std::string>> kOperators = {{"+", "-"}, {"~"}, {"*", "/", "//", "%"}, {"**"}};
    if (tightness == 4) return prefixed(true);
    const auto& operators = kOperators[static_cast<size_t>(tightness)];
    const auto here = [&] {
      return now().kind == TokenKind::kOperator &&
             std::find(operators.begin(), operators.end(), now().text) != operators.end();
    };
    const int line = now().line;
    ExpressionRef left = chain(tightness + 1);
    if (!here()) return left;
    auto result = node(tightness == 1 ? ExpressionKind::kConcat : ExpressionKind::kArithmetic, line, std::move(left));
    while (here()) {
      result->operators.push_back(take().text);
      result->parts.push_back(chain(tightness + 1));
    }
    return result;
  }

  ExpressionRef prefixed(bool with_filter) {
    const Level level(*this);
    ExpressionRef result;
    if (at_operator("-") || at_operator("+")) {
      const Token& op = take();
      result = unary(op.text, op.line, prefixed(false));
    } else {
      result = primary();
    }
    result = postfix(std::move(result));
    if (with_filter) return filters(std::move(result));
    return result;
  }

  ExpressionRef primary() {
    const Token& token = now();
    auto result = node(ExpressionKind::kConstant, token.line);
    switch (token.kind) {
      case TokenKind::kName: {
        const std::string& name = take().text;
        if (name == "true" || name == "True") {
          result->constant = true;
        } else if (name == "false" || name == "False") {
          result->constant = false;
        } else if (name == "none" || name == "None") {
          result->constant = None{};
        } else {
          result->kind = ExpressionKind::kName;
          result->name = name;
          for (MacroDefinition* macro : macros_) {
            macro->uses_caller |= name == "caller";
            macro->uses_varargs |= name == "varargs";
            macro->uses_kwargs |= name == "kwargs";
          }
        }
        return result;
      }
      case TokenKind::kText: {
        std::string text = take().text;
        while (now().kind == TokenKind::kText) text += take().text;
        result->constant = Value(std::move(text));
        return result;
      }
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        result->constant = take().number;
        return result;
      default:
        break;
    }
    if (skip_operator("(")) {
      ExpressionRef inner = tuple(true, true);
      expect_operator(")");
      return inner;
    }
    if (skip_operator("[")) {
      result->kind = ExpressionKind::kList;
      while (!at_operator("]")) {
        if (!result->parts.empty()) expect_operator(",");
        if (at_operator("]")) break;
        result->parts.push_back(expression());
      }
      take();
      return result;
    }
    if (skip_operator("{")) {
      result->kind = ExpressionKind::kDict;
      while (!at_operator("}")) {
        if (!result->parts.empty()) expect_operator(",");
        if (at_operator("}")) break;
        result->parts.push_back(expression());
        expect_operator(":");
        result->parts.push_back(expression());
      }
      take();
      return result;
    }
    fail(fmt::format("expected an expression, found {}", describe(token)));
  }

  // Long chains of postfixes and filters are deep trees too.
  ExpressionRef bounded(ExpressionRef expression) {
    constexpr int kMaxChain = 200;
    int links = 0;
    for (const Expression* e = expression.get(); e && !e->parts.empty(); e = e->parts[0].get()) {
      if (++links > kMaxChain) fail("an expression is too long a chain");
    }
    return expression;
  }

  ExpressionRef postfix(ExpressionRef value) {
    while (true) {
      if (at_operator(".")) {
        const int line = take().line;
        if (now().kind == TokenKind::kInteger) {
          value = node(ExpressionKind::kItem, line, std::move(value));
          value->parts.push_back(node(ExpressionKind::kConstant, line));
          value->parts[1]->constant = take().number;
        } else {
          value = node(ExpressionKind::kAttribute, line, std::move(value));
          value->name = expect_name();
        }
      } else if (at_operator("[")) {
        value = subscript(std::move(value));
      } else if (at_operator("(")) {
        value = call(std::move(value));
      } else {
        return value;
      }
      value = bounded(std::move(value));
    }
  }

  ExpressionRef subscript(ExpressionRef value) {
    const int line = take().line;
    const auto at_part_end = [&] { return at_operator(":") || at_operator("]") || at_operator(","); };
    ExpressionRef first = at_operator(":") ? nullptr : expression();
    auto result = node(ExpressionKind::kItem, line, std::move(value));
    if (skip_operator(":")) {
      result->kind = ExpressionKind::kSlice;
      result->parts.push_back(std::move(first));
      result->parts.push_back(at_part_end() ? nullptr : expression());
      result->parts.push_back(skip_operator(":") && !at_part_end() ? expression() : nullptr);
    } else if (at_operator(",")) {
      auto index = node(ExpressionKind::kTuple, line, std::move(first));
      while (skip_operator(",")) index->parts.push_back(expression());
      result->parts.push_back(std::move(index));
    } else {
      result->parts.push_back(std::move(first));
    }
    expect_operator("]");
    return result;
  }

  Arguments arguments() {
    Arguments result;
    expect_operator("(");
    bool first = true;
    while (!at_operator(")")) {
      if (!first) {
        expect_operator(",");
        if (at_operator(")")) break;
      }
      first = false;
      const bool wrong_place = result.named_rest != nullptr;
      if (wrong_place) fail("arguments follow **arguments");
      if (skip_operator("*")) {
        if (result.rest) fail("*arguments stand twice");
        result.rest = expression();
      } else if (skip_operator("**")) {
        result.named_rest = expression();
      } else if (now().kind == TokenKind::kName && ahead().kind == TokenKind::kOperator && ahead().text == "=") {
        std::string name = take().text;
        take();
        for (const auto& [other, unused] : result.named) {
          if (other == name) fail(fmt::format("the argument '{}' is given twice", printable(name, 40)));
        }
        result.named.emplace_back(std::move(name), expression());
      } else {
        if (result.rest || !result.named.empty()) fail("a positional argument follows a named one");
        result.positional.push_back(expression());
      }
    }
    take();
    return result;
  }

  ExpressionRef call(ExpressionRef callee) {
    auto result = node(ExpressionKind::kCall, now().line, std::move(callee));
    result->arguments = arguments();
    return result;
  }

  ExpressionRef filters(ExpressionRef value) {
    while (true) {
      if (at_operator("|")) {
        value = filter_chain(std::move(value), false);
      } else if (at_word("is")) {
        value = test(std::move(value));
      } else if (at_operator("(")) {
        value = call(std::move(value));
      } else {
        return value;
      }
      value = bounded(std::move(value));
    }
  }

  std::string dotted_name() {
    std::string name = expect_name();
    while (skip_operator(".")) name += "." + expect_name();
    return name;
  }

  // Unknown names are an error at once unless they stand in a branch that may never run.
  void note_unknown(const char* what, const std::string& name, int line) {
    if (!soft_) unknown_.push_back(fmt::format("line {}: there is no {} named '{}'", line, what, printable(name, 40)));
  }

  ExpressionRef filter_chain(ExpressionRef value, bool begins_with_name) {
    while (begins_with_name || skip_operator("|")) {
      begins_with_name = false;
      const int line = now().line;
      value = bounded(node(ExpressionKind::kFilter, line, std::move(value)));
      value->name = dotted_name();
      if (!has_filter(value->name)) note_unknown("filter", value->name, line);
      if (at_operator("(")) value->arguments = arguments();
    }
    return value;
  }

  ExpressionRef test(ExpressionRef value) {
    const int line = take().line;
    const bool negated = skip_word("not");
    auto result = node(ExpressionKind::kTest, line, std::move(value));
    result->name = dotted_name();
    if (!has_test(result->name)) note_unknown("test", result->name, line);
    if (at_operator("(")) {
      result->arguments = arguments();
    } else if (now().kind == TokenKind::kText || now().kind == TokenKind::kInteger || now().kind == TokenKind::kFloat ||
               at_operator("[") || at_operator("{") ||
               (now().kind == TokenKind::kName && !at_word("else") && !at_word("or") && !at_word("and"))) {
      if (at_word("is")) fail("tests cannot be chained with is");
      result->arguments.positional.push_back(postfix(primary()));
    }
    return negated ? unary("not", line, std::move(result)) : std::move(result);
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
  bool soft_ = false;
  std::vector<MacroDefinition*> macros_;
  std::vector<std::string> unknown_;
};

}  // namespace

Block parse(std::string_view source) { return Parser(source).run(); }

}  // namespace fathom::jinja
