#include "serve/http.h"

#include <gmock/gmock.h>

namespace fathom::serve {
namespace {

// "METHOD PATH QUERY BODY" of each request, and at the end "refused STATUS".
std::vector<std::string> read(std::string_view bytes, size_t cut, const HttpLimits& limits = {}) {
  std::vector<std::string> seen;
  RequestReader reader(limits);
  std::string held;
  try {
    while (!bytes.empty()) {
      held += bytes.substr(0, cut);
      bytes.remove_prefix(std::min(cut, bytes.size()));
      for (;;) {
        held.erase(0, reader.put(held));
        if (!reader.done()) break;
        const HttpRequest r = reader.take();
        seen.push_back(r.method + " " + r.path + " " + r.query + " " + r.body);
      }
    }
  } catch (const HttpRefusal& refusal) {
    seen.push_back("refused " + std::to_string(refusal.status));
  }
  return seen;
}

TEST(RequestReader, ReadsTheSameRequestsHoweverTheyAreCut) {
  const std::string bytes =
      "\r\nGET /a?b=c&d HTTP/1.1\r\nHost: x\r\n\r\n"
      "POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
      "POST /f? HTTP/1.1\r\nhost:x\r\ntransfer-encoding: "
      "Chunked\r\n\r\n3\r\nabc\r\nA;e=\"f\"\r\n0123456789\r\n0\r\nX-Api-Key: k\r\n\r\n"
      "POST /g HTTP/1.0\r\nContent-Length: 0\r\n\r\n"
      "GET /h HTTP/1.1\r\n\r\n";
  for (size_t cut = 1; cut <= bytes.size(); ++cut) {
    EXPECT_THAT(read(bytes, cut), testing::ElementsAre("GET /a b=c&d ", "POST /e  hello", "POST /f  abc0123456789",
                                                       "POST /g  ", "refused 400"))
        << cut;
  }
}

TEST(RequestReader, AnEmptyBodyInChunksMayBeCut) {
  const std::string bytes = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
  for (size_t cut = 1; cut <= bytes.size(); ++cut)
    EXPECT_THAT(read(bytes, cut), testing::ElementsAre("POST /a  ")) << cut;
}

TEST(RequestReader, FoldedLinesAreRefused) {
  for (const char space : {' ', '\t'}) {
    const std::string bytes = std::string("GET /a HTTP/1.1\r\nHost: x\r\nX: a\r\n") + space + "b\r\n\r\n";
    for (size_t cut = 1; cut <= bytes.size(); ++cut)
      EXPECT_THAT(read(bytes, cut), testing::ElementsAre("refused 400")) << cut;
  }
}

TEST(RequestReader, ATargetMayNameItsHost) {
  const HttpLimits limits;
  RequestReader reader(limits);
  const std::string bytes = "GET HTTP://a.example:80?q HTTP/1.1\r\nHost: b.example\r\n\r\n";
  EXPECT_EQ(reader.put(bytes), bytes.size());
  ASSERT_TRUE(reader.done());
  const HttpRequest r = reader.take();
  EXPECT_EQ(r.path + " " + r.query + " " + *r.header("host"), "/ q a.example:80");
}

TEST(RequestReader, AVersionMayStandAtTheVeryEnd) {
  const std::string version = "GET / HTP/1.1\r\nX: a HTTP/1.1\r\n";
  for (size_t n = 13; n <= version.size(); ++n) {
    EXPECT_THAT(read(version.substr(0, n), n),
                testing::AnyOf(testing::ElementsAre(testing::StartsWith("refused ")), testing::IsEmpty()))
        << n;
  }
}

TEST(RequestReader, WhatComesBehindAChunkedBodyIsNoHeader) {
  const HttpLimits limits;
  RequestReader reader(limits);
  reader.put("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Api-Key: k\r\n\r\n");
  ASSERT_TRUE(reader.done());
  const HttpRequest request = reader.take();
  EXPECT_EQ(request.header("x-api-key"), nullptr);
  ASSERT_NE(request.header("host"), nullptr);
  EXPECT_EQ(*request.header("host"), "x");
}

TEST(RequestReader, KeepsToItsLimits) {
  const HttpLimits limits{.header_bytes = 200, .headers = 5, .body_bytes = 10};
  const auto ends = [&](const std::string& bytes) {
    for (const size_t cut : {size_t{1}, size_t{30}, bytes.size()})
      EXPECT_EQ(read(bytes, cut, limits), read(bytes, bytes.size(), limits));
    return read(bytes, bytes.size(), limits).back();
  };
  const std::string head = "POST / HTTP/1.1\r\nHost: x\r\n";
  EXPECT_EQ(ends(head + "A: b\r\nA: b\r\nA: b\r\nContent-Length: 10\r\n\r\n0123456789"), "POST /  0123456789");
  EXPECT_EQ(ends(head + "A: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\n\r\n"), "refused 431");
  EXPECT_EQ(ends(head + "A: " + std::string(300, 'b')), "refused 431");
  std::string lines = head;
  while (lines.size() < 300) lines += "A: b\r\n";
  for (size_t cut = 1; cut <= lines.size(); ++cut) {
    EXPECT_THAT(read(lines, cut, limits), testing::ElementsAre("refused 431")) << cut;
  }
  const std::string chunked = head + "Transfer-Encoding: chunked\r\n\r\n";
  EXPECT_EQ(ends(chunked + "1;" + std::string(300, 'b')), "refused 400");
  EXPECT_EQ(ends(chunked + "1\r\na\r\n0\r\nA: " + std::string(300, 'b')), "refused 400");
  EXPECT_EQ(ends(head + "Content-Length: 11\r\n\r\n"), "refused 413");
  EXPECT_EQ(ends(head + "Transfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n6\r\n012345\r\n0\r\n\r\n"), "refused 413");
}

TEST(RequestReader, AsksForTheBodyOfWhoWaits) {
  const HttpLimits limits;
  RequestReader reader(limits);
  EXPECT_FALSE(reader.expects_continue());
  reader.put("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_TRUE(reader.has_header() && reader.expects_continue() && !reader.done());
  reader.put("ab");
  EXPECT_TRUE(reader.done());
  EXPECT_EQ(reader.take().body, "ab");
  EXPECT_FALSE(reader.has_header() || reader.expects_continue());
}

}  // namespace
}  // namespace fathom::serve
