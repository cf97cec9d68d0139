#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "text/jinja_runtime.h"
#include "text/jinja_text.h"

namespace fathom::jinja {
namespace {

[[noreturn]] void fail_types(std::string_view op, const Value& a, const Value& b) {
  for (const Value* side : {&a, &b}) {
    if (side->is_undefined()) fail_undefined(*side);
  }
  throw Error("'{}' does not work between {} and {}", op, type_name(a), type_name(b));
}

[[noreturn]] void fail_overflow() { throw Error("an integer is too large"); }

Int floor_divide(Int a, Int b) {
  Int quotient = 0;
  if (b == -1) {
    if (__builtin_sub_overflow(Int(0), a, &quotient)) fail_overflow();
    return quotient;
  }
  quotient = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

Int integer_power(Int base, Int exponent) {
  Int result = 1;
  while (exponent > 0) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) fail_overflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
  }
  return result;
}

Value integer_arithmetic(std::string_view op, Int a, Int b) {
  Int result = 0;
  if (op == "+"   ? __builtin_add_overflow(a, b, &result)
      : op == "-" ? __builtin_sub_overflow(a, b, &result)
                  : op == "*" && __builtin_mul_overflow(a, b, &result)) {
    fail_overflow();
  }
  if (op == "+" || op == "-" || op == "*") return result;
  if (op == "**") {
    if (b < 0 && a == 0) throw Error("0 cannot be raised to a negative power");
    if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
    if ((a == 0 || a == 1 || a == -1) && b > 1) return a == -1 ? (b % 2 ? Int(-1) : Int(1)) : a;
    return integer_power(a, b);
  }
  if (b == 0) throw Error("division by zero");
  if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
  if (op == "//") return floor_divide(a, b);
  if (b == -1) return Int(0);
  const Int rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

double float_modulo(double a, double b) {
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  return rest == 0 ? std::copysign(0.0, b) : rest;
}

Value float_arithmetic(std::string_view op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") {
    if (a == 0 && b < 0) throw Error("0 cannot be raised to a negative power");
    if (a < 0 && std::isfinite(a) && std::isfinite(b) && b != std::floor(b))
      throw Error("a power is not a real number");
    const double result = std::pow(a, b);
    if (std::isinf(result) && std::isfinite(a) && std::isfinite(b)) throw Error("a power is too large");
    return result;
  }
  if (b == 0) throw Error("division by zero");
  if (op == "/") return a / b;
  const double rest = float_modulo(a, b);
  if (op == "%") return rest;
  // As Python rounds the quotient, so that it fits the remainder.
  const double quotient = (a - rest) / b;
  if (quotient == 0) return std::copysign(0.0, a / b);
  double whole = std::floor(quotient);
  if (quotient - whole > 0.5) whole += 1;
  return whole;
}

Value repeated(const Value& value, Int times, Budget& budget) {
  times = std::max(times, Int(0));
  if (const std::string* text = value.text()) {
    Int total = 0;
    if (__builtin_mul_overflow(times, static_cast<Int>(text->size()), &total)) total = Int(1) << 100;
    budget.make(total);
    std::string out;
    out.reserve(static_cast<size_t>(total));
    for (Int i = 0; i < (text->empty() ? 0 : times); ++i) out += *text;
    return out;
  }
  const Sequence& sequence = *value.sequence();
  Int total = 0;
  if (__builtin_mul_overflow(times, static_cast<Int>(sequence.items.size()), &total) || total > (Int(1) << 60)) {
    total = Int(1) << 60;
  }
  budget.make(total * static_cast<Int>(sizeof(Value)));
  std::vector<Value> items;
  for (Int i = 0; i < (sequence.items.empty() ? 0 : times); ++i) {
    items.insert(items.end(), sequence.items.begin(), sequence.items.end());
  }
  return make_sequence(sequence.kind, std::move(items), budget);
}

bool is_listed(const Value& value) {
  const Sequence* sequence = value.sequence();
  return sequence && (sequence->kind == SequenceKind::kList || sequence->kind == SequenceKind::kTuple);
}

}  // namespace

void fail_undefined(const Value& value) {
  const Undefined& undefined = *value.as<Undefined>();
  throw Error("{}", undefined.why ? *undefined.why : "a value is undefined");
}

Int require_int(const Value& value, std::string_view what) {
  Int result = 0;
  if (value.is_undefined()) fail_undefined(value);
  if (!as_int(value, result)) throw Error("{} must be an integer, not {}", what, type_name(value));
  return std::clamp(result, -kHuge, kHuge);
}

Value arithmetic(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  if (is_number(a) && is_number(b)) {
    Int x = 0, y = 0;
    if (as_int(a, x) && as_int(b, y)) return integer_arithmetic(op, x, y);
    return float_arithmetic(op, as_double(a), as_double(b));
  }
  Int times = 0;
  if (op == "+" && a.text() && b.text()) {
    budget.make(static_cast<Int>(a.text()->size() + b.text()->size() + sizeof(std::string)));
    return *a.text() + *b.text();
  }
  if (op == "+" && is_listed(a) && is_listed(b) && a.sequence()->kind == b.sequence()->kind) {
    std::vector<Value> items = elements(a, budget);
    const std::vector<Value> more = elements(b, budget);
    items.insert(items.end(), more.begin(), more.end());
    return make_sequence(a.sequence()->kind, std::move(items), budget);
  }
  if (op == "*" && (a.text() || is_listed(a)) && as_int(b, times)) return repeated(a, times, budget);
  if (op == "*" && (b.text() || is_listed(b)) && as_int(a, times)) return repeated(b, times, budget);
  if (op == "%" && a.text()) return make_text(percent_format(*a.text(), b, budget), budget);
  fail_types(op, a, b);
}

Value negate(const Value& value, bool minus) {
  if (value.is_undefined()) fail_undefined(value);
  if (const double* d = value.as<double>()) return minus ? -*d : *d;
  Int i = 0;
  if (!as_int(value, i)) throw Error("the sign of a {} cannot be taken", type_name(value));
  if (minus && __builtin_sub_overflow(Int(0), i, &i)) fail_overflow();
  return i;
}

bool compare(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  if (op == "==") return equal(a, b, budget);
  if (op == "!=") return !equal(a, b, budget);
  if (op == "in") return contains(b, a, budget);
  if (op == "not in") return !contains(b, a, budget);
  if (op == "<") return less(a, b, budget, "<");
  if (op == ">") return less(b, a, budget, ">");
  const bool either_nan = is_number(a) && is_number(b) && (std::isnan(as_double(a)) || std::isnan(as_double(b)));
  if (either_nan) return false;
  return op == "<=" ? !less(b, a, budget, "<=") : !less(a, b, budget, ">=");
}

Value get_attribute(const Value& value, const std::string& name, Budget& budget) {
  if (value.is_undefined()) fail_undefined(value);
  if (name.starts_with("__") || (name.starts_with("_") && !value.dict())) {
    return undefined(fmt::format("the attribute '{}' of a {} is out of reach", printable(name, 60), type_name(value)));
  }
  if (Namespace* const* space = value.as<Namespace*>()) {
    if (const Value* found = (*space)->attributes.find(name)) return *found;
  } else if (Loop* const* loop = value.as<Loop*>()) {
    if (Value found = loop_attribute(**loop, name); !found.is_undefined()) return found;
    if (name == "cycle" || name == "changed") {
      return std::make_shared<const Function>(
          Function{FunctionKind::kLoopMethod, name, std::make_shared<const Value>(value)});
    }
    if (name == "previtem" || name == "nextitem")
      return undefined(fmt::format("there is no {} item", name.substr(0, 4)));
  } else if (changes_its_object(value, name)) {
    return undefined(fmt::format("a template may not change its values: {} of a {}", name, type_name(value)));
  } else if (has_method(value, name)) {
    return std::make_shared<const Function>(
        Function{FunctionKind::kMethod, name, std::make_shared<const Value>(value)});
  } else if (const Dict* dict = value.dict()) {
    budget.step(static_cast<int64_t>(dict->items.size() / 16) + 1);
    if (const Value* found = dict->find(name)) return *found;
  }
  return undefined(fmt::format("'{}' has no attribute '{}'", type_name(value), printable(name, 60)));
}

Value get_item(const Value& value, const Value& key, Budget& budget) {
  if (value.is_undefined()) fail_undefined(value);
  Int index = 0;
  if (const Dict* dict = value.dict()) {
    if (is_hashable(key)) {
      if (const Value* found = dict->find(key, budget)) return *found;
    }
  } else if (const std::string* text = value.text(); text && as_int(key, index)) {
    budget.scan(text->size());
    const Int n = static_cast<Int>(code_points(*text));
    if (index < 0) index += n;
    if (index >= 0 && index < n) {
      const size_t begin = byte_offset(*text, static_cast<size_t>(index));
      size_t end = begin;
      decode_at(*text, end);
      return make_text(text->substr(begin, end - begin), budget);
    }
  } else if (const Sequence* sequence = value.sequence();
             sequence && sequence->kind <= SequenceKind::kRange && as_int(key, index)) {
    const Int n = static_cast<Int>(sequence->items.size());
    if (index < 0) index += n;
    if (index >= 0 && index < n) return sequence->items[static_cast<size_t>(index)];
  }
  if (key.text()) {
    Value found = value.dict() && !has_method(value, *key.text()) && !changes_its_object(value, *key.text())
                      ? Value()
                      : get_attribute(value, *key.text(), budget);
    if (!found.is_undefined()) return found;
    return undefined(fmt::format("'{}' has no attribute '{}'", type_name(value), printable(*key.text(), 60)));
  }
  return undefined(fmt::format("a {} has no element {}", type_name(value), printable(to_repr(key, budget), 60)));
}

Value get_slice(const Value& value, const Value& begin, const Value& end, const Value& step, Budget& budget) {
  if (value.is_undefined()) fail_undefined(value);
  const Sequence* sequence = value.sequence();
  if (!value.text() && !(sequence && sequence->kind <= SequenceKind::kRange)) {
    throw Error("a {} cannot be sliced", type_name(value));
  }
  const Int stride = step.is_none() ? Int(1) : require_int(step, "the step of a slice");
  if (stride == 0) throw Error("the step of a slice is zero");
  const Int n = static_cast<Int>(value.text() ? code_points(*value.text()) : sequence->items.size());
  const auto bound = [&](const Value& at, Int otherwise) {
    if (at.is_none()) return otherwise;
    Int i = require_int(at, "the bound of a slice");
    if (i < 0) i = i < -n ? Int(-1) - n : i + n;
    return std::clamp(i, stride > 0 ? Int(0) : Int(-1), stride > 0 ? n : n - 1);
  };
  const Int first = bound(begin, stride > 0 ? Int(0) : n - 1), last = bound(end, stride > 0 ? n : Int(-1));
  if (const std::string* text = value.text(); text && stride == 1) {
    budget.scan(text->size());
    const size_t from = byte_offset(*text, static_cast<size_t>(first));
    const size_t to = std::max(from, byte_offset(*text, static_cast<size_t>(last)));
    return make_text(text->substr(from, to - from), budget);
  }
  const std::vector<Value> items = elements(value, budget);
  std::vector<Value> out;
  const Int pace = std::clamp(stride, -n - 1, n + 1);
  for (Int i = first; pace > 0 ? i < last : i > last; i += pace) out.push_back(items[static_cast<size_t>(i)]);
  budget.step(static_cast<int64_t>(out.size()) + 1);
  if (value.text()) {
    std::string text;
    for (const Value& c : out) text += *c.text();
    return make_text(std::move(text), budget);
  }
  if (sequence->kind == SequenceKind::kRange) {
    budget.make(static_cast<Int>(out.size() * sizeof(Value)));
    const Int from = sequence->begin, unit = sequence->step;
    return std::make_shared<const Sequence>(
        Sequence{SequenceKind::kRange, std::move(out), 1, from + first * unit, from + last * unit, unit * stride});
  }
  return make_sequence(sequence->kind, std::move(out), budget);
}

}  // namespace fathom::jinja
