#include "serve/event_stream.h"

#include <gmock/gmock.h>

#include "base/error.h"

namespace fathom::serve {
namespace {

using testing::ElementsAre;

// The data of all events, of bytes that come `cut` at a time.
std::vector<std::string> read(std::string_view bytes, size_t cut, size_t max_event_bytes = 100) {
  std::vector<std::string> seen;
  EventReader reader(max_event_bytes);
  try {
    while (!bytes.empty()) {
      reader.put(bytes.substr(0, cut));
      bytes.remove_prefix(std::min(cut, bytes.size()));
      while (const auto data = reader.next()) seen.emplace_back(*data);
    }
  } catch (const Error&) {
    seen.emplace_back("refused");
  }
  return seen;
}

TEST(EventReader, ReadsTheSameEventsHoweverTheyAreCut) {
  const std::string bytes =
      "\xEF\xBB\xBF"
      "data: a\n\n: alive\n\ndata:b\r\ndata:  c\r\n\r\nevent: x\rdata: d\r\rid: 7\n\n\n\ndata\n\ndata: e\r\n\rdata: "
      "f\n\n"
      "datas: g\n\ndata: not whole\n";
  for (size_t cut = 1; cut <= bytes.size(); ++cut) {
    EXPECT_THAT(read(bytes, cut), ElementsAre("a", "b\n c", "d", "", "e", "f")) << cut;
  }
}

TEST(EventReader, AnEventIsThereAsSoonAsItsEmptyLineIs) {
  EventReader reader(100);
  reader.put("data: a\r\n\r");
  EXPECT_EQ(reader.next(), "a");
  reader.put("\ndata: b\n\n");
  EXPECT_EQ(reader.next(), "b");
  EXPECT_EQ(reader.next(), std::nullopt);
}

TEST(EventReader, KeepsToItsLimit) {
  const std::string line(95, 'x');
  for (const size_t cut : {size_t{1}, size_t{64}, size_t{1000}}) {
    EXPECT_THAT(read("data:" + line + "\n\n", cut), ElementsAre(line));
    EXPECT_THAT(read("data:x" + line + "\n\n", cut), ElementsAre("refused"));
    EXPECT_THAT(read(std::string(500, ':'), cut), ElementsAre("refused"));
    EXPECT_THAT(read("data:" + line + "\ndata:" + line + "\n\n", cut), ElementsAre("refused"));
  }
}

StreamPiece read_piece(std::string_view data) {
  simdjson::dom::parser parser;
  return read_stream_piece(parser, data);
}

TEST(StreamPiece, SaysWhatServersOfEachKindSay) {
  EXPECT_TRUE(read_piece("[DONE]").done);
  const auto text = [](std::string_view choice) {
    const StreamPiece piece = read_piece(R"({"choices":[)" + std::string(choice) + "]}");
    EXPECT_FALSE(piece.done || piece.error);
    return std::pair(piece.has_text, piece.finished);
  };
  using Pair = std::pair<bool, bool>;
  EXPECT_EQ(text(R"({"delta":{"role":"assistant","content":""},"finish_reason":null})"), Pair(false, false));
  EXPECT_EQ(text(R"({"delta":{"content":null}})"), Pair(false, false));
  EXPECT_EQ(text(R"({"delta":{"content":"a"}})"), Pair(true, false));
  EXPECT_EQ(text(R"({"delta":{"reasoning_content":"a"}})"), Pair(true, false));
  EXPECT_EQ(text(R"({"delta":{"reasoning":"a"}})"), Pair(true, false));
  EXPECT_EQ(text(R"({"delta":{"tool_calls":[{"index":0}]}})"), Pair(true, false));
  EXPECT_EQ(text(R"({"delta":{},"finish_reason":"length"})"), Pair(false, true));
  EXPECT_EQ(text(R"({"text":"a","finish_reason":"stop"})"), Pair(true, true));
  EXPECT_EQ(text(""), Pair(false, false));
  EXPECT_EQ(text(R"(5,{"delta":7},{"text":"b"})"), Pair(true, false));
}

TEST(StreamPiece, TakesCountsFromWhereTheyAreTold) {
  const auto usage = [](const char* data) {
    const ToldUsage u = read_piece(data).usage;
    return std::vector<int64_t>{u.prompt_tokens, u.completion_tokens, u.cached_tokens};
  };
  EXPECT_THAT(usage(R"({"choices":[]})"), ElementsAre(-1, -1, -1));
  EXPECT_THAT(usage(R"({"usage":null})"), ElementsAre(-1, -1, -1));
  EXPECT_THAT(usage(R"({"usage":{"prompt_tokens":7,"completion_tokens":3}})"), ElementsAre(7, 3, -1));
  EXPECT_THAT(usage(R"({"usage":{"prompt_tokens_details":{"cached_tokens":64}}})"), ElementsAre(-1, -1, 64));
  EXPECT_THAT(usage(R"({"usage":{"prompt_cache_hit_tokens":5},"timings":{"cache_n":9}})"), ElementsAre(-1, -1, 5));
  EXPECT_THAT(usage(R"({"timings":{"cache_n":9}})"), ElementsAre(-1, -1, 9));
  EXPECT_THAT(usage(R"({"usage":{"prompt_tokens":-7,"completion_tokens":1e300}})"), ElementsAre(-1, -1, -1));
}

TEST(StreamPiece, TellsErrorsAndRefusesWhatIsNoObject) {
  EXPECT_EQ(read_piece(R"({"error":{"message":"too\nlong"}})").error, "too\\x0along");
  EXPECT_EQ(read_piece(R"({"error":"no"})").error, "no");
  EXPECT_EQ(read_piece(R"({"error":{"code":5}})").error, R"({"code":5})");
  EXPECT_EQ(read_piece(R"({"error":null})").error, std::nullopt);
  for (const char* data : {"", "{", "[]", "7", "[DONE] ", "{}{}", "\xff"})
    EXPECT_THROW(read_piece(data), Error) << data;
}

TEST(ErrorMessage, IsOneLineOfWhateverCame) {
  EXPECT_EQ(error_message_of(R"({"error":{"message":"full","type":"x"}})"), "full");
  EXPECT_EQ(error_message_of(R"({"detail":1,"message":"gone"})"), "gone");
  EXPECT_EQ(error_message_of("<html>\n502"), "<html>\\x0a502");
  EXPECT_EQ(error_message_of(""), "");
}

}  // namespace
}  // namespace fathom::serve
