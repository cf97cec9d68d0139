// The values a chat template computes with, and what Python would do with them: printing, truth, equality, order, JSON.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace fathom::jinja {

__extension__ using Int = __int128;  // Python's integers as far as templates need them; beyond it is an error

// What one rendering may still spend. Every loop over a value's size pays, so hostile templates end early.
struct Budget {
  int64_t steps;  // evaluated nodes, visited elements, scanned blocks of text
  int64_t bytes;  // made strings and lists, freed or not
  int depth = 0;  // nested evaluations now

  void step(int64_t n = 1);
  void scan(size_t text_bytes) { step(static_cast<int64_t>(text_bytes / 64) + 1); }
  void make(Int n_bytes);  // before the memory is taken
};

// Counts one level of recursion for its lifetime.
class Nested {
 public:
  explicit Nested(Budget& budget);
  ~Nested() { --budget_.depth; }
  Nested(const Nested&) = delete;
  Nested& operator=(const Nested&) = delete;

 private:
  Budget& budget_;
};

struct Value;
struct Namespace;
struct Loop;
struct Macro;

struct Undefined {
  std::shared_ptr<const std::string> why;  // the error when it is used
  bool operator==(const Undefined&) const { return true; }
};
struct None {
  bool operator==(const None&) const = default;
};

enum class SequenceKind { kList, kTuple, kRange, kKeys, kValues, kItems };

struct Sequence {
  SequenceKind kind;
  std::vector<Value> items;
  int height;                        // levels of nesting, bounded so that no recursion over values is deep
  Int begin = 0, end = 0, step = 1;  // of a range
};

// What map, select, reverse, ... give: a sequence that can be gone through once.
struct Iterator {
  std::vector<Value> items;
  size_t next = 0;
  int height;
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;
  int height = 1;

  const Value* find(const Value& key, Budget& budget) const;  // the key must be hashable
  const Value* find(std::string_view key) const;
  void set(Value key, Value value, Budget& budget);
};

enum class FunctionKind { kGlobal, kMethod, kLoopMethod };

struct Function {
  FunctionKind kind;
  std::string name;
  std::shared_ptr<const Value> self;
};

using Text = std::shared_ptr<const std::string>;
using SequenceRef = std::shared_ptr<const Sequence>;
using DictRef = std::shared_ptr<const Dict>;
using IteratorRef = std::shared_ptr<Iterator>;
using FunctionRef = std::shared_ptr<const Function>;

// Namespaces, loops and macros belong to the interpreter that made them.
struct Value {
  using Data = std::variant<Undefined, None, bool, Int, double, Text, SequenceRef, DictRef, IteratorRef, FunctionRef,
                            Namespace*, Loop*, Macro*>;
  Data data;

  Value() = default;  // undefined
  Value(None none) : data(none) {}
  Value(Undefined undefined) : data(std::move(undefined)) {}
  Value(bool b) : data(b) {}
  Value(Int i) : data(i) {}
  Value(int64_t i) : data(static_cast<Int>(i)) {}
  Value(int i) : data(static_cast<Int>(i)) {}
  Value(size_t n) : data(static_cast<Int>(n)) {}
  Value(double d) : data(d) {}
  Value(std::string text) : data(std::make_shared<const std::string>(std::move(text))) {}
  Value(const char* text) : Value(std::string(text)) {}
  Value(Text text) : data(std::move(text)) {}
  Value(SequenceRef sequence) : data(std::move(sequence)) {}
  Value(DictRef dict) : data(std::move(dict)) {}
  Value(IteratorRef iterator) : data(std::move(iterator)) {}
  Value(FunctionRef function) : data(std::move(function)) {}
  Value(Namespace* space) : data(space) {}
  Value(Loop* loop) : data(loop) {}
  Value(Macro* macro) : data(macro) {}

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(data);
  }
  template <class T>
  const T* as() const {
    return std::get_if<T>(&data);
  }
  const std::string* text() const { return is<Text>() ? std::get<Text>(data).get() : nullptr; }
  const Sequence* sequence() const { return is<SequenceRef>() ? std::get<SequenceRef>(data).get() : nullptr; }
  const Dict* dict() const { return is<DictRef>() ? std::get<DictRef>(data).get() : nullptr; }
  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
};

struct Namespace {
  Dict attributes;
};

Value undefined(std::string why);
Value make_sequence(SequenceKind kind, std::vector<Value> items, Budget& budget);
Value make_list(std::vector<Value> items, Budget& budget);
Value make_tuple(std::vector<Value> items, Budget& budget);
Value make_iterator(std::vector<Value> items, Budget& budget);
Value make_dict(Dict dict, Budget& budget);
Value make_text(std::string text, Budget& budget);
Value from_json(const nlohmann::ordered_json& json, Budget& budget, int depth = 0);

const char* type_name(const Value& value);  // Python's name of the type, for errors
int height(const Value& value);

bool truth(const Value& value);
// bool, int and float as a number; nothing for the rest.
bool is_number(const Value& value);
bool as_int(const Value& value, Int& out);  // bool and int
double as_double(const Value& value);       // a number's value

bool equal(const Value& a, const Value& b, Budget& budget);
bool less(const Value& a, const Value& b, Budget& budget, const char* op = "<");
bool contains(const Value& container, const Value& item, Budget& budget);
bool is_hashable(const Value& key);

// str() and repr().
std::string to_text(const Value& value, Budget& budget);
std::string to_repr(const Value& value, Budget& budget);
void append_repr(std::string& out, const Value& value, Budget& budget);
std::string int_text(Int value);
std::string float_text(double value);

// The elements of anything that Python can iterate over; an iterator is used up. Throws for the rest.
std::vector<Value> elements(const Value& value, Budget& budget);
bool is_iterable(const Value& value);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool multiline = false;
  std::string indent{};
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
std::string to_json(const Value& value, const JsonStyle& style, Budget& budget);

}  // namespace fathom::jinja
