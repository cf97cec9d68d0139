#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "base/error.h"

namespace fathom {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int64_t n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
      pool.run(n, [&](int64_t i, int thread) {
        EXPECT_GE(thread, 0);
        EXPECT_LT(thread, pool.size());
        ++hits[static_cast<size_t>(i)];
      });
      for (const auto& hit : hits) EXPECT_EQ(hit, 1);
    }
  }
}

TEST(ThreadPool, CarriesTheFirstExceptionHomeAndStaysUsable) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.run(100,
                        [](int64_t i, int) {
                          if (i == 7) throw Error("seven");
                        }),
               Error);
  std::atomic<int64_t> total = 0;
  pool.run(100, [&](int64_t i, int) { total += i; });
  EXPECT_EQ(total, 4950);
}

TEST(ThreadPool, NestedRunsStayOnTheirThread) {
  ThreadPool pool(4);
  std::atomic<int> wrong = 0;
  pool.run(8, [&](int64_t, int outer) { pool.run(8, [&](int64_t, int inner) { wrong += inner != outer; }); });
  EXPECT_EQ(wrong, 0);
}

TEST(ThreadPool, PiecesOfParallelForDependOnTheGrainAlone) {
  ThreadPool pool(3);
  std::vector<std::atomic<int64_t>> begin_of(10);
  pool.parallel_for(0, 10, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) begin_of[static_cast<size_t>(i)] = begin;
  });
  for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(begin_of[static_cast<size_t>(i)], i / 4 * 4);
}

TEST(ThreadPool, PinnedThreadsStayOnTheirCpus) {
  std::vector<int> cpus = usable_cpus();
  ASSERT_FALSE(cpus.empty());
  EXPECT_GE(static_cast<int>(cpus.size()), usable_cores());
  // On a thread of its own: the one that makes a pool is pinned too.
  std::thread([&] {
    const int n = std::min(4, static_cast<int>(cpus.size()));
    ThreadPool pool(n, cpus);
    std::vector<std::atomic<int>> wrong(static_cast<size_t>(n));
    pool.run(200, [&](int64_t, int thread) {
      if (sched_getcpu() != cpus[static_cast<size_t>(thread)]) ++wrong[static_cast<size_t>(thread)];
      cpu_set_t mask;
      CPU_ZERO(&mask);
      EXPECT_EQ(sched_getaffinity(0, sizeof mask, &mask), 0);
      EXPECT_EQ(CPU_COUNT(&mask), 1);
    });
    for (const auto& count : wrong) EXPECT_EQ(count, 0);
  }).join();
  EXPECT_EQ(usable_cpus(), cpus) << "of the thread that made no pool";
}

}  // namespace
}  // namespace fathom
