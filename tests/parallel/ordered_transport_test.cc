#include "parallel/ordered_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>

#include "base/error.h"
#include "base/rng.h"
#include "parallel/collectives.h"
#include "parallel/in_process_ranks.h"
#include "parallel/nccl.h"
#include "parallel/number_pipeline.h"
#include "parallel/pass_thread.h"
#include "parallel/random_messages.h"
#include "sanitized.h"

namespace fathom {
namespace {

using testing::ElementsAre;

// What ranks of one process have begun, by directed pair. The n-th receive takes the n-th send, whose memory is read
// only then; but small ones are kept where they `buffers`.
struct Pipes {
  explicit Pipes(bool buffers_small = false) : buffers(buffers_small) {}
  struct Pair {
    std::vector<std::span<const std::byte>> sends;
    std::deque<std::vector<std::byte>> kept;
    size_t n_received = 0, n_taken = 0, n_seen = 0;  // receives that are begun, have their bytes, are seen to be done
  };
  const bool buffers;
  std::mutex mutex;
  std::map<std::pair<int, int>, Pair> pairs;
};

// Strict in what communicate_over() promises: each receive finds its send begun, of a pair one is begun at a time, and
// no more than at_a_time of a kind. Bytes take a while, and the sender may see it before the receiver does.
class Fifo : public OrderedTransport {
 public:
  Fifo(std::shared_ptr<Pipes> pipes, int rank, int at_a_time, uint64_t seed)
      : pipes_(std::move(pipes)), rank_(rank), at_a_time_(at_a_time), rng_(seed + static_cast<uint64_t>(rank)) {}
  int at_a_time() const override { return at_a_time_; }

  Handle begin_send(int to, std::span<const std::byte> data) override {
    FATHOM_CHECK(!data.empty() && n_begun(true) < at_a_time_);
    const std::lock_guard lock(pipes_->mutex);
    Pipes::Pair& pair = pipes_->pairs[{rank_, to}];
    FATHOM_CHECK(std::none_of(begun_.begin(), begun_.end(), [&](const auto& b) { return b.second.pair == &pair; }));
    const bool is_kept = pipes_->buffers && data.size() <= 1000;
    pair.sends.push_back(is_kept ? pair.kept.emplace_back(data.begin(), data.end()) : data);
    begun_[++n_] = {true, &pair, pair.sends.size() - 1, {}, 0, is_kept};
    return n_;
  }
  Handle begin_receive(int from, std::span<std::byte> data) override {
    FATHOM_CHECK(!data.empty() && n_begun(false) < at_a_time_);
    const std::lock_guard lock(pipes_->mutex);
    Pipes::Pair& pair = pipes_->pairs[{from, rank_}];
    FATHOM_CHECK(pair.n_received == pair.n_seen && pair.sends.size() > pair.n_received);
    begun_[++n_] = {false, &pair, pair.n_received++, data, static_cast<int>(rng_.below(6)), false};
    return n_;
  }
  bool done(Handle handle) override {
    Begun& begun = begun_.at(handle);
    const std::lock_guard lock(pipes_->mutex);
    if (begun.sends && !begun.is_kept && begun.pair->n_taken <= begun.index) return false;
    if (!begun.sends) {
      if (begun.n_looks-- == 2) begun.take();
      if (begun.n_looks >= 0) return false;
      if (begun.pair->n_taken == begun.index) begun.take();
      ++begun.pair->n_seen;
    }
    begun_.erase(handle);
    return true;
  }
  void abort() override { begun_.clear(); }

 private:
  struct Begun {
    bool sends;
    Pipes::Pair* pair;
    size_t index;
    std::span<std::byte> data;
    int n_looks;  // until it is seen to be done
    bool is_kept;

    void take() {
      const std::span<const std::byte> sent = pair->sends[index];
      FATHOM_CHECK(pair->n_taken == index && sent.size() == data.size());
      std::memcpy(data.data(), sent.data(), sent.size());
      ++pair->n_taken;
    }
  };
  int n_begun(bool sends) const {
    return static_cast<int>(
        std::count_if(begun_.begin(), begun_.end(), [&](const auto& each) { return each.second.sends == sends; }));
  }
  const std::shared_ptr<Pipes> pipes_;
  const int rank_, at_a_time_;
  Rng rng_;
  Handle n_ = 0;
  std::map<Handle, Begun> begun_;
};

test::OnRanks on_fifos(int at_a_time, uint64_t seed = 0, bool buffers = false) {
  return [=](int n, const std::function<void(Communicator&)>& work) {
    const auto pipes = std::make_shared<Pipes>(buffers);
    test::on_ranks(n, [&](Communicator& host) {
      work(*communicate_over(std::make_unique<Fifo>(pipes, host.rank(), at_a_time, seed), host));
    });
  };
}

std::vector<int> all_ranks(int n) {
  std::vector<int> ranks(static_cast<size_t>(n));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

TEST(OrderedTransport, AnyOrderOfPostingEnds) {
  for (uint64_t seed = 0; seed < (test::kSanitized ? 43 : 150); ++seed) {
    const int n_ranks = 2 + static_cast<int>(seed % 7), at_a_time = 1 + static_cast<int>(seed / 7 % 4);
    const auto messages = test::random_messages(seed, n_ranks, 40 * n_ranks, seed % 10 == 0 ? size_t{1} << 20 : 20'000);
    on_fifos(at_a_time, seed, seed % 3 == 0)(n_ranks, [&](Communicator& comm) {
      std::map<size_t, std::vector<std::byte>> kept;
      const test::MessageMemory memory{
          .make = [&](size_t i, const std::vector<std::byte>& content) { return std::span(kept[i] = content); },
          .read = [](size_t, std::span<const std::byte> m) { return std::vector<std::byte>(m.begin(), m.end()); }};
      EXPECT_EQ(test::exchange_randomly(comm, messages, seed, memory), 0) << "seed " << seed;
    });
  }
}

// What was sent first is awaited last, and nothing else is there to move it on.
TEST(OrderedTransport, AReceiveDoesNotWaitForEarlierSends) {
  on_fifos(1)(2, [](Communicator& comm) {
    int values[] = {1, 2, 3};
    const auto bytes = [](int& x) { return std::as_writable_bytes(std::span(&x, 1)); };
    if (comm.rank() == 0) {
      const auto first = comm.send(1, 7, bytes(values[0])), second = comm.send(1, 8, bytes(values[1]));
      comm.wait(second);
      EXPECT_FALSE(comm.done(first));
      int answer = 0;
      comm.wait(comm.receive(1, 0, bytes(answer)));
      comm.wait(first);
      comm.wait(comm.send(1, 7, bytes(values[2])));
    } else {
      int received[3] = {}, answer = 0;
      comm.wait(comm.receive(0, 8, bytes(received[0])));
      comm.wait(comm.send(0, 0, bytes(answer)));
      comm.wait(comm.receive(0, 7, bytes(received[1])));
      comm.wait(comm.receive(0, 7, bytes(received[2])));
      EXPECT_THAT(received, ElementsAre(2, 1, 3));
    }
  });
}

// All send before they receive, round in a circle, one at a time.
TEST(OrderedTransport, ACircleOfSendsEnds) {
  for (const int n : {2, 3, 8}) {
    on_fifos(1)(n, [&](Communicator& comm) {
      std::vector<int> out(1000, comm.rank()), in(1000);
      const int next = (comm.rank() + 1) % n, before = (comm.rank() + n - 1) % n;
      const auto sent = comm.send(next, 0, std::as_bytes(std::span<const int>(out)));
      comm.wait(comm.receive(before, 0, std::as_writable_bytes(std::span(in))));
      comm.wait(sent);
      EXPECT_THAT(in, testing::Each(before));
    });
  }
}

// A thread moves passes on while another one sends and receives beside it.
TEST(OrderedTransport, TwoThreadsUseIt) {
  constexpr int kRanks = 3, kRounds = 100;
  on_fifos(2)(kRanks, [&](Communicator& comm) {
    PassThread beside(comm);
    const RankGroup group = make_group(comm, all_ranks(kRanks), 0);
    const auto rank = static_cast<size_t>(comm.rank());
    const auto all_to_all_pass = [&](std::vector<int>& values, int tag) -> StagePass {
      for (int round = 0; round < kRounds; ++round) {
        std::vector<int> in(kRanks, 0);
        std::vector<std::span<const std::byte>> sent(kRanks, std::as_bytes(std::span(&values[rank], 1)));
        std::vector<std::span<std::byte>> received;
        for (int& value : in) received.push_back(std::as_writable_bytes(std::span(&value, 1)));
        co_await arrival(all_to_all(group, sent, received, tag));
        for (size_t i = 0; i < kRanks; ++i) values[i] = in[i] + 1;
      }
    };
    std::vector<int> away(kRanks, 0), here(kRanks, 0);
    StagePass::Arrived arrived = beside.run(all_to_all_pass(away, 5));
    StagePass pass = all_to_all_pass(here, 6);
    finish(pass, comm);
    for (int n_looks = 0; !arrived(); ++n_looks) comm.pause(n_looks);
    EXPECT_THAT(away, testing::Each(kRounds));
    EXPECT_THAT(here, testing::Each(kRounds));
  });
}

// The host has messages of its own beside those that it carries, and nothing is left in it behind them.
TEST(OrderedTransport, TheHostIsFreeForOthers) {
  const auto first = std::make_shared<Pipes>(), second = std::make_shared<Pipes>();
  test::on_ranks(3, [&](Communicator& host) {
    std::vector<float> a(100, static_cast<float>(host.rank())), b = a;
    const RankGroup beside = make_group(host, {0, 1, 2}, 0);
    for (const auto& pipes : {first, second}) {
      const auto comm = communicate_over(std::make_unique<Fifo>(pipes, host.rank(), 2, 0), host);
      const RankGroup over = make_group(*comm, {0, 1, 2}, 0);
      for (int i = 0; i < 5; ++i) {
        all_reduce(over, a);
        all_reduce(beside, b);
      }
    }
    EXPECT_EQ(a, b);
  });
}

TEST(OrderedTransport, WhereOneFailsNobodyWaitsForEver) {
  for (const bool says_it : {false, true}) {
    std::vector<std::vector<float>> values(3, std::vector<float>(1000));  // stays while others read it
    const auto job = [&] {
      on_fifos(2)(3, [&](Communicator& comm) {
        all_reduce(make_group(comm, {0, 1, 2}, 0), values[static_cast<size_t>(comm.rank())]);
        std::byte message{};
        const auto sent = comm.send((comm.rank() + 1) % 3, 1, std::span(&message, 1));
        if (comm.rank() == 1) {
          if (says_it) return comm.fail("rank 1 has no luck");
          throw Error("rank 1 has no luck");
        }
        std::byte other{};
        comm.wait(comm.receive(1, 0, std::span(&other, 1)));
        comm.wait(sent);
      });
    };
    EXPECT_THROW(job(), Error);
  }
}

struct Together {
  std::vector<std::vector<float>> values;
  std::vector<std::vector<std::string>> texts;
  bool operator==(const Together&) const = default;
};
Together collectives_over(const test::OnRanks& on_ranks, int n, size_t size) {
  Together result{std::vector<std::vector<float>>(static_cast<size_t>(n)),
                  std::vector<std::vector<std::string>>(static_cast<size_t>(n))};
  on_ranks(n, [&](Communicator& comm) {
    const RankGroup all = make_group(comm, all_ranks(n), 0), other = make_group(comm, all_ranks(n), 1 << 20);
    std::vector<float>& own = result.values[static_cast<size_t>(comm.rank())];
    Rng rng(static_cast<uint64_t>(100 + comm.rank()));
    for (size_t v = 0; v < size; ++v) own.push_back(static_cast<float>(rng.normal()));
    all_reduce(all, own);
    std::vector<double> few = {own.empty() ? 0.0 : double{own[0]}, static_cast<double>(comm.rank())};
    sum_over(other, std::span(few));
    for (const double value : few) own.push_back(static_cast<float>(value));
    StagePass sum = reduce_scatter(other, own);
    finish(sum, comm);
    all_gather(other, own).wait();
    broadcast(all, n - 1, std::as_writable_bytes(std::span(own)));
    result.texts[static_cast<size_t>(comm.rank())] =
        gather_texts(all, std::string(static_cast<size_t>(comm.rank()), 'x'));
    barrier(all);
  });
  return result;
}

TEST(OrderedTransport, CollectivesHaveTheSameBits) {
  for (const int n : {1, 2, 3, 5, 8}) {
    for (const size_t size : {size_t{0}, size_t{1}, size_t{50}, size_t{1003}}) {
      const Together expected = collectives_over(test::on_ranks, n, size);
      for (const int at_a_time : {1, 4}) {
        EXPECT_EQ(collectives_over(on_fifos(at_a_time), n, size), expected) << n << " ranks, " << size;
      }
    }
  }
}

TEST(OrderedTransport, PipelinesHaveTheSameBits) {
  for (const auto& [name, kind] : kScheduleKinds) {
    for (const int ranks : {2, 4}) {
      SCOPED_TRACE(std::string(name) + " " + std::to_string(ranks));
      const PipelineSchedule schedule = make_schedule(kind, ranks, 2 * ranks + 2);
      const auto expected = test::run_numbers(schedule, 1, true);
      EXPECT_EQ(test::run_numbers(schedule, 2, true, on_fifos(1)), expected);
      EXPECT_EQ(test::run_numbers(schedule, 3, true, on_fifos(4)), expected);
    }
  }
}

TEST(Nccl, IsRefusedWhereItIsNotBuilt) {
  if (nccl_build_text() != "NCCL: not built") GTEST_SKIP() << nccl_build_text();
  test::on_ranks(1, [](Communicator& host) { EXPECT_THROW(join_nccl(host, 0), Error); });
}

}  // namespace
}  // namespace fathom
