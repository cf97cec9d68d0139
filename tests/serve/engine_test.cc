// Requests from many threads: each is answered once, with the tokens that it gets alone, and who cancels is not heard
// of.
#include "serve/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <numeric>
#include <semaphore>

#include "infer/bytes_machine.h"
#include "temporary_directory.h"

namespace fathom::serve {
namespace {

struct Machine : BytesMachine {
  Machine() : BytesMachine(256) {}
};

BatchRequest request_of(uint64_t seed) {
  Rng rng(seed);
  BatchRequest request;
  if (seed % 3 > 0) {  // some begin alike
    request.prompt.resize(kCachePageRows + 1);
    std::iota(request.prompt.begin(), request.prompt.end(), static_cast<int32_t>(seed % 3));
  }
  for (uint64_t i = 0, n = 1 + rng.below(90); i < n; ++i)
    request.prompt.push_back(static_cast<int32_t>(rng.below(200)));
  request.options.max_tokens = 1 + static_cast<int64_t>(rng.below(12));
  request.options.seed = seed;
  request.options.sampler.temperature = seed % 2 == 0 ? 0 : 0.8;
  return request;
}

TEST(Engine, AnswersManyThreadsAtOnce) {
  Machine m;
  constexpr int kThreads = 4, kRequests = 25;
  std::map<uint64_t, std::vector<int32_t>> wanted;
  for (uint64_t seed = 0; seed < kThreads * kRequests; ++seed) {
    const BatchRequest request = request_of(seed);
    Sequence sequence{{}, make_latent_cache(m.model.config, 256)};
    wanted[seed] = generate(m.ctx, m.model, &m.tokenizer, sequence, request.prompt, request.options).ids;
  }
  std::mutex mutex;  // of what the events write, as the server's thread is alone with it
  std::map<uint64_t, std::vector<int32_t>> streamed, ended;
  std::map<uint64_t, int64_t> unread;
  std::counting_semaphore<> done(0);
  // With so little memory that files are read too.
  const test::TemporaryDirectory folder;
  BatchingOptions options{.max_sequences = 8, .cache_tokens = 12 * kCachePageRows, .context = 256};
  PageStore store(folder.path(), "", Batching::page_bytes(m.model, options), 1 << 30);
  options.store = &store;
  {
    Engine engine(m.ctx, m.model, &m.tokenizer, options, 1000, [&](Engine::Events events) {
      const std::lock_guard lock(mutex);
      for (const auto& event : events) event();
    });
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (uint64_t i = 0; i < kRequests; ++i) {
          const uint64_t seed = t * kRequests + i;
          BatchRequest request = request_of(seed);
          request.on_progress = [&, seed](const PromptProgress& p) { unread[seed] = p.total - p.read; };
          request.on_tokens = [&, seed](auto, std::span<const int32_t> ids, auto, auto) {
            streamed[seed].insert(streamed[seed].end(), ids.begin(), ids.end());
          };
          request.on_end = [&, seed](const Generation& result, const std::string& error) {
            EXPECT_EQ(error, "");
            EXPECT_TRUE(ended.emplace(seed, result.ids).second) << "ended twice";
            done.release();
          };
          std::vector<BatchRequest> one;
          one.push_back(std::move(request));
          EXPECT_EQ(engine.submit(std::move(one)).size(), 1u);
          (void)engine.state();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (int i = 0; i < kThreads * kRequests; ++i) done.acquire();
    EXPECT_EQ(engine.counts().generated_tokens > 0, true);
  }
  EXPECT_EQ(ended, wanted);
  EXPECT_EQ(streamed, wanted);
  EXPECT_EQ(unread.size(), wanted.size());
  for (const auto& [seed, n] : unread) EXPECT_EQ(n, 0) << seed;
}

TEST(Engine, WhoCancelsFreesItsPlaceAndIsNotHeardOf) {
  Machine m;
  std::atomic<int> ends = 0;
  Engine engine(m.ctx, m.model, &m.tokenizer, {.max_sequences = 4, .context = 256}, 1000, [&](Engine::Events events) {
    for (const auto& event : events) event();
  });
  std::vector<Engine::Ticket> tickets;
  for (uint64_t i = 0; i < 40; ++i) {
    std::vector<BatchRequest> two(2);
    for (BatchRequest& request : two) {
      request = request_of(i);
      request.options.max_tokens = 1'000'000;
      request.on_end = [&](const Generation&, const std::string&) { ++ends; };
    }
    for (const Engine::Ticket ticket : engine.submit(std::move(two))) tickets.push_back(ticket);
  }
  ASSERT_EQ(tickets.size(), 80u);
  for (const Engine::Ticket ticket : tickets) engine.cancel(ticket);
  engine.cancel(tickets[0]);
  engine.cancel(123'456);
  for (;;) {
    const EngineState state = engine.state();
    if (state.running + state.waiting == 0 && state.pages_held == 0) break;
    std::this_thread::yield();
  }
  EXPECT_LT(ends, 20) << "some may end before they are cancelled, at the context's end";
}

TEST(Engine, TakesAllOfARequestOrNothing) {
  Machine m;
  std::counting_semaphore<> go(0);
  Engine engine(m.ctx, m.model, &m.tokenizer, {.max_sequences = 1, .context = 256}, 3, [&](Engine::Events events) {
    go.acquire();  // nothing goes on for a while
    for (const auto& event : events) event();
  });
  const auto submit = [&](size_t n) {
    std::vector<BatchRequest> requests(n);
    for (BatchRequest& request : requests) {
      request = request_of(1);
      request.options.max_tokens = 2;
      request.on_tokens = [](auto, auto, auto, auto) {};
    }
    return engine.submit(std::move(requests)).size();
  };
  EXPECT_EQ(submit(10), 10u) << "more than may wait, but nobody waits";
  EXPECT_EQ(submit(1), 0u);
  EXPECT_EQ(engine.state().running + engine.state().waiting, 10);
  go.release(1000);
  while (engine.state().running + engine.state().waiting > 0) std::this_thread::yield();
  EXPECT_EQ(submit(1), 1u);
}

TEST(Engine, WaitsForEventsThatNobodyTakes) {
  Machine m;
  std::mutex mutex;
  std::vector<Engine::Events> held;
  const auto n_held = [&] {
    const std::lock_guard lock(mutex);
    return held.size();
  };
  Engine engine(m.ctx, m.model, &m.tokenizer, {.context = 256}, 1000, [&](Engine::Events events) {
    const std::lock_guard lock(mutex);
    held.push_back(std::move(events));
  });
  BatchRequest request = request_of(1);
  request.options.max_tokens = 100;
  request.options.eos_ids = {};
  request.on_tokens = [](auto, auto, auto, auto) {};
  engine.submit({request});
  while (n_held() < 2) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(n_held(), 2u);
  const int64_t n_passes = engine.counts().passes;
  EXPECT_LE(n_passes, 3);
  {
    const std::lock_guard lock(mutex);
    held.erase(held.begin());  // dropped without having been called
  }
  while (n_held() < 2) std::this_thread::yield();
  EXPECT_GT(engine.counts().passes, n_passes - 1);
}

TEST(Engine, IsStoppedInTheMiddleOfWork) {
  Machine m;
  for (int i = 0; i < 20; ++i) {
    Engine engine(m.ctx, m.model, &m.tokenizer, {.context = 256}, 1000, [](const Engine::Events&) {});
    std::vector<BatchRequest> requests(3);
    for (BatchRequest& request : requests) request = request_of(static_cast<uint64_t>(i));
    engine.submit(std::move(requests));
    if (i % 3 == 0) std::this_thread::yield();
  }
}

}  // namespace
}  // namespace fathom::serve
