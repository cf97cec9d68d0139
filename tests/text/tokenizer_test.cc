#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "text/tokenizer_fixture.h"

namespace fathom {
namespace {

using test::Json;
using Ids = std::vector<int32_t>;

const Tokenizer& tiny() {
  static const Tokenizer tokenizer = Tokenizer::load(test::text_data() / "tiny");
  return tokenizer;
}

void check_vectors(const std::string& name) {
  const Tokenizer tokenizer = test::released_tokenizer(name);
  int n = 0;
  for (const std::string& line : test::lines_of(test::text_data() / name / "vectors.jsonl")) {
    const Json vector = Json::parse(line);
    const auto text = vector["text"].get<std::string>();
    const auto ids = vector["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), ids) << printable(text);
    EXPECT_EQ(tokenizer.decode(ids), text);
    if (vector.contains("decoded_skip_special")) {
      EXPECT_EQ(tokenizer.decode(ids, true), vector["decoded_skip_special"].get<std::string>());
    }
    StreamDecoder stream(tokenizer, false);
    std::string streamed;
    for (const int32_t id : ids) streamed += stream.push(id);
    EXPECT_EQ(streamed + stream.finish(), text);
    ++n;
  }
  EXPECT_EQ(n, 286);
}

TEST(Tokenizer, AgreesWithEveryVectorOfDeepSeekV3) { check_vectors("deepseek-v3"); }
TEST(Tokenizer, AgreesWithEveryVectorOfDeepSeekLlm) { check_vectors("deepseek-llm"); }

// Of the dense families: words as Llama 3 and Qwen 2 cut them, the second behind normalization form C.
TEST(Tokenizer, AgreesWithEveryTextOfTheDenseFamilies) {
  for (const char* const name : {"llama_like", "qwen2_like"}) {
    const std::filesystem::path folder = std::filesystem::path(FATHOM_TEST_DATA) / "oracle" / name;
    const Tokenizer tokenizer = Tokenizer::load(folder);
    const Tokenizer from_lists = Tokenizer::from_vocabulary(tokenizer.vocabulary(), "lists");
    const Json expected = Json::parse(test::slurp(folder / "tokenizer_expected.json"));
    ASSERT_GE(expected.size(), 25u);
    for (const Json& entry : expected) {
      const auto ids = entry["ids"].get<Ids>();
      EXPECT_EQ(tokenizer.encode(entry["text"].get<std::string>()), ids) << name << entry["text"];
      EXPECT_EQ(from_lists.encode(entry["text"].get<std::string>()), ids) << name << entry["text"];
    }
  }
}

TEST(Tokenizer, GuardsLeaveNoTraceInNormalizedText) {
  const Tokenizer tokenizer = Tokenizer::load(std::filesystem::path(FATHOM_TEST_DATA) / "oracle/qwen2_like");
  constexpr const char* kGuard = "a7c31e";  // its last letter is one that accents compose with
  const std::string text = "<\u0338think> <\u0301/think>e\u0301<think>";
  const std::string guarded = tokenizer.guarded(text, kGuard);
  EXPECT_NE(guarded, text);
  EXPECT_EQ(tokenizer.encode_guarded(guarded, kGuard), tokenizer.encode(text, /*parse_special=*/false));
}

TEST(Tokenizer, AgreesWithEveryTextOfTheTinyTokenizer) {
  const Json expected = Json::parse(test::slurp(test::text_data() / "tiny" / "tokenizer_expected.json"));
  ASSERT_GE(expected["encode"].size(), 69u);
  for (const Json& entry : expected["encode"]) {
    const auto ids = entry["ids"].get<Ids>();
    EXPECT_EQ(tiny().encode(entry["text"].get<std::string>()), ids) << entry["text"];
    EXPECT_EQ(tiny().decode(ids), entry["decoded"].get<std::string>());
    EXPECT_EQ(tiny().decode(ids, true), entry["decoded_skip_special"].get<std::string>());
  }
  for (const Json& entry : expected["chat"]) {
    EXPECT_EQ(tiny().encode(entry["text"].get<std::string>()), entry["ids"].get<Ids>());
  }
}

TEST(Tokenizer, ReadsTheConfigurationBesideIt) {
  EXPECT_EQ(tiny().bos_id(), 0);
  EXPECT_EQ(tiny().eos_id(), 1);
  EXPECT_TRUE(tiny().is_special(0));
  EXPECT_FALSE(tiny().is_special(3));
  EXPECT_EQ(tiny().vocab_size(), 617);
  EXPECT_EQ(tiny().chat_template().substr(0, 2), "{%");
  EXPECT_FALSE(tiny().is_bytes());
  EXPECT_EQ(tiny().id_of("<｜end▁of▁sentence｜>"), 1);
  EXPECT_EQ(tiny().id_of("no such token"), -1);
  EXPECT_EQ(tiny().token_bytes(tiny().id_of("\n")), "\n");
}

TEST(Tokenizer, PutsABeginTokenBeforeTextsWhereNothingSaysOtherwise) {
  EXPECT_TRUE(tiny().adds_bos());
  EXPECT_FALSE(Tokenizer::bytes().adds_bos());
  const test::TemporaryDirectory directory;
  tiny().save(directory.path());
  for (const bool wanted : {false, true}) {
    directory.write("tokenizer_config.json",
                    Json{{"bos_token", "<｜begin▁of▁sentence｜>"}, {"add_bos_token", wanted}}.dump());
    const Tokenizer tokenizer = Tokenizer::load(directory.path());
    EXPECT_EQ(tokenizer.adds_bos(), wanted);
    const Tokenizer again = Tokenizer::from_vocabulary(tokenizer.vocabulary(), "it");
    EXPECT_EQ(again.adds_bos(), wanted);
    const test::TemporaryDirectory copy;
    again.save(copy.path());
    EXPECT_EQ(Tokenizer::load(copy.path()).adds_bos(), wanted);
  }
  directory.write("tokenizer_config.json", R"({"bos_token": "<｜begin▁of▁sentence｜>"})");
  EXPECT_TRUE(Tokenizer::load(directory.path()).adds_bos());
  directory.write("tokenizer_config.json", "{}");
  EXPECT_FALSE(Tokenizer::load(directory.path()).adds_bos());  // it has none
}

TEST(Tokenizer, TextIsNotControlWhenSpecialsAreNotParsed) {
  const std::string text = "a<｜end▁of▁sentence｜>b";
  const Ids parsed = tiny().encode(text), plain = tiny().encode(text, false);
  EXPECT_NE(std::find(parsed.begin(), parsed.end(), 1), parsed.end());
  EXPECT_EQ(std::find(plain.begin(), plain.end(), 1), plain.end());
  EXPECT_EQ(tiny().decode(plain, true), text);
}

// A random text of characters from every plane, with runs of spaces and line ends between.
std::string random_text(Rng& rng, size_t n) {
  const std::vector<std::string> pieces = {" ",      "  ", "\n", "\r\n", "\t",   "a",   "the",    "Zebra",  "1",
                                           "12345",  "é",  "ß",  "中文", "の",   "カ",  "한",     "😀",      "\u200d",
                                           "\u0301", "!",  "?!", "'s",   "<",    "<｜", "\u00a0", "\u2028", "\u0085",
                                           "\v",     "٣",  "Ⅷ",  "½",    "\x01", "।",   "क्"};
  std::string text;
  while (n-- > 0) text += pieces[rng.below(pieces.size())];
  return text;
}

TEST(Tokenizer, DecodeIsTheInverseOfEncode) {
  Rng rng(1);
  for (size_t n = 0; n < 300; ++n) {
    const std::string text = random_text(rng, n);
    EXPECT_EQ(tiny().decode(tiny().encode(text)), text) << printable(text);
  }
}

// Words that come again are copied from before: a long text must give what its parts give.
TEST(Tokenizer, RepeatedWordsBecomeWhatTheyBecomeAlone) {
  Rng rng(2);
  Ids expected;
  std::string text;
  for (int n = 0; n < 400; ++n) {
    std::string word = random_text(rng, 9);
    word += "\nx\n";  // a line end, and a word that begins anew after it
    const Ids ids = tiny().encode(word);
    text += word;
    expected.insert(expected.end(), ids.begin(), ids.end());
  }
  Ids ids = tiny().encode(text);
  EXPECT_EQ(tiny().decode(ids), tiny().decode(expected));
  // The joints are free to differ, not the bulk.
  EXPECT_NEAR(static_cast<double>(ids.size()), static_cast<double>(expected.size()), 400);
}

TEST(Tokenizer, TheSameWordAlwaysHasTheSameIds) {
  const Ids one = tiny().encode(" wonderfully");
  std::string text;
  Ids expected;
  for (int n = 0; n < 1000; ++n) {
    text += " wonderfully";
    expected.insert(expected.end(), one.begin(), one.end());
  }
  EXPECT_EQ(tiny().encode(text), expected);
}

TEST(Tokenizer, LongWordsAndRunsAreExactAndQuick) {
  for (const char* piece : {"a", " ", "\n", "中", "!", "é", "7"}) {
    std::string text;
    for (int n = 0; n < 100'000; ++n) text += piece;
    for (const std::string& whole : {text, text + "x", "x" + text})
      EXPECT_EQ(tiny().decode(tiny().encode(whole)), whole);
  }
}

TEST(Tokenizer, NamesThePositionOfTheFirstBadByte) {
  for (const auto& [text, position] : std::vector<std::pair<std::string, std::string>>{
           {"ab\xff", "2"}, {"\xc3", "0"}, {"é\xed\xa0\x80", "2"}, {"\xf4\x90\x80\x80", "0"}, {"abc\xe4\xb8", "3"}}) {
    try {
      tiny().encode(text);
      FAIL();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("byte " + position), std::string::npos) << error.what();
    }
  }
}

TEST(Tokenizer, RefusesIdsOutsideTheVocabulary) {
  for (const int32_t id : {-1, 617, 100'000, -2'000'000'000}) {
    EXPECT_THROW(tiny().decode(Ids{5, id}), Error);
    EXPECT_THROW(StreamDecoder(tiny()).push(id), Error);
    EXPECT_FALSE(tiny().is_special(id));
  }
}

TEST(Tokenizer, SaveWritesWhatWasLoaded) {
  const test::TemporaryDirectory directory;
  tiny().save(directory.path() / "model");
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    EXPECT_EQ(test::slurp(directory.path() / "model" / file), test::slurp(test::text_data() / "tiny" / file));
  }
  const Tokenizer again = Tokenizer::load(directory.path() / "model");
  EXPECT_EQ(again.chat_template(), tiny().chat_template());
}

TEST(Tokenizer, ATemplateFileIsStrongerThanTheConfiguration) {
  const test::TemporaryDirectory directory;
  tiny().save(directory.path());
  directory.write("chat_template.jinja", "{{ bos_token }}");
  const Tokenizer tokenizer = Tokenizer::load(directory.path());
  EXPECT_EQ(tokenizer.chat_template(), "{{ bos_token }}");
  const test::TemporaryDirectory copy;
  tokenizer.save(copy.path());
  EXPECT_EQ(Tokenizer::load(copy.path() / "tokenizer.json").chat_template(), "{{ bos_token }}");
}

TEST(BytesTokenizer, EveryByteIsItsId) {
  const Tokenizer bytes = Tokenizer::bytes();
  std::string text;
  Ids expected;
  for (int byte = 255; byte >= 0; --byte) {
    text += static_cast<char>(byte);
    expected.push_back(byte);
  }
  EXPECT_EQ(bytes.encode(text), expected);
  EXPECT_EQ(bytes.decode(expected, false, true), text);
  EXPECT_EQ(bytes.vocab_size(), 258);
  EXPECT_EQ(bytes.bos_id(), 256);
  EXPECT_EQ(bytes.eos_id(), 257);
  EXPECT_TRUE(bytes.is_bytes());
  EXPECT_EQ(bytes.encode("<|end|>"), Ids{257});
  EXPECT_EQ(bytes.encode("<|end|>", false).size(), 7u);
  EXPECT_EQ(bytes.decode(Ids{256, 'a', 257}, true), "a");
  EXPECT_EQ(bytes.decode(Ids{0xe4, 0xb8, 'x'}), "\uFFFDx");
}

TEST(BytesTokenizer, SurvivesSavingAsItselfAndAsBpeForOthers) {
  const test::TemporaryDirectory directory;
  const Tokenizer bytes = Tokenizer::bytes();
  bytes.save(directory.path());
  EXPECT_TRUE(Tokenizer::load(directory.path()).is_bytes());
  EXPECT_TRUE(Tokenizer::load("bytes").is_bytes());
  const Tokenizer plain =
      Tokenizer::load(directory.write("other.json", test::slurp(directory.path() / "tokenizer.json")));
  EXPECT_FALSE(plain.is_bytes());
  EXPECT_EQ(plain.vocab_size(), 258);
  EXPECT_EQ(plain.bos_id(), 256);
  EXPECT_EQ(plain.eos_id(), 257);
  Rng rng(3);
  for (size_t n = 0; n < 65; ++n) {
    const std::string text = random_text(rng, n) + (n % 3 == 0 ? "<|end|>" : "");
    EXPECT_EQ(plain.encode(text), bytes.encode(text));
    EXPECT_EQ(plain.encode(text, false), bytes.encode(text, false));
  }
}

TEST(StreamDecoder, NeverEmitsHalfACharacter) {
  const Tokenizer bytes = Tokenizer::bytes();
  Rng rng(4);
  for (size_t n = 0; n < 200; ++n) {
    std::string text = random_text(rng, n);
    if (n % 2 == 1) {  // and broken ones
      for (int k = 0; k < 5 && !text.empty(); ++k) text[rng.below(text.size())] = static_cast<char>(rng.below(256));
    }
    const Ids ids = bytes.encode(text, false);
    StreamDecoder stream(bytes);
    std::string streamed;
    for (const int32_t id : ids) {
      const std::string part = stream.push(id);
      EXPECT_EQ(part, bytes.decode(bytes.encode(part, false))) << "half a character";
      streamed += part;
    }
    EXPECT_EQ(streamed + stream.finish(), bytes.decode(ids));
    EXPECT_EQ(stream.finish(), "");
  }
}

TEST(StreamDecoder, AsciiIsNotHeldBack) {
  const Tokenizer bytes = Tokenizer::bytes();
  StreamDecoder stream(bytes);
  EXPECT_EQ(stream.push('a'), "a");
  EXPECT_EQ(stream.push(0xe4), "");
  EXPECT_EQ(stream.push(0xb8), "");
  EXPECT_EQ(stream.push(0xad), "中");
  EXPECT_EQ(stream.push(0xf0), "");
  EXPECT_EQ(stream.push('b'), "\uFFFDb");
}

}  // namespace
}  // namespace fathom
