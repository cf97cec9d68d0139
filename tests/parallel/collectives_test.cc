#include "parallel/collectives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "base/error.h"
#include "base/rng.h"
#include "parallel/in_process_ranks.h"

namespace fathom {
namespace {

using test::on_ranks;
using testing::ElementsAre;

std::vector<int> all_ranks(int n) {
  std::vector<int> ranks(static_cast<size_t>(n));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

TEST(Communicator, MessagesComeInOrderByTag) {
  on_ranks(2, [](Communicator& comm) {
    int a = 0, b = 0, c = 0;
    const auto bytes = [](int& x) { return std::as_writable_bytes(std::span(&x, 1)); };
    if (comm.rank() == 0) {
      int sent[] = {1, 2, 3};
      comm.wait(comm.send(1, 7, bytes(sent[0])));
      comm.wait(comm.send(1, 8, bytes(sent[1])));
      comm.wait(comm.send(1, 7, bytes(sent[2])));
    } else {
      const auto later = comm.receive(0, 8, bytes(b));
      const auto first = comm.receive(0, 7, bytes(a)), second = comm.receive(0, 7, bytes(c));
      comm.wait(second);
      comm.wait(first);
      comm.wait(later);
      EXPECT_THAT((std::vector{a, b, c}), ElementsAre(1, 2, 3));
    }
  });
}

TEST(Communicator, WhereOneFailsNobodyWaitsForEver) {
  const auto job = [] {
    on_ranks(3, [](Communicator& comm) {
      if (comm.rank() == 1) throw Error("rank 1 has no luck");
      std::byte message{};
      comm.wait(comm.receive(1, 0, std::span(&message, 1)));
    });
  };
  EXPECT_THROW(job(), Error);
}

TEST(Collectives, AllToAllOfUnevenRows) {
  for (const int n : {1, 2, 3, 5}) {
    on_ranks(n, [&](Communicator& comm) {
      const RankGroup group = make_group(comm, all_ranks(n), 0);
      // From i to j: i * j numbers, 100 i + j.
      std::vector<std::vector<int>> sent, received;
      std::vector<std::span<const std::byte>> from;
      std::vector<std::span<std::byte>> to;
      for (int j = 0; j < n; ++j) {
        sent.emplace_back(static_cast<size_t>(comm.rank() * j), 100 * comm.rank() + j);
        received.emplace_back(static_cast<size_t>(comm.rank() * j));
      }
      for (size_t j = 0; j < sent.size(); ++j) {
        from.push_back(std::as_bytes(std::span<const int>(sent[j])));
        to.push_back(std::as_writable_bytes(std::span(received[j])));
      }
      all_to_all(group, from, to).wait();
      for (int j = 0; j < n; ++j) {
        EXPECT_THAT(received[static_cast<size_t>(j)], testing::Each(100 * j + comm.rank()));
      }
    });
  }
}

TEST(Collectives, ShardsCoverEverythingOnce) {
  for (const size_t n : {size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{1000}}) {
    for (const int size : {1, 3, 8}) {
      size_t at = 0;
      for (int i = 0; i < size; ++i) {
        const Shard shard = shard_of(n, size, i);
        EXPECT_EQ(shard.begin, at);
        EXPECT_TRUE(shard.begin % 16 == 0 || shard.begin == n);
        at = shard.end;
      }
      EXPECT_EQ(at, n);
    }
  }
}

// In the order of the ranks: the same bits on all of them, and as in one process.
TEST(Collectives, SumsAreTheSameBitsEverywhere) {
  for (const int n : {1, 2, 4, 7}) {
    for (const size_t size : {size_t{0}, size_t{1}, size_t{50}, size_t{1003}}) {
      std::vector<std::vector<float>> values(static_cast<size_t>(n), std::vector<float>(size));
      std::vector<float> expected(size);
      Rng rng(static_cast<uint64_t>(n));
      for (size_t v = 0; v < size; ++v) {
        for (auto& of_rank : values) of_rank[v] = static_cast<float>(rng.normal());
        expected[v] = values[0][v];
        for (size_t r = 1; r < values.size(); ++r) expected[v] += values[r][v];
      }
      on_ranks(n, [&](Communicator& comm) {
        const RankGroup group = make_group(comm, all_ranks(n), 0);
        std::vector<float>& own = values[static_cast<size_t>(comm.rank())];
        all_reduce(group, own);
        std::vector<double> few = {1.5, static_cast<double>(comm.rank())};
        sum_over(group, std::span(few));
        EXPECT_THAT(few, ElementsAre(1.5 * n, n * (n - 1) / 2.0));
        int64_t root = comm.rank();
        broadcast(group, n - 1, std::as_writable_bytes(std::span(&root, 1)));
        EXPECT_EQ(root, n - 1);
        barrier(group);
      });
      for (const std::vector<float>& of_rank : values) EXPECT_EQ(of_rank, expected);
    }
  }
}

// Many at a time, begun in another order on each rank, and moved on by turns.
TEST(Collectives, SumsMayBeUnderWayTogether) {
  constexpr int kRanks = 3, kSums = 4;
  constexpr size_t kSize = 2'000'003;  // more than a piece
  on_ranks(kRanks, [&](Communicator& comm) {
    std::vector<RankGroup> groups;
    std::vector<std::vector<float>> data;
    std::vector<StagePass> sums;
    for (int i = 0; i < kSums; ++i) {
      groups.push_back(make_group(comm, all_ranks(kRanks), i));
      data.emplace_back(kSize, static_cast<float>(comm.rank() + i));
    }
    for (int i = 0; i < kSums; ++i) {
      const auto at = static_cast<size_t>((i + comm.rank()) % kSums);
      sums.push_back(reduce_scatter(groups[at], data[at]));
      sums.back().go_on();
    }
    for (bool all_over = false; !all_over;) {
      all_over = true;
      for (StagePass& sum : sums) {
        if (!sum.over() && sum.can_go_on()) sum.go_on();
        all_over &= sum.over();
      }
    }
    const Shard own = shard_of(kSize, kRanks, comm.rank());
    for (size_t i = 0; i < kSums; ++i) {
      const auto expected = static_cast<float>(3 + 3 * i);
      EXPECT_TRUE(std::all_of(data[i].begin() + static_cast<ptrdiff_t>(own.begin),
                              data[i].begin() + static_cast<ptrdiff_t>(own.end),
                              [&](float x) { return x == expected; }));
    }
  });
}

// Of the same two ranks, with messages of both under way.
TEST(Collectives, GroupsWithOtherTagsDoNotMeet) {
  on_ranks(4, [](Communicator& comm) {
    const RankGroup all = make_group(comm, {3, 2, 1, 0}, 0);
    const RankGroup half = make_group(comm, comm.rank() < 2 ? std::vector{0, 1} : std::vector{2, 3}, 1);
    std::vector<float> a(100, static_cast<float>(comm.rank())), b = a;
    all_reduce(all, a);
    all_reduce(half, b);
    EXPECT_EQ(a[99], 6);
    EXPECT_EQ(b[99], comm.rank() < 2 ? 1 : 5);
  });
}

}  // namespace
}  // namespace fathom
