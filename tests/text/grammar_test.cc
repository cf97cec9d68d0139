#include "text/grammar.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <set>

#include "base/error.h"
#include "base/rng.h"
#include "base/utf8.h"
#include "refusal.h"
#include "sanitized.h"
#include "text/gbnf.h"
#include "text/grammar_matcher.h"
#include "text/json_schema.h"
#include "text/regex_grammar.h"
#include "tokenizer_fixture.h"

namespace fathom {
namespace {

using test::Json;
using std::string_literals::operator""s;

using GrammarPtr = std::shared_ptr<const Grammar>;

GrammarPtr schema(const char* text) { return schema_grammar(Json::parse(text)); }

std::string repeated(std::string_view text, size_t times) {
  std::string out;
  for (size_t i = 0; i < times; ++i) out += text;
  return out;
}

bool accepts(const GrammarPtr& grammar, std::string_view text) {
  GrammarMatcher matcher(grammar);
  return matcher.accept(text) && matcher.can_end();
}

// Bytes, and what JSON is often cut into, characters in pieces too.
Tokenizer json_pieces() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (const char* piece :
       {"\":",      "\": ",  "\",\"", "{\"",      "\"}",  "}}",    "[[",     "]]}",        ",\n  ",
        "\n\n",     "  ",    "    ",  "true",     "null", "12",    "0.5",    ", ",         "name",
        "\"na",     "me\":", "\\u00", "\\ud83d",  "\\\"", "\\n\"", "\u00e9", "\xC3\xA9\"", "\x80\x9C",
        "\xE2\x80", "aa",    "ab",    "ba",       "aab",  "bbb",   "1-",     "-01-",       "a\"b",
        "\"\"",     "[]",    "{}",    "\"a\":1}", "fal",  "se,",   "1}",     "[1,",        "aaaaaaa",
        "((",       "))",    "()(",   "x)",       "=\n",  "a=",    "\"a"}) {
    tokens.emplace_back(piece);
  }
  const auto end = static_cast<int32_t>(tokens.size());
  const AddedToken token{.id = end, .content = "<a>", .special = true, .normalized = false};
  return Tokenizer::parse(write_tokenizer_json({}, tokens, {}, {token}), "pieces");
}

bool is_allowed(const std::vector<uint64_t>& mask, int64_t id) {
  return (mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1) != 0;
}

// Each token of the vocabulary, tried on a copy.
void expect_exact_mask(const GrammarMatcher& matcher, TokenMasks& masks, const Tokenizer& tokenizer) {
  std::vector<uint64_t> mask;
  matcher.allowed(masks, mask);
  ASSERT_EQ(mask.size(), (tokenizer.vocab_size() + 63) / 64);
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string bytes = tokenizer.token_bytes(id);
    const bool want = !tokenizer.is_mark(id) && !bytes.empty() && GrammarMatcher(matcher).accept(bytes);
    ASSERT_EQ(is_allowed(mask, id), want) << id << " \"" << printable(bytes) << '"';
  }
}

constexpr const char* kArithmetic = R"G(
root  ::= (expr "=" ws term "\n")+   # as in llama.cpp's examples
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
)G";

struct Sample {
  std::string name;
  GrammarPtr grammar;
  std::string text;  // in the grammar
};

const std::vector<Sample>& samples() {
  static const std::vector<Sample> all = {
      {"words", parse_gbnf(R"(root ::= ("a" | "ab" | "aab")* "b"?)"), "aababab"},
      {"right recursion", parse_gbnf("root ::= \"a\" root | \"b\""), "aaaab"},
      {"palindromes", parse_gbnf(R"(root ::= "a" root "a" | "b" root "b" | "a" | "b")"), "abaaaba"},
      {"optional ends", parse_gbnf("root ::= \"(\" root? \")\"?"), "(((())"},
      {"arithmetic", parse_gbnf(kArithmetic), "(a1 +12)*b=\nx\naa=12\n"},
      {"not ASCII", parse_gbnf("root ::= [é-ü“-”😀] [^é]* \"ü\""), "é“x😀ü"},
      {"counted", regex_grammar("(a{2,4}b?){3}"), "aabaaaaaa"},
      {"empty loops", regex_grammar("((a*)*b{0,3})*"), "aabbb"},
      {"any object", any_json_object(), "{\"a\": [1, {\"é\\n\": -0.5e2}],\n  \"b\" :\"“\\u00e9\\ud83d\\ude00\"}"},
      {"schema",
       schema(R"({"properties": {"name": {"type": "string", "maxLength": 5}, "a": {"type": "integer", "minimum": -7},
                  "ok": {"type": ["boolean", "null"]}}, "required": ["a"], "additionalProperties": {"enum": ["ab", 12]}})"),
       "{\"name\": \"na\u00e9\", \"a\":-3, \"names\": \"ab\"}"},
      {"recursive schema", schema(R"({"type": "array", "items": {"$ref": "#"}, "maxItems": 3})"), "[[], [[],[[[]]]]]"},
      {"pattern", schema(R"({"type": "string", "pattern": "a\"?b"})"), "\"xa\\\"bé\""}};
  return all;
}

TEST(TokenMasks, AreWhatAcceptTakes) {
  for (const Tokenizer& tokenizer : {Tokenizer::bytes(), Tokenizer::load(test::text_data() / "tiny"), json_pieces()}) {
    const auto trie = std::make_shared<const TokenTrie>(tokenizer);
    for (const Sample& sample : samples()) {
      SCOPED_TRACE(sample.name);
      TokenMasks masks(sample.grammar, trie);
      GrammarMatcher matcher(sample.grammar);
      for (const char c : sample.text) {
        expect_exact_mask(matcher, masks, tokenizer);
        ASSERT_TRUE(matcher.accept({&c, 1})) << c;
      }
      expect_exact_mask(matcher, masks, tokenizer);
      EXPECT_TRUE(matcher.can_end());
    }
  }
}

TEST(TokenMasks, AreWhatAcceptTakesWithAReleasedTokenizer) {
  if (test::kSanitized) GTEST_SKIP() << "slow";
  const Tokenizer tokenizer = test::released_tokenizer("deepseek-v3");
  TokenMasks masks(any_json_object(), std::make_shared<const TokenTrie>(tokenizer));
  GrammarMatcher matcher(any_json_object());
  for (const char* piece : {"", "{", "\"ke", "y\": [", "\"“\\u12", "ff\", -1", ".", "5,\n  "}) {
    ASSERT_TRUE(matcher.accept(piece)) << piece;
    expect_exact_mask(matcher, masks, tokenizer);
  }
}

TEST(TokenMasks, HaveNoTokensThatAreLeftOut) {
  const std::array<int32_t, 2> left_out = {'{', '"'};
  const GrammarPtr any = schema_grammar(true);
  TokenMasks masks(any, std::make_shared<const TokenTrie>(Tokenizer::bytes(), left_out));
  std::vector<uint64_t> mask;
  GrammarMatcher(any).allowed(masks, mask);
  EXPECT_TRUE(is_allowed(mask, '['));
  EXPECT_FALSE(is_allowed(mask, '{') || is_allowed(mask, '"'));
}

TEST(TokenMasks, HaveNoMarksInStrings) {
  if (test::kSanitized) GTEST_SKIP() << "slow";
  const Tokenizer tokenizer = test::released_tokenizer("deepseek-v3");
  const int32_t separator = tokenizer.id_of("<｜tool▁sep｜>");
  GrammarMatcher in_string(any_json_object());
  ASSERT_TRUE(in_string.accept("{\"a"));
  for (const bool with : {false, true}) {
    TokenMasks masks(any_json_object(), std::make_shared<const TokenTrie>(tokenizer, std::span<const int32_t>(),
                                                                          std::span(&separator, with ? 1 : 0)));
    std::vector<uint64_t> mask;
    in_string.allowed(masks, mask);
    for (const char* mark : {"<｜tool▁call▁end｜>", "<｜User｜>", "<think>", "</think>", "<｜end▁of▁sentence｜>"}) {
      EXPECT_FALSE(is_allowed(mask, tokenizer.id_of(mark))) << mark;
    }
    EXPECT_EQ(is_allowed(mask, separator), with);
    EXPECT_TRUE(is_allowed(mask, tokenizer.id_of("<")));
  }
}

TEST(TokenMasks, ForgetWhatTheyHaveNoRoomFor) {
  const Tokenizer tokenizer = json_pieces();
  const auto trie = std::make_shared<const TokenTrie>(tokenizer);
  constexpr size_t kRoom = 150'000;
  TokenMasks small(any_json_object(), trie, kRoom), large(any_json_object(), trie);
  GrammarMatcher matcher(any_json_object());
  std::vector<uint64_t> mask, want;
  size_t most = 0;
  for (const char c : "{" + repeated("\"a\": [[1, {", 30)) {
    ASSERT_TRUE(matcher.accept({&c, 1}));
    matcher.allowed(small, mask);
    matcher.allowed(large, want);
    ASSERT_EQ(mask, want);
    most = std::max(most, small.bytes());
    ASSERT_LE(small.bytes(), kRoom);
  }
  EXPECT_GT(large.bytes(), kRoom);
  EXPECT_GT(most, kRoom / 4);
}

TEST(TokenMasks, RefuseWhatTakesTooLong) {
  // Whatever comes may end each of the rules that are open.
  constexpr int kRules = 1500;
  std::string source = fmt::format("root ::= r0\nany ::= .*\nr{} ::= any\n", kRules);
  for (int i = 0; i < kRules; ++i) source += fmt::format("r{} ::= \"(\" r{} any | any\n", i, i + 1);
  const GrammarPtr grammar = parse_gbnf(source);
  TokenMasks masks(grammar, std::make_shared<const TokenTrie>(Tokenizer::load(test::text_data() / "tiny")));
  GrammarMatcher matcher(grammar);
  std::vector<uint64_t> mask;
  ASSERT_TRUE(matcher.accept(repeated("(", kRules)));
  EXPECT_EQ(refusal([&] { matcher.allowed(masks, mask); }),
            "the grammar is too ambiguous: more than 16777216 steps to the tokens that may come next");
}

TEST(GrammarMatcher, ReadsTheSameHoweverTheTextIsCut) {
  Rng rng(1);
  for (const Sample& sample : samples()) {
    SCOPED_TRACE(sample.name);
    EXPECT_TRUE(accepts(sample.grammar, sample.text));
    for (int round = 0; round < 20; ++round) {
      GrammarMatcher matcher(sample.grammar);
      std::string_view rest = sample.text;
      while (!rest.empty()) {
        const size_t n = std::min<size_t>(rng.below(5), rest.size());
        ASSERT_TRUE(matcher.accept(rest.substr(0, n)));
        rest.remove_prefix(n);
      }
      ASSERT_TRUE(matcher.can_end());
    }
  }
}

TEST(GrammarMatcher, StaysWhereItIsWhenBytesCannotCome) {
  for (const Sample& sample : samples()) {
    SCOPED_TRACE(sample.name);
    GrammarMatcher matcher(sample.grammar);
    for (size_t i = 0; i < sample.text.size(); ++i) {
      ASSERT_FALSE(matcher.accept(sample.text.substr(i) + "\xFF"));
      ASSERT_TRUE(matcher.accept(sample.text.substr(i, 1)));
    }
    EXPECT_TRUE(matcher.can_end());
  }
}

TEST(GrammarMatcher, CopiesGoTheirOwnWays) {
  GrammarMatcher one(any_json_object());
  ASSERT_TRUE(one.accept("{\"a\": [{"));
  GrammarMatcher other = one;
  EXPECT_TRUE(one.accept("}]}"));
  EXPECT_TRUE(one.must_end());
  EXPECT_FALSE(other.can_end());
  EXPECT_TRUE(other.accept("\"b\": 1}, []"));
  one = other;
  EXPECT_TRUE(one.accept(", 2]}"));
  EXPECT_TRUE(one.must_end());
  EXPECT_FALSE(other.accept("}"));
}

TEST(GrammarMatcher, TellsWhetherTheTextMayOrMustEnd) {
  const auto ends = [](const GrammarPtr& grammar, std::string_view text) {
    GrammarMatcher matcher(grammar);
    EXPECT_TRUE(matcher.accept(text)) << text;
    return std::pair(matcher.can_end(), matcher.must_end());
  };
  using Ends = std::pair<bool, bool>;
  EXPECT_EQ(ends(regex_grammar("ab?"), ""), Ends(false, false));
  EXPECT_EQ(ends(regex_grammar("ab?"), "a"), Ends(true, false));
  EXPECT_EQ(ends(regex_grammar("ab?"), "ab"), Ends(true, true));
  EXPECT_EQ(ends(regex_grammar(""), ""), Ends(true, true));
  EXPECT_EQ(ends(parse_gbnf("root ::= x x? \nx ::= \"a\" | \"\""), "a"), Ends(true, false));
  EXPECT_EQ(ends(parse_gbnf("root ::= x x? \nx ::= \"a\" | \"\""), "aa"), Ends(true, true));
  EXPECT_EQ(ends(any_json_object(), "{}"), Ends(true, true));
}

TEST(GrammarMatcher, ListsAndRightRecursionDoNotPileUp) {
  constexpr size_t kMany = 300'000;
  EXPECT_TRUE(accepts(parse_gbnf("root ::= \"a\" root | \"b\""), repeated("a", kMany) + "b"));
  EXPECT_TRUE(accepts(parse_gbnf("root ::= item (\",\" item)*\nitem ::= \"(\" item \")\" | \"x\""),
                      "x" + repeated(",((x))", kMany / 6)));
  // Deep, but one stack.
  EXPECT_TRUE(accepts(any_json_object(), "{\"a\":" + repeated("[", kMany) + repeated("]", kMany) + "}"));
}

TEST(GrammarMatcher, RefusesTextsThatCanBeReadInTooManyWays) {
  const GrammarPtr grammar = parse_gbnf(R"(root ::= "a" root "a" "x" | "a" root "a" "y" | "b")");
  GrammarMatcher matcher(grammar);
  ASSERT_TRUE(matcher.accept(repeated("a", 10)));
  EXPECT_EQ(refusal([&] { matcher.accept(repeated("a", 10)); }),
            "the grammar is too ambiguous: more than 8192 ways to read the text");
  EXPECT_TRUE(matcher.accept("aba")) << "where it was";
  EXPECT_TRUE(matcher.accept("x"));
  const Tokenizer tokenizer = json_pieces();
  const auto trie = std::make_shared<const TokenTrie>(tokenizer);
  const GrammarPtr wide = regex_grammar("b|(a?){9000}");
  TokenMasks masks(wide, trie);
  std::vector<uint64_t> mask;
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(refusal([&] { GrammarMatcher(wide).allowed(masks, mask); }),
              "the grammar is too ambiguous: more than 8192 ways to read the text");
  }
  GrammarMatcher other(wide);
  ASSERT_TRUE(other.accept("b"));
  expect_exact_mask(other, masks, tokenizer);
}

TEST(GrammarMatcher, ManyWaysThatComeToTheSameAreOne) {
  EXPECT_TRUE(accepts(regex_grammar("((a|a)*|(a*)*)*"), repeated("a", 10'000)));
  EXPECT_TRUE(accepts(parse_gbnf("root ::= (x | y | x y)*\nx ::= \"a\"\ny ::= \"a\"?"), repeated("a", 10'000)));
  EXPECT_TRUE(accepts(regex_grammar("(a{0,50}){0,50}"), repeated("a", 2500)));
  EXPECT_FALSE(accepts(regex_grammar("(a{0,50}){0,50}"), repeated("a", 2501)));
}

struct Language {
  std::string grammar;
  std::vector<std::string> texts, others;
};

void expect_language(const GrammarPtr& grammar, const Language& language) {
  for (const std::string& text : language.texts) EXPECT_TRUE(accepts(grammar, text)) << printable(text);
  for (const std::string& text : language.others) EXPECT_FALSE(accepts(grammar, text)) << printable(text);
}

TEST(Gbnf, ReadsWhatLlamaCppReads) {
  for (const Language& language : std::vector<Language>{
           {"root ::= \"a\\tb\\n\\\\\\\"\\x41\\u00e9\\U0001F600\"", {"a\tb\n\\\"A\u00e9\U0001F600"}, {"", "a"}},
           {"# all of\nroot ::= # it\n \"a\" | # or\n \"b\" \"c\"\n# end", {"a", "bc"}, {"b", "abc"}},
           {"root ::= \"a\"\n  | \"b\"\r\n\t| \"c\"\r\n", {"a", "b", "c"}, {""}},
           {"root ::= [a-c\\]\\-^é] [^a-c\\n]", {"ax", "]é", "-d", "^x", "éé"}, {"aa", "a\n", "dx", "x"}},
           {"root ::= [-a] [a-]", {"--", "aa", "a-"}, {"b-"}},
           {"root ::= .", {"x", "\n", "\u20AC"}, {"", "xx", "\x80", "\xE2\x82", "\xED\xA0\x80"}},
           {"root ::= (\"a\" | )\"b\"", {"ab", "b"}, {"a"}},
           {"root ::= \"ab\"* \"c\"+ \"d\"?", {"ababc", "ccd", "c"}, {"ab", "abbc", "cdd"}},
           {"root ::= \"a\"{2} \"b\"{ 1 , } \"c\"{0,2}", {"aab", "aabbbcc"}, {"ab", "aabccc", "aa"}},
           {"root ::= \"a\"{0} \"b\"{0,0} \"c\"{0,1}", {"", "c"}, {"a", "b"}},
           {"root ::= a-1 under_score\na-1 ::= \"x\"\nunder_score ::= \"y\"", {"xy"}, {}},
           {"root ::= (\n\"a\"\n(\"b\"\n\n|\"c\")\n)+", {"ab", "acab"}, {"a"}},
           {"root ::= \"a\"*?", {"", "aaa"}, {}},
           {kArithmetic, {"a=b\n", "(a +(1*2)) /c_1= 7\n"}, {"a=b", "a==b\n", "(a=b\n"}}}) {
    SCOPED_TRACE(language.grammar);
    expect_language(parse_gbnf(language.grammar), language);
  }
}

TEST(Gbnf, SaysWhatIsWrongAndWhere) {
  const std::vector<std::pair<std::string, std::string>> all = {
      {"", "there is no rule root"},
      {"a ::= \"b\"", "there is no rule root"},
      {"root ::= \"a\" b\nb ::= c", "line 2, column 7: the rule c is not defined"},
      {"root ::= \"a\"\nroot ::= \"b\"", "line 2, column 1: the rule root is defined twice"},
      {"root = \"a\"", "line 1, column 6: ::= is missing"},
      {"root ::= \"a\"\n::= \"b\"", "line 2, column 1: the name of a rule is missing"},
      {"root ::= \"a", "line 1, column 12: the grammar ends within a literal or a class"},
      {"root ::= [a", "line 1, column 12: the grammar ends within a literal or a class"},
      {"root ::= []", "line 1, column 10: the class is empty"},
      {"root ::= [z-a]", "line 1, column 11: the range ends before it begins"},
      {"root ::= \"\\q\"", "line 1, column 11: unknown escape"},
      {"root ::= \"\\x4\"", "line 1, column 11: \\x needs 2 hexadecimal digits"},
      {"root ::= \"\\uD800\"", "line 1, column 11: this is no character"},
      {"root ::= * \"a\"", "line 1, column 10: nothing stands in front that could be repeated"},
      {"root ::= \"a\"{}", "line 1, column 14: a number of times is missing"},
      {"root ::= \"a\"{1,2", "line 1, column 17: } is missing"},
      {"root ::= \"a\"{3,2}", "line 1, column 13: at least 3 times but at most 2"},
      {"root ::= (\"a\"\n", "line 1, column 10: the group has no end"},
      {"root ::= \"a\")", "line 1, column 13: \")\" cannot stand here"},
      {"root ::= <think>", "line 1, column 10: tokens in grammars are not supported"},
      {"root ::= \"\xFF\"", "line 1, column 11: not UTF-8"},
      {"root ::= root \"a\" | \"b\"", "the rule root begins with itself: root -> root"},
      {"root ::= a\na ::= b? c\nb ::= \"b\"\nc ::= b? root",
       "the rule root begins with itself: root -> a -> c -> root"},
      {"root ::= \"a\" root", "there is no text that the rule root allows"},
      {"root ::= \"ab\"{1,2000000}", "line 1, column 14: 2000000 times 2 elements make a grammar of more than 1000000"},
      {"root ::= (((\"a\"{100}){100}){100}){100}",
       "line 1, column 28: 100 times 10101 elements make a grammar of more than 1000000"}};
  for (const auto& [grammar, want] : all) {
    EXPECT_EQ(refusal([&text = grammar] { parse_gbnf(text); }), want) << grammar;
  }
}

TEST(Gbnf, LeavesOutWhatNoTextFulfils) {
  const GrammarPtr grammar = parse_gbnf("root ::= \"a\" | c d\nb ::= d\nc ::= \"x\" c\nd ::= \"y\"");  // no end to c
  EXPECT_FALSE(GrammarMatcher(grammar).accept("x"));
  EXPECT_TRUE(accepts(grammar, "a"));
}

TEST(Gbnf, HostileGrammarsEndInAnError) {
  constexpr size_t kMany = 1'000'000;
  EXPECT_EQ(refusal([&] { parse_gbnf("root ::= " + repeated("(", kMany)); }),
            "line 1, column 266: groups are nested deeper than 256 levels");
  EXPECT_EQ(refusal([&] { parse_gbnf("root ::= \"" + repeated("a", kMany) + "\""); }),
            "line 1, column 10: the grammar has more than 1000000 elements");
  EXPECT_EQ(refusal([&] { parse_gbnf("root ::= \"a\"" + repeated("|", kMany)); }),
            "line 1, column 333346: the grammar has more than 1000000 elements");
  EXPECT_EQ(refusal([&] { parse_gbnf("root ::= \"\"" + repeated("{1000}", 1000)); }),
            "line 1, column 18: 1000 times 1001 elements make a grammar of more than 1000000");
  std::string chain = "root ::= r0\n", cycle = chain, twice = chain;
  for (int i = 0; i < 50'000; ++i) {
    chain += fmt::format("r{} ::= r{}\n", i, i + 1);
    twice += fmt::format("r{} ::= r{} \"a\" | r{} \"b\"\n", i, i + 1, i + 1);
  }
  EXPECT_TRUE(accepts(parse_gbnf(chain + "r50000 ::= \"x\""), "x"));
  EXPECT_EQ(refusal([&] { parse_gbnf(chain + "r50000 ::= r1"); }),
            "the rule r1 begins with itself: r1 -> r2 -> r3 -> r4 -> r5 -> ... -> r1");
  EXPECT_EQ(refusal([&] { GrammarMatcher(parse_gbnf(twice + "r50000 ::= \"x\"")); }),
            "the grammar is too ambiguous: more than 262144 places to go on at");
}

TEST(Regex, ReadsWhatEcmaScriptReads) {
  for (const Language& language :
       std::vector<Language>{{"", {""}, {"a"}},
                             {"^a|b$", {"a", "b"}, {"", "ab"}},
                             {"^(a|b)$", {"a", "b"}, {"ab"}},
                             {"(^a$|^b$)", {"a", "b"}, {"ab"}},
                             {"a.c", {"abc", "a\u00e9c", "a c"}, {"ac", "a\nc", "a\u2028c", "a\rc"}},
                             {"\\d+\\.\\d\\D", {"12.3x"}, {"12.34", ".3x"}},
                             {"\\w\\W\\s\\S", {"_- x", "a\u00e9\u3000b", "Z!\n9"}, {"__ x", "a-xx"}},
                             {"[^\\d\\s]{2}", {"ab", "\u00e9!"}, {"a1", "a "}},
                             {"[a\\-z][]", {}, {"a", "-"}},
                             {"[^]", {"a", "\n"}, {""}},
                             {"[\\]\\\\^-]+", {"]\\^-"}, {"a"}},
                             {"[a-c-e]*", {"a-e", "b"}, {"d"}},
                             {"\\t\\n\\v\\f\\r\\0\\x41\\u00e9\\cA\\/\\u{1F600}\\uD83D\\uDE00",
                              {"\t\n\v\f\r\0A\u00e9\x01/\U0001F600\U0001F600"s},
                              {}},
                             {"(?:ab)+(?<name>c)(?P<n>d)", {"ababcd"}, {"cd"}},
                             {"a{2}b{1,}c{0,2}?d??", {"aabbccd", "aab"}, {"ab", "aabccc"}},
                             {"a{,2}x{b}{", {"a{,2}x{b}{"}, {"a"}},
                             {"]}", {"]}"}, {}},
                             {"(a|b|)*c|", {"", "c", "abac"}, {"ab"}}}) {
    if (language.texts.empty()) continue;
    SCOPED_TRACE(language.grammar);
    expect_language(regex_grammar(language.grammar), language);
  }
}

TEST(Regex, SaysWhatIsWrongAndWhere) {
  const std::vector<std::pair<std::string, std::string>> all = {
      {"a)", "column 2: there is no group that ends here"},
      {"a(b", "column 2: the group has no end"},
      {"a[b", "column 2: the class has no end"},
      {"[z-a]", "column 2: the range ends before it begins"},
      {"[\\d-a]", "column 2: a range needs a character at either end"},
      {"*a", "column 1: nothing stands in front that could be repeated"},
      {"a**", "column 3: nothing stands in front that could be repeated"},
      {"(a|*)", "column 4: nothing stands in front that could be repeated"},
      {"^*", "column 2: nothing stands in front that could be repeated"},
      {"a{3,2}", "column 2: at least 3 times but at most 2"},
      {"a^b", "column 2: something stands in front of a ^"},
      {"a$b", "column 3: something follows a $"},
      {"(a$|b)c", "column 7: something follows a $"},
      {"(?=a)", "column 1: looking ahead is not supported"},
      {"(?<!a)", "column 1: looking behind is not supported"},
      {"(?i:a)", "column 1: groups that begin with (?i are not supported"},
      {"(?<n", "column 1: the group's name has no end"},
      {"(a)\\1", "column 4: back references are not supported"},
      {"\\k<n>", "column 1: back references are not supported"},
      {"\\bword", "column 1: word boundaries are not supported"},
      {"\\p{L}", "column 1: classes of Unicode's properties are not supported"},
      {"\\y", "column 1: unknown escape \\y"},
      {"\\uD800", "column 1: half of a surrogate pair is no character"},
      {"\\x4", "column 1: 2 hexadecimal digits are missing"},
      {"a\\", "column 2: nothing follows the backslash"},
      {"a\xFF", "column 2: not UTF-8"},
      {"[]", "there is no text that the rule of the whole expression allows"},
      {repeated("(", 1'000'000), "column 257: groups are nested deeper than 256 levels"},
      {"((a{1000}){1000}){1000}", "column 11: 1000 times 2001 elements make a grammar of more than 1000000"}};
  for (const auto& [pattern, want] : all) {
    EXPECT_EQ(refusal([&, &text = pattern] { regex_grammar(text); }), want) << pattern.substr(0, 40);
  }
}

// An expression and where in a text a match of it may end that begins somewhere.
struct Expression {
  std::string text;
  std::function<std::set<size_t>(const std::string&, size_t)> ends;
};

Expression random_expression(Rng& rng, int depth) {
  const uint64_t kind = rng.below(depth > 0 ? 10 : 4);
  if (kind < 4) {
    const std::string of = std::array{"a", "b", "ac", "bc"}[kind];  // of a, b and c
    return {std::array{"a", "b", "[ac]", "[^a]"}[kind], [=](const std::string& text, size_t at) {
              const bool there = at < text.size() && of.find(text[at]) != std::string::npos;
              return there ? std::set{at + 1} : std::set<size_t>{};
            }};
  }
  const Expression one = random_expression(rng, depth - 1), other = random_expression(rng, depth - 1);
  if (kind < 6) {
    return {one.text + other.text, [=](const std::string& text, size_t at) {
              std::set<size_t> ends;
              for (const size_t end : one.ends(text, at)) ends.merge(other.ends(text, end));
              return ends;
            }};
  }
  if (kind < 8) {
    return {"(" + one.text + "|" + (kind == 6 ? other.text : "") + ")", [=](const std::string& text, size_t at) {
              std::set<size_t> ends = one.ends(text, at);
              ends.merge(kind == 6 ? other.ends(text, at) : std::set{at});
              return ends;
            }};
  }
  const size_t min = rng.below(3), max = kind == 8 ? 9 : min + rng.below(3);  // texts are shorter than 9
  return {fmt::format("({}){{{},{}}}", one.text, min, kind == 8 ? "" : std::to_string(max)),
          [=](const std::string& text, size_t at) {
            std::set<size_t> ends, now = {at};
            for (size_t i = 0; i <= max; ++i) {
              if (i >= min) ends.insert(now.begin(), now.end());
              std::set<size_t> next;
              for (const size_t end : now) next.merge(one.ends(text, end));
              now = next;
            }
            return ends;
          }};
}

TEST(Regex, RandomExpressionsMatchWhatTheyMean) {
  Rng rng(2);
  for (int round = 0; round < (test::kSanitized ? 100 : 1000); ++round) {
    const Expression expression = random_expression(rng, 3);
    const GrammarPtr grammar = regex_grammar(expression.text);
    for (int i = 0; i < 20; ++i) {
      std::string text;
      for (uint64_t n = rng.below(8); n > 0; --n) text += "abc"[rng.below(3)];
      ASSERT_EQ(accepts(grammar, text), expression.ends(text, 0).contains(text.size()))
          << expression.text << " " << text;
    }
  }
}

TEST(Regex, NumbersBetweenBoundsAreExactlyThose) {
  // In hundredths; the same numbers written with fewer and with more digits.
  const std::vector<std::string> bounds = {"-20.05", "-11",  "-1.5", "-1",  "-0.99", "-0.05", "-1e-2",
                                           "0",      "0.01", "0.1",  "0.5", "0.75",  "1",     "1.05",
                                           "9.9",    "10",   "19",   "2e1", "101.25"};
  const auto hundredths = [](const std::string& number) { return std::lround(std::stod(number) * 100); };
  std::vector<std::pair<std::string, int64_t>> numbers;
  for (int64_t n = -2105; n <= 10'300; n += n < 1200 ? 1 : 37) {
    const int64_t size = std::abs(n);
    const std::string sign = n < 0 ? "-" : "", whole = sign + std::to_string(size / 100);
    numbers.emplace_back(fmt::format("{}.{:02}", whole, size % 100), n);
    if (size % 10 == 0) numbers.emplace_back(fmt::format("{}.{}", whole, size / 10 % 10), n);
    if (size % 100 == 0) numbers.emplace_back(whole, n);
    if (n % 7 == 0) numbers.emplace_back(fmt::format("{}.{:02}00", whole, size % 100), n);
  }
  Rng rng(3);
  for (int round = 0; round < (test::kSanitized ? 20 : 200); ++round) {
    std::optional<NumberBound> low, high;
    const bool integers = rng.below(2) == 0;
    if (rng.below(4) > 0) low = NumberBound{bounds[rng.below(bounds.size())], rng.below(3) == 0};
    if (rng.below(4) > 0) high = NumberBound{bounds[rng.below(bounds.size())], rng.below(3) == 0};
    SCOPED_TRACE(fmt::format("{} {} to {} {}", low ? low->number : "", low && low->exclusive, high ? high->number : "",
                             high && high->exclusive));
    const auto expression = number_regex(low, high, integers);
    const GrammarPtr grammar = expression ? regex_grammar(*expression) : nullptr;
    for (const auto& [number, n] : numbers) {
      const bool above = !low || n > hundredths(low->number) || (!low->exclusive && n == hundredths(low->number));
      const bool below = !high || n < hundredths(high->number) || (!high->exclusive && n == hundredths(high->number));
      const bool spelled = !integers || number.find('.') == std::string::npos;
      ASSERT_EQ(grammar && accepts(grammar, number), above && below && spelled) << number;
    }
  }
  EXPECT_EQ(refusal([] { number_regex(NumberBound{"1e300"}, {}, false); }), "the bound 1e300 has more than 20 digits");
  EXPECT_EQ(refusal([] { number_regex(NumberBound{"1e-30"}, {}, false); }), "the bound 1e-30 has more than 20 digits");
}

TEST(GrammarBuilder, ClassesHoldTheirCharactersAndNoOthers) {
  const CodePoints set{{{0x41, 0x5A},
                        {0x7E, 0x81},
                        {0x7FE, 0x801},
                        {0xD000, 0xE010},
                        {0xFFFE, 0x10001},
                        {0x1F600, 0x1F64F},
                        {0x10FFFF, 0x10FFFF}}};
  const auto grammar_of = [](const CodePoints& points) {
    GrammarBuilder builder;
    const uint32_t root = builder.add_rule("root");
    builder.define(root, builder.code_points(points));
    return builder.finish(root);
  };
  const GrammarMatcher in(grammar_of(set)), out(grammar_of(set.complement()));
  const auto check = [&](char32_t c) {
    std::string text;
    append_utf8(text, c);
    const bool wanted =
        std::ranges::any_of(set.ranges, [&](auto range) { return range.first <= c && c <= range.second; });
    const bool surrogate = c >= 0xD800 && c < 0xE000;
    ASSERT_EQ(GrammarMatcher(in).accept(text), wanted && !surrogate) << static_cast<uint32_t>(c);
    ASSERT_EQ(GrammarMatcher(out).accept(text), !wanted && !surrogate) << static_cast<uint32_t>(c);
  };
  for (char32_t c = 0; c <= 0x10FFFF; c += c < 0x900 ? 1 : 61) check(c);
  for (const auto& [first, last] : set.ranges) {
    for (const char32_t c : {first, last}) {
      for (int32_t by = -1; by <= 1; ++by) check(std::min<char32_t>(c + static_cast<char32_t>(by), 0x10FFFF));
    }
  }
}

TEST(GrammarBuilder, OneOfHoldsItsTextsAndNoOthers) {
  const std::vector<std::string> texts = {"ab", "abc", "", "b", "abd", "\xC3\xA9", "ab", "x\xFFy"};
  GrammarBuilder builder;
  const uint32_t root = builder.add_rule("root");
  builder.define(root, builder.one_of(texts));
  expect_language(builder.finish(root), {"", texts, {"a", "abcd", "\xC3", "x", "bb"}});
  EXPECT_EQ(refusal([] {
              GrammarBuilder none;
              const uint32_t rule = none.add_rule("none");
              none.define(rule, none.one_of({}));
              none.finish(rule);
            }),
            "there is no text that the rule none allows");
}

// A finished grammar within another says the same as alone, its recursion included.
TEST(GrammarBuilder, TakesGrammarsIn) {
  const GrammarPtr list = schema(R"({"type": "array", "items": {"$ref": "#"}})"), sum = parse_gbnf(kArithmetic);
  GrammarBuilder builder;
  const uint32_t lists = builder.add(*list, "lists"), sums = builder.add(*sum, "sums");
  const uint32_t root = builder.add_rule("root");
  const auto call = [&](const char* name, uint32_t rule) {
    const GrammarBuilder::Piece text = builder.text(name);
    return builder.then(text, builder.then(builder.call(rule), builder.text(";")));
  };
  const GrammarBuilder::Piece one = call("get:", lists), other = call("get_time:", sums);
  builder.define(root, builder.either(one, other));
  const GrammarPtr both = builder.finish(root);
  const auto follows = [&](const std::string& text) {
    GrammarMatcher matcher(both);
    return matcher.accept(text) && matcher.can_end();
  };
  EXPECT_TRUE(follows("get:[[], [[[]]]];"));
  EXPECT_TRUE(follows("get_time:(a+1)*2=3\nb=4\n;"));
  EXPECT_FALSE(follows("get:a=1\n;") || follows("get_time:[];") || follows("get:[[];") || follows("get_time:a=1;"));
}

}  // namespace
}  // namespace fathom
