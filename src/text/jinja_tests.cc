// Jinja's tests: what stands behind `is`.
#include <algorithm>

#include "base/error.h"
#include "text/jinja_parser.h"
#include "text/jinja_runtime.h"
#include "text/jinja_text.h"

namespace fathom::jinja {
namespace {

// Tests without an argument, then those with one, then the names of comparisons.
constexpr std::string_view kPlain[] = {"boolean", "callable", "defined",  "escaped", "even",    "false",     "filter",
                                       "float",   "integer",  "iterable", "lower",   "mapping", "none",      "number",
                                       "odd",     "sequence", "string",   "test",    "true",    "undefined", "upper"};
constexpr std::string_view kWithArgument[] = {"divisibleby", "in", "sameas"};
constexpr std::pair<std::string_view, std::string_view> kComparisons[] = {
    {"==", "=="}, {"eq", "=="}, {"equalto", "=="},    {"!=", "!="}, {"ne", "!="},
    {">", ">"},   {"gt", ">"},  {"greaterthan", ">"}, {">=", ">="}, {"ge", ">="},
    {"<", "<"},   {"lt", "<"},  {"lessthan", "<"},    {"<=", "<="}, {"le", "<="}};

std::string_view comparison(std::string_view name) {
  for (const auto& [test, op] : kComparisons) {
    if (test == name) return op;
  }
  return {};
}

template <size_t N>
bool among(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool plain_test(const std::string& name, const Value& v, Budget& budget) {
  if (name == "defined") return !v.is_undefined();
  if (name == "undefined") return v.is_undefined();
  if (name == "none") return v.is_none();
  if (name == "boolean") return v.is<bool>();
  if (name == "true") return v.is<bool>() && truth(v);
  if (name == "false") return v.is<bool>() && !truth(v);
  if (name == "integer") return v.is<Int>();
  if (name == "float") return v.is<double>();
  if (name == "number") return is_number(v);
  if (name == "string") return v.text() != nullptr;
  if (name == "mapping") return v.dict() != nullptr;
  if (name == "iterable") return is_iterable(v);
  if (name == "sequence") {
    return v.text() || v.dict() || v.is_undefined() || (v.sequence() && v.sequence()->kind <= SequenceKind::kRange);
  }
  if (name == "callable") return v.is_undefined() || v.is<FunctionRef>() || v.is<Macro*>() || v.is<Loop*>();
  if (name == "escaped") return false;
  if (name == "filter" || name == "test") {
    return v.text() && (name == "filter" ? has_filter(*v.text()) : has_test(*v.text()));
  }
  if (name == "lower" || name == "upper") {
    return truth(call_text_method(make_text(to_text(v, budget), budget), "is" + name, {}, budget));
  }
  return equal(arithmetic("%", v, 2, budget), name == "odd" ? 1 : 0, budget);
}

bool same(const Value& a, const Value& b, Budget& budget) {
  if (a.data.index() != b.data.index()) return false;
  if (a.sequence() || a.dict() || a.is<IteratorRef>() || a.is<FunctionRef>()) return a.data == b.data;
  return equal(a, b, budget);
}

}  // namespace

bool has_test(std::string_view name) {
  return among(kPlain, name) || among(kWithArgument, name) || !comparison(name).empty();
}

bool apply_test(const std::string& name, const Value& value, const CallArguments& arguments, Budget& budget) {
  if (!has_test(name)) throw Error("there is no test named '{}'", printable(name, 40));
  const Nested nested(budget);
  budget.step();
  if (among(kPlain, name)) {
    const Parameters none(name, arguments, {});
    return plain_test(name, value, budget);
  }
  const Parameters given(name, arguments, {name == "divisibleby" ? "num" : name == "in" ? "seq" : "other"});
  if (!given[0]) throw Error("the test '{}' needs an argument", name);
  if (name == "in") return contains(*given[0], value, budget);
  if (name == "sameas") return same(value, *given[0], budget);
  if (name == "divisibleby") return equal(arithmetic("%", value, *given[0], budget), 0, budget);
  return compare(comparison(name), value, *given[0], budget);
}

}  // namespace fathom::jinja
