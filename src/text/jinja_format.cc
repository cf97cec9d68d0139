// Python's three ways to format: "%s" % x, "{}".format(x) and the specifications inside the braces.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "text/jinja_runtime.h"
#include "text/jinja_text.h"

namespace fathom::jinja {
namespace {

constexpr Int kMaxWidth = 1 << 20;

struct Layout {
  std::string fill = std::string(1, ' ');
  char align = '\0';  // < > ^ =
  char sign = '-';
  bool alternate = false;
  char group = '\0';
  Int width = 0;
  Int precision = -1;
  char type = '\0';
};

Int read_int(std::string_view text, size_t& at) {
  Int value = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    value = value * 10 + (text[at++] - '0');
    if (value > kMaxWidth) throw Error("a width or precision of a format is too large");
  }
  return value;
}

std::string pad(const std::string& prefix, const std::string& body, const Layout& layout, char otherwise,
                Budget& budget) {
  const char align = layout.align ? layout.align : otherwise;
  const Int missing = layout.width - static_cast<Int>(code_points(prefix) + code_points(body));
  if (missing <= 0) return prefix + body;
  budget.make(missing * 4);
  const auto filling = [&](Int n) {
    std::string out;
    for (Int i = 0; i < n; ++i) out += layout.fill;
    return out;
  };
  if (align == '<') return prefix + body + filling(missing);
  if (align == '^') return filling(missing / 2) + prefix + body + filling(missing - missing / 2);
  if (align == '=') return prefix + filling(missing) + body;
  return filling(missing) + prefix + body;
}

std::string grouped(const std::string& digits, char group) {
  if (!group) return digits;
  const size_t whole = std::min(digits.find_first_not_of("0123456789"), digits.size());
  std::string out;
  for (size_t i = 0; i < whole; ++i) {
    if (i > 0 && (whole - i) % 3 == 0) out += group;
    out += digits[i];
  }
  return out + digits.substr(whole);
}

std::string sign_of(bool negative, char sign) { return negative ? "-" : sign == '+' ? "+" : sign == ' ' ? " " : ""; }

std::string float_digits(double value, char type, Int precision, bool alternate) {
  if (!std::isfinite(value)) {
    const std::string word = std::isnan(value) ? "nan" : "inf";
    return type == 'F' || type == 'E' || type == 'G' ? upper(word) : word;
  }
  if (precision > 400) throw Error("a precision of a format is too large");
  const int digits = precision < 0 ? 6 : static_cast<int>(precision);
  const bool general = type == 'g' || type == 'G';
  const char style = type == 'F' || type == '\0' ? 'f' : type;
  const std::string format =
      fmt::format("{{:{}.{}{}}}", alternate ? "#" : "", general ? std::max(digits, 1) : digits, style);
  return fmt::format(fmt::runtime(format), value);
}

std::string int_digits(Int magnitude, char type) {
  switch (type) {
    case 'x':
      return fmt::format("{:x}", magnitude);
    case 'X':
      return fmt::format("{:X}", magnitude);
    case 'o':
      return fmt::format("{:o}", magnitude);
    case 'b':
      return fmt::format("{:b}", magnitude);
    default:
      return int_text(magnitude);
  }
}

std::string format_int(Int value, const Layout& layout, Budget& budget) {
  if (value == static_cast<Int>(static_cast<unsigned __int128>(1) << 127)) throw Error("an integer is too large");
  const char type = layout.type;
  std::string prefix = sign_of(value < 0, layout.sign);
  if (layout.alternate && (type == 'x' || type == 'X' || type == 'o' || type == 'b')) prefix += std::string("0") + type;
  return pad(prefix, grouped(int_digits(value < 0 ? -value : value, type), layout.group), layout, '>', budget);
}

std::string format_float(double value, const Layout& layout, Budget& budget) {
  const double magnitude = std::fabs(value);
  std::string digits;
  if (layout.type == '%') {
    digits = float_digits(magnitude * 100, 'f', layout.precision, layout.alternate) + "%";
  } else if (layout.type == '\0' && layout.precision < 0) {
    digits = float_text(magnitude);
  } else if (layout.type == '\0') {
    digits = float_digits(magnitude, 'g', layout.precision, false);
    if (std::isfinite(value) && digits.find_first_of(".e") == std::string::npos) digits += ".0";
  } else {
    digits = float_digits(magnitude, layout.type, layout.precision, layout.alternate);
  }
  return pad(sign_of(std::signbit(value) && !std::isnan(value), layout.sign), grouped(digits, layout.group), layout,
             '>', budget);
}

Layout read_layout(std::string_view spec) {
  Layout layout;
  size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  size_t second = 0;
  if (!spec.empty()) decode_at(spec, second);
  if (second > 0 && second < spec.size() && is_align(spec[second])) {
    layout.fill = spec.substr(0, second);
    layout.align = spec[second];
    at = second + 1;
  } else if (!spec.empty() && is_align(spec[0])) {
    layout.align = spec[at++];
  }
  const auto here = [&](std::string_view options) {
    return at < spec.size() && options.find(spec[at]) != std::string_view::npos;
  };
  if (here("+- ")) layout.sign = spec[at++];
  if (here("#")) layout.alternate = ++at > 0;
  if (here("0")) {
    ++at;
    if (!layout.align) layout.fill = std::string(1, '0'), layout.align = '=';
  }
  layout.width = read_int(spec, at);
  if (here(",_")) layout.group = spec[at++];
  if (here(".")) {
    const size_t begin = ++at;
    layout.precision = read_int(spec, at);
    if (at == begin) throw Error("a format has no precision behind its point");
  }
  if (at < spec.size()) layout.type = spec[at++];
  if (at != spec.size()) throw Error("the format '{}' is not understood", printable(spec, 40));
  return layout;
}

}  // namespace

std::string format_value(const Value& value, std::string_view specification, Budget& budget) {
  if (specification.empty()) return to_text(value, budget);
  Layout layout = read_layout(specification);
  const auto refuse = [&]() -> Error {
    return Error("the format '{}' does not fit a {}", printable(specification, 40), type_name(value));
  };
  Int integer = 0;
  constexpr std::string_view kIntTypes("bdoxXn"), kFloatTypes("eEfFgG%");
  if (value.text()) {
    if ((layout.type && layout.type != 's') || layout.sign != '-' || layout.group || layout.alternate) throw refuse();
    if (layout.align == '=') {
      if (layout.fill != "0") throw refuse();
      layout.align = '<';
    }
    std::string_view text = *value.text();
    if (layout.precision >= 0) text = text.substr(0, byte_offset(text, static_cast<size_t>(layout.precision)));
    return pad("", std::string(text), layout, '<', budget);
  }
  if (value.is<bool>() && !layout.type) {
    // A boolean without a type is formatted as the integer it is.
    layout.type = 'd';
  }
  if (as_int(value, integer)) {
    if (!layout.type || kIntTypes.find(layout.type) != std::string_view::npos) {
      if (layout.precision >= 0) throw refuse();
      return format_int(integer, layout, budget);
    }
    if (layout.type == 'c') {
      if (integer < 0 || integer > 0x10ffff || (integer >= 0xd800 && integer < 0xe000)) throw refuse();
      std::string out;
      append_utf8(out, static_cast<char32_t>(integer));
      return pad("", out, layout, '>', budget);
    }
    if (kFloatTypes.find(layout.type) == std::string_view::npos) throw refuse();
    return format_float(static_cast<double>(integer), layout, budget);
  }
  if (const double* d = value.as<double>()) {
    if (layout.type && kFloatTypes.find(layout.type) == std::string_view::npos) throw refuse();
    return format_float(*d, layout, budget);
  }
  throw refuse();
}

std::string percent_format(std::string_view format, const Value& arguments, Budget& budget) {
  std::vector<Value> given;
  const bool is_tuple = arguments.sequence() && arguments.sequence()->kind == SequenceKind::kTuple;
  const Dict* named = arguments.dict();
  if (is_tuple) {
    given = arguments.sequence()->items;
  } else {
    given.push_back(arguments);
  }
  size_t next = 0;
  bool used_names = false;
  const auto take = [&]() -> const Value& {
    if (next >= given.size()) throw Error("a format has more places than there are values");
    return given[next++];
  };
  std::string out;
  for (size_t at = 0; at < format.size();) {
    if (format[at] != '%') {
      out += format[at++];
      continue;
    }
    if (++at >= format.size()) throw Error("a format ends in '%'");
    const Value* value = nullptr;
    if (format[at] == '(') {
      const size_t end = format.find(')', at);
      if (!named || end == std::string_view::npos) throw Error("a format with %(name) needs a dict");
      value = named->find(format.substr(at + 1, end - at - 1));
      if (!value) throw Error("a format names a key that is not there");
      used_names = true;
      at = end + 1;
    }
    Layout layout;
    bool left = false, zero = false;
    for (; at < format.size() && std::string_view("-+ #0").find(format[at]) != std::string_view::npos; ++at) {
      left |= format[at] == '-';
      zero |= format[at] == '0';
      layout.alternate |= format[at] == '#';
      if (format[at] == '+' || (format[at] == ' ' && layout.sign != '+')) layout.sign = format[at];
    }
    const auto count = [&]() -> Int {
      if (at >= format.size() || format[at] != '*') return read_int(format, at);
      ++at;
      return std::min(require_int(take(), "a width of a format"), kMaxWidth);
    };
    layout.width = count();
    if (layout.width < 0) left = true, layout.width = -layout.width;
    if (at < format.size() && format[at] == '.') layout.precision = std::max<Int>((++at, count()), 0);
    while (at < format.size() && (format[at] == 'l' || format[at] == 'h' || format[at] == 'L')) ++at;
    if (at >= format.size()) throw Error("a format ends too early");
    layout.type = format[at++];
    layout.align = left ? '<' : '\0';
    if (layout.type == '%') {
      out += '%';
      continue;
    }
    if (!value) value = &take();
    const char type = layout.type;
    if (type == 's' || type == 'r' || type == 'a') {
      std::string text = type == 's' ? to_text(*value, budget) : to_repr(*value, budget);
      if (layout.precision >= 0) text.resize(byte_offset(text, static_cast<size_t>(layout.precision)));
      out += pad("", text, layout, '>', budget);
      continue;
    }
    if (value->is_undefined()) fail_undefined(*value);
    if (zero && !left) layout.fill = std::string(1, '0'), layout.align = '=';
    Int integer = 0;
    if (type == 'c') {
      layout.fill = std::string(1, ' ');
      if (!left) layout.align = '>';
      if (value->text() && code_points(*value->text()) != 1) throw Error("%c needs one character");
      out += value->text()
                 ? pad("", *value->text(), layout, '>', budget)
                 : format_value(*value, fmt::format("{}{}c", left ? "<" : ">", int_text(layout.width)), budget);
    } else if (std::string_view("diouxX").find(type) != std::string_view::npos) {
      if (!is_number(*value)) throw Error("%{} needs a number, not {}", type, type_name(*value));
      if (!as_int(*value, integer)) {
        const double d = std::trunc(as_double(*value));
        if (!(std::fabs(d) < 1e37) || type == 'x' || type == 'X' || type == 'o')
          throw Error("%{} needs an integer", type);
        integer = static_cast<Int>(d);
      }
      if (type == 'i' || type == 'u') layout.type = 'd';
      const Int wanted = std::exchange(layout.precision, -1);
      if (wanted >= 0) {
        Layout inner = layout;
        inner.fill = std::string(1, '0'), inner.align = '=', inner.width = wanted + (integer < 0 || layout.sign != '-');
        out += pad("", format_int(integer, inner, budget), layout, '>', budget);
      } else {
        out += format_int(integer, layout, budget);
      }
    } else if (std::string_view("eEfFgG").find(type) != std::string_view::npos) {
      if (!is_number(*value)) throw Error("%{} needs a number, not {}", type, type_name(*value));
      out += format_float(as_double(*value), layout, budget);
    } else {
      throw Error("'%{}' is no format", printable(std::string(1, type)));
    }
    budget.make(static_cast<Int>(out.size() / 64 + 1));
  }
  // Python counts the values of a tuple or a plain value only; lists, and Jinja's undefined, could be asked for a name.
  const bool counted = is_tuple || !(arguments.sequence() || arguments.is_undefined());
  if (!used_names && next < given.size() && !named && counted) {
    throw Error("a format has fewer places than there are values");
  }
  return out;
}

namespace {

// {0.name[key]!r:spec}: the field between its braces.
class BraceFormat {
 public:
  BraceFormat(const CallArguments& arguments, Budget& budget) : arguments_(arguments), budget_(budget) {}

  std::string run(std::string_view format, int depth) {
    if (depth > 2) throw Error("str.format: fields are nested too deep");
    std::string out;
    for (size_t at = 0; at < format.size();) {
      const char c = format[at++];
      if (c != '{' && c != '}') {
        out += c;
      } else if (at < format.size() && format[at] == c) {
        out += c;
        ++at;
      } else if (c == '}') {
        throw Error("str.format: a single '}}' stands in the format");
      } else {
        int open = 1;
        const size_t begin = at;
        for (; at < format.size() && open > 0; ++at) open += format[at] == '{' ? 1 : format[at] == '}' ? -1 : 0;
        if (open > 0) throw Error("str.format: a '{{' is not closed");
        out += field(format.substr(begin, at - 1 - begin), depth);
        budget_.make(static_cast<Int>(out.size() / 64 + 1));
      }
    }
    return out;
  }

 private:
  std::string field(std::string_view text, int depth) {
    size_t name_end = 0;
    for (bool bracket = false; name_end < text.size(); ++name_end) {
      if (text[name_end] == '[') bracket = true;
      if (text[name_end] == ']') bracket = false;
      if (!bracket && (text[name_end] == '!' || text[name_end] == ':')) break;
    }
    Value value = named(text.substr(0, name_end));
    std::string_view rest = text.substr(name_end);
    if (rest.starts_with('!')) {
      if (rest.size() < 2 || (rest.size() > 2 && rest[2] != ':'))
        throw Error("str.format: a conversion is not understood");
      if (rest[1] == 's') {
        value = make_text(to_text(value, budget_), budget_);
      } else if (rest[1] == 'r' || rest[1] == 'a') {
        value = make_text(to_repr(value, budget_), budget_);
      } else {
        throw Error("str.format: a conversion is not understood");
      }
      rest = rest.substr(2);
    }
    return format_value(value, rest.empty() ? "" : run(rest.substr(1), depth + 1), budget_);
  }

  Value named(std::string_view path) {
    size_t at = std::min(path.find_first_of(".["), path.size());
    const std::string_view first = path.substr(0, at);
    Value value;
    if (first.empty() || (first[0] >= '0' && first[0] <= '9')) {
      size_t end = 0;
      const Int index = first.empty() ? static_cast<Int>(next_++) : read_int(first, end);
      if (end != first.size()) throw Error("str.format: a field's number is not understood");
      (first.empty() ? automatic_ : numbered_) = true;
      if (automatic_ && numbered_) throw Error("str.format: numbered and unnumbered fields are mixed");
      if (index >= static_cast<Int>(arguments_.positional.size()))
        throw Error("str.format: there are more fields than values");
      value = arguments_.positional[static_cast<size_t>(index)];
    } else {
      const auto found = std::find_if(arguments_.named.begin(), arguments_.named.end(),
                                      [&](const auto& argument) { return argument.first == first; });
      if (found == arguments_.named.end()) throw Error("str.format: '{}' is not given", printable(first, 40));
      value = found->second;
    }
    while (at < path.size()) {
      const bool bracket = path[at++] == '[';
      const size_t end = bracket ? path.find(']', at) : std::min(path.find_first_of(".[", at), path.size());
      if (end == std::string_view::npos || end == at) throw Error("str.format: a field is not understood");
      const std::string key(path.substr(at, end - at));
      const bool is_index = bracket && key.find_first_not_of("0123456789") == std::string::npos;
      size_t zero = 0;
      value = is_index  ? get_item(value, read_int(key, zero), budget_)
              : bracket ? get_item(value, key, budget_)
                        : get_attribute(value, key, budget_);
      at = end + bracket;
    }
    return value;
  }

  const CallArguments& arguments_;
  Budget& budget_;
  size_t next_ = 0;
  bool automatic_ = false, numbered_ = false;
};

}  // namespace

std::string brace_format(std::string_view format, const CallArguments& arguments, Budget& budget) {
  return BraceFormat(arguments, budget).run(format, 0);
}

}  // namespace fathom::jinja
