// Methods of texts, lists and dicts, and the functions every template may call.
#include <algorithm>
#include <ctime>

#include "base/error.h"
#include "text/jinja_runtime.h"
#include "text/jinja_text.h"

namespace fathom::jinja {
namespace {

template <size_t N>
bool among(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

constexpr std::string_view kListMethods[] = {"copy", "count", "index"};
constexpr std::string_view kTupleMethods[] = {"count", "index"};
constexpr std::string_view kDictMethods[] = {"copy", "fromkeys", "get", "items", "keys", "values"};
constexpr std::string_view kListChanges[] = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"};
constexpr std::string_view kDictChanges[] = {"clear", "pop", "popitem", "setdefault", "update"};

Value dict_method(const Value& self, const std::string& name, const CallArguments& arguments, Budget& budget) {
  const Dict& dict = *self.dict();
  if (name == "get") {
    if (!arguments.named.empty()) throw Error("dict.get() takes no keyword arguments");
    const Parameters given("dict.get", arguments, {"key", "default"});
    if (!given[0]) throw Error("dict.get() needs a key");
    const Value* found = dict.find(*given[0], budget);
    return found ? *found : given.get(1, None{});
  }
  if (name == "fromkeys") {
    const Parameters given("dict.fromkeys", arguments, {"iterable", "value"});
    Dict result;
    for (const Value& key : elements(given.get(0, Value()), budget)) result.set(key, given.get(1, None{}), budget);
    return make_dict(std::move(result), budget);
  }
  const Parameters none("dict." + name, arguments, {});
  if (name == "copy") return self;
  std::vector<Value> items;
  budget.make(static_cast<Int>(dict.items.size() * sizeof(Value)));
  for (const auto& [key, value] : dict.items) {
    items.push_back(name == "keys" ? key : name == "values" ? value : make_tuple({key, value}, budget));
  }
  const SequenceKind kind = name == "keys"     ? SequenceKind::kKeys
                            : name == "values" ? SequenceKind::kValues
                                               : SequenceKind::kItems;
  return make_sequence(kind, std::move(items), budget);
}

Value list_method(const Value& self, const std::string& name, const CallArguments& arguments, Budget& budget) {
  const Sequence& sequence = *self.sequence();
  if (name == "copy") return Parameters("list.copy", arguments, {}), self;
  const Parameters given("list." + name, arguments, {"value", "start", "stop"});
  if (!given[0]) throw Error("list.{}() needs a value", name);
  const Int n = static_cast<Int>(sequence.items.size());
  const auto bound = [&](size_t i, Int otherwise) {
    const Int at = given.integer(i, otherwise);
    return std::clamp(at < 0 ? at + n : at, Int(0), n);
  };
  Int count = 0;
  for (Int i = bound(1, 0), end = bound(2, n); i < end; ++i) {
    if (!equal(sequence.items[static_cast<size_t>(i)], *given[0], budget)) continue;
    if (name == "index") return i;
    ++count;
  }
  if (name == "index") throw Error("{} is not in the list", printable(to_repr(*given[0], budget), 60));
  return count;
}

Value range(const CallArguments& arguments, Budget& budget) {
  constexpr Int kMaxRange = 100000;  // of Jinja's sandbox
  const size_t n = arguments.positional.size();
  if (n == 0 || n > 3 || !arguments.named.empty()) throw Error("range() takes one to three integers");
  const Int begin = n == 1 ? Int(0) : require_int(arguments.positional[0], "range()'s start");
  const Int end = require_int(arguments.positional[n == 1 ? 0 : 1], "range()'s end");
  const Int step = n == 3 ? require_int(arguments.positional[2], "range()'s step") : Int(1);
  if (step == 0) throw Error("range() needs a step that is not zero");
  for (const Int bound : {begin, end, step}) {
    if (bound <= -kHuge || bound >= kHuge) throw Error("range() takes no integers of that size");
  }
  const Int distance = end - begin;
  const Int count =
      (distance > 0) == (step > 0) && distance != 0 ? (distance - (step > 0 ? 1 : -1)) / step + 1 : Int(0);
  if (count > kMaxRange) throw Error("range() is larger than {} items", int_text(kMaxRange));
  budget.step(static_cast<int64_t>(count / 4 + 1));
  budget.make(count * static_cast<Int>(sizeof(Value)));
  std::vector<Value> items;
  for (Int i = 0; i < count; ++i) items.emplace_back(begin + i * step);
  return std::make_shared<const Sequence>(Sequence{SequenceKind::kRange, std::move(items), 1, begin, end, step});
}

Value dict_of(const CallArguments& arguments, Budget& budget) {
  if (arguments.positional.size() > 1) throw Error("dict() takes at most one positional argument");
  Dict result;
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (from.dict()) {
      result = *from.dict();
    } else {
      for (const Value& pair : elements(from, budget)) {
        const std::vector<Value> parts = elements(pair, budget);
        if (parts.size() != 2) throw Error("dict() needs pairs of key and value");
        result.set(parts[0], parts[1], budget);
      }
    }
  }
  for (const auto& [key, value] : arguments.named) result.set(key, value, budget);
  return make_dict(std::move(result), budget);
}

Value time_now(const std::string& format, Budget& budget) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::string out(std::min<size_t>(format.size() * 16 + 64, 1 << 16), '\0');
  budget.make(static_cast<Int>(out.size()));
  // A mark in front tells an empty result from one that does not fit.
  const size_t n = std::strftime(out.data(), out.size(), ("." + format).c_str(), &local);
  if (n == 0) throw Error("strftime_now: the format gives too long a text");
  return out.substr(1, n - 1);
}

}  // namespace

Parameters::Parameters(std::string_view what, const CallArguments& arguments, std::initializer_list<const char*> names)
    : what_(what), values_(names.size(), nullptr) {
  if (arguments.positional.size() > names.size()) {
    throw Error("{} takes at most {} arguments, {} are given", what_, names.size(), arguments.positional.size());
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto* found = std::find_if(names.begin(), names.end(), [&name = name](const char* n) { return name == n; });
    if (found == names.end()) throw Error("{} has no argument named '{}'", what_, printable(name, 40));
    const Value*& slot = values_[static_cast<size_t>(found - names.begin())];
    if (slot) throw Error("{} is given '{}' twice", what_, printable(name, 40));
    slot = &value;
  }
}

Int Parameters::integer(size_t i, Int otherwise) const {
  return values_[i] ? require_int(*values_[i], "an argument of " + what_) : otherwise;
}

const std::string& Parameters::text(size_t i) const {
  if (!values_[i]) throw Error("{} needs an argument more", what_);
  if (values_[i]->is_undefined()) fail_undefined(*values_[i]);
  if (!values_[i]->text()) throw Error("{} needs a text, not {}", what_, type_name(*values_[i]));
  return *values_[i]->text();
}

bool has_method(const Value& value, std::string_view name) {
  if (value.text()) return is_text_method(name);
  if (value.dict()) return among(kDictMethods, name);
  const Sequence* sequence = value.sequence();
  if (!sequence) return false;
  if (sequence->kind == SequenceKind::kList) return among(kListMethods, name);
  return (sequence->kind == SequenceKind::kTuple || sequence->kind == SequenceKind::kRange) &&
         among(kTupleMethods, name);
}

bool changes_its_object(const Value& value, std::string_view method) {
  if (value.dict()) return among(kDictChanges, method);
  return value.sequence() && value.sequence()->kind == SequenceKind::kList && among(kListChanges, method);
}

Value call_method(const Value& self, const std::string& name, const CallArguments& arguments, Budget& budget) {
  if (self.text()) return call_text_method(self, name, arguments, budget);
  return self.dict() ? dict_method(self, name, arguments, budget) : list_method(self, name, arguments, budget);
}

bool is_global(std::string_view name) {
  constexpr std::string_view kGlobals[] = {"range", "dict", "raise_exception", "strftime_now"};
  return among(kGlobals, name);
}

Value call_global(const std::string& name, const CallArguments& arguments, Budget& budget) {
  if (name == "range") return range(arguments, budget);
  if (name == "dict") return dict_of(arguments, budget);
  if (name == "strftime_now") {
    return time_now(Parameters("strftime_now", arguments, {"format"}).text(0), budget);
  }
  const Parameters given("raise_exception", arguments, {"message"});
  throw Error("{}", printable(to_text(given.get(0, Value()), budget), 1000));
}

}  // namespace fathom::jinja
