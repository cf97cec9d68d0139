#include "serve/http_client.h"

#include <gmock/gmock.h>

#include "base/error.h"

namespace fathom::serve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(HttpUrl, IsReadInItsParts) {
  const auto parts = [](const char* text) {
    const HttpUrl url = parse_http_url(text);
    return std::vector<std::string>{url.host, std::to_string(url.port), url.path, url.authority};
  };
  EXPECT_THAT(parts("http://a:8080"), ElementsAre("a", "8080", "", "a:8080"));
  EXPECT_THAT(parts("http://a.b/"), ElementsAre("a.b", "80", "", "a.b"));
  EXPECT_THAT(parts("http://127.0.0.1:1/v1/"), ElementsAre("127.0.0.1", "1", "/v1", "127.0.0.1:1"));
  EXPECT_THAT(parts("http://[::1]:65535/a/b"), ElementsAre("::1", "65535", "/a/b", "[::1]:65535"));
  EXPECT_THAT(parts("http://[fe80::1]"), ElementsAre("fe80::1", "80", "", "[fe80::1]"));
}

TEST(HttpUrl, WhatIsNoneIsRefused) {
  for (const char* text : {"", "a:80", "ftp://a", "http://", "http://:80", "http://a:0", "http://a:65536", "http://a:",
                           "http://a:8x", "http://::1", "http://[::1", "http://[::1]8", "http://u@a", "http://a?b",
                           "http://a#b", "http://a b", "http://\xc3\xa4", "http://a/\r\nX: y", "http://[]"}) {
    EXPECT_THROW(parse_http_url(text), UsageError) << text;
  }
  try {
    parse_http_url("https://a");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("tunnel"));
  }
}

TEST(RequestText, IsWholeAndNamesTheHost) {
  const HttpUrl url = parse_http_url("http://[::1]:8080/base");
  EXPECT_EQ(request_text(url, "POST", "/v1/x", {{"A", "b"}}, "{}", true),
            "POST /base/v1/x HTTP/1.1\r\nHost: [::1]:8080\r\nUser-Agent: fathom\r\nConnection: keep-alive\r\nA: b\r\n"
            "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}");
  EXPECT_THAT(request_text(url, "GET", "/", {}, "", false), testing::EndsWith("Connection: close\r\n\r\n"));
}

// "STATUS TYPE BODY" and what is told of the end; of bytes that come `cut` at a time, before the connection closes.
std::string read(std::string_view bytes, size_t cut, const HttpClientLimits& limits = {}) {
  ReplyReader reader(limits);
  std::string held, body;
  const auto seen = [&](const std::string& end) {
    return fmt::format("{} {} {} {}", reader.status(), reader.content_type(), body, end);
  };
  try {
    while (!bytes.empty() && !reader.done()) {
      held += bytes.substr(0, cut);
      bytes.remove_prefix(std::min(cut, bytes.size()));
      held.erase(0, reader.put(held));
      body += reader.take_body();
    }
  } catch (const HttpFailure& failure) {
    return seen(name_of(failure.end));
  }
  if (reader.done()) return seen(reader.keep_alive() ? "kept" : "closes");
  return seen(reader.put_end() ? "ends" : "cut");
}

std::string read_in_pieces(const std::string& bytes, const HttpClientLimits& limits = {}) {
  const std::string whole = read(bytes, bytes.size() + 1, limits);
  for (size_t cut = 1; cut < bytes.size(); ++cut) EXPECT_EQ(read(bytes, cut, limits), whole) << cut;
  return whole;
}

TEST(ReplyReader, ReadsTheSameAnswerHoweverItIsCut) {
  const std::string type = "Content-Type: text/event-stream\r\n";
  EXPECT_EQ(read_in_pieces("HTTP/1.1 200 OK\r\n" + type +
                           "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"),
            "200 text/event-stream abc0123456789 kept");
  EXPECT_EQ(read_in_pieces("HTTP/1.1 429 Slow\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"),
            "429  hello closes");
  EXPECT_EQ(read_in_pieces("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n"
                           "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            "200  ok kept");
  EXPECT_EQ(read_in_pieces("HTTP/1.1 204 None\r\n\r\n"), "204   kept");
}

TEST(ReplyReader, AnAnswerWithoutLengthEndsWithItsConnection) {
  EXPECT_EQ(read_in_pieces("HTTP/1.0 200 OK\r\n\r\nhello"), "200  hello ends");
  EXPECT_EQ(read_in_pieces("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello"), "200  hello cut");
  EXPECT_EQ(read_in_pieces("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"), "200  hello cut");
  EXPECT_EQ(read_in_pieces("HTTP/1.1 200 OK\r\nA: b"), "0   cut");
  EXPECT_EQ(read("", 1), "0   cut");
}

TEST(ReplyReader, TellsHowLongToWait) {
  const auto told = [](const std::string& value) {
    const HttpClientLimits limits;
    ReplyReader reader(limits);
    reader.put("HTTP/1.1 429 Slow\r\nRetry-After: " + value + "\r\nContent-Length: 0\r\n\r\n");
    return reader.retry_after_s();
  };
  EXPECT_EQ(told("120"), 120);
  EXPECT_EQ(told("0"), 0);
  EXPECT_EQ(told("Fri, 31 Dec 1999 23:59:59 GMT"), 0);
  EXPECT_GT(told("Fri, 31 Dec 2199 23:59:59 GMT"), 1e9);
  for (const char* const nothing : {"", "-1", "1.5", "soon", "12345678901234567890", "31 Dec 1999"}) {
    EXPECT_EQ(told(nothing), -1) << nothing;
  }
}

TEST(ReplyReader, WhatIsNoAnswerIsRefused) {
  for (const std::string bytes :
       {"SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/2 200\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"}) {
    EXPECT_EQ(read_in_pieces(bytes), "0   malformed") << bytes;
  }
  EXPECT_THAT(read("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 100),
              testing::EndsWith("malformed"));
}

TEST(ReplyReader, KeepsToItsLimits) {
  const HttpClientLimits limits{.header_bytes = 200, .body_bytes = 20};
  const std::string ok = "HTTP/1.1 200 OK\r\n", chunked = ok + "Transfer-Encoding: chunked\r\n\r\n";
  EXPECT_EQ(read_in_pieces(ok + "A: " + std::string(1000, 'a'), limits), "0   too_large");
  std::string fields = ok;
  for (int i = 0; i < 100; ++i) fields += "A: b\r\n";
  EXPECT_EQ(read_in_pieces(fields, limits), "0   too_large");
  EXPECT_THAT(read_in_pieces(ok + "Content-Length: 21\r\n\r\n", limits), testing::EndsWith("too_large"));
  EXPECT_THAT(read(chunked + "15\r\n" + std::string(21, 'x') + "\r\n0\r\n\r\n", 7, limits),
              testing::EndsWith("too_large"));
  EXPECT_THAT(read(ok + "\r\n" + std::string(100, 'x'), 7, limits), testing::EndsWith("too_large"));
  for (const size_t cut : {size_t{1}, size_t{50}, size_t{2000}}) {
    EXPECT_THAT(read(chunked + "1;" + std::string(1000, 'x'), cut, limits), testing::EndsWith("too_large")) << cut;
  }
}

}  // namespace
}  // namespace fathom::serve
