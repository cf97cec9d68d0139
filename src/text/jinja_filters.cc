// Jinja's filters, with tojson as transformers has it.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "base/error.h"
#include "text/jinja_parser.h"
#include "text/jinja_runtime.h"
#include "text/jinja_text.h"

namespace fathom::jinja {
namespace {

using Call = const CallArguments&;

Value undefined_empty(const char* which) { return undefined(fmt::format("no {} item, the sequence was empty", which)); }

// ---- attributes named by filters: "name", 0, "a.b"
std::vector<Value> attribute_path(const Value& attribute) {
  if (!attribute.text()) return {attribute};
  std::vector<Value> path;
  std::string_view rest = *attribute.text();
  while (true) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    const std::string part(rest.substr(0, dot));
    const bool is_index =
        !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
    path.push_back(is_index ? Value(std::stoi(part)) : Value(part));
    if (dot == rest.size()) return path;
    rest = rest.substr(dot + 1);
  }
}

Value attribute_of(Value item, const std::vector<Value>& path, const Value* otherwise, Budget& budget) {
  for (const Value& part : path) {
    item = get_item(item, part, budget);
    if (otherwise && !otherwise->is_none() && item.is_undefined()) item = *otherwise;
  }
  return item;
}

Value folded(const Value& value, bool case_sensitive, Budget& budget) {
  return value.text() && !case_sensitive ? make_text(lower(*value.text()), budget) : value;
}

// The key an item is sorted, grouped or compared by.
Value key_of(const Value& item, const Value* attribute, bool case_sensitive, Budget& budget,
             const Value* otherwise = nullptr) {
  const bool whole = !attribute || attribute->is_none();
  return folded(whole ? item : attribute_of(item, attribute_path(*attribute), otherwise, budget), case_sensitive,
                budget);
}

template <class Keyed>
void sort_keyed(std::vector<Keyed>& items, bool reverse, Budget& budget) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? less(b.first, a.first, budget) : less(a.first, b.first, budget);
  });
}

template <class Keyed>
std::vector<Value> without_keys(std::vector<Keyed>& items) {
  std::vector<Value> out;
  out.reserve(items.size());
  for (auto& [key, item] : items) out.push_back(std::move(item));
  return out;
}

// ---- text
std::string as_text(const Value& value, Budget& budget) {
  std::string text = to_text(value, budget);
  budget.scan(text.size());
  return text;
}

Value capitalize_filter(const Value& v, Call, Budget& budget) {
  return make_text(capitalize(as_text(v, budget)), budget);
}
Value lower_filter(const Value& v, Call, Budget& budget) { return make_text(lower(as_text(v, budget)), budget); }
Value upper_filter(const Value& v, Call, Budget& budget) { return make_text(upper(as_text(v, budget)), budget); }
Value string_filter(const Value& v, Call, Budget& budget) {
  return v.text() ? v : make_text(as_text(v, budget), budget);
}

Value title_filter(const Value& v, Call, Budget& budget) {
  const std::string text = as_text(v, budget);
  std::string out;
  bool begins = true;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = decode_at(text, at);
    begins ? append_upper(out, c) : append_lower(out, c);
    begins =
        is_space(c) || (c < 0x80 && std::string_view("-({[<").find(static_cast<char>(c)) != std::string_view::npos);
  }
  return make_text(std::move(out), budget);
}

Value trim(const Value& v, Call call, Budget& budget) {
  const Parameters given("trim", call, {"chars"});
  const std::string* chars = given[0] && !given[0]->is_none() ? &given.text(0) : nullptr;
  return make_text(std::string(strip(as_text(v, budget), chars)), budget);
}

Value replace(const Value& v, Call call, Budget& budget) {
  const Parameters given("replace", call, {"old", "new", "count"});
  const Int count = given[2] && !given[2]->is_none() ? given.integer(2, -1) : Int(-1);
  const std::string from = as_text(given.get(0, Value()), budget), to = as_text(given.get(1, Value()), budget);
  if (!given[1]) throw Error("replace needs two texts");
  return make_text(replace_text(as_text(v, budget), from, to, count, budget), budget);
}

Value escape(const Value& v, Call, Budget& budget) {
  std::string out;
  for (const char c : as_text(v, budget)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return make_text(std::move(out), budget);
}

Value urlencode(const Value& v, Call, Budget& budget) {
  const auto quoted = [&](const Value& value, bool slash_is_safe) {
    std::string out;
    for (const char c : as_text(value, budget)) {
      const bool safe = std::isalnum(static_cast<unsigned char>(c)) ||
                        std::string_view("_.-~").find(c) != std::string_view::npos || (c == '/' && slash_is_safe);
      out += safe ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
    return out;
  };
  if (v.text() || !is_iterable(v)) return make_text(quoted(v, true), budget);
  std::string out;
  const Value pairs = v.dict() ? call_method(v, "items", {}, budget) : v;
  for (const Value& pair : elements(pairs, budget)) {
    const std::vector<Value> parts = elements(pair, budget);
    if (parts.size() != 2) throw Error("urlencode needs a text or pairs");
    out += (out.empty() ? "" : "&") + quoted(parts[0], false) + "=" + quoted(parts[1], false);
  }
  return make_text(std::move(out), budget);
}

Value indent(const Value& v, Call call, Budget& budget) {
  const Parameters given("indent", call, {"width", "first", "blank"});
  if (v.is_undefined()) fail_undefined(v);
  if (!v.text()) throw Error("indent needs a text, not {}", type_name(v));
  std::string margin;
  if (given[0] && given[0]->text()) {
    margin = given.text(0);
  } else {
    const Int width = std::max(given.integer(0, 4), Int(0));
    budget.make(width);
    margin.assign(static_cast<size_t>(width), ' ');
  }
  const std::string text = *v.text() + "\n";
  std::string out = given.flag(1) ? margin : "";
  bool first = true;
  for (const std::string_view line : split_lines(text)) {
    budget.make(static_cast<Int>(line.size() + margin.size() + 1));
    if (!first) out += '\n';
    if (!first && (!line.empty() || given.flag(2))) out += margin;
    first = false;
    out += line;
  }
  return out;
}

Value center(const Value& v, Call call, Budget& budget) {
  const Parameters given("center", call, {"width"});
  return call_text_method(as_text(v, budget), "center", {.positional = {given.get(0, 80)}}, budget);
}

Value truncate(const Value& v, Call call, Budget& budget) {
  const Parameters given("truncate", call, {"length", "killwords", "end", "leeway"});
  if (v.is_undefined()) return v;
  if (!v.text()) throw Error("truncate needs a text, not {}", type_name(v));
  const std::string end = given[2] ? given.text(2) : "...";
  const Int length = given.integer(0, 255), leeway = given[3] && !given[3]->is_none() ? given.integer(3, 5) : Int(5);
  const Int kept = length - static_cast<Int>(code_points(end));
  if (kept < 0 || leeway < 0) throw Error("truncate: the length is too small");
  if (static_cast<Int>(code_points(*v.text())) <= length + leeway) return v;
  std::string text = v.text()->substr(0, byte_offset(*v.text(), static_cast<size_t>(kept)));
  if (!given.flag(1)) text = text.substr(0, std::min(text.rfind(' '), text.size()));
  return make_text(text + end, budget);
}

Value wordcount(const Value& v, Call, Budget& budget) {
  const std::string text = as_text(v, budget);
  Int count = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = decode_at(text, at);
    const bool word = c == '_' || is_letter(c) || is_decimal(c);
    count += word && !inside;
    inside = word;
  }
  return count;
}

Value format(const Value& v, Call call, Budget& budget) {
  if (!call.positional.empty() && !call.named.empty()) throw Error("format takes positional or named values, not both");
  Dict named;
  for (const auto& [name, value] : call.named) named.set(name, value, budget);
  const Value arguments =
      call.named.empty() ? make_tuple(call.positional, budget) : make_dict(std::move(named), budget);
  return make_text(percent_format(as_text(v, budget), arguments, budget), budget);
}

Value tojson(const Value& v, Call call, Budget& budget) {
  const Parameters given("tojson", call, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style{.ensure_ascii = given.flag(0), .sort_keys = given.flag(3)};
  if (given[1] && !given[1]->is_none()) {
    style.multiline = true;
    style.item_separator = ",";
    if (given[1]->text()) {
      style.indent = *given[1]->text();
    } else {
      const Int width = std::max(given.integer(1, 0), Int(0));
      budget.make(width);
      style.indent.assign(static_cast<size_t>(width), ' ');
    }
  }
  if (given[2] && !given[2]->is_none()) {
    const std::vector<Value> separators = elements(*given[2], budget);
    if (separators.size() != 2 || !separators[0].text() || !separators[1].text()) {
      throw Error("tojson: separators must be two texts");
    }
    style.item_separator = *separators[0].text();
    style.key_separator = *separators[1].text();
  }
  return to_json(v, style, budget);
}

// ---- numbers
Value int_filter(const Value& v, Call call, Budget& budget) {
  const Parameters given("int", call, {"default", "base"});
  if (v.is_undefined()) fail_undefined(v);
  Int integer = 0;
  if (as_int(v, integer)) return integer;
  const auto whole = [&](double d) -> Value {
    if (!std::isfinite(d)) return given.get(0, 0);
    if (std::fabs(d) >= 1e38) throw Error("an integer is too large");
    return static_cast<Int>(d);
  };
  if (const double* d = v.as<double>()) return whole(*d);
  if (!v.text()) return given.get(0, 0);
  std::string text(strip(*v.text(), nullptr));
  const Int base = given.integer(1, 10);
  const bool negative = text.starts_with('-');
  std::string digits = text.substr(negative || text.starts_with('+') ? 1 : 0);
  Int radix = base;
  const auto prefix = [&](Int of, char mark) {
    if ((base == of || base == 0) && digits.size() > 2 && digits[0] == '0' && (digits[1] | 0x20) == mark) {
      digits = digits.substr(2);
      radix = of;
    }
  };
  prefix(16, 'x'), prefix(8, 'o'), prefix(2, 'b');
  if (radix == 0) radix = 10;
  bool valid = !digits.empty() && digits.back() != '_' && digits.front() != '_' && radix >= 2 && radix <= 36;
  for (size_t i = 0; valid && i < digits.size(); ++i) {
    const char c = digits[i];
    if (c == '_' && digits[i - 1] != '_') continue;
    const int digit = c >= '0' && c <= '9'                     ? c - '0'
                      : (c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? (c | 0x20) - 'a' + 10
                                                               : 99;
    if (digit >= radix) valid = false;
    if (valid &&
        (__builtin_mul_overflow(integer, radix, &integer) || __builtin_add_overflow(integer, Int(digit), &integer))) {
      throw Error("an integer is too large");
    }
  }
  if (valid) return negative ? -integer : integer;
  const Value number = apply_filter("float", v, {.positional = {None{}}}, budget);
  return number.is_none() ? given.get(0, 0) : whole(*number.as<double>());
}

Value float_filter(const Value& v, Call call, Budget&) {
  const Parameters given("float", call, {"default"});
  if (v.is_undefined()) fail_undefined(v);
  if (is_number(v)) return as_double(v);
  if (!v.text()) return given.get(0, 0.0);
  std::string text = lower(strip(*v.text(), nullptr));
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {  // underscores stand between digits only
    const auto is_digit = [&](size_t at) { return at < text.size() && text[at] >= '0' && text[at] <= '9'; };
    if (text[i] == '_' && i > 0 && is_digit(i - 1) && is_digit(i + 1)) continue;
    digits += text[i];
  }
  const std::string_view unsigned_part =
      std::string_view(digits).substr(digits.starts_with('-') || digits.starts_with('+') ? 1 : 0);
  const bool word = unsigned_part == "inf" || unsigned_part == "infinity" || unsigned_part == "nan";
  char* end = nullptr;
  const double value = std::strtod(digits.c_str(), &end);
  const bool valid = !digits.empty() && *end == '\0' && digits.size() == static_cast<size_t>(end - digits.c_str()) &&
                     (word || unsigned_part.find_first_not_of("0123456789.e+-") == std::string_view::npos);
  return valid ? Value(value) : given.get(0, 0.0);
}

Value absolute(const Value& v, Call, Budget&) {
  if (!is_number(v)) throw Error("abs needs a number, not {}", type_name(v));
  if (const double* d = v.as<double>()) return std::fabs(*d);
  Int i = 0;
  as_int(v, i);
  return i < 0 ? negate(i, true) : Value(i);
}

Value round(const Value& v, Call call, Budget& budget) {
  const Parameters given("round", call, {"precision", "method"});
  if (!is_number(v)) throw Error("round needs a number, not {}", type_name(v));
  const Int precision = given.integer(0, 0);
  const std::string method = given[1] ? given.text(1) : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    throw Error("round: the method must be common, ceil or floor");
  Int integer = 0;
  if (precision > 300 || precision < -300) throw Error("round: the precision is out of range");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method != "common") {
    const double scaled = as_double(v) * scale;
    if (!std::isfinite(scaled)) throw Error("round: the number is not finite");
    return ((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) + 0.0) / scale;
  }
  if (as_int(v, integer)) {
    if (precision >= 0) return integer;
    if (precision < -37) return 0;
    Int unit = 1;
    for (Int i = 0; i < -precision; ++i) unit *= 10;
    Int rest = integer % unit;
    if (rest < 0) rest += unit;
    const Value below = arithmetic("-", integer, rest, budget);
    const bool odd = *arithmetic("//", below, unit, budget).as<Int>() % 2 != 0;
    const bool up = rest * 2 > unit || (rest * 2 == unit && odd);
    return up ? arithmetic("+", below, unit, budget) : below;
  }
  const double d = as_double(v);
  if (!std::isfinite(d)) return d;
  if (precision < 0) return std::nearbyint(d * scale) / scale;
  return std::strtod(fmt::format("{:.{}f}", d, static_cast<int>(precision)).c_str(), nullptr);
}

// ---- sequences
Value length(const Value& v, Call, Budget& budget) {
  if (v.text()) {
    budget.scan(v.text()->size());
    return code_points(*v.text());
  }
  if (v.sequence()) return v.sequence()->items.size();
  if (v.dict()) return v.dict()->items.size();
  if (v.is_undefined()) return 0;
  throw Error("a value of type {} has no length", type_name(v));
}

Value list(const Value& v, Call, Budget& budget) { return make_list(elements(v, budget), budget); }

Value first(const Value& v, Call, Budget& budget) {
  if (const IteratorRef* it = v.as<IteratorRef>()) {
    return (*it)->next < (*it)->items.size() ? (*it)->items[(*it)->next++] : undefined_empty("first");
  }
  const std::vector<Value> items = elements(v, budget);
  return items.empty() ? undefined_empty("first") : items.front();
}

Value last(const Value& v, Call, Budget& budget) {
  if (v.is<IteratorRef>()) throw Error("last does not work on a generator; use list first");
  const std::vector<Value> items = elements(v, budget);
  return items.empty() ? undefined_empty("last") : items.back();
}

Value reverse(const Value& v, Call, Budget& budget) {
  std::vector<Value> items = elements(v, budget);
  std::reverse(items.begin(), items.end());
  if (!v.text()) return make_iterator(std::move(items), budget);
  std::string text;
  for (const Value& c : items) text += *c.text();
  return make_text(std::move(text), budget);
}

Value join(const Value& v, Call call, Budget& budget) {
  const Parameters given("join", call, {"d", "attribute"});
  const std::string separator = given[0] ? as_text(*given[0], budget) : "";
  std::string out;
  bool begins = true;
  for (const Value& item : elements(v, budget)) {
    const bool whole = !given[1] || given[1]->is_none();
    const std::string text =
        as_text(whole ? item : attribute_of(item, attribute_path(*given[1]), nullptr, budget), budget);
    budget.make(static_cast<Int>(text.size() + separator.size()));
    if (!begins) out += separator;
    begins = false;
    out += text;
  }
  return out;
}

Value sort(const Value& v, Call call, Budget& budget) {
  const Parameters given("sort", call, {"reverse", "case_sensitive", "attribute"});
  std::vector<std::pair<Value, Value>> items;
  for (Value& item : elements(v, budget)) {
    if (given[2] && given[2]->text() && given.text(2).find(',') != std::string::npos) {
      std::vector<Value> keys;
      for (const Value& name : elements(call_text_method(*given[2], "split", {.positional = {","}}, budget), budget)) {
        keys.push_back(key_of(item, &name, given.flag(1), budget));
      }
      items.emplace_back(make_list(std::move(keys), budget), std::move(item));
    } else {
      Value key = key_of(item, given[2], given.flag(1), budget);
      items.emplace_back(std::move(key), std::move(item));
    }
  }
  sort_keyed(items, given.flag(0), budget);
  return make_list(without_keys(items), budget);
}

Value dictsort(const Value& v, Call call, Budget& budget) {
  const Parameters given("dictsort", call, {"case_sensitive", "by", "reverse"});
  if (v.is_undefined()) fail_undefined(v);
  if (!v.dict()) throw Error("dictsort needs a dict, not {}", type_name(v));
  const std::string by = given[1] ? given.text(1) : "key";
  if (by != "key" && by != "value") throw Error("dictsort: 'by' must be key or value");
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [key, value] : v.dict()->items) {
    items.emplace_back(folded(by == "key" ? key : value, given.flag(0), budget), make_tuple({key, value}, budget));
  }
  sort_keyed(items, given.flag(2), budget);
  return make_list(without_keys(items), budget);
}

Value unique(const Value& v, Call call, Budget& budget) {
  const Parameters given("unique", call, {"case_sensitive", "attribute"});
  Dict seen;
  std::vector<Value> out;
  for (const Value& item : elements(v, budget)) {
    const Value key = key_of(item, given[1], given.flag(0), budget);
    budget.step(static_cast<int64_t>(seen.items.size() / 8));
    if (seen.find(key, budget)) continue;
    seen.items.emplace_back(key, None{});
    out.push_back(item);
  }
  return make_iterator(std::move(out), budget);
}

Value extreme(const Value& v, Call call, Budget& budget, bool smallest) {
  const Parameters given(smallest ? "min" : "max", call, {"case_sensitive", "attribute"});
  const std::vector<Value> items = elements(v, budget);
  if (items.empty()) return undefined("no aggregated item, the sequence was empty");
  Value best = items[0], best_key = key_of(best, given[1], given.flag(0), budget);
  for (size_t i = 1; i < items.size(); ++i) {
    const Value key = key_of(items[i], given[1], given.flag(0), budget);
    if (smallest ? less(key, best_key, budget) : less(best_key, key, budget, ">")) {
      best = items[i];
      best_key = key;
    }
  }
  return best;
}
Value min(const Value& v, Call call, Budget& budget) { return extreme(v, call, budget, true); }
Value max(const Value& v, Call call, Budget& budget) { return extreme(v, call, budget, false); }

Value sum(const Value& v, Call call, Budget& budget) {
  const Parameters given("sum", call, {"attribute", "start"});
  Value total = given.get(1, 0);
  if (total.text()) throw Error("sum does not add texts; use join");
  for (const Value& item : elements(v, budget)) {
    const bool whole = !given[0] || given[0]->is_none();
    total =
        arithmetic("+", total, whole ? item : attribute_of(item, attribute_path(*given[0]), nullptr, budget), budget);
  }
  return total;
}

Value batch(const Value& v, Call call, Budget& budget) {
  const Parameters given("batch", call, {"linecount", "fill_with"});
  const Int size = given.integer(0, 0);
  std::vector<Value> out, row;
  for (Value& item : elements(v, budget)) {
    if (static_cast<Int>(row.size()) == size) out.push_back(make_list(std::exchange(row, {}), budget));
    row.push_back(std::move(item));
  }
  if (!row.empty()) {
    if (given[1] && !given[1]->is_none() && static_cast<Int>(row.size()) < size) {
      budget.make((size - static_cast<Int>(row.size())) * static_cast<Int>(sizeof(Value)));
      row.resize(static_cast<size_t>(size), *given[1]);
    }
    out.push_back(make_list(std::move(row), budget));
  }
  return make_iterator(std::move(out), budget);
}

Value slice(const Value& v, Call call, Budget& budget) {
  const Parameters given("slice", call, {"slices", "fill_with"});
  const std::vector<Value> items = elements(v, budget);
  const Int slices = given.integer(0, 0), n = static_cast<Int>(items.size());
  if (slices <= 0) throw Error("slice needs a positive number of slices");
  budget.make(slices * static_cast<Int>(sizeof(Value)));
  std::vector<Value> out;
  Int at = 0;
  for (Int i = 0; i < slices; ++i) {
    const Int size = n / slices + (i < n % slices);
    std::vector<Value> part(items.begin() + static_cast<std::ptrdiff_t>(at),
                            items.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
    if (given[1] && !given[1]->is_none() && i >= n % slices) part.push_back(*given[1]);
    out.push_back(make_list(std::move(part), budget));
  }
  return make_iterator(std::move(out), budget);
}

Value groupby(const Value& v, Call call, Budget& budget) {
  const Parameters given("groupby", call, {"attribute", "default", "case_sensitive"});
  if (!given[0]) throw Error("groupby needs an attribute");
  std::vector<std::pair<Value, Value>> items;
  for (Value& item : elements(v, budget)) {
    Value key = key_of(item, given[0], given.flag(2), budget, given[1]);
    items.emplace_back(std::move(key), std::move(item));
  }
  sort_keyed(items, false, budget);
  std::vector<Value> out, group;
  for (size_t i = 0; i < items.size(); ++i) {
    group.push_back(items[i].second);
    if (i + 1 < items.size() && equal(items[i].first, items[i + 1].first, budget)) continue;
    const Value key = attribute_of(group[0], attribute_path(*given[0]), given[1], budget);
    out.push_back(make_tuple({key, make_list(std::exchange(group, {}), budget)}, budget));
  }
  return make_list(std::move(out), budget);
}

Value items(const Value& v, Call, Budget& budget) {
  if (v.is_undefined()) return make_iterator({}, budget);
  if (!v.dict()) throw Error("items needs a dict, not {}", type_name(v));
  return make_iterator(elements(call_method(v, "items", {}, budget), budget), budget);
}

// The arguments behind the first n.
CallArguments behind(Call call, size_t n) {
  CallArguments rest{{}, call.named};
  rest.positional.assign(call.positional.begin() + static_cast<std::ptrdiff_t>(n), call.positional.end());
  return rest;
}

const std::string& name_argument(const Value& value) {
  if (!value.text()) throw Error("a filter or test is named by a text, not {}", type_name(value));
  return *value.text();
}

Value map(const Value& v, Call call, Budget& budget) {
  std::vector<Value> out;
  if (!truth(v)) return make_iterator({}, budget);
  const std::vector<Value> in = elements(v, budget);
  if (call.positional.empty()) {
    const Parameters given("map", call, {"attribute", "default"});
    if (!given[0]) throw Error("map needs a filter or an attribute");
    const std::vector<Value> path = attribute_path(*given[0]);
    for (const Value& item : in) out.push_back(attribute_of(item, path, given[1], budget));
  } else {
    const CallArguments rest = behind(call, 1);
    for (const Value& item : in) out.push_back(apply_filter(name_argument(call.positional[0]), item, rest, budget));
  }
  return make_iterator(std::move(out), budget);
}

Value choose(const Value& v, Call call, Budget& budget, bool wanted, bool by_attribute) {
  std::vector<Value> out;
  if (!truth(v)) return make_iterator({}, budget);
  const size_t test = by_attribute ? 1 : 0;
  if (call.positional.size() < test) throw Error("selectattr and rejectattr need an attribute");
  const std::vector<Value> path = by_attribute ? attribute_path(call.positional[0]) : std::vector<Value>{};
  const CallArguments rest = call.positional.size() > test ? behind(call, test + 1) : CallArguments{};
  for (const Value& item : elements(v, budget)) {
    const Value value = attribute_of(item, path, nullptr, budget);
    const bool holds = call.positional.size() > test
                           ? apply_test(name_argument(call.positional[test]), value, rest, budget)
                           : truth(value);
    if (holds == wanted) out.push_back(item);
  }
  return make_iterator(std::move(out), budget);
}
Value select(const Value& v, Call call, Budget& budget) { return choose(v, call, budget, true, false); }
Value reject(const Value& v, Call call, Budget& budget) { return choose(v, call, budget, false, false); }
Value selectattr(const Value& v, Call call, Budget& budget) { return choose(v, call, budget, true, true); }
Value rejectattr(const Value& v, Call call, Budget& budget) { return choose(v, call, budget, false, true); }

Value default_filter(const Value& v, Call call, Budget&) {
  const Parameters given("default", call, {"default_value", "boolean"});
  return v.is_undefined() || (given.flag(1) && !truth(v)) ? given.get(0, "") : v;
}

Value attr(const Value& v, Call call, Budget& budget) {
  const std::string& name = Parameters("attr", call, {"name"}).text(0);
  if (v.dict() && !has_method(v, name) && !changes_its_object(v, name)) {
    return undefined(fmt::format("'dict' has no attribute '{}'", printable(name, 60)));
  }
  return get_attribute(v, name, budget);
}

using Filter = Value (*)(const Value&, Call, Budget&);
const std::unordered_map<std::string_view, Filter>& filters() {
  static const std::unordered_map<std::string_view, Filter> all = {{"abs", absolute},
                                                                   {"attr", attr},
                                                                   {"batch", batch},
                                                                   {"capitalize", capitalize_filter},
                                                                   {"center", center},
                                                                   {"count", length},
                                                                   {"d", default_filter},
                                                                   {"default", default_filter},
                                                                   {"dictsort", dictsort},
                                                                   {"e", escape},
                                                                   {"escape", escape},
                                                                   {"first", first},
                                                                   {"float", float_filter},
                                                                   {"forceescape", escape},
                                                                   {"format", format},
                                                                   {"groupby", groupby},
                                                                   {"indent", indent},
                                                                   {"int", int_filter},
                                                                   {"items", items},
                                                                   {"join", join},
                                                                   {"last", last},
                                                                   {"length", length},
                                                                   {"list", list},
                                                                   {"lower", lower_filter},
                                                                   {"map", map},
                                                                   {"max", max},
                                                                   {"min", min},
                                                                   {"reject", reject},
                                                                   {"rejectattr", rejectattr},
                                                                   {"replace", replace},
                                                                   {"reverse", reverse},
                                                                   {"round", round},
                                                                   {"safe", string_filter},
                                                                   {"select", select},
                                                                   {"selectattr", selectattr},
                                                                   {"slice", slice},
                                                                   {"sort", sort},
                                                                   {"string", string_filter},
                                                                   {"sum", sum},
                                                                   {"title", title_filter},
                                                                   {"tojson", tojson},
                                                                   {"trim", trim},
                                                                   {"truncate", truncate},
                                                                   {"unique", unique},
                                                                   {"upper", upper_filter},
                                                                   {"urlencode", urlencode},
                                                                   {"wordcount", wordcount}};
  return all;
}

}  // namespace

bool has_filter(std::string_view name) { return filters().contains(name); }

Value apply_filter(const std::string& name, const Value& value, const CallArguments& arguments, Budget& budget) {
  const auto found = filters().find(name);
  if (found == filters().end()) throw Error("there is no filter named '{}'", printable(name, 40));
  const Nested nested(budget);
  budget.step();
  return found->second(value, arguments, budget);
}

}  // namespace fathom::jinja
