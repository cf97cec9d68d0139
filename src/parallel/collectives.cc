#include "parallel/collectives.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace fathom {
namespace {

template <class T>
void sum_few(const RankGroup& group, std::span<T> values) {
  const auto size = static_cast<size_t>(group.size());
  std::vector<T> all(values.size() * size);
  std::vector<std::span<const std::byte>> sent(size, std::as_bytes(values));
  std::vector<std::span<std::byte>> received;
  for (size_t i = 0; i < size; ++i) {
    received.push_back(std::as_writable_bytes(std::span(all).subspan(i * values.size(), values.size())));
  }
  all_to_all(group, sent, received).wait();
  for (size_t v = 0; v < values.size(); ++v) {
    values[v] = 0;
    for (size_t i = 0; i < size; ++i) values[v] += all[i * values.size() + v];
  }
}

}  // namespace

RankGroup make_group(Communicator& comm, std::vector<int> ranks, int tag) {
  const auto own = std::find(ranks.begin(), ranks.end(), comm.rank());
  FATHOM_CHECK(own != ranks.end());
  const auto index = static_cast<int>(own - ranks.begin());
  return {&comm, std::move(ranks), index, tag};
}

bool Exchange::done() {
  while (!transfers_.empty() && comm_->done(transfers_.back())) transfers_.pop_back();
  return transfers_.empty();
}

void Exchange::wait() {
  for (; !transfers_.empty(); transfers_.pop_back()) comm_->wait(transfers_.back());
}

StagePass::Arrived arrival(Exchange exchange) {
  return [exchange = std::move(exchange)]() mutable { return exchange.done(); };
}

void finish(StagePass& pass, Communicator& comm, int n_eager) {
  for (int n_looks = 0; !pass.over();) {
    if (pass.can_go_on()) {
      pass.go_on();
      n_looks = 0;
    } else {
      comm.pause(std::max(0, n_looks++ - n_eager));
    }
  }
}

Exchange all_to_all(const RankGroup& group, std::span<const std::span<const std::byte>> sent,
                    std::span<const std::span<std::byte>> received, int tag) {
  FATHOM_CHECK(std::ssize(sent) == group.size() && std::ssize(received) == group.size());
  Exchange exchange(*group.comm);
  // Each begins with its neighbour, so that not all send to the same one at first.
  for (int step = 1; step < group.size(); ++step) {
    const int from = (group.index + group.size() - step) % group.size();
    const auto i = static_cast<size_t>(from);
    if (!received[i].empty()) exchange.receive(group.ranks[i], group.tag + tag, received[i]);
  }
  for (int step = 1; step < group.size(); ++step) {
    const auto to = static_cast<size_t>((group.index + step) % group.size());
    if (!sent[to].empty()) exchange.send(group.ranks[to], group.tag + tag, sent[to]);
  }
  const auto own = static_cast<size_t>(group.index);
  FATHOM_CHECK(sent[own].size() == received[own].size());
  // Where it is the same memory it is on its way to others.
  if (!sent[own].empty() && sent[own].data() != received[own].data()) {
    std::memmove(received[own].data(), sent[own].data(), sent[own].size());
  }
  return exchange;
}

Shard shard_of(size_t n, int size, int index) {
  constexpr size_t kPiece = 16;
  const size_t pieces = (n + kPiece - 1) / kPiece;
  const auto from = [&](int i) {
    return std::min(n, kPiece * (pieces * static_cast<size_t>(i) / static_cast<size_t>(size)));
  };
  return {from(index), from(index + 1)};
}

StagePass reduce_scatter(const RankGroup& group, std::span<float> data) {
  const auto size = static_cast<size_t>(group.size()), index = static_cast<size_t>(group.index);
  if (size == 1) co_return;
  const Shard own = shard_of(data.size(), group.size(), group.index);
  const size_t n_own = own.end - own.begin;
  std::vector<float> others(n_own * (size - 1));
  std::vector<std::span<const std::byte>> sent(size);
  std::vector<std::span<std::byte>> received(size);
  std::vector<const float*> parts(size, data.data() + own.begin);  // [member]: of the own shard
  for (size_t i = 0, at = 0; i < size; ++i) {
    if (i == index) continue;
    const Shard shard = shard_of(data.size(), group.size(), static_cast<int>(i));
    sent[i] = std::as_bytes(data.subspan(shard.begin, shard.end - shard.begin));
    const std::span<float> part = std::span(others).subspan(n_own * at++, n_own);
    received[i] = std::as_writable_bytes(part);
    parts[i] = part.data();
  }
  co_await arrival(all_to_all(group, sent, received));
  constexpr size_t kBlock = 4096, kBlocks = 64;  // of a piece: a millisecond or less
  std::vector<float> sums(kBlock);
  for (size_t at = 0, n_blocks = 1; at < n_own; at += kBlock, ++n_blocks) {
    const size_t n = std::min(kBlock, n_own - at);
    std::copy_n(parts[0] + at, n, sums.begin());
    for (size_t i = 1; i < size; ++i) {
      const float* const part = parts[i] + at;
      for (size_t v = 0; v < n; ++v) sums[v] += part[v];
    }
    std::copy_n(sums.begin(), n, data.data() + own.begin + at);
    if (n_blocks % kBlocks == 0) co_await StagePass::Arrived();
  }
}

Exchange all_gather(const RankGroup& group, std::span<float> data) {
  const Shard own = shard_of(data.size(), group.size(), group.index);
  std::vector<std::span<const std::byte>> sent(static_cast<size_t>(group.size()),
                                               std::as_bytes(data.subspan(own.begin, own.end - own.begin)));
  std::vector<std::span<std::byte>> received;
  for (int i = 0; i < group.size(); ++i) {
    const Shard shard = shard_of(data.size(), group.size(), i);
    received.push_back(std::as_writable_bytes(data.subspan(shard.begin, shard.end - shard.begin)));
  }
  return all_to_all(group, sent, received);
}

void all_reduce(const RankGroup& group, std::span<float> data) {
  StagePass sum = reduce_scatter(group, data);
  finish(sum, *group.comm);
  all_gather(group, data).wait();
}

void sum_over(const RankGroup& group, std::span<double> values) { sum_few(group, values); }
void sum_over(const RankGroup& group, std::span<int64_t> values) { sum_few(group, values); }

bool is_on_any(const RankGroup& group, bool here) {
  int64_t n = here ? 1 : 0;
  sum_over(group, std::span(&n, 1));
  return n > 0;
}

void broadcast(const RankGroup& group, int root, std::span<std::byte> data) {
  if (data.empty()) return;
  Exchange exchange(*group.comm);
  if (group.index == root) {
    for (int i = 0; i < group.size(); ++i) {
      if (i != root) exchange.send(group.ranks[static_cast<size_t>(i)], group.tag, data);
    }
  } else {
    exchange.receive(group.ranks[static_cast<size_t>(root)], group.tag, data);
  }
  exchange.wait();
}

std::vector<std::string> gather_texts(const RankGroup& group, const std::string& text) {
  const auto size = static_cast<size_t>(group.size()), own = static_cast<size_t>(group.index);
  std::vector<int64_t> lengths(size);
  lengths[own] = std::ssize(text);
  sum_over(group, std::span(lengths));
  std::vector<std::string> texts;
  std::vector<std::span<const std::byte>> sent(size);
  std::vector<std::span<std::byte>> received(size);
  sent[0] = std::as_bytes(std::span(text));
  if (own == 0) {
    for (const int64_t length : lengths) texts.emplace_back(static_cast<size_t>(length), ' ');
    for (size_t i = 0; i < size; ++i) received[i] = std::as_writable_bytes(std::span(texts[i]));
  }
  all_to_all(group, sent, received).wait();
  return texts;
}

void barrier(const RankGroup& group) {
  int64_t nothing = 0;
  sum_over(group, std::span(&nothing, 1));
}

}  // namespace fathom
