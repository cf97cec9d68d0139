#include "text/jinja_evaluator.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace fathom::jinja {
namespace {

void store(Scope& scope, const std::string& name, Value value) {
  for (auto& [other, old] : scope.variables) {
    if (other == name) {
      old = std::move(value);
      return;
    }
  }
  scope.variables.emplace_back(name, std::move(value));
}

}  // namespace

Interpreter::Interpreter(Budget budget, const nlohmann::ordered_json& variables)
    : budget_(budget), globals_(std::make_shared<Scope>()) {
  if (!variables.is_object()) throw Error("the variables of a template must be an object");
  for (const auto& [name, value] : variables.items()) {
    globals_->variables.emplace_back(name, from_json(value, budget_));
  }
}

Interpreter::~Interpreter() {
  for (Namespace& space : namespaces_) space.attributes.items.clear();
}

std::string Interpreter::run(const Block& block) { return captured(block, std::make_shared<Scope>(Scope{globals_})); }

void Interpreter::write(std::string_view text) {
  budget_.make(static_cast<Int>(text.size()));
  *out_ += text;
}

std::string Interpreter::captured(const Block& block, const ScopeRef& scope) {
  std::string text;
  std::string* const before = std::exchange(out_, &text);
  run_block(block, scope);
  out_ = before;
  return text;
}

Interpreter::Flow Interpreter::run_block(const Block& block, const ScopeRef& scope) {
  const Nested nested(budget_);
  for (const auto& statement : block) {
    if (const Flow flow = run_statement(*statement, scope); flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::run_statement(const Statement& statement, const ScopeRef& scope) {
  budget_.step();
  line_ = statement.line;
  const auto inner = [&] { return std::make_shared<Scope>(Scope{scope}); };
  switch (statement.kind) {
    case StatementKind::kData:
      write(statement.data);
      break;
    case StatementKind::kOutput:
      for (const auto& expression : statement.expressions) write(to_text(evaluate(*expression, scope), budget_));
      break;
    case StatementKind::kIf:
      return run_if(statement, scope);
    case StatementKind::kFor:
      return run_for(statement, elements(evaluate(*statement.expressions[0], scope), budget_), 0, scope);
    case StatementKind::kSet:
      assign(statement.targets[0], evaluate(*statement.expressions[0], scope), scope);
      break;
    case StatementKind::kSetBlock: {
      Value text = captured(statement.blocks[0], inner());
      if (statement.expressions[0]) text = evaluate_filter(*statement.expressions[0], &text, scope);
      assign(statement.targets[0], text, scope);
      break;
    }
    case StatementKind::kWith: {
      const ScopeRef with = inner();
      for (size_t i = 0; i < statement.targets.size(); ++i) {
        assign(statement.targets[i], evaluate(*statement.expressions[i], scope), with);
      }
      return run_block(statement.blocks[0], with);
    }
    case StatementKind::kMacro:
      budget_.make(sizeof(Macro));
      macros_.push_back({statement.macro.get(), scope});
      store(*scope, statement.macro->name, Value(&macros_.back()));
      break;
    case StatementKind::kCall:
      run_call(statement, scope);
      break;
    case StatementKind::kFilter: {
      const Value text = captured(statement.blocks[0], inner());
      write(to_text(evaluate_filter(*statement.expressions[0], &text, scope), budget_));
      break;
    }
    case StatementKind::kScope:
      run_block(statement.blocks[0], inner());
      break;
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::run_if(const Statement& statement, const ScopeRef& scope) {
  size_t i = 0;
  while (i < statement.expressions.size() && !truth(evaluate(*statement.expressions[i], scope))) ++i;
  return i < statement.blocks.size() ? run_block(statement.blocks[i], scope) : Flow::kNext;
}

Interpreter::Flow Interpreter::run_for(const Statement& statement, std::vector<Value> items, int depth,
                                       const ScopeRef& scope) {
  const Target& target = statement.targets[0];
  if (const auto& test = statement.expressions[1]) {
    std::vector<Value> kept;
    for (Value& item : items) {
      const auto inner = std::make_shared<Scope>(Scope{scope});
      assign(target, item, inner);
      if (truth(evaluate(*test, inner))) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  // Jinja's else runs when no iteration came to its end: break and continue count as not having run.
  const auto otherwise = [&] {
    if (statement.blocks.size() < 2) return Flow::kNext;
    return run_block(statement.blocks[1], std::make_shared<Scope>(Scope{scope}));
  };
  if (items.empty()) return otherwise();
  budget_.make(static_cast<Int>(sizeof(Loop) + items.size() * sizeof(Value)));
  loops_.push_back({.items = std::move(items),
                    .depth = depth,
                    .recursive = statement.recursive ? &statement : nullptr,
                    .scope = scope});
  Loop& loop = loops_.back();
  bool completed = false;
  for (; loop.index < loop.items.size(); ++loop.index) {
    const auto inner = std::make_shared<Scope>(Scope{scope});
    inner->variables.emplace_back("loop", Value(&loop));
    assign(target, loop.items[loop.index], inner);
    const Flow flow = run_block(statement.blocks[0], inner);
    if (flow == Flow::kBreak) break;
    completed |= flow == Flow::kNext;
  }
  return completed ? Flow::kNext : otherwise();
}

void Interpreter::run_call(const Statement& statement, const ScopeRef& scope) {
  const Expression& expression = *statement.expressions[0];
  const Value callee = evaluate(*expression.parts[0], scope);
  CallArguments arguments = evaluate_arguments(expression.arguments, scope);
  budget_.make(sizeof(Macro));
  macros_.push_back({statement.macro.get(), scope});
  arguments.named.emplace_back("caller", Value(&macros_.back()));
  write(to_text(call(callee, std::move(arguments)), budget_));
}

void Interpreter::assign(const Target& target, const Value& value, const ScopeRef& scope) {
  if (target.is_tuple) {
    const std::vector<Value> items = elements(value, budget_);
    if (items.size() != target.parts.size()) {
      throw Error("{} values cannot be unpacked into {} names", items.size(), target.parts.size());
    }
    for (size_t i = 0; i < items.size(); ++i) assign(target.parts[i], items[i], scope);
  } else if (target.attribute.empty()) {
    store(*scope, target.name, value);
  } else {
    const Value space = look_up(target.name, scope);
    if (!space.is<Namespace*>())
      throw Error("'{}' is no namespace, its attributes cannot be set", printable(target.name, 40));
    if (target.attribute.starts_with('_')) throw Error("an attribute of a namespace may not begin with '_'");
    (*space.as<Namespace*>())->attributes.set(target.attribute, value, budget_);
  }
}

Value Interpreter::evaluate(const Expression& expression, const ScopeRef& scope) {
  const Nested nested(budget_);
  budget_.step();
  line_ = expression.line;
  switch (expression.kind) {
    case ExpressionKind::kConstant:
      return expression.constant;
    case ExpressionKind::kName:
      return look_up(expression.name, scope);
    case ExpressionKind::kList:
      return make_list(evaluate_parts(expression, scope), budget_);
    case ExpressionKind::kTuple:
      return make_tuple(evaluate_parts(expression, scope), budget_);
    case ExpressionKind::kDict:
      return evaluate_dict(expression, scope);
    case ExpressionKind::kAttribute:
      return get_attribute(evaluate(*expression.parts[0], scope), expression.name, budget_);
    case ExpressionKind::kItem:
    case ExpressionKind::kSlice:
      return evaluate_item(expression, scope);
    case ExpressionKind::kCall:
      return evaluate_call(expression, scope);
    case ExpressionKind::kFilter:
      return evaluate_filter(expression, nullptr, scope);
    case ExpressionKind::kTest:
      return evaluate_test(expression, scope);
    case ExpressionKind::kUnary: {
      const Value value = evaluate(*expression.parts[0], scope);
      if (expression.operators[0] == "not") return !truth(value);
      return negate(value, expression.operators[0] == "-");
    }
    case ExpressionKind::kArithmetic:
      return evaluate_chain(expression, scope);
    case ExpressionKind::kConcat:
      return evaluate_concat(expression, scope);
    case ExpressionKind::kCompare:
      return evaluate_compare(expression, scope);
    case ExpressionKind::kAnd:
    case ExpressionKind::kOr:
      return evaluate_logic(expression, scope);
    case ExpressionKind::kCondition:
      return evaluate_condition(expression, scope);
  }
  return {};
}

Value Interpreter::look_up(const std::string& name, const ScopeRef& scope) {
  for (const Scope* s = scope.get(); s; s = s->outer.get()) {
    budget_.step();
    for (const auto& [other, value] : s->variables) {
      if (other == name) return value;
    }
  }
  if (is_global(name) || name == "namespace") {
    return std::make_shared<const Function>(Function{FunctionKind::kGlobal, name, nullptr});
  }
  return undefined(fmt::format("'{}' is undefined", printable(name, 60)));
}

std::vector<Value> Interpreter::evaluate_parts(const Expression& expression, const ScopeRef& scope) {
  std::vector<Value> items;
  for (const auto& part : expression.parts) items.push_back(evaluate(*part, scope));
  return items;
}

Value Interpreter::evaluate_dict(const Expression& expression, const ScopeRef& scope) {
  Dict dict;
  for (size_t i = 0; i < expression.parts.size(); i += 2) {
    Value key = evaluate(*expression.parts[i], scope);
    Value value = evaluate(*expression.parts[i + 1], scope);
    dict.set(std::move(key), std::move(value), budget_);
  }
  return make_dict(std::move(dict), budget_);
}

Value Interpreter::evaluate_item(const Expression& expression, const ScopeRef& scope) {
  const Value value = evaluate(*expression.parts[0], scope);
  if (expression.kind == ExpressionKind::kItem) return get_item(value, evaluate(*expression.parts[1], scope), budget_);
  const auto bound = [&](size_t i) {
    return expression.parts[i] ? evaluate(*expression.parts[i], scope) : Value(None{});
  };
  const Value begin = bound(1), end = bound(2), step = bound(3);
  return get_slice(value, begin, end, step, budget_);
}

Value Interpreter::evaluate_chain(const Expression& expression, const ScopeRef& scope) {
  Value left = evaluate(*expression.parts[0], scope);
  for (size_t i = 1; i < expression.parts.size(); ++i) {
    const Value right = evaluate(*expression.parts[i], scope);
    line_ = expression.parts[i]->line;
    left = arithmetic(expression.operators[i - 1], left, right, budget_);
  }
  return left;
}

Value Interpreter::evaluate_concat(const Expression& expression, const ScopeRef& scope) {
  std::string text;
  for (const Value& part : evaluate_parts(expression, scope)) {
    if (part.text()) {
      budget_.make(static_cast<Int>(part.text()->size()));
      text += *part.text();
    } else {
      text += to_text(part, budget_);
    }
  }
  return text;
}

Value Interpreter::evaluate_compare(const Expression& expression, const ScopeRef& scope) {
  Value left = evaluate(*expression.parts[0], scope);
  for (size_t i = 1; i < expression.parts.size(); ++i) {
    Value right = evaluate(*expression.parts[i], scope);
    line_ = expression.line;
    if (!compare(expression.operators[i - 1], left, right, budget_)) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::evaluate_logic(const Expression& expression, const ScopeRef& scope) {
  const bool stops_at = expression.kind == ExpressionKind::kOr;
  Value value;
  for (const auto& part : expression.parts) {
    value = evaluate(*part, scope);
    if (truth(value) == stops_at) break;
  }
  return value;
}

Value Interpreter::evaluate_condition(const Expression& expression, const ScopeRef& scope) {
  if (truth(evaluate(*expression.parts[0], scope))) return evaluate(*expression.parts[1], scope);
  if (expression.parts[2]) return evaluate(*expression.parts[2], scope);
  return undefined("an inline if without else has no value here");
}

CallArguments Interpreter::evaluate_arguments(const Arguments& arguments, const ScopeRef& scope) {
  CallArguments result;
  for (const auto& argument : arguments.positional) result.positional.push_back(evaluate(*argument, scope));
  for (const auto& [name, argument] : arguments.named) result.named.emplace_back(name, evaluate(*argument, scope));
  if (arguments.rest) {
    for (Value& value : elements(evaluate(*arguments.rest, scope), budget_))
      result.positional.push_back(std::move(value));
  }
  if (arguments.named_rest) {
    const Value rest = evaluate(*arguments.named_rest, scope);
    if (!rest.dict()) throw Error("**arguments must be a dict, not {}", type_name(rest));
    for (const auto& [name, value] : rest.dict()->items) {
      if (!name.text()) throw Error("the keys of **arguments must be texts");
      result.named.emplace_back(*name.text(), value);
    }
  }
  return result;
}

Value Interpreter::evaluate_call(const Expression& expression, const ScopeRef& scope) {
  const Value callee = evaluate(*expression.parts[0], scope);
  CallArguments arguments = evaluate_arguments(expression.arguments, scope);
  line_ = expression.line;
  return call(callee, std::move(arguments));
}

Value Interpreter::evaluate_filter(const Expression& expression, const Value* text, const ScopeRef& scope) {
  const Expression* const from = expression.parts[0].get();
  const Value input = !from                                           ? *text
                      : text && from->kind == ExpressionKind::kFilter ? evaluate_filter(*from, text, scope)
                                                                      : evaluate(*from, scope);
  const CallArguments arguments = evaluate_arguments(expression.arguments, scope);
  line_ = expression.line;
  return apply_filter(expression.name, input, arguments, budget_);
}

Value Interpreter::evaluate_test(const Expression& expression, const ScopeRef& scope) {
  const Value value = evaluate(*expression.parts[0], scope);
  const CallArguments arguments = evaluate_arguments(expression.arguments, scope);
  line_ = expression.line;
  return apply_test(expression.name, value, arguments, budget_);
}

Value Interpreter::call(const Value& callee, CallArguments arguments) {
  const Nested nested(budget_);
  if (callee.is_undefined()) fail_undefined(callee);
  if (Macro* const* macro = callee.as<Macro*>()) return call_macro(**macro, std::move(arguments));
  if (Loop* const* loop = callee.as<Loop*>()) return call_loop(**loop, arguments);
  const FunctionRef* function = callee.as<FunctionRef>();
  if (!function) throw Error("a value of type {} cannot be called", type_name(callee));
  const Function& f = **function;
  if (f.kind == FunctionKind::kMethod) return call_method(*f.self, f.name, arguments, budget_);
  if (f.kind == FunctionKind::kLoopMethod) return call_loop_method(**f.self->as<Loop*>(), f.name, arguments);
  return f.name == "namespace" ? make_namespace(arguments) : call_global(f.name, arguments, budget_);
}

Value Interpreter::call_macro(const Macro& macro, CallArguments arguments) {
  const MacroDefinition& definition = *macro.definition;
  const auto scope = std::make_shared<Scope>(Scope{macro.scope});
  const size_t n = definition.parameters.size();
  const auto take_named = [&](const std::string& name) -> std::optional<Value> {
    for (auto it = arguments.named.begin(); it != arguments.named.end(); ++it) {
      if (it->first != name) continue;
      Value value = std::move(it->second);
      arguments.named.erase(it);
      return value;
    }
    return std::nullopt;
  };
  for (size_t i = 0; i < n; ++i) {
    const std::string& name = definition.parameters[i];
    const size_t first_default = n - definition.defaults.size();
    if (i < arguments.positional.size()) {
      scope->variables.emplace_back(name, arguments.positional[i]);
    } else if (std::optional<Value> value = take_named(name)) {
      scope->variables.emplace_back(name, std::move(*value));
    } else if (i >= first_default) {
      scope->variables.emplace_back(name, evaluate(*definition.defaults[i - first_default], scope));
    } else {
      scope->variables.emplace_back(name,
                                    undefined(fmt::format("parameter '{}' was not provided", printable(name, 40))));
    }
  }
  const bool caller_is_parameter =
      std::find(definition.parameters.begin(), definition.parameters.end(), "caller") != definition.parameters.end();
  if (definition.uses_caller && !caller_is_parameter) {
    std::optional<Value> caller = take_named("caller");
    scope->variables.emplace_back("caller", caller ? *caller : undefined("no caller is defined"));
  }
  if (definition.uses_kwargs) {
    Dict rest;
    for (auto& [name, value] : arguments.named) rest.set(name, value, budget_);
    scope->variables.emplace_back("kwargs", make_dict(std::move(rest), budget_));
  } else if (!arguments.named.empty()) {
    throw Error("macro '{}' takes no argument named '{}'", printable(definition.name, 40),
                printable(arguments.named[0].first, 40));
  }
  const std::vector<Value>& given = arguments.positional;
  if (definition.uses_varargs) {
    const auto rest = given.begin() + static_cast<std::ptrdiff_t>(std::min(n, given.size()));
    scope->variables.emplace_back("varargs", make_tuple({rest, given.end()}, budget_));
  } else if (given.size() > n) {
    throw Error("macro '{}' takes not more than {} arguments", printable(definition.name, 40), n);
  }
  return captured(definition.body, scope);
}

Value Interpreter::call_loop(const Loop& loop, const CallArguments& arguments) {
  if (!loop.recursive) throw Error("only a loop marked 'recursive' can be called");
  if (arguments.positional.size() != 1 || !arguments.named.empty()) throw Error("loop() takes one argument");
  std::string text;
  std::string* const before = std::exchange(out_, &text);
  run_for(*loop.recursive, elements(arguments.positional[0], budget_), loop.depth + 1, loop.scope);
  out_ = before;
  return text;
}

Value Interpreter::call_loop_method(Loop& loop, const std::string& name, const CallArguments& arguments) {
  const std::vector<Value>& values = arguments.positional;
  if (name == "cycle") {
    if (values.empty()) throw Error("loop.cycle() needs values");
    return values[loop.index % values.size()];
  }
  const bool same = loop.last_changed && loop.last_changed->size() == values.size() &&
                    std::equal(values.begin(), values.end(), loop.last_changed->begin(),
                               [&](const Value& a, const Value& b) { return equal(a, b, budget_); });
  if (!same) loop.last_changed = values;
  return !same;
}

Value Interpreter::make_namespace(const CallArguments& arguments) {
  Value initial = call_global("dict", arguments, budget_);
  for (const auto& [name, value] : initial.dict()->items) {
    if (name.text() && name.text()->starts_with('_')) throw Error("an attribute of a namespace may not begin with '_'");
  }
  budget_.make(sizeof(Namespace));
  namespaces_.push_back({*initial.dict()});
  return Value(&namespaces_.back());
}

Value loop_attribute(const Loop& loop, const std::string& name) {
  const size_t n = loop.items.size();
  if (name == "index") return loop.index + 1;
  if (name == "index0") return loop.index;
  if (name == "revindex") return n - loop.index;
  if (name == "revindex0") return n - loop.index - 1;
  if (name == "first") return loop.index == 0;
  if (name == "last") return loop.index + 1 == n;
  if (name == "length") return n;
  if (name == "depth") return loop.depth + 1;
  if (name == "depth0") return loop.depth;
  if (name == "previtem" && loop.index > 0) return loop.items[loop.index - 1];
  if (name == "nextitem" && loop.index + 1 < n) return loop.items[loop.index + 1];
  return {};
}

}  // namespace fathom::jinja
