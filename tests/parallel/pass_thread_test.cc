#include "parallel/pass_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <latch>

#include "base/error.h"
#include "parallel/collectives.h"
#include "parallel/in_process_ranks.h"

namespace fathom {
namespace {

std::span<std::byte> bytes_of(int& value) { return std::as_writable_bytes(std::span(&value, 1)); }

// Round all ranks from rank 0 to rank 0, each adds its own.
StagePass pass_on(Communicator& comm, int& value, int tag) {
  const int next = (comm.rank() + 1) % comm.size(), before = (comm.rank() + comm.size() - 1) % comm.size();
  if (comm.rank() > 0) {
    Exchange here(comm);
    here.receive(before, tag, bytes_of(value));
    co_await arrival(std::move(here));
  }
  value += 1 + comm.rank();
  Exchange there(comm);
  there.send(next, tag, bytes_of(value));
  co_await arrival(std::move(there));
  if (comm.rank() > 0) co_return;
  Exchange here(comm);
  here.receive(before, tag, bytes_of(value));
  co_await arrival(std::move(here));
}

void wait_for(StagePass::Arrived& arrived, Communicator& comm) {
  for (int n_looks = 0; !arrived(); ++n_looks) comm.pause(n_looks);
}

TEST(PassThread, PassesOnWhileItsRankDoesSomethingElse) {
  constexpr int kRanks = 4, kPasses = 50;
  std::latch all_came(1);
  test::on_ranks(kRanks, [&](Communicator& comm) {
    PassThread beside(comm);
    std::vector<int> values(kPasses, 0);
    std::vector<StagePass::Arrived> arrived;
    for (int i = 0; i < kPasses; ++i) {
      arrived.push_back(beside.run(pass_on(comm, values[static_cast<size_t>(i)], i)));
    }
    if (comm.rank() > 0) {
      all_came.wait();  // looks at no message before rank 0 has all of them
      for (StagePass::Arrived& each : arrived) wait_for(each, comm);
      return;
    }
    for (StagePass::Arrived& each : arrived) wait_for(each, comm);
    EXPECT_THAT(values, testing::Each(1 + 2 + 3 + 4));
    all_came.count_down();
  });
}

TEST(PassThread, ThrowsWhatAPassHasThrown) {
  const auto comms = in_process_communicators(1);
  PassThread beside(*comms[0]);
  const auto fails = [](bool at_once) -> StagePass {
    if (!at_once) co_await StagePass::after_others();
    throw Error("no way");
  };
  for (const bool at_once : {true, false}) {
    StagePass::Arrived arrived = beside.run(fails(at_once));
    EXPECT_THROW(wait_for(arrived, *comms[0]), Error) << at_once;
  }
}

// Whoever goes away does not leave a pass behind that uses what it had.
TEST(PassThread, EndsAPassThatNobodyWaitsFor) {
  const auto comms = in_process_communicators(1);
  PassThread beside(*comms[0]);
  for (int i = 0; i < 200; ++i) {
    struct Sign {
      int& n;
      ~Sign() { --n; }
    };
    int n_there = 1, n_looks = 0;
    const auto never = [&]() -> StagePass {
      const Sign sign{n_there};
      co_await StagePass::Arrived([&n_looks] { return ++n_looks < 0; });
    };
    {
      const StagePass::Arrived arrived = beside.run(never());
      if (i % 2 > 0) std::this_thread::sleep_for(std::chrono::microseconds(i));
      EXPECT_EQ(n_there, 1);
    }
    EXPECT_EQ(n_there, 0);
    const int n = n_looks;
    std::this_thread::yield();
    EXPECT_EQ(n_looks, n);
  }
}

// One that waits for another one inside of it goes with what it waits for.
TEST(PassThread, EndsWithThePassThatWaitsForIt) {
  const auto comms = in_process_communicators(1);
  PassThread beside(*comms[0]);
  for (int i = 0; i < 200; ++i) {
    const auto reads = [](const std::vector<int>& values, int& sum) -> StagePass {
      while (true) {
        sum += values[0];
        co_await StagePass::Arrived([n_looks = 0]() mutable { return ++n_looks == 2; });
      }
    };
    int sum = 0;
    const auto outer = [&]() -> StagePass {
      const std::vector<int> values(1000, 1);
      co_await beside.run(reads(values, sum));
    };
    StagePass pass = outer();
    pass.go_on();
    EXPECT_FALSE(pass.can_go_on());
    if (i % 2 > 0) std::this_thread::sleep_for(std::chrono::microseconds(i));
  }
}

}  // namespace
}  // namespace fathom
