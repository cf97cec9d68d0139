// What expressions do to values: operators, attributes, methods, filters, tests. All as Python and Jinja do it, inside
// a budget.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_value.h"

namespace fathom::jinja {

struct CallArguments {
  std::vector<Value> positional{};
  std::vector<std::pair<std::string, Value>> named{};
};

// Arguments sorted to their parameters.
class Parameters {
 public:
  Parameters(std::string_view what, const CallArguments& arguments, std::initializer_list<const char*> names);
  const Value* operator[](size_t i) const { return values_[i]; }  // nullptr: not given
  Value get(size_t i, const Value& otherwise) const { return values_[i] ? *values_[i] : otherwise; }
  bool flag(size_t i, bool otherwise = false) const { return values_[i] ? truth(*values_[i]) : otherwise; }
  Int integer(size_t i, Int otherwise) const;
  const std::string& text(size_t i) const;  // must be given

 private:
  std::string what_;
  std::vector<const Value*> values_;
};

[[noreturn]] void fail_undefined(const Value& value);
// An integer that counts or indexes: beyond kHuge all are alike.
constexpr Int kHuge = Int(1) << 62;
Int require_int(const Value& value, std::string_view what);

Value arithmetic(std::string_view op, const Value& a, const Value& b, Budget& budget);
Value negate(const Value& value, bool minus);
bool compare(std::string_view op, const Value& a, const Value& b, Budget& budget);

Value get_attribute(const Value& value, const std::string& name, Budget& budget);  // value.name
Value get_item(const Value& value, const Value& key, Budget& budget);              // value[key]
Value get_slice(const Value& value, const Value& begin, const Value& end, const Value& step, Budget& budget);
Value loop_attribute(const Loop& loop, const std::string& name);  // undefined when there is none

bool has_method(const Value& value, std::string_view name);
bool changes_its_object(const Value& value, std::string_view method);
Value call_method(const Value& self, const std::string& name, const CallArguments& arguments, Budget& budget);
Value call_text_method(const Value& self, const std::string& name, const CallArguments& arguments, Budget& budget);
bool is_text_method(std::string_view name);

Value apply_filter(const std::string& name, const Value& value, const CallArguments& arguments, Budget& budget);
bool apply_test(const std::string& name, const Value& value, const CallArguments& arguments, Budget& budget);

std::string replace_text(std::string_view text, std::string_view from, std::string_view to, Int count, Budget& budget);
std::string percent_format(std::string_view format, const Value& arguments, Budget& budget);
std::string brace_format(std::string_view format, const CallArguments& arguments, Budget& budget);
// `value` by a specification such as "<10", "05d" or ".2f".
std::string format_value(const Value& value, std::string_view specification, Budget& budget);

// range, dict, namespace, raise_exception, strftime_now, ... without namespace, which the interpreter owns.
bool is_global(std::string_view name);
Value call_global(const std::string& name, const CallArguments& arguments, Budget& budget);

}  // namespace fathom::jinja
