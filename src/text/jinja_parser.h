// Tokens -> the tree of a template.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_value.h"

namespace fathom::jinja {

struct Expression;
using ExpressionRef = std::unique_ptr<Expression>;

struct Arguments {
  std::vector<ExpressionRef> positional{};
  std::vector<std::pair<std::string, ExpressionRef>> named{};
  ExpressionRef rest{};        // *rest
  ExpressionRef named_rest{};  // **named_rest
};

enum class ExpressionKind {
  kConstant,
  kName,
  kList,
  kTuple,
  kDict,        // parts: key, value, key, value, ...
  kAttribute,   // parts[0].name
  kItem,        // parts[0][parts[1]]
  kSlice,       // parts[0][parts[1]:parts[2]:parts[3]], null where left out
  kCall,        // parts[0](arguments)
  kFilter,      // parts[0] | name(arguments); parts[0] is null for the text of a block
  kTest,        // parts[0] is name(arguments)
  kUnary,       // operators[0] parts[0]
  kArithmetic,  // parts[0] operators[0] parts[1] operators[1] parts[2] ..., left to right
  kConcat,      // parts joined by ~
  kCompare,     // as kArithmetic, chained as Python does
  kAnd,
  kOr,
  kCondition,  // parts[1] if parts[0] else parts[2] (null: undefined)
};

struct Expression {
  ExpressionKind kind;
  int line;
  std::string name{};
  Value constant{};
  std::vector<ExpressionRef> parts{};
  std::vector<std::string> operators{};
  Arguments arguments{};
};

// What set, for, with and macro parameters assign to.
struct Target {
  std::string name{};       // of a variable or a namespace
  std::string attribute{};  // of the namespace, or empty
  std::vector<Target> parts{};
  bool is_tuple = false;
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

struct MacroDefinition {
  std::string name{};
  std::vector<std::string> parameters{};
  std::vector<ExpressionRef> defaults{};  // of the last parameters
  Block body{};
  bool uses_caller = false, uses_varargs = false, uses_kwargs = false;
};

enum class StatementKind {
  kData,
  kOutput,
  kIf,   // expressions[i] guards blocks[i]; one block more is the else
  kFor,  // expressions: iterable, test or null; blocks: body, else
  kSet,
  kSetBlock,  // expressions: filter or null
  kWith,      // targets[i] = expressions[i]
  kMacro,
  kCall,    // expressions: the call
  kFilter,  // expressions: the filter
  kScope,   // generation
  kBreak,
  kContinue,
};

struct Statement {
  StatementKind kind;
  int line;
  std::string data{};
  std::vector<ExpressionRef> expressions{};
  std::vector<Block> blocks{};
  std::vector<Target> targets{};
  std::unique_ptr<MacroDefinition> macro{};
  bool recursive = false;
};

// Throws Error, its message naming the line.
Block parse(std::string_view source);

// Whether there is a filter or test of this name.
bool has_filter(std::string_view name);
bool has_test(std::string_view name);

}  // namespace fathom::jinja
