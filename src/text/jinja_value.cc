#include "text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/jinja_text.h"

namespace fathom::jinja {
namespace {

constexpr int kMaxHeight = 100;
constexpr int kMaxDepth = 1000;

int checked_height(const std::vector<Value>& items) {
  int highest = 0;
  for (const Value& item : items) highest = std::max(highest, height(item));
  if (highest >= kMaxHeight) throw Error("values are nested more than {} deep", kMaxHeight);
  return highest + 1;
}

void append_text_repr(std::string& out, std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  out += quote;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = decode_at(text, at);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out += text.substr(begin, at - begin);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  out += quote;
}

void append_items(std::string& out, const std::vector<Value>& items, Budget& budget) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i) out += ", ";
    append_repr(out, items[i], budget);
  }
}

void append_dict_repr(std::string& out, const Dict& dict, Budget& budget) {
  out += '{';
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i) out += ", ";
    append_repr(out, dict.items[i].first, budget);
    out += ": ";
    append_repr(out, dict.items[i].second, budget);
  }
  out += '}';
}

void append_sequence_repr(std::string& out, const Sequence& sequence, Budget& budget) {
  switch (sequence.kind) {
    case SequenceKind::kRange:
      out += fmt::format("range({}, {}", sequence.begin, sequence.end);
      out += sequence.step == 1 ? ")" : fmt::format(", {})", sequence.step);
      return;
    case SequenceKind::kTuple:
      out += '(';
      append_items(out, sequence.items, budget);
      out += sequence.items.size() == 1 ? ",)" : ")";
      return;
    default:
      break;
  }
  const char* name = sequence.kind == SequenceKind::kKeys     ? "dict_keys("
                     : sequence.kind == SequenceKind::kValues ? "dict_values("
                     : sequence.kind == SequenceKind::kItems  ? "dict_items("
                                                              : "";
  out += name;
  out += '[';
  append_items(out, sequence.items, budget);
  out += *name ? "])" : "]";
}

void append_json_text(std::string& out, std::string_view text, bool ensure_ascii) {
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = decode_at(text, at);
    const auto escape = [&](char32_t unit) { out += fmt::format("\\u{:04x}", static_cast<uint32_t>(unit)); };
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\b':
        out += "\\b";
        break;
      default:
        if (c < 0x20 || (ensure_ascii && c > 0x7e && c < 0x10000 && c != 0x7f)) {
          escape(c);
        } else if (ensure_ascii && c >= 0x10000) {
          escape(0xd800 + ((c - 0x10000) >> 10));
          escape(0xdc00 + ((c - 0x10000) & 0x3ff));
        } else {
          out += text.substr(begin, at - begin);
        }
    }
  }
  out += '"';
}

std::string json_float(double d) {
  if (std::isnan(d)) return "NaN";
  if (std::isinf(d)) return d > 0 ? "Infinity" : "-Infinity";
  return float_text(d);
}

std::string json_key(const Value& key) {
  if (key.text()) return *key.text();
  if (const bool* b = key.as<bool>()) return *b ? "true" : "false";
  if (key.is_none()) return "null";
  if (const Int* i = key.as<Int>()) return int_text(*i);
  if (const double* d = key.as<double>()) return json_float(*d);
  throw Error("tojson: keys must be str, int, float, bool or None, not {}", type_name(key));
}

struct JsonWriter {
  const JsonStyle& style;
  Budget& budget;
  std::string out{};

  void line(int level) {
    if (!style.multiline) return;
    budget.make(static_cast<Int>(style.indent.size()) * level);
    out += '\n';
    for (int i = 0; i < level; ++i) out += style.indent;
  }

  template <class Range, class Write>
  void members(char open, char close, const Range& range, int level, Write write) {
    out += open;
    bool first = true;
    for (const auto& member : range) {
      if (!first) out += style.item_separator;
      first = false;
      line(level + 1);
      write(member);
    }
    if (!first) line(level);
    out += close;
  }

  void write(const Value& value, int level) {
    const Nested nested(budget);
    const size_t before = out.size();
    budget.step();
    if (value.is_none()) {
      out += "null";
    } else if (const bool* b = value.as<bool>()) {
      out += *b ? "true" : "false";
    } else if (const Int* i = value.as<Int>()) {
      out += int_text(*i);
    } else if (const double* d = value.as<double>()) {
      out += json_float(*d);
    } else if (value.text()) {
      append_json_text(out, *value.text(), style.ensure_ascii);
    } else if (value.sequence() &&
               (value.sequence()->kind == SequenceKind::kList || value.sequence()->kind == SequenceKind::kTuple)) {
      members('[', ']', value.sequence()->items, level, [&](const Value& item) { write(item, level + 1); });
      return;
    } else if (const Dict* dict = value.dict()) {
      std::vector<const std::pair<Value, Value>*> order;
      for (const auto& item : dict->items) order.push_back(&item);
      if (style.sort_keys) {
        std::stable_sort(order.begin(), order.end(),
                         [&](const auto* x, const auto* y) { return less(x->first, y->first, budget); });
      }
      members('{', '}', order, level, [&](const auto* item) {
        append_json_text(out, json_key(item->first), style.ensure_ascii);
        out += style.key_separator;
        write(item->second, level + 1);
      });
      return;
    } else {
      throw Error("tojson: a value of type {} has no JSON form", type_name(value));
    }
    budget.make(static_cast<Int>(out.size() - before));
  }
};

}  // namespace

void Budget::step(int64_t n) {
  steps -= n;
  if (steps < 0) throw Error("the template takes too many steps; it was stopped");
}

void Budget::make(Int n_bytes) {
  if (n_bytes > bytes) throw Error("the template makes too much text or too large a list; it was stopped");
  bytes -= static_cast<int64_t>(n_bytes);
}

Nested::Nested(Budget& budget) : budget_(budget) {
  if (budget.depth >= kMaxDepth) throw Error("the template recurses too deep; it was stopped");
  ++budget.depth;
}

const Value* Dict::find(const Value& key, Budget& budget) const {
  if (!is_hashable(key)) throw Error("a {} cannot be a key: it is unhashable", type_name(key));
  if (key.text()) {
    budget.step(static_cast<int64_t>(items.size() / 16) + 1);
    return find(*key.text());
  }
  for (const auto& [k, v] : items) {
    if (equal(k, key, budget)) return &v;
  }
  return nullptr;
}

const Value* Dict::find(std::string_view key) const {
  for (const auto& [k, v] : items) {
    if (k.text() && *k.text() == key) return &v;
  }
  return nullptr;
}

void Dict::set(Value key, Value value, Budget& budget) {
  if (const Value* found = find(key, budget)) {
    *const_cast<Value*>(found) = std::move(value);
    return;
  }
  budget.make(sizeof(Value) * 2);
  items.emplace_back(std::move(key), std::move(value));
}

Value undefined(std::string why) { return Undefined{std::make_shared<const std::string>(std::move(why))}; }

Value make_sequence(SequenceKind kind, std::vector<Value> items, Budget& budget) {
  budget.make(static_cast<Int>(items.size() * sizeof(Value) + sizeof(Sequence)));
  const int levels = checked_height(items);
  return std::make_shared<const Sequence>(Sequence{kind, std::move(items), levels});
}
Value make_list(std::vector<Value> items, Budget& budget) {
  return make_sequence(SequenceKind::kList, std::move(items), budget);
}
Value make_tuple(std::vector<Value> items, Budget& budget) {
  return make_sequence(SequenceKind::kTuple, std::move(items), budget);
}
Value make_iterator(std::vector<Value> items, Budget& budget) {
  budget.make(static_cast<Int>(items.size() * sizeof(Value) + sizeof(Iterator)));
  const int levels = checked_height(items);
  return std::make_shared<Iterator>(Iterator{std::move(items), 0, levels});
}
Value make_dict(Dict dict, Budget& budget) {
  budget.make(static_cast<Int>(dict.items.size() * sizeof(Value) * 2 + sizeof(Dict)));
  int highest = 0;
  for (const auto& [key, value] : dict.items) highest = std::max({highest, height(key), height(value)});
  if (highest >= kMaxHeight) throw Error("values are nested more than {} deep", kMaxHeight);
  dict.height = highest + 1;
  return std::make_shared<const Dict>(std::move(dict));
}
Value make_text(std::string text, Budget& budget) {
  budget.make(static_cast<Int>(text.size() + sizeof(std::string)));
  return text;
}

Value from_json(const nlohmann::ordered_json& json, Budget& budget, int depth) {
  if (depth > kMaxHeight) throw Error("the variables are nested more than {} deep", kMaxHeight);
  switch (json.type()) {
    case nlohmann::json::value_t::null:
      return None{};
    case nlohmann::json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::json::value_t::number_integer:
      return json.get<int64_t>();
    case nlohmann::json::value_t::number_unsigned:
      return static_cast<Int>(json.get<uint64_t>());
    case nlohmann::json::value_t::number_float:
      return json.get<double>();
    case nlohmann::json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      if (first_invalid_utf8(text) != kNoPosition)
        throw Error("a text among the variables is not UTF-8: '{}'", printable(text, 60));
      return text;
    }
    case nlohmann::json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json(item, budget, depth + 1));
      return make_list(std::move(items), budget);
    }
    case nlohmann::json::value_t::object: {
      Dict dict;
      for (const auto& [key, value] : json.items()) {
        if (first_invalid_utf8(key) != kNoPosition)
          throw Error("a key among the variables is not UTF-8: '{}'", printable(key, 60));
        dict.items.emplace_back(key, from_json(value, budget, depth + 1));
      }
      return make_dict(std::move(dict), budget);
    }
    default:
      throw Error("a variable is neither text, number, list, object, boolean nor null");
  }
}

const char* type_name(const Value& value) {
  if (const Sequence* s = value.sequence()) {
    switch (s->kind) {
      case SequenceKind::kList:
        return "list";
      case SequenceKind::kTuple:
        return "tuple";
      case SequenceKind::kRange:
        return "range";
      case SequenceKind::kKeys:
        return "dict_keys";
      case SequenceKind::kValues:
        return "dict_values";
      case SequenceKind::kItems:
        return "dict_items";
    }
  }
  constexpr const char* kNames[] = {"Undefined", "NoneType",  "bool",     "int",       "float",       "str",  "list",
                                    "dict",      "generator", "function", "Namespace", "LoopContext", "Macro"};
  return kNames[value.data.index()];
}

int height(const Value& value) {
  if (const Sequence* s = value.sequence()) return s->height;
  if (const Dict* d = value.dict()) return d->height;
  if (const IteratorRef* i = value.as<IteratorRef>()) return (*i)->height;
  if (const FunctionRef* f = value.as<FunctionRef>()) return (*f)->self ? height(*(*f)->self) + 1 : 1;
  return 0;
}

bool truth(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (const bool* b = value.as<bool>()) return *b;
  if (const Int* i = value.as<Int>()) return *i != 0;
  if (const double* d = value.as<double>()) return *d != 0;
  if (value.text()) return !value.text()->empty();
  if (value.sequence()) return !value.sequence()->items.empty();
  if (value.dict()) return !value.dict()->items.empty();
  return true;
}

bool is_number(const Value& value) { return value.is<bool>() || value.is<Int>() || value.is<double>(); }

bool as_int(const Value& value, Int& out) {
  if (const bool* b = value.as<bool>()) return out = *b, true;
  if (const Int* i = value.as<Int>()) return out = *i, true;
  return false;
}

double as_double(const Value& value) {
  Int i = 0;
  if (as_int(value, i)) return static_cast<double>(i);
  return *value.as<double>();
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (is_number(a) && is_number(b)) {
    Int x = 0, y = 0;
    return as_int(a, x) && as_int(b, y) ? x == y : as_double(a) == as_double(b);
  }
  if (a.data.index() != b.data.index()) return false;
  if (a.is_undefined() || a.is_none()) return true;
  if (a.text()) {
    budget.scan(a.text()->size() == b.text()->size() ? a.text()->size() : 0);
    return *a.text() == *b.text();
  }
  const Nested nested(budget);
  if (const Sequence* x = a.sequence()) {
    const Sequence* y = b.sequence();
    if (x->kind == SequenceKind::kValues) return x == y;
    if (x->kind != y->kind || x->items.size() != y->items.size()) return false;
    for (size_t i = 0; i < x->items.size(); ++i) {
      if (!equal(x->items[i], y->items[i], budget)) return false;
    }
    return true;
  }
  if (const Dict* x = a.dict()) {
    if (x->items.size() != b.dict()->items.size()) return false;
    for (const auto& [key, value] : x->items) {
      const Value* other = b.dict()->find(key, budget);
      if (!other || !equal(value, *other, budget)) return false;
    }
    return true;
  }
  return a.data == b.data;  // the same object
}

bool less(const Value& a, const Value& b, Budget& budget, const char* op) {
  budget.step();
  if (is_number(a) && is_number(b)) {
    Int x = 0, y = 0;
    return as_int(a, x) && as_int(b, y) ? x < y : as_double(a) < as_double(b);
  }
  if (a.text() && b.text()) {
    budget.scan(std::min(a.text()->size(), b.text()->size()));
    return *a.text() < *b.text();  // bytes of UTF-8 sort as code points do
  }
  for (const Value* side : {&a, &b}) {
    if (const Undefined* missing = side->as<Undefined>()) throw Error("{}", missing->why ? *missing->why : "undefined");
  }
  const Sequence *x = a.sequence(), *y = b.sequence();
  if (x && y && x->kind == y->kind && (x->kind == SequenceKind::kList || x->kind == SequenceKind::kTuple)) {
    const Nested nested(budget);
    for (size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i) {
      if (!equal(x->items[i], y->items[i], budget)) return less(x->items[i], y->items[i], budget, op);
    }
    return x->items.size() < y->items.size();
  }
  throw Error("'{}' does not work between {} and {}", op, type_name(a), type_name(b));
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (container.text()) {
    if (!item.text()) throw Error("'in' a text needs a text on the left, not {}", type_name(item));
    budget.scan(container.text()->size() + item.text()->size());
    return container.text()->find(*item.text()) != std::string::npos;
  }
  if (const Dict* dict = container.dict()) return dict->find(item, budget) != nullptr;
  if (const Sequence* sequence = container.sequence()) {
    return std::any_of(sequence->items.begin(), sequence->items.end(),
                       [&](const Value& x) { return equal(x, item, budget); });
  }
  if (const IteratorRef* iterator = container.as<IteratorRef>()) {
    Iterator& it = **iterator;
    while (it.next < it.items.size()) {
      if (equal(it.items[it.next++], item, budget)) return true;
    }
    return false;
  }
  if (container.is_undefined()) return false;
  throw Error("'in' cannot look into a value of type {}", type_name(container));
}

bool is_hashable(const Value& key) {
  const Sequence* sequence = key.sequence();
  if (!sequence) return !key.dict();
  if (sequence->kind == SequenceKind::kTuple) {
    return std::all_of(sequence->items.begin(), sequence->items.end(), is_hashable);
  }
  return sequence->kind == SequenceKind::kRange || sequence->kind == SequenceKind::kValues;
}

std::string int_text(Int value) { return fmt::format("{}", value); }

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view shortest(buffer, static_cast<size_t>(end - buffer));
  const size_t e = shortest.find('e');
  const int exponent = std::stoi(std::string(shortest.substr(e + 1)));
  if (exponent < -4 || exponent >= 16) {
    return fmt::format("{}e{}{:02}", shortest.substr(0, e), exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr;
  std::string out(buffer, fixed);
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

void append_repr(std::string& out, const Value& value, Budget& budget) {
  const Nested nested(budget);
  budget.step();
  const size_t before = out.size();
  if (value.text()) {
    append_text_repr(out, *value.text());
  } else if (const Sequence* sequence = value.sequence()) {
    return append_sequence_repr(out, *sequence, budget);
  } else if (const Dict* dict = value.dict()) {
    return append_dict_repr(out, *dict, budget);
  } else if (Namespace* const* space = value.as<Namespace*>()) {
    out += "<Namespace ";
    append_dict_repr(out, (*space)->attributes, budget);
    out += '>';
  } else if (value.is_undefined()) {
    out += "Undefined";
  } else if (value.is_none()) {
    out += "None";
  } else if (const bool* b = value.as<bool>()) {
    out += *b ? "True" : "False";
  } else if (const Int* i = value.as<Int>()) {
    out += int_text(*i);
  } else if (const double* d = value.as<double>()) {
    out += float_text(*d);
  } else {
    out += fmt::format("<{}>", type_name(value));
  }
  budget.make(static_cast<Int>(out.size() - before));
}

std::string to_repr(const Value& value, Budget& budget) {
  std::string out;
  append_repr(out, value, budget);
  return out;
}

std::string to_text(const Value& value, Budget& budget) {
  if (value.text()) return *value.text();
  return value.is_undefined() ? "" : to_repr(value, budget);
}

bool is_iterable(const Value& value) {
  return value.text() || value.sequence() || value.dict() || value.is<IteratorRef>() || value.is_undefined();
}

std::vector<Value> elements(const Value& value, Budget& budget) {
  std::vector<Value> out;
  if (const std::string* text = value.text()) {
    budget.make(static_cast<Int>(text->size() * (sizeof(Value) + sizeof(std::string))));
    for (size_t at = 0; at < text->size();) {
      const size_t begin = at;
      decode_at(*text, at);
      out.emplace_back(text->substr(begin, at - begin));
    }
  } else if (const Sequence* sequence = value.sequence()) {
    budget.make(static_cast<Int>(sequence->items.size() * sizeof(Value)));
    out = sequence->items;
  } else if (const Dict* dict = value.dict()) {
    budget.make(static_cast<Int>(dict->items.size() * sizeof(Value)));
    for (const auto& [key, unused] : dict->items) out.push_back(key);
  } else if (const IteratorRef* iterator = value.as<IteratorRef>()) {
    Iterator& it = **iterator;
    out.assign(it.items.begin() + static_cast<std::ptrdiff_t>(it.next), it.items.end());
    it.next = it.items.size();
  } else if (!value.is_undefined()) {
    throw Error("a value of type {} cannot be iterated over", type_name(value));
  }
  budget.step(static_cast<int64_t>(out.size()) + 1);
  return out;
}

std::string to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  JsonWriter writer{style, budget};
  writer.write(value, 0);
  return std::move(writer.out);
}

}  // namespace fathom::jinja
