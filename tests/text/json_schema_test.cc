#include "text/json_schema.h"

#include <gtest/gtest.h>

#include <regex>

#include "base/error.h"
#include "base/rng.h"
#include "refusal.h"
#include "sanitized.h"
#include "text/grammar_matcher.h"
#include "tokenizer_fixture.h"

namespace fathom {
namespace {

using test::Json;

std::string repeated(std::string_view text, size_t times) {
  std::string out;
  for (size_t i = 0; i < times; ++i) out += text;
  return out;
}

bool accepts(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  GrammarMatcher matcher(grammar);
  return matcher.accept(text) && matcher.can_end();
}

size_t n_characters(const std::string& text) {
  return static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

// What the specification says, of the keywords that the schemas here have. Formats aside.
bool is_valid(const Json& value, const Json& schema, const Json& root) {
  if (schema.is_boolean()) return schema.get<bool>();
  const auto valid = [&](const Json& sub) { return is_valid(value, sub, root); };
  const auto has_type = [&](const Json& type) {
    if (type == "integer") return value.is_number() && value.get<double>() == std::floor(value.get<double>());
    if (type == "number") return value.is_number();
    if (type == "string") return value.is_string();
    if (type == "object") return value.is_object();
    if (type == "array") return value.is_array();
    return type == "boolean" ? value.is_boolean() : value.is_null();
  };
  for (const auto& [key, of] : schema.items()) {
    bool fits = true;
    if (key == "type") fits = of.is_array() ? std::ranges::any_of(of, has_type) : has_type(of);
    if (key == "$ref") fits = valid(of == "#" ? root : root.at(Json::json_pointer(of.get<std::string>().substr(1))));
    if (key == "anyOf" || key == "oneOf") fits = std::ranges::any_of(of, valid);
    if (key == "allOf") fits = std::ranges::all_of(of, valid);
    if (key == "enum") fits = std::ranges::find(of, value) != of.end();
    if (key == "const") fits = value == of;
    if (value.is_string()) {
      const std::string text = value.get<std::string>();
      if (key == "minLength") fits = n_characters(text) >= of.get<size_t>();
      if (key == "maxLength") fits = n_characters(text) <= of.get<size_t>();
      if (key == "pattern") fits = std::regex_search(text, std::regex(of.get<std::string>()));
    }
    if (value.is_number()) {
      if (key == "minimum") fits = value.get<double>() >= of.get<double>();
      if (key == "maximum") fits = value.get<double>() <= of.get<double>();
      if (key == "exclusiveMinimum") fits = value.get<double>() > of.get<double>();
      if (key == "exclusiveMaximum") fits = value.get<double>() < of.get<double>();
    }
    if (value.is_array()) {
      if (key == "minItems") fits = value.size() >= of.get<size_t>();
      if (key == "maxItems") fits = value.size() <= of.get<size_t>();
      const size_t n_first = schema.contains("prefixItems") ? schema["prefixItems"].size() : 0;
      for (size_t i = 0; i < value.size(); ++i) {
        if (key == "prefixItems" && i < n_first) fits = fits && is_valid(value[i], of[i], root);
        if (key == "items" && i >= n_first) fits = fits && is_valid(value[i], of, root);
      }
    }
    if (value.is_object()) {
      if (key == "required") fits = std::ranges::all_of(of, [&](const Json& name) { return value.contains(name); });
      for (const auto& [name, member] : value.items()) {
        const bool named = schema.contains("properties") && schema["properties"].contains(name);
        if (key == "properties" && named) fits = fits && is_valid(member, of[name], root);
        if (key == "additionalProperties" && !named) fits = fits && is_valid(member, of, root);
      }
    }
    if (!fits) return false;
  }
  return true;
}

// A text of tokens that the masks allow. Behind so many bytes it takes what comes to an end.
std::string random_text(const std::shared_ptr<const Grammar>& grammar, TokenMasks& masks,
                        const std::vector<std::string>& tokens, Rng& rng) {
  constexpr size_t kLong = 120;
  GrammarMatcher matcher(grammar);
  std::string text;
  std::vector<uint64_t> mask;
  while (!matcher.must_end() && !(matcher.can_end() && (rng.below(4) == 0 || text.size() > kLong))) {
    matcher.allowed(masks, mask);
    std::vector<std::string_view> next;
    for (size_t id = 0; id < tokens.size(); ++id) {
      if ((mask[id / 64] >> (id % 64) & 1) != 0) next.push_back(tokens[id]);
    }
    EXPECT_FALSE(next.empty()) << text;
    if (next.empty()) return text;
    std::string_view token = next[rng.below(next.size())];
    // Else quotes and brackets would be rare among the tokens.
    if (rng.below(4) == 0 || text.size() > kLong) {
      for (const char* end : {"\"", "b", "}", "]", ":", ",", "0", "n"}) {
        if (std::ranges::find(next, end) == next.end()) continue;
        token = end;
        if (text.size() > kLong || rng.below(3) == 0) break;
      }
    }
    EXPECT_TRUE(matcher.accept(token));
    text += token;
  }
  return text;
}

const std::vector<const char*>& schemas() {
  static const std::vector<const char*> all = {
      R"({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
          "tags": {"type": "array", "items": {"enum": ["a", "ab", "b\"c", "é", 1.5, null]}, "maxItems": 3}},
          "required": ["name", "age"], "additionalProperties": false})",
      R"({"type": "object", "properties": {"a": {"type": "boolean"}, "ab": {"type": "null"}, "é": {"const": [1, {"x": "y"}]}},
          "additionalProperties": {"type": "integer", "exclusiveMinimum": -20}})",
      R"({"$defs": {"tree": {"type": "object", "properties": {"value": {"type": ["integer", "null"]},
          "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}, "required": ["value", "children"]}},
          "$ref": "#/$defs/tree"})",
      R"({"anyOf": [{"type": "string", "minLength": 2, "maxLength": 4}, {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
          {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": {"type": "null"}, "minItems": 1}]})",
      R"({"type": "object", "properties": {"kind": {"const": "x"}}, "required": ["kind", "more"],
          "anyOf": [{"properties": {"more": {"type": "integer"}}}, {"properties": {"more": {"$ref": "#"}}}]})",
      R"({"allOf": [{"$ref": "#/definitions/base"}, {"properties": {"b": {"minimum": 3}, "c": {"type": "string"}}, "required": ["c"]}],
          "definitions": {"base": {"type": "object", "properties": {"a": {}, "b": {"type": "integer", "maximum": 12}}, "required": ["b"]}}})",
      R"({"type": "array", "items": {"type": "string", "pattern": "^[a-c]{2,3}(\"|\\\\|é|\\d+)$"}, "minItems": 1, "maxItems": 4})",
      R"({"type": "string", "pattern": "[ab]b|^x"})",
      R"({"type": "array", "items": {"oneOf": [{"type": "integer", "minimum": -120, "maximum": -7}, {"type": "integer", "minimum": 9},
          {"type": "boolean"}]}})",
      R"({})",
      R"({"type": "object"})",
      R"({"type": ["array", "null"], "minItems": 2, "items": {"maxLength": 2}})"};
  return all;
}

TEST(JsonSchema, TextsAlongTheMasksAreValid) {
  for (const Tokenizer& tokenizer : {Tokenizer::bytes(), Tokenizer::load(test::text_data() / "tiny")}) {
    const auto trie = std::make_shared<const TokenTrie>(tokenizer);
    std::vector<std::string> tokens;
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) tokens.push_back(tokenizer.token_bytes(id));
    Rng rng(1);
    for (const char* text : schemas()) {
      SCOPED_TRACE(text);
      const Json schema = Json::parse(text);
      const auto grammar = schema_grammar(schema);
      TokenMasks masks(grammar, trie);
      for (int round = 0; round < (test::kSanitized ? 10 : 60); ++round) {
        const std::string written = random_text(grammar, masks, tokens, rng);
        const Json value = Json::parse(written, nullptr, false);
        ASSERT_FALSE(value.is_discarded()) << written;
        ASSERT_TRUE(is_valid(value, schema, schema)) << written;
        ASSERT_TRUE(accepts(grammar, written)) << written;
      }
    }
  }
}

Json random_value(Rng& rng, int depth) {
  switch (rng.below(depth > 0 ? 8 : 5)) {
    case 0:
      return nullptr;
    case 1:
      return rng.below(2) == 0;
    case 2:
      return static_cast<int64_t>(rng.next());
    case 3:
      return rng.normal() * 1e5;
    case 4: {
      std::string text;
      for (uint64_t n = rng.below(6); n > 0; --n) {
        text += std::array{"a", "\"", "\\", "/", "\n", "\x01", "\x7F", "é", "\u2028", "😀", "{", " "}[rng.below(12)];
      }
      return text;
    }
    case 5:
    case 6: {
      Json list = Json::array();
      for (uint64_t n = rng.below(4); n > 0; --n) list.push_back(random_value(rng, depth - 1));
      return list;
    }
    default: {
      Json object = Json::object();
      for (uint64_t n = rng.below(4); n > 0; --n) object[random_value(rng, 0).dump()] = random_value(rng, depth - 1);
      return object;
    }
  }
}

TEST(JsonSchema, AnyJsonIsThatHoweverItIsLaidOut) {
  Rng rng(2);
  const auto any = schema_grammar(true);
  for (int round = 0; round < 300; ++round) {
    const Json value = random_value(rng, 4);
    for (const bool ascii : {false, true}) {
      for (const int indent : {-1, 0, 1, 2, 4}) {
        const std::string text = value.dump(indent, ' ', ascii);
        ASSERT_TRUE(accepts(any, text)) << text;
        ASSERT_EQ(accepts(any_json_object(), text), value.is_object()) << text;
        const std::string part = text.substr(0, rng.below(text.size()));
        ASSERT_EQ(accepts(any, part), Json::accept(part)) << part;
      }
    }
  }
  for (const char* text :
       {R"({"a" : 1 , "b": [ ] })", "[1,\n\n\t\t2]", R"(["\ud83d\ude00\uD83D\uDE00"])", "-0.5e-07"}) {
    EXPECT_TRUE(accepts(any, text)) << text;
  }
  for (const char* text : {" 1",
                           "1 ",
                           "[1,  2]",
                           "[1,\n\n\n2]",
                           "[1\n \n]",
                           R"(["\ud83d"])",
                           R"(["\ude00\ud83d"])",
                           R"(["\ud83d\u0041"])",
                           "[\"\n\"]",
                           "[\"\xED\xA0\xBD\"]",
                           "[\"\xC0\x80\"]",
                           "[\"\xFF\"]",
                           "[01]",
                           "[1.]",
                           "[.5]",
                           "[+1]",
                           "[1e]",
                           "[,]",
                           "[1,]",
                           "{1:2}",
                           R"({"a"})",
                           R"({"a":})",
                           "nul",
                           "NaN",
                           "'a'",
                           R"(["\x"])",
                           "[1]]"}) {
    EXPECT_FALSE(accepts(any, text)) << text;
  }
  const std::string blanks(41, ' ');
  EXPECT_TRUE(accepts(any, "[\n" + blanks.substr(1) + "1]"));
  EXPECT_FALSE(accepts(any, "[\n" + blanks + "1]"));
}

struct Case {
  const char* schema;
  std::vector<const char*> valid, invalid;
};

TEST(JsonSchema, HoldsWhatIsValidAndNothingElse) {
  for (
      const Case& c : std::vector<Case>{
          {"true", {"1", "{}"}, {""}},
          {R"({"const": {"a": ["x", 1.5]}, "title": "?"})", {R"({"a":["x",1.5]})"}, {"{}", R"({"a": ["x",1.5]})"}},
          {R"({"enum": ["a", 1, null, 2.5, "é\n"], "type": ["string", "integer"]})",
           {R"("a")", "1", R"("é\n")"},
           {"null", "2.5"}},
          {R"({"type": "integer"})",
           {"0", "-0", "-12", "12345678901234567890"},
           {"01", "1.0", "1e2", "123456789012345678901"}},
          {R"({"type": "integer", "exclusiveMinimum": 2.5, "maximum": 100})",
           {"3", "99", "100"},
           {"2", "101", "-5", "03"}},
          {R"({"type": "integer", "minimum": -9223372036854775808, "maximum": 18446744073709551615})",
           {"-9223372036854775808", "18446744073709551615", "0"},
           {"-9223372036854775809", "18446744073709551616", "-0"}},
          {R"({"type": "number", "minimum": 0, "maximum": 1})",
           {"0", "1", "0.25", "1.00", "0.0"},
           {"-0.1", "1.01", "2", "1e0", "0."}},
          {R"({"type": "number"})", {"-1.5e+10", "0", "1E9"}, {"1e100", "1.", "-"}},
          {R"({"type": "string", "minLength": 1, "maxLength": 2})",
           {R"("a")", R"("é😀")", R"("\ud83d\ude00\n")"},
           {R"("")", R"("abc")"}},
          {R"({"type": "string", "minLength": 2})", {R"("ab")", R"("abcd")"}, {R"("a")"}},
          {R"({"type": "string", "pattern": "^\\d{2}-[^\"]$"})",
           {R"("12-x")", R"("12-\\")", R"("12-\n")"},
           {R"("12-\"")", R"("x12-x")", R"("12-")"}},
          {R"({"type": "string", "pattern": "b+"})", {R"("b")", R"("abbc\n")", R"("\"b")"}, {R"("ac")", R"("")"}},
          {R"({"type": "string", "format": "date"})",
           {R"("2024-02-29")", R"("2000-02-29")", R"("2023-12-31")"},
           {R"("2023-02-29")", R"("1900-02-29")", R"("2024-13-01")", R"("2024-04-31")", R"("24-1-1")"}},
          {R"({"type": "string", "format": "time"})",
           {R"("23:59:59Z")", R"("00:00:00.25+01:30")"},
           {R"("24:00:00Z")", R"("12:00:00")"}},
          {R"({"type": "string", "format": "date-time"})",
           {R"("2024-02-29T12:00:00Z")"},
           {R"("2024-02-29")", R"("2024-02-29 12:00:00Z")"}},
          {R"({"type": "string", "format": "uuid"})", {R"("123e4567-e89b-12d3-A456-426614174000")"}, {R"("123e4567")"}},
          {R"({"type": "string", "format": "ipv4"})",
           {R"("0.10.199.255")"},
           {R"("256.1.1.1")", R"("1.2.3")", R"("01.2.3.4")"}},
          {R"({"type": "string", "format": "email"})",
           {R"("a.b+c@x-y.example.org")"},
           {R"("a@b")", R"("@b.org")", R"("a..b@c.org")"}},
          {R"({"type": "string", "format": "hostname"})", {R"("?")"}, {"1"}},
          {R"({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3})",
           {"[1]", "[1, 2,3]"},
           {"[]", "[1,2,3,4]", "[\"a\"]", "[1,]"}},
          {R"({"type": "array", "maxItems": 0})", {"[]"}, {"[1]"}},
          {R"({"type": "array", "minItems": 2})", {"[1,[]]", "[1,2,3]"}, {"[1]", "[]"}},
          {R"({"prefixItems": [{"type": "integer"}, {"type": "string"}]})",
           {"[]", "[1]", "[1,\"a\"]"},
           {"[1,\"a\",2]", "[\"a\"]", "1"}},
          {R"({"prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "minItems": 1})",
           {"[1]", "[1,null,null]"},
           {"[]", "[1,2]", "[null]"}},
          {R"({"type": "array", "prefixItems": [true], "items": false, "minItems": 1})", {"[1]"}, {"[]", "[1,1]"}},
          {R"({"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}, "c": {"type": "integer"}}, "required": ["b"]})",
           {R"({"b":1})", R"({"a":1,"b":2})", R"({"b":2,"c":3})", R"({ "a": 1, "b": 2, "c": 3 })"},
           {"{}", R"({"a":1})", R"({"b":2,"a":1})", R"({"b":1,"d":1})", R"({"b":1,})", R"({"b":1,"b":1})",
            R"({,"b":1})"}},
          {R"({"properties": {"a": true}})", {"{}", R"({"a":null})"}, {R"({"b":1})", "1"}},
          {R"({"properties": {}})", {"{}"}, {R"({"b":1})"}},
          {R"({"type": "object"})", {"{}", R"({"b":{"c":1}})"}, {"[]"}},
          {R"({"type": "object", "additionalProperties": false})", {"{}", "{ }"}, {R"({"b":1})"}},
          {R"({"required": ["a", "a", "b"]})",
           {R"({"a":1,"b":{}})"},
           {R"({"a":1})", R"({"b":1,"a":1})", R"({"a":1,"b":1,"c":1})"}},
          {R"({"properties": {"a": {"type": "null"}}, "required": ["x"], "additionalProperties": {"type": "integer"}})",
           {R"({"x":1})", R"({"a":null,"x":1,"y":2})"},
           {R"({"a":null})", R"({"x":null})", R"({"y":1,"x":1})"}},
          // Additional keys are none of those named, however spelled.
          {R"({"properties": {"ab": {"type": "null"}, "é": {"type": "null"}, "a\"b": {"type": "null"}}, "additionalProperties": {"type": "integer"}})",
           {R"({"a":1})", R"({"abc":1})", R"({"":1})", R"({"ab":null,"b":1})", R"({"è":1})", R"({"éé":1})",
            R"({"x\u0061":1})", R"({"a\n":1})", R"({"a\"b":null})", R"({"a\"bc":1})", R"({"a\"":1})", R"({"a\\b":1})",
            R"({"😀":1})"},
           {R"({"ab":1})", R"({"é":1})", R"({"a\"b":1})", R"({"\u0061b":1})", R"({"a\u0062":1})", R"({"\u00e9":1})",
            R"({"a\u0022b":1})"}},
          {R"({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}, false]})",
           {"1", R"("a")"},
           {R"("ab")", "null"}},
          {R"({"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": -5}]})", {"5", "-5"}, {"0", "\"a\""}},
          {R"({"allOf": [{"type": ["integer", "string"]}, {"type": "number"}, {"minimum": 3}, {"minimum": 5, "maximum": 9}]})",
           {"5", "9"},
           {"4", "3.5", "10", "\"a\""}},
          {R"({"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}, {"type": "integer"}]})", {"2", "3"}, {"1", "4"}},
          {R"({"allOf": [{"items": {"minimum": 1}}, {"items": {"type": "integer"}}, {"minItems": 1}]})",
           {"[1,2]"},
           {"[]", "[0]", "[1.5]"}},
          {R"({"allOf": [{"properties": {"a": {"type": "integer"}}, "additionalProperties": true}, {"properties": {"b": {"type": "null"}}, "required": ["b"]}]})",
           {R"({"b":null})", R"({"a":1,"b":null,"c":[]})"},
           {R"({"a":1})", R"({"b":1})"}},
          {R"({"allOf": [{"$ref": "#/$defs/a~1b~0%25"}], "$defs": {"a/b~%": {"type": "null"}}})", {"null"}, {"1"}},
          {R"({"properties": {"next": {"$ref": "#", "description": "the rest"}, "n": {"$ref": "#/properties/m"}, "m": {"type": "null"}}})",
           {"{}", R"({"next":{"next":{"n":null}}})"},
           {R"({"next":1})"}},
          // Refers to itself with something beside it.
          {R"({"type": "object", "properties": {"a": {"$ref": "#", "required": ["a"]}}})", {"{}"}, {R"({"a":{}})"}},
          {R"({"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#", "required": ["b"]}, {"type": "null"}]}, "b": {"type": "null"}}})",
           {"{}", R"({"a":{"a":null,"b":null}})", R"({"a":{"b":null}})"},
           {R"({"a":{}})"}},
          {R"({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {"type": "null"}, "b": {"type": "null"}}})",
           {R"({"a":null})", R"({"b":null})", R"({"a":null,"b":null})"},
           {"{}"}},
          {R"({"type": "null", "$schema": "x", "$id": "y", "$comment": "", "description": "", "default": 1, "examples": [1], "deprecated": true,
               "readOnly": true, "writeOnly": false, "$anchor": "z", "x-own": 1, "uniqueItems": false})",
           {"null"},
           {"1"}}}) {
    SCOPED_TRACE(c.schema);
    const auto grammar = schema_grammar(Json::parse(c.schema));
    for (const char* text : c.valid) EXPECT_TRUE(accepts(grammar, text)) << text;
    for (const char* text : c.invalid) EXPECT_FALSE(accepts(grammar, text)) << text;
  }
}

TEST(JsonSchema, SaysWhatIsRefusedAndWhere) {
  const std::vector<std::pair<const char*, const char*>> all = {
      {"1", "#: a schema must be an object, true or false"},
      {R"({"properties": {"a": {"items": []}}})", "#/properties/a: items is a list, write prefixItems"},
      {R"({"properties": {"a/b~": {"items": 1}}})",
       "#/properties/a~1b~0/items: a schema must be an object, true or false"},
      {R"({"properties": []})", "#: properties must be an object"},
      {R"({"required": "a"})", "#: required must be a list of strings"},
      {R"({"required": ["a"], "additionalProperties": false})",
       "#: required: \"a\" is no property, and additionalProperties is false"},
      {R"({"type": "text"})", "#: unknown type \"text\""},
      {R"({"type": []})", "#: type must be a list that is not empty"},
      {R"({"enum": []})", "#: enum must be a list that is not empty"},
      {R"({"anyOf": {}})", "#: anyOf must be a list that is not empty"},
      {R"({"enum": ["a"], "type": "integer"})", "#: enum, const and type leave no value"},
      {R"({"enum": ["a"], "minLength": 1})", "#: minLength beside enum or const is not supported"},
      {R"({"minLength": -1})", "#: minLength must be a whole number"},
      {R"({"maxItems": 1.5})", "#: maxItems must be a whole number"},
      {R"({"minItems": 3, "maxItems": 2})", "#: minItems is greater than maxItems"},
      {R"({"prefixItems": [true], "minItems": 2})", "#: minItems is greater than the number of items that may be"},
      {R"({"type": "integer", "minimum": 3, "maximum": 2})", "#: minimum and maximum leave no number"},
      {R"({"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 3})",
       "#: minimum and maximum leave no number"},
      {R"({"minimum": "1"})", "#: minimum must be a number"},
      {R"({"exclusiveMinimum": true})", "#: exclusiveMinimum must be a number"},
      {R"({"maximum": 1e30})", "#: the bound 1e+30 has more than 20 digits"},
      {R"({"pattern": 1})", "#: pattern must be a string"},
      {R"_({"pattern": "a(?=b)"})_", "#: pattern: column 2: looking ahead is not supported"},
      {R"_({"pattern": "(^a|b)"})_",
       "#: pattern: column 1: ^ or $ in some alternatives of a group and not in others is not supported"},
      {R"({"pattern": "a", "maxLength": 3})", "#: pattern beside minLength or maxLength is not supported"},
      {R"({"maxLength": 1000000})", "#: maxLength: 1000000 times 1 elements make a grammar of more than 1000000"},
      {R"({"items": {"maxItems": 1e9}})", "#/items: the grammar has more than 1000000 elements"},
      {R"({"$ref": 1})", "#: $ref must be a string"},
      {R"({"$ref": "https://x/y"})", "#: $ref to https://x/y is not supported, only to #/..."},
      {R"({"$ref": "#/$defs/a"})", "#: $ref to #/$defs/a, which is not there"},
      {R"({"$ref": "#"})", "the rule # begins with itself: # -> #"},
      {R"({"anyOf": [{"type": "null"}, {"$ref": "#"}]})", "the rule # begins with itself: # -> #/anyOf/1 -> #"},
      {R"({"allOf": [{"$ref": "#"}]})", "#: $ref and allOf are nested deeper than 64 levels"},
      {"false", "there is no text that the rule # allows"},
      {R"({"allOf": [{"type": "null"}, false]})", "there is no text that the rule # allows"},
      {R"({"properties": {"a": {"$ref": "#"}}, "required": ["a"]})", "there is no text that the rule # allows"},
      {R"({"allOf": [{"type": "string"}, {"type": "null"}]})", "#: allOf: there is no type that all its schemas allow"},
      {R"({"allOf": [{"pattern": "a"}, {"pattern": "b"}]})",
       "#: allOf: pattern in more than one of its schemas is not supported"},
      {R"({"allOf": [{"properties": {"a": {}}, "additionalProperties": false}, {"properties": {"b": {}}}]})",
       "#: allOf: additionalProperties beside properties of another schema is not supported"}};
  for (const auto& [schema, want] : all) {
    EXPECT_EQ(refusal([&, &text = schema] { schema_grammar(Json::parse(text)); }), want) << schema;
  }
  for (const char* keyword : {"not",
                              "if",
                              "then",
                              "else",
                              "patternProperties",
                              "propertyNames",
                              "uniqueItems",
                              "multipleOf",
                              "contains",
                              "minContains",
                              "maxContains",
                              "dependentRequired",
                              "dependentSchemas",
                              "dependencies",
                              "minProperties",
                              "maxProperties",
                              "unevaluatedProperties",
                              "unevaluatedItems",
                              "additionalItems",
                              "$dynamicRef",
                              "$recursiveRef"}) {
    const Json schema = {{"$defs", {{"x", {{"type", "null"}, {keyword, Json::object()}}}}},
                         {"items", {{"$ref", "#/$defs/x"}}}};
    EXPECT_EQ(refusal([&] { schema_grammar(schema); }), fmt::format("#/$defs/x: {} is not supported", keyword));
  }
}

TEST(JsonSchema, HostileSchemasEndInAnError) {
  const auto why = [](const std::string& text) { return refusal([&] { schema_grammar(Json::parse(text)); }); };
  constexpr size_t kDeep = 1'000'000;
  EXPECT_EQ(why(repeated("[", kDeep) + repeated("]", kDeep)), "#: the schema is nested deeper than 64 levels");
  EXPECT_EQ(why(repeated("{\"items\":", kDeep) + "{}" + repeated("}", kDeep)),
            "#: the schema is nested deeper than 64 levels");
  EXPECT_EQ(why("{\"enum\": [\"" + repeated("a", 70'000) + "\"]}"), "#: the schema is longer than 65536 bytes");
  EXPECT_EQ(refusal([] { schema_grammar({{"const", "\xFF"}}); }), "#: the schema is not UTF-8");
  EXPECT_EQ(refusal([] { schema_grammar({{"properties", {{"\xC3", true}}}}); }), "#: the schema is not UTF-8");
  // As large as they may be.
  std::string keys, required, cases, words, integers, refs = "\"r0\": {\"type\": \"null\"}";
  for (int i = 0; i < 3000; ++i) {
    keys += fmt::format("{}\"k{}\":{{}}", i > 0 ? "," : "", i);
    if (i < 2500) cases += fmt::format("{}{{\"const\":\"w{}\"}}", i > 0 ? "," : "", i);
    if (i < 1500) required += fmt::format("{}\"k{}\"", i > 0 ? "," : "", i);
    words += fmt::format("{}\"some{}\"", i > 0 ? "," : "", i);
    if (i < 500)
      integers += fmt::format("{}\"{}\":{{\"minimum\":-{},\"maximum\":{}}}", i > 0 ? "," : "", i, 987'654'321 + i,
                              123'456'789 + i);
    if (i > 0 && i < 2000) refs += fmt::format(",\"r{}\":{{\"$ref\":\"#/$defs/r{}\"}}", i, i - 1);
  }
  EXPECT_EQ(why("{\"properties\": {" + keys + "}, \"required\": [" + required + "], \"additionalProperties\": true}"),
            "(accepted)");
  EXPECT_EQ(why("{\"anyOf\": [" + cases + "]}"), "(accepted)");
  EXPECT_EQ(why("{\"enum\": [" + words + "]}"), "(accepted)");
  EXPECT_EQ(why("{\"properties\": {" + integers + "}}"), "(accepted)");
  EXPECT_EQ(why("{\"$ref\": \"#/$defs/r1999\", \"$defs\": {" + refs + "}}"), "(accepted)");
  // Each of these doubles the one before.
  std::string doubled = "\"d0\": {\"properties\": {\"x\": {\"type\": \"null\"}}}", sums = doubled;
  for (int i = 1; i < 25; ++i) {
    doubled +=
        fmt::format(",\"d{0}\":{{\"allOf\":[{{\"$ref\":\"#/$defs/d{1}\"}},{{\"$ref\":\"#/$defs/d{1}\"}}]}}", i, i - 1);
    sums += fmt::format(
        ",\"d{0}\":{{\"type\":\"object\",\"anyOf\":[{{\"properties\":{{\"a{0}\":{{}}}},\"allOf\":[{{\"$ref\":\"#/$defs/"
        "d{1}\"}}]}},"
        "{{\"properties\":{{\"b{0}\":{{}}}},\"allOf\":[{{\"$ref\":\"#/$defs/d{1}\"}}]}}]}}",
        i, i - 1);
  }
  EXPECT_EQ(why("{\"$ref\": \"#/$defs/d24\", \"$defs\": {" + doubled + "}}"),
            "#/$defs/d2: $ref and allOf put more than 200000 values together");
  EXPECT_TRUE(why("{\"$ref\": \"#/$defs/d24\", \"$defs\": {" + sums + "}}")
                  .ends_with(": $ref and allOf put more than 200000 values together"));
  // Each copies all of the first.
  std::string copies = "{\"$ref\":\"#/$defs/all\"}";
  for (int i = 0; i < 400; ++i) copies += ",{\"$ref\":\"#/$defs/all\"}";
  EXPECT_EQ(why("{\"allOf\": [" + copies + "], \"$defs\": {\"all\": {\"properties\": {\"x\": {\"properties\": {" +
                keys.substr(0, keys.find(",\"k1500\"")) + "}}}}}}"),
            "#/allOf/66: $ref and allOf put more than 200000 values together");
  EXPECT_EQ(why("{\"pattern\": \"" + repeated("(", 60'000) + "\"}"),
            "#: pattern: column 257: groups are nested deeper than 256 levels");
}

TEST(JsonSchema, ManyOptionalPropertiesCanBeRead) {
  std::string keys;
  for (int i = 0; i < 4000; ++i) keys += fmt::format("{}\"k{}\":{{}}", i > 0 ? "," : "", i);
  const auto grammar = schema_grammar(Json::parse("{\"properties\": {" + keys + "}}"));
  EXPECT_TRUE(accepts(grammar, R"({"k7":1,"k3999":[]})"));
  EXPECT_FALSE(accepts(grammar, R"({"k7":1,"k5":[]})"));
  // A large vocabulary has large masks, and each key is a node of its own.
  const Tokenizer tokenizer =
      test::kSanitized ? Tokenizer::load(test::text_data() / "tiny") : test::released_tokenizer("deepseek-v3");
  TokenMasks masks(grammar, std::make_shared<const TokenTrie>(tokenizer));
  GrammarMatcher matcher(grammar);
  std::vector<uint64_t> mask;
  for (const char c : std::string_view(R"({"k7":1,"k3)")) {
    matcher.allowed(masks, mask);
    ASSERT_TRUE(matcher.accept({&c, 1}));
  }
}

}  // namespace
}  // namespace fathom
