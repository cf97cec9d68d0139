// The planner's formulas: arithmetic over named numbers, in a language that is a part of JavaScript, so that the
// planner's page evaluates the same text.
//
//   a ? b : c    ||    &&    == !=    < <= > >=    + -    * /    - !    numbers, names, ( ), min max ceil floor round
//   sqrt pow log exp    least_parts(things, thing, others, other, room): into how many parts with room for `room` bytes
//   things of `thing` bytes and others of `other` bytes go, whole ones on each; 0 if they go into none
//
// All are doubles; comparisons give 1 and 0, and what is not 0 is true. A division by zero is infinite, as everywhere.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::plan {

using Values = std::map<std::string, double, std::less<>>;

class Expression {
 public:
  Expression() = default;
  // Error, which names the place in the text, for what is no formula, or one too long or too deep.
  explicit Expression(std::string text);

  const std::string& text() const { return text_; }
  bool empty() const { return nodes_.empty(); }
  // Names in it, each once, in order of appearance.
  std::vector<std::string> names() const;
  // Error for a name that has no value.
  double evaluate(const Values& values) const;
  // The text with each name's value in its place, as `show` writes it.
  std::string with_numbers(const Values& values, const std::function<std::string(double)>& show) const;

 private:
  friend class ExpressionParser;
  enum class Op {
    number,
    name,
    negate,
    invert,
    add,
    subtract,
    multiply,
    divide,
    less,
    less_equal,
    greater,
    greater_equal,
    equal,
    unequal,
    conjunction,
    disjunction,
    choice,
    min,
    max,
    ceil,
    floor,
    round,
    sqrt,
    pow,
    log,
    exp,
    least_parts
  };
  struct Node {
    Op op;
    double number = 0;
    int a = -1, b = -1, c = -1;
    size_t begin = 0, end = 0;  // of a name, in the text
    int d = -1, e = -1;
  };
  double evaluate(int node, const Values& values) const;
  std::string_view name(const Node& node) const {
    return std::string_view(text_).substr(node.begin, node.end - node.begin);
  }

  std::string text_;
  std::vector<Node> nodes_;
  int root_ = -1;
};

// Whether it can be a name in a formula: small letters, digits and _, and no word of JavaScript.
bool is_formula_name(std::string_view name);

}  // namespace fathom::plan
