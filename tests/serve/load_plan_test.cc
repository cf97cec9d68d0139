#include "serve/load_plan.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "refusal.h"
#include "temporary_directory.h"

namespace fathom::serve {
namespace {

using testing::HasSubstr;

TEST(ArrivalTimes, HaveTheRateAndTheSpreadThatIsAskedFor) {
  constexpr int64_t kN = 100'001;
  for (const double burstiness : {0.25, 0.5, 1.0, 4.0, 100.0}) {
    const std::vector<double> times = arrival_times(kN, 50, burstiness, 3);
    ASSERT_EQ(std::ssize(times), kN);
    EXPECT_EQ(times[0], 0);
    double sum = 0, squares = 0;
    for (size_t i = 1; i < times.size(); ++i) {
      const double gap = 50 * (times[i] - times[i - 1]);  // mean 1, variance 1 / burstiness
      ASSERT_GE(gap, 0);
      sum += gap;
      squares += gap * gap;
    }
    const double mean = sum / (kN - 1), variance = squares / (kN - 1) - mean * mean;
    EXPECT_NEAR(mean, 1, 0.02) << burstiness;
    EXPECT_NEAR(variance * burstiness, 1, 0.06) << burstiness;
  }
}

TEST(ArrivalTimes, OfAPoissonProcessAreExponential) {
  const std::vector<double> times = arrival_times(100'001, 2, 1, 9);
  int64_t above = 0;
  for (size_t i = 1; i < times.size(); ++i) above += times[i] - times[i - 1] > 1;  // twice the mean
  EXPECT_NEAR(static_cast<double>(above) / 1e5, std::exp(-2), 0.005);
}

TEST(ArrivalTimes, AreThoseOfTheirSeed) {
  EXPECT_EQ(arrival_times(100, 5, 1, 7), arrival_times(100, 5, 1, 7));
  EXPECT_NE(arrival_times(100, 5, 1, 7), arrival_times(100, 5, 1, 8));
  const auto few = arrival_times(10, 5, 1, 7), more = arrival_times(100, 5, 1, 7);
  EXPECT_TRUE(std::equal(few.begin(), few.end(), more.begin()));
  EXPECT_TRUE(arrival_times(0, 5, 1, 7).empty());
}

TEST(RandomWords, AreOtherOnesForEachStreamAndTheSameForASeed) {
  std::set<std::string> seen;
  for (uint64_t stream = 0; stream < 1000; ++stream) {
    const std::string words = random_words(3, 1, stream);
    ASSERT_EQ(words.size(), 14);
    for (size_t i = 0; i < words.size(); ++i) {
      EXPECT_TRUE(i % 5 == 4 ? words[i] == ' ' : words[i] >= 'a' && words[i] <= 'z') << words;
    }
    seen.insert(words);
  }
  EXPECT_EQ(seen.size(), 1000);
  EXPECT_EQ(random_words(50, 1, 2), random_words(50, 1, 2));
  EXPECT_NE(random_words(50, 1, 2), random_words(50, 2, 2));
  EXPECT_EQ(random_words(0, 1, 2), "");
}

TEST(WordTokens, AreALineThroughTwoCounts) {
  const WordTokens bytes = word_tokens(8, 47, 40, 207);  // 7 around, 5 a word
  EXPECT_DOUBLE_EQ(bytes.around, 7);
  EXPECT_DOUBLE_EQ(bytes.per_word, 5);
  EXPECT_EQ(bytes.words_for(257), 50);
  EXPECT_EQ(bytes.words_for(258), 50);
  EXPECT_EQ(bytes.words_for(3), 1);
  // A server that does not count, or counts nonsense.
  for (const auto& [a, b] : {std::pair<int64_t, int64_t>{-1, -1}, {7, 7}, {9, 7}, {-1, 500}}) {
    EXPECT_EQ(word_tokens(8, a, 40, b).words_for(100), 100);
  }
}

TEST(RequestBodies, AreWhatTheEndpointTakes) {
  const RequestBodies chat({.model = "a\"b"});
  EXPECT_EQ(nlohmann::json::parse(chat.body_of_words("some words", 7)), nlohmann::json::parse(R"({
    "model": "a\"b", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.0, "ignore_eos": true,
    "max_tokens": 7, "messages": [{"role": "user", "content": "some words"}]})"));
  const RequestBodies completions({.endpoint = Endpoint::completions,
                                   .model = "m",
                                   .temperature = 0.5,
                                   .ignore_eos = false,
                                   .extra = R"({"seed": 4, "temperature": 1, "stop": ["x", {"y": null}]})"});
  EXPECT_EQ(nlohmann::json::parse(completions.body(R"([1,2])", 9)), nlohmann::json::parse(R"({
    "model": "m", "stream": true, "stream_options": {"include_usage": true}, "temperature": 1, "seed": 4,
    "stop": ["x", {"y": null}], "max_tokens": 9, "prompt": [1, 2]})"));
  const RequestBodies newer({.model = "m", .extra = R"({"max_completion_tokens": 3})"});
  EXPECT_FALSE(nlohmann::json::parse(newer.body_of_words("x", 9)).contains("max_tokens"));
  for (const char* extra : {"[]", "7", "{", R"({"a":1,"a":2})"}) {
    EXPECT_THAT(refusal([&] { RequestBodies({.model = "m", .extra = extra}); }), HasSubstr("--extra-body")) << extra;
  }
}

TEST(ReadPrompts, TakesTextsAndConversations) {
  const test::TemporaryDirectory folder;
  const auto file =
      folder.write("p.jsonl",
                   "{\"prompt\": \"say \\\"a\\\"\"}\n\n"
                   "{\"messages\": [{\"role\": \"user\", \"content\": \"\xc3\xa4\"}], \"max_tokens\": 3}\r\n"
                   "{\"prompt\": \"last\"}");
  const auto chat = read_prompts(file, Endpoint::chat);
  ASSERT_EQ(chat.size(), 3);
  EXPECT_EQ(chat[0].json, R"([{"role":"user","content":"say \"a\""}])");
  EXPECT_EQ(chat[1].json, "[{\"role\":\"user\",\"content\":\"\xc3\xa4\"}]");
  EXPECT_EQ(chat[1].max_tokens, 3);
  EXPECT_EQ(chat[2].max_tokens, std::nullopt);
  EXPECT_EQ(read_prompts(folder.write("q.jsonl", "{\"prompt\": \"a\"}"), Endpoint::completions)[0].json, "\"a\"");
  EXPECT_THAT(refusal([&] { read_prompts(file, Endpoint::completions); }), HasSubstr("line 3"));
}

TEST(ReadPrompts, NamesTheLineOfWhatItCannotRead) {
  const test::TemporaryDirectory folder;
  const auto refused = [&](const std::string& line) {
    const auto file = folder.write("p.jsonl", "{\"prompt\": \"a\"}\n" + line);
    return refusal([&] { read_prompts(file, Endpoint::chat); });
  };
  for (const char* line :
       {"{", "[]", "{}", "{\"prompt\": 5}", "{\"messages\": {}}", "{\"prompt\": \"a\", \"max_tokens\": 0}",
        "{\"prompt\": \"a\", \"max_tokens\": \"5\"}", "{\"prompt\": \"\xff\"}"}) {
    EXPECT_THAT(refused(line), HasSubstr("line 2")) << line;
  }
  const auto empty = folder.write("e.jsonl", "\n\n");
  EXPECT_THAT(refusal([&] { read_prompts(empty, Endpoint::chat); }), HasSubstr("no prompt"));
}

}  // namespace
}  // namespace fathom::serve
