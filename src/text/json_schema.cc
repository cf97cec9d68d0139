#include "text/json_schema.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/error.h"
#include "base/utf8.h"
#include "text/regex_grammar.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;
using Piece = GrammarBuilder::Piece;
using Kind = GrammarNode::Kind;

constexpr uint64_t kUnlimited = GrammarBuilder::kUnlimited;
constexpr size_t kMaxMergedBytes = size_t{4} << 20;  // of schemas put together from others
constexpr size_t kMaxMergedValues = 200'000;
constexpr size_t kMaxPathBytes = 256;  // more is not shown, and there may be a path for every few bytes of the schema

// clang-format off
constexpr std::string_view kConstraints[] = {
    "$ref", "allOf", "anyOf", "oneOf", "type", "enum", "const", "properties", "required", "items", "minItems",
    "additionalProperties", "maxItems", "pattern", "format", "prefixItems", "minLength", "minimum", "maximum",
    "exclusiveMinimum", "maxLength", "exclusiveMaximum"};
constexpr std::string_view kUnsupported[] = {
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "patternProperties", "propertyNames",
    "multipleOf", "dependentRequired", "dependentSchemas", "dependencies", "minProperties", "maxProperties",
    "unevaluatedProperties", "$dynamicRef", "unevaluatedItems", "additionalItems", "$recursiveRef"};
// clang-format on

bool is_in(std::string_view word, std::span<const std::string_view> words) {
  return std::ranges::find(words, word) != words.end();
}

const Json* find(const Json& object, const std::string& key) {
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

bool is_hex(char c) { return std::string_view("0123456789abcdefABCDEF").find(c) != std::string_view::npos; }

std::string spelled(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

// The part of a path that a key or an index is.
std::string step_to(std::string_view key) {
  std::string step = "/";
  for (const char c : key) step += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
  return step;
}

// The regular expression of RFC 3339, RFC 4122, RFC 791 and, of RFC 5321, what is usual; empty for other formats.
std::string format_pattern(std::string_view format) {
  std::string date =
      "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
      ")|"
      "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)";
  std::string time = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[-+]([01][0-9]|2[0-3]):[0-5][0-9])";
  const std::string octet = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
  if (format == "date") return date;
  if (format == "time") return time;
  if (format == "date-time") return date + "T" + time;
  if (format == "uuid") return "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";
  if (format == "ipv4") return "(" + octet + "\\.){3}" + octet;
  if (format == "email") {
    return "[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,32}){0,3}"
           "@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\\.){1,4}[A-Za-z]{2,16}";
  }
  return "";
}

enum Type : unsigned {
  kNull = 1,
  kBoolean = 2,
  kInteger = 4,
  kNumber = 8,
  kString = 16,
  kArray = 32,
  kObject = 64,
  kAny = 127
};

constexpr std::pair<std::string_view, unsigned> kTypes[] = {
    {"null", kNull},     {"boolean", kBoolean}, {"integer", kInteger}, {"number", kNumber | kInteger},
    {"string", kString}, {"array", kArray},     {"object", kObject}};

unsigned type_of(const Json& value) {
  if (value.is_null()) return kNull;
  if (value.is_boolean()) return kBoolean;
  if (value.is_string()) return kString;
  if (value.is_array()) return kArray;
  if (value.is_object()) return kObject;
  return value.is_number_integer() || std::trunc(value.get<double>()) == value.get<double>() ? kInteger : kNumber;
}

class Compiler {
 public:
  Compiler();
  std::shared_ptr<const Grammar> compile(const Json& schema);
  std::shared_ptr<const Grammar> compile_any_object() { return builder_.finish(any_object_); }

 private:
  struct Pending {
    const Json* schema;
    std::string path;
    uint32_t rule;
  };
  struct Property {
    std::string key;
    uint32_t value;  // a rule
    bool required;
  };

  uint32_t new_rule(std::string name, Piece body);
  uint32_t pattern_rule(std::string_view pattern, RegexText text, RegexMatch match, bool quoted);
  uint32_t other_keys(const std::vector<std::string>& names);
  uint32_t member(Piece key, uint32_t value);
  uint32_t spaces(uint32_t next) { return builder_.call_node(spaces_, next); }
  void define_object(uint32_t rule, const std::vector<Property>& properties, std::optional<uint32_t> additional);
  void define_array(uint32_t rule, const std::vector<uint32_t>& first, std::optional<uint32_t> rest, uint64_t min,
                    uint64_t max);
  void define_as_any(uint32_t rule, const std::vector<uint32_t>& rules);

  uint32_t rule_of(const Json& schema, const std::string& path);
  uint32_t rule_of_merged(Json schema, const std::string& path);
  void define_schema(const Pending& pending);
  void define_alternatives(const Json& schema, const char* key, const Pending& pending);
  void define_values(const Json& schema, const Pending& pending);
  void define_types(const Json& schema, const Pending& pending);
  void define_object_schema(const Json& schema, const std::string& path, uint32_t rule);
  void define_array_schema(const Json& schema, const std::string& path, uint32_t rule);
  uint32_t string_rule(const Json& schema, const std::string& path);
  uint32_t number_rule(const Json& schema, const std::string& path, bool integers);

  std::pair<const Json*, std::string> referred(const Json& ref, const std::string& path) const;
  Json flat(const Json& schema, const std::string& path, size_t depth);
  void merge(Json& into, const Json& from, const std::string& path);
  void merge_keyword(Json& into, const std::string& key, const Json& value, const std::string& path);

  GrammarBuilder builder_;
  uint32_t spaces_ = 0, characters_ = 0, character_ = 0, not_ascii_ = 0, string_ = 0, number_ = 0, integer_ = 0;
  uint32_t boolean_ = 0, null_ = 0, any_ = 0, any_array_ = 0, any_object_ = 0, never_ = 0;

  const Json* root_ = nullptr;
  std::deque<Pending> pending_;
  std::deque<Json> merged_;  // what schemas became
  std::unordered_map<const Json*, uint32_t> rules_;
  std::unordered_map<std::string, uint32_t> merged_rules_, pattern_rules_;  // by their text
  size_t merged_bytes_ = 0, merged_values_ = 0;
};

// A schema that is no deeper than kMaxSchemaDepth can be read by functions that call themselves.
void check_size(const Json& schema) {
  std::vector<std::pair<const Json*, size_t>> todo = {{&schema, 1}};
  size_t bytes = 0;
  const auto add = [&](const std::string& text) {
    bytes += text.size() + 2;
    if (first_invalid_utf8(text) != kNoPosition) throw Error("#: the schema is not UTF-8");
  };
  while (!todo.empty()) {
    const auto [value, depth] = todo.back();
    todo.pop_back();
    if (depth > kMaxSchemaDepth) throw Error("#: the schema is nested deeper than {} levels", kMaxSchemaDepth);
    bytes += 1 + value->size();
    if (value->is_string()) add(value->get_ref<const std::string&>());
    if (value->is_object()) {
      for (const auto& [key, child] : value->items()) add(key);
    }
    if (bytes > kMaxSchemaBytes) throw Error("#: the schema is longer than {} bytes", kMaxSchemaBytes);
    if (!value->is_structured()) continue;
    for (const Json& child : *value) todo.emplace_back(&child, depth + 1);
  }
}

size_t n_values(const Json& value) {
  size_t n = 1;
  if (value.is_structured()) {
    for (const Json& child : value) n += n_values(child);
  }
  return n;
}

void check_keywords(const Json& schema, const std::string& path) {
  if (!schema.is_object()) throw Error("{}: a schema must be an object, true or false", printable(path));
  for (const auto& [key, value] : schema.items()) {
    const bool changes = is_in(key, kUnsupported) || (key == "uniqueItems" && value != false);
    if (changes) throw Error("{}: {} is not supported", printable(path), key);
  }
}

bool has_constraint(const Json& schema, std::initializer_list<std::string_view> except) {
  for (const auto& [key, value] : schema.items()) {
    if (is_in(key, kConstraints) && !is_in(key, {except.begin(), except.size()})) return true;
  }
  return false;
}

const Json& list_of(const Json& schema, const char* key, const std::string& path) {
  const Json& list = *find(schema, key);
  if (!list.is_array() || list.empty()) throw Error("{}: {} must be a list that is not empty", printable(path), key);
  return list;
}

struct Counts {
  uint64_t min, max;
};

Counts counts_of(const Json& schema, const char* min_key, const char* max_key, const std::string& path) {
  const auto count_of = [&](const char* key, uint64_t otherwise) {
    const Json* count = find(schema, key);
    if (count == nullptr) return otherwise;
    const double size = count->is_number() ? count->get<double>() : -1;
    if (!(size >= 0) || std::trunc(size) != size) throw Error("{}: {} must be a whole number", printable(path), key);
    return static_cast<uint64_t>(std::min(size, 1e15));  // all of them too large
  };
  const Counts counts{count_of(min_key, 0), count_of(max_key, kUnlimited)};
  if (counts.min > counts.max) throw Error("{}: {} is greater than {}", printable(path), min_key, max_key);
  return counts;
}

Compiler::Compiler() {
  const auto regex = [&](std::string_view pattern) {
    return regex_piece(builder_, pattern, RegexText::plain, RegexMatch::whole);
  };
  // Surrogates come in pairs, which are one character.
  constexpr std::string_view kCharacter =
      R"(([^"\\\x00-\x1F]|\\(["\\/bfnrt]|u([0-9a-cefA-CEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}|)"
      R"([dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))))";
  spaces_ = new_rule("spaces", regex("( |\\n{1,2}[ \\t]{0,40})?"));
  character_ = new_rule("character", regex(kCharacter));
  characters_ = new_rule("characters", regex(std::string(kCharacter) + "*\""));
  not_ascii_ = new_rule("not ASCII", regex("[^\\x00-\\x7F]"));
  string_ = new_rule("string", regex("\"" + std::string(kCharacter) + "*\""));
  integer_ = new_rule("integer", regex("-?(0|[1-9][0-9]{0,19})"));
  number_ = new_rule("number", regex("-?(0|[1-9][0-9]{0,19})(\\.[0-9]{1,20})?([eE][-+]?[0-9]{1,2})?"));
  boolean_ = new_rule("boolean", regex("true|false"));
  null_ = new_rule("null", builder_.text("null"));
  never_ = new_rule("never", builder_.never());
  any_ = builder_.add_rule("value");
  any_array_ = builder_.add_rule("array");
  any_object_ = builder_.add_rule("object");
  define_as_any(any_, {any_object_, any_array_, string_, number_, boolean_, null_});
  define_array(any_array_, {}, any_, 0, kUnlimited);
  define_object(any_object_, {}, any_);
}

uint32_t Compiler::new_rule(std::string name, Piece body) {
  const uint32_t rule = builder_.add_rule(std::move(name));
  builder_.define(rule, body);
  return rule;
}

uint32_t Compiler::pattern_rule(std::string_view pattern, RegexText text, RegexMatch match, bool quoted) {
  std::string key = fmt::format("{}{}{}{}", static_cast<int>(text), static_cast<int>(match), quoted, pattern);
  const auto known = pattern_rules_.find(key);
  if (known != pattern_rules_.end()) return known->second;
  Piece piece = quoted ? builder_.text("\"") : builder_.nothing();
  piece = builder_.then(piece, regex_piece(builder_, pattern, text, match));
  if (quoted) piece = builder_.then(piece, builder_.text("\""));
  const uint32_t rule = new_rule(std::string(pattern), piece);
  pattern_rules_.emplace(std::move(key), rule);
  return rule;
}

void Compiler::define_as_any(uint32_t rule, const std::vector<uint32_t>& rules) {
  std::optional<Piece> any;
  for (const uint32_t one : rules) {
    const Piece call = builder_.call(one);
    any = any ? builder_.either(*any, call) : call;
  }
  builder_.define(rule, *any);
}

// Keys, in quotes, other than these. As long as one begins like a name, what needs no escape has none.
uint32_t Compiler::other_keys(const std::vector<std::string>& names) {
  if (names.empty()) return string_;
  std::vector<std::u32string> texts;
  for (std::string_view name : names) {
    std::u32string& text = texts.emplace_back();
    for (; !name.empty(); name.remove_prefix(utf8_unit(name).bytes)) text += utf8_code_point(name);
  }
  const std::vector<Twig> twigs = trie_of(std::move(texts));
  constexpr std::u32string_view kEscaped = U"\b\f\n\r\t\"\\";
  constexpr std::string_view kLetters = "bfnrt\"\\";
  ByteSet ascii, letters;
  for (size_t c = 0x20; c < 0x80; ++c) ascii.set(c, c != '"' && c != '\\');
  for (const char letter : kLetters) letters.set(static_cast<uint8_t>(letter));
  CodePoints not_ascii;
  not_ascii.add(0x80, 0x10FFFF);

  const uint32_t out = builder_.jump_node();
  const uint32_t quote = builder_.byte_node('"', out), rest = builder_.call_node(characters_, out);
  const auto escape = [&](const ByteSet& set) {
    return builder_.byte_node('\\', builder_.node(Kind::bytes, builder_.set_of(set), rest));
  };
  const uint32_t any_escape = escape(letters), any_not_ascii = builder_.call_node(not_ascii_, rest);
  std::vector<uint32_t> behind(twigs.size());
  for (size_t i = twigs.size(); i-- > 0;) {
    ByteSet own_ascii = ascii, own_letters = letters;
    CodePoints taken;
    uint32_t ways = builder_.never().in;
    for (uint32_t child = twigs[i].child; child != 0; child = twigs[child].sibling) {
      const char32_t c = twigs[child].c;
      std::string text;
      append_utf8(text, c);
      text = spelled(text);
      const Piece piece = builder_.text(std::string_view(text).substr(1, text.size() - 2));
      builder_.set_next(piece.out, behind[child]);
      ways = builder_.fork_node(piece.in, ways);
      const size_t letter = kEscaped.find(c);
      if (letter != std::u32string_view::npos) own_letters.reset(static_cast<uint8_t>(kLetters[letter]));
      if (c < 0x80) own_ascii.reset(c);
      if (c >= 0x80) taken.add(c);
    }
    ways = builder_.fork_node(builder_.node(Kind::bytes, builder_.set_of(own_ascii), rest), ways);
    ways = builder_.fork_node(own_letters == letters ? any_escape : escape(own_letters), ways);
    uint32_t wide = any_not_ascii;
    if (!taken.ranges.empty()) {
      taken.add(0, 0x7F);
      const Piece others = builder_.code_points(taken.complement());
      builder_.set_next(others.out, rest);
      wide = others.in;
    }
    ways = builder_.fork_node(wide, ways);
    behind[i] = twigs[i].ends ? ways : builder_.fork_node(quote, ways);
  }
  const uint32_t start = builder_.byte_node('"', behind[0]);
  return new_rule("other keys", {out, start, out});
}

uint32_t Compiler::member(Piece key, uint32_t value) {
  Piece piece = builder_.then(key, builder_.call(spaces_));
  piece = builder_.then(piece, builder_.text(":"));
  piece = builder_.then(piece, builder_.call(spaces_));
  return new_rule("member", builder_.then(piece, builder_.call(value)));
}

// From the last to the first: what may come when members stand in front, and what when none does.
void Compiler::define_object(uint32_t rule, const std::vector<Property>& properties,
                             std::optional<uint32_t> additional) {
  const uint32_t out = builder_.jump_node(), close = builder_.byte_node('}', out);
  uint32_t later = close, first = close;
  const auto add = [&](uint32_t one, bool required, uint32_t behind) {
    const uint32_t head = builder_.call_node(one, spaces(behind)), comma = builder_.byte_node(',', spaces(head));
    later = required ? comma : builder_.fork_node(comma, later);
    first = required ? head : builder_.fork_node(head, first);
  };
  if (additional) {
    std::vector<std::string> names;
    names.reserve(properties.size());
    for (const Property& property : properties) names.push_back(property.key);
    const uint32_t keys = other_keys(names), again = builder_.jump_node();
    add(member(builder_.call(keys), *additional), false, again);
    builder_.set_next(again, later);
  }
  for (size_t i = properties.size(); i-- > 0;) {
    const Property& property = properties[i];
    add(member(builder_.text(spelled(property.key)), property.value), property.required, later);
  }
  const uint32_t open = builder_.byte_node('{', spaces(first));
  builder_.define(rule, {out, open, out});
}

void Compiler::define_array(uint32_t rule, const std::vector<uint32_t>& first, std::optional<uint32_t> rest,
                            uint64_t min, uint64_t max) {
  const uint32_t out = builder_.jump_node(), close = builder_.byte_node(']', out);
  const auto item = [&](uint64_t i) { return i < first.size() ? first[i] : *rest; };
  uint32_t later = close;
  const auto add = [&](uint64_t i, uint32_t behind) {  // what follows `[`, with others in front what follows them
    const uint32_t head = builder_.call_node(item(i), spaces(behind));
    const uint32_t way = i == 0 ? head : builder_.byte_node(',', spaces(head));
    later = i < min ? way : builder_.fork_node(way, close);
  };
  uint64_t n = max;
  if (max == kUnlimited) {
    n = std::max<uint64_t>({min, first.size(), 1});
    const uint32_t again = builder_.jump_node();
    add(n, again);
    builder_.set_next(again, later);
  }
  for (uint64_t i = n; i-- > 0;) add(i, later);
  const uint32_t open = builder_.byte_node('[', spaces(later));
  builder_.define(rule, {out, open, out});
}

uint32_t Compiler::rule_of(const Json& schema, const std::string& path) {
  const auto [found, is_new] = rules_.try_emplace(&schema, 0);
  if (is_new) {
    const std::string kept = path.substr(0, kMaxPathBytes);
    found->second = builder_.add_rule(kept);
    pending_.push_back({&schema, kept, found->second});
  }
  return found->second;
}

// Equal ones share a rule, without which some that refer to themselves would have no end.
uint32_t Compiler::rule_of_merged(Json schema, const std::string& path) {
  std::string text = spelled(schema);
  merged_bytes_ += text.size();
  if (merged_bytes_ > kMaxMergedBytes) {
    throw Error("{}: allOf, anyOf and $ref beside other keywords make schemas of more than {} bytes", printable(path),
                kMaxMergedBytes);
  }
  const auto known = merged_rules_.find(text);
  if (known != merged_rules_.end()) return known->second;
  const uint32_t rule = rule_of(merged_.emplace_back(std::move(schema)), path);
  merged_rules_.emplace(std::move(text), rule);
  return rule;
}

std::shared_ptr<const Grammar> Compiler::compile(const Json& schema) {
  check_size(schema);
  root_ = &schema;
  const uint32_t root = rule_of(schema, "#");
  while (!pending_.empty()) {
    const Pending next = std::move(pending_.front());
    pending_.pop_front();
    define_schema(next);
  }
  return builder_.finish(root);
}

void Compiler::define_schema(const Pending& pending) {
  const auto& [schema_at, path, rule] = pending;
  const Json& schema = *schema_at;
  if (schema.is_boolean()) {
    define_as_any(rule, {schema.get<bool>() ? any_ : never_});
    return;
  }
  check_keywords(schema, path);
  const Json* ref = find(schema, "$ref");
  if (ref != nullptr && !has_constraint(schema, {"$ref"})) {
    const auto [target, target_path] = referred(*ref, path);
    define_as_any(rule, {rule_of(*target, target_path)});
  } else if (ref != nullptr || schema.contains("allOf")) {
    define_as_any(rule, {rule_of_merged(flat(schema, path, 1), path)});
  } else if (schema.contains("anyOf")) {
    define_alternatives(schema, "anyOf", pending);
  } else if (schema.contains("oneOf")) {
    define_alternatives(schema, "oneOf", pending);
  } else if (schema.contains("enum") || schema.contains("const")) {
    define_values(schema, pending);
  } else {
    define_types(schema, pending);
  }
}

void Compiler::define_alternatives(const Json& schema, const char* key, const Pending& pending) {
  const Json& list = list_of(schema, key, pending.path);
  Json beside = Json::object();
  for (const auto& [name, value] : schema.items()) {
    if (name != key && is_in(name, kConstraints)) beside[name] = value;
  }
  std::vector<uint32_t> rules;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string path = fmt::format("{}/{}/{}", pending.path, key, i);
    if (beside.empty() || list[i] == false) {
      rules.push_back(rule_of(list[i], path));
    } else {
      Json both = beside;
      merge(both, flat(list[i], path, 1), path);
      rules.push_back(rule_of_merged(std::move(both), path));
    }
  }
  define_as_any(pending.rule, rules);
}

std::optional<unsigned> types_of(const Json& schema, const std::string& path) {
  const Json* types = find(schema, "type");
  if (types == nullptr) return std::nullopt;
  unsigned mask = 0;
  for (const Json& type : types->is_array() ? list_of(schema, "type", path) : Json::array({*types})) {
    const auto* const known = std::ranges::find_if(kTypes, [&](const auto& one) { return type == one.first; });
    if (known == std::end(kTypes)) throw Error("{}: unknown type {}", printable(path), printable(spelled(type)));
    mask |= known->second;
  }
  return mask;
}

void Compiler::define_values(const Json& schema, const Pending& pending) {
  const std::string& path = pending.path;
  for (const auto& [key, value] : schema.items()) {
    if (is_in(key, kConstraints) && key != "type" && key != "enum" && key != "const") {
      throw Error("{}: {} beside enum or const is not supported", printable(path), key);
    }
  }
  const unsigned types = types_of(schema, path).value_or(kAny);
  const Json* constant = find(schema, "const");
  std::vector<std::string> texts;
  for (const Json& value : schema.contains("enum") ? list_of(schema, "enum", path) : Json::array({*constant})) {
    if ((type_of(value) & types) != 0 && (constant == nullptr || value == *constant)) texts.push_back(spelled(value));
  }
  if (texts.empty()) throw Error("{}: enum, const and type leave no value", printable(path));
  builder_.define(pending.rule, builder_.one_of(texts));
}

void Compiler::define_types(const Json& schema, const Pending& pending) {
  const auto has = [&](std::initializer_list<const char*> keys) {
    return std::ranges::any_of(keys, [&](const char* key) { return schema.contains(key); });
  };
  const bool of_objects = has({"properties", "required", "additionalProperties"});
  const bool of_arrays = has({"items", "prefixItems", "minItems", "maxItems"});
  const bool of_strings = has({"pattern", "minLength", "maxLength", "format"});
  const bool of_numbers = has({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"});
  unsigned types = (of_objects ? kObject : 0U) | (of_arrays ? kArray : 0U) | (of_strings ? kString : 0U) |
                   (of_numbers ? kNumber : 0U);
  types = types_of(schema, pending.path).value_or(types == 0 ? kAny : types);
  std::vector<uint32_t> rules;
  if ((types & kObject) != 0) {
    rules.push_back(of_objects ? builder_.add_rule(pending.path) : any_object_);
    if (of_objects) define_object_schema(schema, pending.path, rules.back());
  }
  if ((types & kArray) != 0) {
    rules.push_back(of_arrays ? builder_.add_rule(pending.path) : any_array_);
    if (of_arrays) define_array_schema(schema, pending.path, rules.back());
  }
  if ((types & kString) != 0) rules.push_back(of_strings ? string_rule(schema, pending.path) : string_);
  if ((types & (kInteger | kNumber)) != 0) {
    rules.push_back(number_rule(schema, pending.path, (types & kNumber) == 0));
  }
  if ((types & kBoolean) != 0) rules.push_back(boolean_);
  if ((types & kNull) != 0) rules.push_back(null_);
  define_as_any(pending.rule, rules);
}

void Compiler::define_object_schema(const Json& schema, const std::string& path, uint32_t rule) {
  const Json* properties = find(schema, "properties");
  const Json* required = find(schema, "required");
  const Json* additional = find(schema, "additionalProperties");
  if (properties != nullptr && !properties->is_object()) {
    throw Error("{}: properties must be an object", printable(path));
  }
  std::unordered_set<std::string_view> missing;
  if (required != nullptr) {
    const bool strings = required->is_array() && std::ranges::all_of(*required, &Json::is_string);
    if (!strings) throw Error("{}: required must be a list of strings", printable(path));
    for (const Json& name : *required) missing.insert(name.get_ref<const std::string&>());
  }
  std::optional<uint32_t> others;
  if (additional != nullptr) {
    if (*additional != false) others = rule_of(*additional, path + "/additionalProperties");
  } else if (properties == nullptr && required == nullptr) {
    others = any_;
  }
  std::vector<Property> members;
  if (properties != nullptr) {
    for (const auto& [key, value] : properties->items()) {
      const uint32_t value_rule = rule_of(value, path + "/properties" + step_to(key));
      members.push_back({key, value_rule, missing.erase(key) > 0});
    }
  }
  if (required != nullptr) {
    for (const Json& name : *required) {
      const auto& key = name.get_ref<const std::string&>();
      if (missing.erase(key) == 0) continue;
      if (additional != nullptr && !others) {
        throw Error("{}: required: {} is no property, and additionalProperties is false", printable(path),
                    printable(spelled(name), 80));
      }
      members.push_back({key, others.value_or(any_), true});
    }
  }
  define_object(rule, members, others);
}

void Compiler::define_array_schema(const Json& schema, const std::string& path, uint32_t rule) {
  const Json* items = find(schema, "items");
  Counts counts = counts_of(schema, "minItems", "maxItems", path);
  std::vector<uint32_t> first;
  if (schema.contains("prefixItems")) {
    const Json& list = list_of(schema, "prefixItems", path);
    for (size_t i = 0; i < list.size(); ++i) {
      first.push_back(rule_of(list[i], fmt::format("{}/prefixItems/{}", path, i)));
    }
  }
  std::optional<uint32_t> rest;
  if (items != nullptr) {
    if (items->is_array()) throw Error("{}: items is a list, write prefixItems", printable(path));
    if (*items != false) rest = rule_of(*items, path + "/items");
  } else if (first.empty()) {
    rest = any_;
  }
  if (!rest) {
    counts.max = std::min<uint64_t>(counts.max, first.size());
    if (counts.min > counts.max)
      throw Error("{}: minItems is greater than the number of items that may be", printable(path));
  }
  errors_at(printable(path), [&] { define_array(rule, first, rest, counts.min, counts.max); });
}

uint32_t Compiler::string_rule(const Json& schema, const std::string& path) {
  const Json* pattern = find(schema, "pattern");
  const Json* format = find(schema, "format");
  const Counts counts = counts_of(schema, "minLength", "maxLength", path);
  const bool counted = counts.min > 0 || counts.max != kUnlimited;
  if (pattern != nullptr) {
    if (!pattern->is_string()) throw Error("{}: pattern must be a string", printable(path));
    if (counted) throw Error("{}: pattern beside minLength or maxLength is not supported", printable(path));
    return errors_at(printable(path) + ": pattern", [&] {
      return pattern_rule(pattern->get_ref<const std::string&>(), RegexText::json_string, RegexMatch::anywhere, true);
    });
  }
  if (counted) {
    return errors_at(printable(path) + (counts.max == kUnlimited ? ": minLength" : ": maxLength"), [&] {
      const Piece open = builder_.text("\"");
      const Piece inside = builder_.then(open, builder_.repeat(builder_.call(character_), counts.min, counts.max));
      return new_rule(path, builder_.then(inside, builder_.text("\"")));
    });
  }
  // An annotation, where it is not known or there is something more exact.
  const std::string of_format =
      format != nullptr && format->is_string() ? format_pattern(format->get<std::string>()) : "";
  return of_format.empty() ? string_ : pattern_rule(of_format, RegexText::plain, RegexMatch::whole, true);
}

uint32_t Compiler::number_rule(const Json& schema, const std::string& path, bool integers) {
  const auto bound = [&](const char* key, const char* exclusive_key, auto&& tighter) -> std::optional<NumberBound> {
    for (const char* one : {key, exclusive_key}) {
      const Json* given = find(schema, one);
      const bool fits = given == nullptr || (given->is_number() && std::isfinite(given->get<double>()));
      if (!fits) throw Error("{}: {} must be a number", printable(path), one);
    }
    const Json *value = find(schema, key), *exclusive = find(schema, exclusive_key);
    if (exclusive != nullptr && (value == nullptr || !tighter(*value, *exclusive))) {
      return NumberBound{spelled(*exclusive), true};
    }
    return value == nullptr ? std::nullopt : std::optional(NumberBound{spelled(*value), false});
  };
  const auto low = bound("minimum", "exclusiveMinimum", std::greater<>());
  const auto high = bound("maximum", "exclusiveMaximum", std::less<>());
  if (!low && !high) return integers ? integer_ : number_;
  return errors_at(printable(path), [&] {
    const auto pattern = number_regex(low, high, integers);
    if (!pattern) throw Error("minimum and maximum leave no number");
    return pattern_rule(*pattern, RegexText::plain, RegexMatch::whole, false);
  });
}

// What $ref refers to, and its path.
std::pair<const Json*, std::string> Compiler::referred(const Json& ref, const std::string& path) const {
  if (!ref.is_string()) throw Error("{}: $ref must be a string", printable(path));
  const auto& text = ref.get_ref<const std::string&>();
  const std::string shown = printable(text);
  if (!text.starts_with("#/") && text != "#") {
    throw Error("{}: $ref to {} is not supported, only to #/...", printable(path), shown);
  }
  const Json* target = root_;
  for (size_t at = 1; at < text.size() && target != nullptr;) {
    const size_t end = std::min(text.find('/', at + 1), text.size());
    std::string key;
    for (size_t i = at + 1; i < end; ++i) {
      const std::string_view rest = std::string_view(text).substr(i, end - i);
      if (rest.starts_with("~0") || rest.starts_with("~1")) {
        key += rest[1] == '0' ? '~' : '/';
        ++i;
      } else if (rest[0] == '%' && rest.size() > 2 && is_hex(rest[1]) && is_hex(rest[2])) {
        key += static_cast<char>(std::stoi(std::string(rest.substr(1, 2)), nullptr, 16));
        i += 2;
      } else {
        key += rest[0];
      }
    }
    const Json* next = nullptr;
    if (target->is_object()) next = find(*target, key);
    const bool index = !key.empty() && key.size() < 6 && key.find_first_not_of("0123456789") == std::string::npos;
    if (target->is_array() && index && std::stoul(key) < target->size()) next = &(*target)[std::stoul(key)];
    target = next;
    at = end;
  }
  if (target == nullptr) throw Error("{}: $ref to {}, which is not there", printable(path), shown);
  return {target, text};
}

// The schema as one object without $ref and allOf: what they bring stands beside its own keywords.
Json Compiler::flat(const Json& schema, const std::string& path, size_t depth) {
  if (depth > kMaxSchemaDepth) {
    throw Error("{}: $ref and allOf are nested deeper than {} levels", printable(path), kMaxSchemaDepth);
  }
  Json whole = Json::object();
  if (schema == true) return whole;
  if (schema == false) return Json{{"anyOf", Json::array({false})}};
  check_keywords(schema, path);
  for (const auto& [key, value] : schema.items()) {
    if (is_in(key, kConstraints) && key != "$ref" && key != "allOf") whole[key] = value;
  }
  if (const Json* ref = find(schema, "$ref"); ref != nullptr) {
    const auto [target, target_path] = referred(*ref, path);
    merge(whole, flat(*target, target_path, depth + 1), path);
  }
  if (schema.contains("allOf")) {
    const Json& list = list_of(schema, "allOf", path);
    for (size_t i = 0; i < list.size(); ++i) {
      merge(whole, flat(list[i], fmt::format("{}/allOf/{}", path, i), depth + 1), path);
    }
  }
  return whole;
}

// What is valid for both.
void Compiler::merge(Json& into, const Json& from, const std::string& path) {
  const auto names = [](const Json& schema) {
    std::unordered_set<std::string_view> keys;
    if (const Json* properties = find(schema, "properties"); properties != nullptr && properties->is_object()) {
      for (const auto& [key, value] : properties->items()) keys.insert(key);
    }
    return keys;
  };
  const auto own = names(into), others = names(from);
  merged_values_ += n_values(from) + own.size() + others.size();
  if (merged_values_ > kMaxMergedValues) {
    throw Error("{}: $ref and allOf put more than {} values together", printable(path), kMaxMergedValues);
  }
  // Properties that the other one has are additional ones.
  const auto lets = [](const Json& schema, const auto& has, const auto& new_ones) {
    const Json* additional = find(schema, "additionalProperties");
    if (additional == nullptr || *additional == true) return true;
    return std::ranges::all_of(new_ones, [&](std::string_view key) { return has.contains(key); });
  };
  if (!lets(into, own, others) || !lets(from, others, own)) {
    throw Error("{}: allOf: additionalProperties beside properties of another schema is not supported",
                printable(path));
  }
  for (const auto& [key, value] : from.items()) {
    const Json* present = find(into, key);
    if (present == nullptr) {
      into[key] = value;
    } else if (*present != value) {
      merge_keyword(into, key, value, path);
    }
  }
}

void Compiler::merge_keyword(Json& into, const std::string& key, const Json& value, const std::string& path) {
  Json& present = into[key];
  const auto both = [](Json& one, const Json& other) {
    const bool listed = one.is_object() && one.size() == 1 && one.contains("allOf") && one["allOf"].is_array();
    if (!listed) one = Json{{"allOf", Json::array({one})}};
    one["allOf"].push_back(other);
  };
  if (key == "properties" && present.is_object() && value.is_object()) {
    std::unordered_map<std::string_view, Json*> known;
    for (auto& [name, schema] : present.items()) known.emplace(name, &schema);
    std::vector<std::pair<std::string, Json>> added;
    for (const auto& [name, schema] : value.items()) {
      const auto found = known.find(name);
      if (found == known.end()) {
        added.emplace_back(name, schema);
      } else if (*found->second != schema) {
        both(*found->second, schema);
      }
    }
    for (auto& [name, schema] : added) present[name] = std::move(schema);
  } else if (key == "required" && present.is_array() && value.is_array()) {
    present.insert(present.end(), value.begin(), value.end());
  } else if (key == "items") {
    both(present, value);
  } else if (key == "additionalProperties" && (present == true || value == true)) {
    if (present == true) present = value;
  } else if (key == "type") {
    const unsigned types = *types_of(into, path) & *types_of(Json{{"type", value}}, path);
    present = Json::array();
    for (const auto& [name, mask] : kTypes) {
      if ((types & mask) == mask) present.push_back(name);
    }
    if (present.empty()) throw Error("{}: allOf: there is no type that all its schemas allow", printable(path));
  } else if (key == "enum" && present.is_array() && value.is_array()) {
    Json kept = Json::array();
    std::ranges::copy_if(present, std::back_inserter(kept),
                         [&](const Json& one) { return std::ranges::find(value, one) != value.end(); });
    present = std::move(kept);
  } else if (present.is_number() && value.is_number() && (key.starts_with("min") || key == "exclusiveMinimum")) {
    present = std::max(present, value);
  } else if (present.is_number() && value.is_number() && (key.starts_with("max") || key == "exclusiveMaximum")) {
    present = std::min(present, value);
  } else {
    throw Error("{}: allOf: {} in more than one of its schemas is not supported", printable(path), key);
  }
}

}  // namespace

std::shared_ptr<const Grammar> schema_grammar(const nlohmann::ordered_json& schema) {
  return Compiler().compile(schema);
}

std::shared_ptr<const Grammar> any_json_object() {
  static const std::shared_ptr<const Grammar> grammar = Compiler().compile_any_object();
  return grammar;
}

}  // namespace fathom
