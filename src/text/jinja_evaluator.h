// Runs the tree of a template.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "text/jinja_parser.h"
#include "text/jinja_runtime.h"
#include "text/jinja_value.h"

namespace fathom::jinja {

// Variables of one block, hiding those of the blocks around it.
struct Scope {
  std::shared_ptr<Scope> outer;
  std::vector<std::pair<std::string, Value>> variables{};
};
using ScopeRef = std::shared_ptr<Scope>;

struct Macro {
  const MacroDefinition* definition;
  ScopeRef scope;  // where it was defined
};

struct Loop {
  std::vector<Value> items;
  size_t index = 0;
  int depth = 0;
  const Statement* recursive = nullptr;  // the statement, when it may be called
  ScopeRef scope{};                      // around the statement
  std::optional<std::vector<Value>> last_changed{};
};

class Interpreter {
 public:
  Interpreter(Budget budget, const nlohmann::ordered_json& variables);
  ~Interpreter();
  std::string run(const Block& block);
  int line() const { return line_; }  // of what ran last

 private:
  enum class Flow { kNext, kBreak, kContinue };

  void write(std::string_view text);
  std::string captured(const Block& block, const ScopeRef& scope);
  Flow run_block(const Block& block, const ScopeRef& scope);
  Flow run_statement(const Statement& statement, const ScopeRef& scope);
  Flow run_if(const Statement& statement, const ScopeRef& scope);
  Flow run_for(const Statement& statement, std::vector<Value> items, int depth, const ScopeRef& scope);
  void run_call(const Statement& statement, const ScopeRef& scope);
  void assign(const Target& target, const Value& value, const ScopeRef& scope);

  Value evaluate(const Expression& expression, const ScopeRef& scope);
  Value look_up(const std::string& name, const ScopeRef& scope);
  Value evaluate_item(const Expression& expression, const ScopeRef& scope);
  Value evaluate_dict(const Expression& expression, const ScopeRef& scope);
  Value evaluate_chain(const Expression& expression, const ScopeRef& scope);
  Value evaluate_concat(const Expression& expression, const ScopeRef& scope);
  Value evaluate_compare(const Expression& expression, const ScopeRef& scope);
  Value evaluate_logic(const Expression& expression, const ScopeRef& scope);
  Value evaluate_condition(const Expression& expression, const ScopeRef& scope);
  Value evaluate_call(const Expression& expression, const ScopeRef& scope);
  // `text`: what a block gives to the first filter of its chain.
  Value evaluate_filter(const Expression& expression, const Value* text, const ScopeRef& scope);
  Value evaluate_test(const Expression& expression, const ScopeRef& scope);
  std::vector<Value> evaluate_parts(const Expression& expression, const ScopeRef& scope);
  CallArguments evaluate_arguments(const Arguments& arguments, const ScopeRef& scope);

  Value call(const Value& callee, CallArguments arguments);
  Value call_macro(const Macro& macro, CallArguments arguments);
  Value call_loop(const Loop& loop, const CallArguments& arguments);
  Value call_loop_method(Loop& loop, const std::string& name, const CallArguments& arguments);
  Value make_namespace(const CallArguments& arguments);

  Budget budget_;
  int line_ = 1;
  std::string* out_ = nullptr;
  ScopeRef globals_;
  // What values point to without owning; released together, so that cycles do no harm.
  std::deque<Namespace> namespaces_;
  std::deque<Macro> macros_;
  std::deque<Loop> loops_;
};

}  // namespace fathom::jinja
