#include "text/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "text/tokenizer_fixture.h"

namespace fathom {
namespace {

using test::Json;
using testing::HasSubstr;
using Ids = std::vector<int32_t>;

void check_released(const std::string& name) {
  const Tokenizer released = test::released_tokenizer(name);
  const Vocabulary lists = released.vocabulary();
  EXPECT_EQ(lists.pretokenizer, name);
  const Tokenizer again = Tokenizer::from_vocabulary(lists, "lists");
  EXPECT_EQ(again.vocab_size(), released.vocab_size());
  EXPECT_EQ(again.bos_id(), released.bos_id());
  EXPECT_EQ(again.eos_id(), released.eos_id());
  for (int32_t id = 0; id < again.vocab_size(); ++id) {
    ASSERT_EQ(again.token_bytes(id), released.token_bytes(id)) << id;
    ASSERT_EQ(again.is_special(id), released.is_special(id)) << id;
  }
  for (const std::string& line : test::lines_of(test::text_data() / name / "vectors.jsonl")) {
    const Json vector = Json::parse(line);
    const auto text = vector["text"].get<std::string>();
    EXPECT_EQ(again.encode(text), vector["ids"].get<Ids>()) << printable(text);
    EXPECT_EQ(again.decode(vector["ids"].get<Ids>()), text);
  }
}

TEST(Vocabulary, OfDeepSeekV3IsTheSameTokenizer) { check_released("deepseek-v3"); }
TEST(Vocabulary, OfDeepSeekLlmIsTheSameTokenizer) { check_released("deepseek-llm"); }

TEST(Vocabulary, KeepsTheTemplateAndIsSavedWithIt) {
  const Tokenizer tiny = Tokenizer::load(test::text_data() / "tiny");
  const Tokenizer again = Tokenizer::from_vocabulary(tiny.vocabulary(), "lists");
  EXPECT_EQ(again.chat_template(), tiny.chat_template());
  EXPECT_EQ(again.bos_id(), tiny.bos_id());
  const test::TemporaryDirectory directory;
  again.save(directory.path());
  const Tokenizer loaded = Tokenizer::load(directory.path());
  EXPECT_EQ(loaded.chat_template(), tiny.chat_template());
  EXPECT_EQ(loaded.eos_id(), tiny.eos_id());
  const std::string text = "It's <think> 12345 中文\r\n  \n<｜end▁of▁sentence｜>";
  EXPECT_EQ(loaded.encode(text), tiny.encode(text));
}

TEST(Vocabulary, OfPlainBytesIsTheBytesTokenizer) {
  Vocabulary lists = Tokenizer::bytes().vocabulary();
  EXPECT_EQ(lists.tokens.size(), 258u);
  lists.tokens.push_back(unused_token(258));
  lists.kinds.push_back(static_cast<int64_t>(TokenKind::unused));
  const Tokenizer again = Tokenizer::from_vocabulary(lists, "lists");
  EXPECT_TRUE(again.is_bytes());
  EXPECT_EQ(again.eos_id(), 257);
  lists.kinds[258] = static_cast<int64_t>(TokenKind::normal);
  EXPECT_FALSE(Tokenizer::from_vocabulary(lists, "lists").is_bytes());
}

TEST(Vocabulary, UnusedIdsAreGaps) {
  const Vocabulary lists{"deepseek-v3", {"a", "[PAD1]", "b", "<|x|>", "[PAD4]"}, {1, 5, 1, 4, 5}, {}, -1, -1, ""};
  const Tokenizer tokenizer = Tokenizer::from_vocabulary(lists, "lists");
  EXPECT_EQ(tokenizer.encode("ab<|x|>a"), (Ids{0, 2, 3, 0}));
  EXPECT_EQ(tokenizer.decode(Ids{0, 1, 2}), "ab");
  EXPECT_EQ(tokenizer.vocab_size(), 4);
  EXPECT_FALSE(tokenizer.is_special(3));
}

TEST(Vocabulary, WhatIsNotSupportedIsRefusedByName) {
  const Vocabulary sound{"deepseek-v3", {"a", "b", "ab", "<e>"}, {1, 1, 1, 3}, {"a b"}, 0, 3, ""};
  const auto refusal = [&](const auto& change) -> std::string {
    Vocabulary changed = sound;
    change(changed);
    try {
      (void)Tokenizer::from_vocabulary(changed, "m.gguf: tokenizer");
    } catch (const Error& error) {
      return error.what();
    }
    return "(accepted)";
  };
  EXPECT_EQ(refusal([](Vocabulary&) {}), "(accepted)");
  for (const char* name : {"kimi-k2", "deepseek-coder", "default", "gpt-2", "", "a\nb"}) {
    EXPECT_THAT(refusal([&](Vocabulary& v) { v.pretokenizer = name; }),
                HasSubstr(fmt::format("m.gguf: tokenizer: the pre-tokenizer {} is not supported", printable(name))));
  }
  EXPECT_THAT(refusal([](Vocabulary& v) { v.kinds[2] = 6; }), HasSubstr("the token of id 2 is of the kind 6"));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.kinds[2] = 0; }), HasSubstr("the token of id 2 is of the kind 0"));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.kinds[2] = int64_t{1} << 39; }), HasSubstr("is of the kind 549755813888"));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.tokens[1] = ""; }), HasSubstr("the token of id 1 is empty"));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.tokens[1] = "a"; }), HasSubstr("the key \"a\" stands twice"));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.merges[0] = "a c"; }), HasSubstr("merge 0: not in the vocabulary: \"c\""));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.merges[0] = "ab"; }), HasSubstr("merge 0: is not two tokens"));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.merges[0] = "b a"; }), HasSubstr("merge 0: its result is not in"));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.kinds = {5, 5, 5, 3}; }), HasSubstr("is empty"));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.bos = 4; }), HasSubstr("the begin or end token 4 is no token"));
  EXPECT_THAT(refusal([](Vocabulary& v) { v.chat_template.resize(2 << 20, 'x'); }), HasSubstr("is longer than"));
}

TEST(Vocabulary, LineEndsMayBeEscapedInARegex) {
  std::vector<SplitRule> splits = find_pretokenizer("deepseek-llm")->splits;
  splits[0].pattern = "[\\r\\n]";
  EXPECT_EQ(name_of_pretokenizer({splits}), "deepseek-llm");
  splits[0].pattern = "[\\r\\\\n]";
  EXPECT_EQ(name_of_pretokenizer({splits}), std::nullopt);
}

TEST(Vocabulary, NamesSayWhatIsDoneToTexts) {
  TextRules rules = *find_pretokenizer("deepseek-r1-qwen");
  EXPECT_TRUE(rules.nfc);
  EXPECT_EQ(name_of_pretokenizer(rules), "qwen2");  // another name of the same
  rules.nfc = false;
  EXPECT_EQ(name_of_pretokenizer(rules), std::nullopt);
  rules = *find_pretokenizer("llama-bpe");
  EXPECT_TRUE(rules.ignore_merges);
  EXPECT_EQ(name_of_pretokenizer(rules), "llama-bpe");
  rules.ignore_merges = false;
  EXPECT_EQ(name_of_pretokenizer(rules), std::nullopt);
}

TEST(Vocabulary, OtherPretokenizersHaveNoName) {
  const auto tokenizer = Tokenizer::parse(
      R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
          {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": false},
          {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}, "decoder": {"type": "ByteLevel"},
          "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})",
      "t");
  EXPECT_THROW((void)tokenizer.vocabulary(), Error);
}

}  // namespace
}  // namespace fathom
