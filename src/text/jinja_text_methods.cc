// The methods of Python's str.
#include <algorithm>

#include "base/error.h"
#include "text/jinja_runtime.h"
#include "text/jinja_text.h"

namespace fathom::jinja {
namespace {

constexpr std::string_view kMethods[] = {
    "capitalize",   "casefold",   "center",    "count",       "encode",    "endswith",     "expandtabs",   "find",
    "format",       "format_map", "index",     "isalnum",     "isalpha",   "isascii",      "isdecimal",    "isdigit",
    "isidentifier", "islower",    "isnumeric", "isprintable", "isspace",   "istitle",      "isupper",      "join",
    "ljust",        "lower",      "lstrip",    "maketrans",   "partition", "removeprefix", "removesuffix", "replace",
    "rfind",        "rindex",     "rjust",     "rpartition",  "rsplit",    "rstrip",       "split",        "splitlines",
    "startswith",   "strip",      "swapcase",  "title",       "translate", "upper",        "zfill"};

using Call = const CallArguments&;

Value pieces(const std::vector<std::string_view>& parts, Budget& budget) {
  budget.step(static_cast<int64_t>(parts.size()));
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.push_back(make_text(std::string(part), budget));
  return make_list(std::move(items), budget);
}

std::vector<std::string_view> split_on_space(std::string_view text, Int most) {
  std::vector<std::string_view> parts;
  text = strip(text, nullptr, true, false);
  while (!text.empty()) {
    if (most >= 0 && static_cast<Int>(parts.size()) == most) {
      parts.push_back(text);
      break;
    }
    size_t end = 0;
    for (size_t next = 0; end < text.size(); end = next) {
      if (is_space(decode_at(text, next))) break;
    }
    parts.push_back(text.substr(0, end));
    text = strip(text.substr(end), nullptr, true, false);
  }
  return parts;
}

std::vector<std::string_view> rsplit_on_space(std::string_view text, Int most) {
  std::vector<std::string_view> parts;
  text = strip(text, nullptr, false, true);
  while (!text.empty()) {
    if (most >= 0 && static_cast<Int>(parts.size()) == most) {
      parts.push_back(text);
      break;
    }
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
      if (is_space(decode_at(text, at))) begin = at;
    }
    parts.push_back(text.substr(begin));
    text = strip(text.substr(0, begin), nullptr, false, true);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

Value split(const std::string& text, bool from_right, Call arguments, Budget& budget) {
  const Parameters given(from_right ? "str.rsplit" : "str.split", arguments, {"sep", "maxsplit"});
  const Int most = given.integer(1, -1);
  std::string_view rest = text;
  std::vector<std::string_view> parts;
  if (!given[0] || given[0]->is_none()) {
    if (!from_right) return pieces(split_on_space(rest, most), budget);
    if (most < 0) return pieces(split_on_space(rest, most), budget);
    budget.step(static_cast<int64_t>(text.size()) * static_cast<int64_t>(std::min<Int>(most, 1000) + 1) / 64);
    return pieces(rsplit_on_space(rest, most), budget);
  }
  const std::string& separator = given.text(0);
  if (separator.empty()) throw Error("str.split: the separator is empty");
  while (most < 0 || static_cast<Int>(parts.size()) < most) {
    const size_t at = from_right ? rest.rfind(separator) : rest.find(separator);
    if (at == std::string_view::npos) break;
    parts.push_back(from_right ? rest.substr(at + separator.size()) : rest.substr(0, at));
    rest = from_right ? rest.substr(0, at) : rest.substr(at + separator.size());
  }
  parts.push_back(rest);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return pieces(parts, budget);
}

// The bytes of text[start:end], both in characters as Python counts them; nothing when start lies behind the end.
struct Window {
  size_t begin, end;
  bool possible;
};
Window window(const std::string& text, const Parameters& given, size_t first) {
  const Int n = static_cast<Int>(code_points(text));
  const auto at = [&](size_t i, Int otherwise) {
    const Int value = given[i] && !given[i]->is_none() ? given.integer(i, otherwise) : otherwise;
    return value < 0 ? std::max(value + n, Int(0)) : value;
  };
  const Int begin = at(first, 0), end = std::min(at(first + 1, n), n);
  if (begin > n || begin > end) return {0, 0, false};
  return {byte_offset(text, static_cast<size_t>(begin)), byte_offset(text, static_cast<size_t>(end)), true};
}

Value starts_or_ends(const std::string& text, bool start, Call arguments) {
  const Parameters given(start ? "str.startswith" : "str.endswith", arguments, {"what", "start", "end"});
  const Window in = window(text, given, 1);
  const auto fits = [&](const Value& what) {
    if (!what.text()) throw Error("str.{} needs a text or a tuple of texts", start ? "startswith" : "endswith");
    const std::string_view part = std::string_view(text).substr(in.begin, in.end - in.begin);
    return in.possible && (start ? part.starts_with(*what.text()) : part.ends_with(*what.text()));
  };
  const Value what = given.get(0, Value());
  if (what.sequence() && what.sequence()->kind == SequenceKind::kTuple) {
    const auto& options = what.sequence()->items;
    return std::any_of(options.begin(), options.end(), fits);
  }
  if (what.is_undefined() && given[0]) fail_undefined(what);
  return fits(what);
}

Value find(const std::string& text, const std::string& name, Call arguments) {
  const Parameters given("str." + name, arguments, {"what", "start", "end"});
  const std::string& what = given.text(0);
  const Window in = window(text, given, 1);
  const std::string_view part = std::string_view(text).substr(in.begin, in.end - in.begin);
  if (name == "count") {
    if (!in.possible) return 0;
    if (what.empty()) return code_points(part) + 1;
    Int count = 0;
    for (size_t at = part.find(what); at != std::string_view::npos; at = part.find(what, at + what.size())) ++count;
    return count;
  }
  const size_t at = !in.possible ? std::string_view::npos : name.starts_with('r') ? part.rfind(what) : part.find(what);
  if (at != std::string_view::npos) return code_points(std::string_view(text).substr(0, in.begin + at));
  if (name.ends_with("index")) throw Error("str.{}: the text is not found", name);
  return -1;
}

Value justify(const std::string& text, const std::string& name, Call arguments, Budget& budget) {
  const Parameters given("str." + name, arguments, {"width", "fillchar"});
  const std::string fill = given[1] ? given.text(1) : name == "zfill" ? "0" : " ";
  if (code_points(fill) != 1) throw Error("str.{}: the filling must be one character", name);
  const Int missing = given.integer(0, 0) - static_cast<Int>(code_points(text));
  if (missing <= 0) return text;
  budget.make(missing * static_cast<Int>(fill.size()) + static_cast<Int>(text.size()));
  const Int width = given.integer(0, 0);
  const Int left = name == "ljust" ? Int(0) : name == "center" ? missing / 2 + (missing & width & 1) : missing;
  std::string out;
  const bool has_sign = name == "zfill" && (text.starts_with('-') || text.starts_with('+'));
  if (has_sign) out += text[0];
  for (Int i = 0; i < left; ++i) out += fill;
  out += has_sign ? text.substr(1) : text;
  for (Int i = left; i < missing; ++i) out += fill;
  return out;
}

Value partition(const std::string& text, bool from_right, Call arguments, Budget& budget) {
  const std::string& separator = Parameters("str.partition", arguments, {"sep"}).text(0);
  if (separator.empty()) throw Error("str.partition: the separator is empty");
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  if (at == std::string::npos) {
    return from_right ? make_tuple({"", "", text}, budget) : make_tuple({text, "", ""}, budget);
  }
  return make_tuple({text.substr(0, at), separator, text.substr(at + separator.size())}, budget);
}

Value join(const std::string& text, Call arguments, Budget& budget) {
  const Parameters given("str.join", arguments, {"iterable"});
  std::string out;
  bool first = true;
  for (const Value& item : elements(given.get(0, None{}), budget)) {
    if (!item.text()) throw Error("str.join: a text is expected, a {} found", type_name(item));
    budget.make(static_cast<Int>(item.text()->size() + text.size()));
    if (!first) out += text;
    first = false;
    out += *item.text();
  }
  return out;
}

// str.title: a letter after anything but a letter is in title case.
std::string title(const std::string& text) {
  std::string out;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = decode_at(text, at);
    inside ? append_lower(out, c) : append_title(out, c);
    inside = is_cased(c);
  }
  return out;
}

std::string swap_case(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = decode_at(text, at);
    is_upper(c) ? append_lower(out, c) : append_upper(out, c);
  }
  return out;
}

bool is_title(const std::string& text) {
  bool inside = false, any = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = decode_at(text, at);
    if (is_cased(c)) {
      const bool big = !is_lower(c);
      if (big == inside) return false;
      inside = any = true;
    } else {
      inside = false;
    }
  }
  return any;
}

template <class Test>
bool all_characters(const std::string& text, Test test) {
  for (size_t at = 0; at < text.size();) {
    if (!test(decode_at(text, at))) return false;
  }
  return true;
}

bool has_property(const std::string& text, const std::string& name) {
  if (name == "isascii") return all_characters(text, [](char32_t c) { return c < 0x80; });
  if (name == "isprintable") return all_characters(text, is_printable);
  if (name == "islower" || name == "isupper") {
    const bool wants_lower = name == "islower";
    return !all_characters(text, [](char32_t c) { return !is_cased(c); }) &&
           all_characters(text, [&](char32_t c) { return !is_cased(c) || (wants_lower ? is_lower(c) : is_upper(c)); });
  }
  if (name == "istitle") return is_title(text);
  if (text.empty()) return false;
  if (name == "isalpha") return all_characters(text, is_letter);
  if (name == "isspace") return all_characters(text, is_space);
  if (name == "isalnum") return all_characters(text, [](char32_t c) { return is_letter(c) || is_decimal(c); });
  if (name == "isidentifier") {
    return !is_decimal(static_cast<unsigned char>(text[0])) &&
           all_characters(text, [](char32_t c) { return c == '_' || is_letter(c) || is_decimal(c); });
  }
  return all_characters(text, is_decimal);  // isdigit, isdecimal, isnumeric
}

Value expand_tabs(const std::string& text, Call arguments, Budget& budget) {
  const Int width = Parameters("str.expandtabs", arguments, {"tabsize"}).integer(0, 8);
  std::string out;
  Int column = 0;
  for (const char c : text) {
    if (c == '\t') {
      const Int spaces = width > 0 ? width - column % width : Int(0);
      budget.make(spaces);
      out.append(static_cast<size_t>(spaces), ' ');
      column += spaces;
    } else {
      out += c;
      column = c == '\n' || c == '\r' ? Int(0) : column + ((static_cast<unsigned char>(c) & 0xc0) != 0x80);
    }
  }
  return out;
}

}  // namespace

bool is_text_method(std::string_view name) {
  return std::find(std::begin(kMethods), std::end(kMethods), name) != std::end(kMethods);
}

std::string replace_text(std::string_view text, std::string_view from, std::string_view to, Int count, Budget& budget) {
  std::string out;
  size_t at = 0;
  for (Int n = 0; count < 0 || n < count; ++n) {
    size_t found = text.find(from, at);
    if (from.empty() && n > 0) {  // between characters, and behind the last
      if (at >= text.size()) break;
      found = at;
      decode_at(text, found);
    }
    if (found == std::string_view::npos) break;
    budget.make(static_cast<Int>(found - at + to.size()));
    out += text.substr(at, found - at);
    out += to;
    at = found + from.size();
  }
  return out += text.substr(at);
}

Value call_text_method(const Value& self, const std::string& name, const CallArguments& arguments, Budget& budget) {
  const std::string& text = *self.text();
  budget.scan(text.size());
  const auto plain = [&] { const Parameters none("str." + name, arguments, {}); };
  if (name == "split" || name == "rsplit") return split(text, name == "rsplit", arguments, budget);
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Parameters given("str." + name, arguments, {"chars"});
    const std::string* chars = given[0] && !given[0]->is_none() ? &given.text(0) : nullptr;
    if (chars) budget.step(static_cast<int64_t>(text.size() / 16 * std::min<size_t>(chars->size(), 1024) / 16));
    return make_text(std::string(strip(text, chars, name != "rstrip", name != "lstrip")), budget);
  }
  if (name == "startswith" || name == "endswith") return starts_or_ends(text, name == "startswith", arguments);
  if (name == "replace") {
    const Parameters given("str.replace", arguments, {"old", "new", "count"});
    return make_text(replace_text(text, given.text(0), given.text(1), given.integer(2, -1), budget), budget);
  }
  if (name == "join") return join(text, arguments, budget);
  if (name == "format") return make_text(brace_format(text, arguments, budget), budget);
  if (name == "find" || name == "rfind" || name == "index" || name == "rindex" || name == "count") {
    return find(text, name, arguments);
  }
  if (name == "center" || name == "ljust" || name == "rjust" || name == "zfill")
    return justify(text, name, arguments, budget);
  if (name == "partition" || name == "rpartition") return partition(text, name == "rpartition", arguments, budget);
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& part = Parameters("str." + name, arguments, {"part"}).text(0);
    if (name == "removeprefix" ? !text.starts_with(part) : !text.ends_with(part)) return self;
    return make_text(name == "removeprefix" ? text.substr(part.size()) : text.substr(0, text.size() - part.size()),
                     budget);
  }
  if (name == "splitlines") {
    return pieces(split_lines(text, Parameters("str.splitlines", arguments, {"keepends"}).flag(0)), budget);
  }
  if (name == "expandtabs") return expand_tabs(text, arguments, budget);
  plain();
  if (name == "upper") return make_text(upper(text), budget);
  if (name == "lower" || name == "casefold") return make_text(lower(text), budget);
  if (name == "capitalize") return make_text(capitalize(text), budget);
  if (name == "title") return make_text(title(text), budget);
  if (name == "swapcase") return make_text(swap_case(text), budget);
  if (name.starts_with("is")) return has_property(text, name);
  throw Error("str.{} is not offered to templates", name);
}

}  // namespace fathom::jinja
