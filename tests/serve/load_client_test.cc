// The load client against servers that do as they are told. Of times only lower bounds are asserted: a busy machine
// makes everything slower, and nothing faster.
#include "serve/load_client.h"

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <set>

#include "base/error.h"
#include "sanitized.h"
#include "serve/load_plan.h"
#include "serve/load_report.h"
#include "serve/stub_server.h"

namespace fathom::serve {
namespace {

using test::sleep_ms;
using test::StubConnection;
using test::StubServer;
using testing::HasSubstr;

LoadTarget target_of(const StubServer& server) {
  return {.url = parse_http_url(server.url()), .path = "/v1/chat/completions", .limits = {.timeout_s = 60}};
}

std::string body_of(int64_t i) { return fmt::format(R"({{"request":{}}})", i); }

LoadResult run(const LoadTarget& target, const LoadPlan& plan) {
  return run_load(target, plan, body_of, [](const LoadProgress&) { return true; });
}

constexpr const char* kUsage =
    R"({"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":4}}})";

TEST(LoadClient, MeasuresTheDelaysOfAServer) {
  // The first token after 40 ms, two tokens in each of the other pieces, 25 ms apart; the end 10 ms behind.
  StubServer server([](StubConnection& c, int) {
    while (!c.request().empty()) {
      c.begin_stream();
      c.send_event(R"({"choices":[{"delta":{"role":"assistant","content":""}}]})");
      sleep_ms(40);
      c.send_event("");
      c.send_text("a");
      for (int i = 0; i < 2; ++i) {
        sleep_ms(25);
        c.send_text("bc");
      }
      sleep_ms(10);
      c.send_event(R"({"choices":[{"delta":{},"finish_reason":"length"}]})");
      c.send_event(kUsage);
      c.end_stream();
    }
  });
  const LoadResult result = run(target_of(server), {.requests = 6, .clients = 2});
  ASSERT_EQ(result.records.size(), 6);
  for (const RequestRecord& r : result.records) {
    EXPECT_EQ(r.failure, "") << r.message;
    EXPECT_EQ(r.status, 200);
    ASSERT_EQ(r.pieces_s.size(), 3);
    EXPECT_GE(r.pieces_s[0], 0.040);
    EXPECT_GE(r.pieces_s[2], 0.090);
    EXPECT_GE(r.end_s, 0.100);
    EXPECT_EQ(r.usage.prompt_tokens, 12);
    EXPECT_EQ(r.usage.completion_tokens, 6);
    EXPECT_EQ(r.usage.cached_tokens, 4);
  }
  EXPECT_GE(result.duration_s, 0.300);  // three rounds
  EXPECT_EQ(server.n_connections(), 2);
  const LoadReport report = report_of(result, {.ttft_s = 0.030});
  EXPECT_EQ(report.completed, 6);
  EXPECT_EQ(report.output_tokens, 36);
  EXPECT_EQ(report.peak_concurrency, 2);
  EXPECT_EQ(report.good, 0);
  EXPECT_GE(report.tpot_s->mean, (0.100 - report.ttft_s->mean) / 5);
  EXPECT_GE(report.itl_s->mean, 0.020);
}

// Answers `n` requests at once, each in one piece.
void answer(StubConnection& c, int n = 1 << 20) {
  for (; n > 0 && !c.request().empty(); --n) {
    c.begin_stream();
    c.send_text("a");
    c.end_stream();
  }
}

TEST(LoadClient, AnOpenLoopDoesNotWaitForAnswers) {
  StubServer server([](StubConnection& c, int) {
    while (!c.request().empty()) {
      sleep_ms(150);
      c.begin_stream();
      c.send_text("a");
      c.end_stream();
    }
  });
  LoadPlan plan{.requests = 10};
  for (int i = 0; i < 10; ++i) plan.arrivals_s.push_back(0.01 * i);
  const LoadResult result = run(target_of(server), plan);
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(result.records[i].failure, "");
    EXPECT_NEAR(result.records[i].begin_s, plan.arrivals_s[i], 1e-6);
    EXPECT_GE(result.records[i].late_s, 0);
    EXPECT_GE(result.records[i].end_s, 0.150);
  }
  EXPECT_GE(peak_concurrency(result.records), 2);
  EXPECT_GE(result.duration_s, 0.240);
}

TEST(LoadClient, EachRequestHasItsOwnBody) {
  std::mutex mutex;
  std::multiset<std::string> bodies;
  StubServer server([&](StubConnection& c, int) {
    for (std::string request; !(request = c.request()).empty();) {
      {
        const std::lock_guard lock(mutex);
        bodies.insert(request.substr(request.find("\r\n\r\n") + 4));
      }
      c.begin_stream();
      c.send_text("a");
      c.end_stream();
    }
  });
  run(target_of(server), {.requests = 20, .clients = 3});
  std::multiset<std::string> wanted;
  for (int i = 0; i < 20; ++i) wanted.insert(body_of(i));
  EXPECT_EQ(bodies, wanted);
}

TEST(LoadClient, KeepsConnectionsOrOpensNewOnes) {
  StubServer server([](StubConnection& c, int) { answer(c); });
  LoadTarget target = target_of(server);
  EXPECT_EQ(report_of(run(target, {.requests = 12, .clients = 3}), {}).completed, 12);
  EXPECT_EQ(server.n_connections(), 3);
  target.limits.keep_alive = false;
  EXPECT_EQ(report_of(run(target, {.requests = 12, .clients = 3}), {}).completed, 12);
  EXPECT_EQ(server.n_connections(), 15);
}

TEST(LoadClient, AConnectionThatWasClosedIsOpenedAgain) {
  StubServer server([](StubConnection& c, int number) {
    answer(c, 1 + number % 2);
    sleep_ms(20);  // a reset takes back what the client has not read
    if (number % 3 == 0) c.reset();
  });
  const LoadReport report = report_of(run(target_of(server), {.requests = 30, .clients = 2}), {});
  EXPECT_EQ(report.completed, 30) << (report.failures.empty() ? "" : report.failures.begin()->second.message);
}

TEST(LoadClient, SpeaksIPv6) {
  StubServer server([](StubConnection& c, int) { answer(c); }, true);
  if (!server.there_is()) GTEST_SKIP() << "no IPv6 here";
  EXPECT_EQ(report_of(run(target_of(server), {.requests = 2, .clients = 1}), {}).completed, 2);
}

TEST(LoadClient, TakesStreamsAsOtherServersEndThem) {
  StubServer server([](StubConnection& c, int number) {
    c.request();
    const std::string head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    const std::string text = R"(data: {"choices":[{"text":"a","finish_reason":)";
    if (number == 0)
      c.send(head + text + "null}]}\r\n\r\ndata: [DONE]\r\n\r\n");  // the connection's end is the stream's
    if (number == 1) c.send(head + text + "\"stop\"}]}\n\n");       // without [DONE]
    if (number == 2) {                                              // nothing behind [DONE]
      c.begin_stream();
      c.send_text("a");
      c.send_event("[DONE]");
      sleep_ms(3000);
    }
  });
  const LoadResult result = run(target_of(server), {.requests = 3, .clients = 1});
  for (const RequestRecord& r : result.records) {
    EXPECT_EQ(r.failure, "") << r.message;
    EXPECT_EQ(r.pieces_s.size(), 1);
  }
  EXPECT_LT(result.records[2].end_s, 3);  // [DONE] was the end
}

// What becomes of one request, of a server that does this with it.
RequestRecord record_of(const StubServer::Script& script, double timeout_s = 60) {
  StubServer server(script);
  LoadTarget target = target_of(server);
  target.limits.timeout_s = timeout_s;
  return run(target, {.requests = 1, .clients = 1}).records[0];
}

TEST(LoadClient, EveryFailureIsCountedByItsKind) {
  const auto failure = [](const StubServer::Script& script, double timeout_s = 60) {
    const RequestRecord r = record_of(script, timeout_s);
    EXPECT_GE(r.end_s, 0);
    return r.failure + ": " + r.message;
  };
  const auto told = [&](const std::string& bytes) {
    return failure([&](StubConnection& c, int) {
      c.request();
      c.send(bytes);
      c.request();  // the client closes
    });
  };
  const auto streamed = [&](const std::function<void(StubConnection&)>& rest) {
    return failure([&](StubConnection& c, int) {
      c.request();
      c.begin_stream();
      c.send_text("a");
      rest(c);
    });
  };
  EXPECT_EQ(told("HTTP/1.1 429 Too Many\r\nContent-Length: 28\r\n\r\n{\"error\":{\"message\":\"full\"}}"),
            "http_429: full");
  EXPECT_EQ(told("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"), "http_302: ");
  EXPECT_THAT(told("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<a/>"),
              HasSubstr("malformed: no event stream (text/html): <a/>"));
  EXPECT_THAT(told("SSH-2.0-OpenSSH_9.2\r\n"), HasSubstr("malformed: the answer is no HTTP"));
  EXPECT_THAT(told("HTTP/1.1 200 OK\r\nA: " + std::string(100'000, 'a')), HasSubstr("too_large: a header"));
  EXPECT_THAT(told("HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n4000\r\n" + std::string(0x4000, 'x') + "\r\n"),
              HasSubstr("http_500: xxx"));
  EXPECT_THAT(failure([](StubConnection& c, int) { c.request(); }), HasSubstr("cut: the server closed"));
  EXPECT_THAT(failure([](StubConnection& c, int) {
                c.request();
                c.reset();
              }),
              HasSubstr("cut: the connection broke"));
  EXPECT_THAT(streamed([](StubConnection&) {}), HasSubstr("cut: the server closed"));
  EXPECT_THAT(streamed([](StubConnection& c) { c.send("0\r\n\r\n"); }), HasSubstr("cut: the stream has ended"));
  EXPECT_EQ(streamed([](StubConnection& c) { c.send_event(R"({"error":{"message":"lost"}})"); }), "error_event: lost");
  EXPECT_THAT(streamed([](StubConnection& c) { c.send_event("{\"choices\": nonsense}"); }),
              HasSubstr("malformed: an event"));
  EXPECT_THAT(streamed([](StubConnection& c) { c.send("xyz\r\n"); }), HasSubstr("malformed: the answer is no HTTP"));
  EXPECT_EQ(failure([](StubConnection& c, int) {
              c.request();
              c.begin_stream();
              c.end_stream();
            }),
            "empty: an answer without text");
  EXPECT_THAT(failure([](StubConnection&, int) { sleep_ms(300); }, 0.1), HasSubstr("timeout: no answer within 0.1 s"));
  EXPECT_THAT(failure(
                  [](StubConnection& c, int) {
                    c.request();
                    c.begin_stream();
                    for (int i = 0; i < 30 && c.send_text("a"); ++i) sleep_ms(10);
                  },
                  0.1),
              HasSubstr("timeout: no whole answer within 0.1 s"));
}

TEST(LoadClient, WhatNeverEndsTakesNoMemory) {
  const auto endless = [](const std::string& head, const std::string& piece) {
    const RequestRecord r = record_of([&](StubConnection& c, int) {
      c.request();
      for (bool open = c.send(head); open;) open = c.send(piece);
    });
    return r.failure;
  };
  const std::string ok = "HTTP/1.1 200 OK\r\n", chunked = ok + "Transfer-Encoding: chunked\r\n\r\n", many(1000, 'x');
  EXPECT_EQ(endless(ok, "A: b\r\n"), "too_large");
  EXPECT_EQ(endless(ok + "A: ", many), "too_large");
  EXPECT_EQ(endless(ok + "\r\ndata: ", many), "malformed");  // a line
  EXPECT_EQ(endless(chunked + "1;", many), "too_large");
  EXPECT_EQ(endless(ok + "\r\n", "data: x\n"), "malformed");  // an event
  EXPECT_EQ(endless(ok + "\r\n", ":\n\n" + many + "\n"), "too_large");
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  EXPECT_LT(usage.ru_maxrss, 1 << 20) << "KiB";
}

TEST(LoadClient, NobodyThereIsAFailureToConnect) {
  std::string url;
  {
    const StubServer gone([](StubConnection&, int) {});
    url = gone.url();
  }
  const LoadResult result =
      run({.url = parse_http_url(url), .path = "/", .limits = {.timeout_s = 5}}, {.requests = 40, .clients = 4});
  for (const RequestRecord& r : result.records) {
    EXPECT_EQ(r.failure, "connect");
    EXPECT_THAT(r.message, HasSubstr("refused"));
  }
  EXPECT_THROW(run({.url = parse_http_url("http://no.such.host.invalid")}, {.requests = 1, .clients = 1}), Error);
}

TEST(LoadClient, StopsWhenItIsToldAndKeepsWhatHasEnded) {
  StubServer server([](StubConnection& c, int number) {
    if (number > 0) {
      c.request();
      c.begin_stream();
      c.send_text("a");
      c.request();  // never goes on
    }
    answer(c);
  });
  const LoadResult result = run_load(target_of(server), {.requests = 1 << 20, .clients = 2}, body_of,
                                     [](const LoadProgress& now) { return now.ended < 5; });
  EXPECT_TRUE(result.interrupted);
  EXPECT_GT(result.duration_s, 0);
  const LoadReport report = report_of(result, {});
  EXPECT_GE(report.completed, 5);
  EXPECT_EQ(report.failed, 0);
  EXPECT_EQ(report.completed + report.unfinished, 1 << 20);
}

TEST(LoadClient, AThousandStreamsRunSideBySide) {
  constexpr int kStreams = test::kSanitized ? 100 : 1000;
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  if (files.rlim_cur < 2 * kStreams + 100) GTEST_SKIP() << "too few files may be open";
  // Every answer waits until all have begun.
  std::atomic<int> begun{0};
  StubServer server([&](StubConnection& c, int) {
    c.request();
    c.begin_stream();
    c.send_text("a");
    ++begun;
    for (int i = 0; i < 3000 && begun < kStreams; ++i) sleep_ms(10);
    for (int i = 0; i < 5; ++i) c.send_text("b");
    c.end_stream();
  });
  const LoadReport report = report_of(run(target_of(server), {.requests = kStreams, .clients = kStreams}), {});
  EXPECT_EQ(report.completed, kStreams) << (report.failures.empty() ? "" : report.failures.begin()->second.message);
  EXPECT_EQ(report.output_tokens, 6 * kStreams);
  EXPECT_EQ(report.peak_concurrency, kStreams);
}

}  // namespace
}  // namespace fathom::serve
