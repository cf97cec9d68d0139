// Messages between all ranks, in orders and with lengths that a seed makes, and their check: for what carries messages.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "parallel/communicator.h"

namespace fathom::test {

struct RandomMessage {
  int from, to, tag;
  size_t n_bytes;
  uint64_t content;  // seed of its bytes
};

// The same on all ranks. Of five one is empty, of fifty one has most_bytes.
inline std::vector<RandomMessage> random_messages(uint64_t seed, int n_ranks, int n, size_t most_bytes) {
  Rng rng(seed);
  std::vector<RandomMessage> messages;
  const auto below = [&](int end) { return static_cast<int>(rng.below(static_cast<uint64_t>(end))); };
  const int n_tags = 1 + below(20);
  for (int i = 0; i < n; ++i) {
    const int from = below(n_ranks), to = (from + 1 + below(n_ranks - 1)) % n_ranks;
    const int kind = below(50);
    const size_t n_bytes = kind < 10 ? 0 : kind == 10 ? most_bytes : 1 + rng.below(std::min<size_t>(most_bytes, 3000));
    messages.push_back({from, to, (1 << 20) * below(2) + below(n_tags), n_bytes, rng.next()});
  }
  return messages;
}

inline std::vector<std::byte> content_of(const RandomMessage& message) {
  Rng rng(message.content);
  std::vector<std::byte> bytes(message.n_bytes);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.next());
  return bytes;
}

// Where messages are kept while they travel: of `i`, so that each may lie elsewhere. Neither is called for empty ones.
struct MessageMemory {
  std::function<std::span<std::byte>(size_t i, const std::vector<std::byte>& content)> make;
  std::function<std::vector<std::byte>(size_t i, std::span<const std::byte> memory)> read;
};

// Sends and receives this rank's part in an order of its own, looking at some meanwhile, and waits for them in another
// order. Returns how many came with other bytes than were sent.
inline int exchange_randomly(Communicator& comm, const std::vector<RandomMessage>& messages, uint64_t seed,
                             const MessageMemory& memory) {
  Rng rng(seed + 1000 * static_cast<uint64_t>(comm.rank()) + 1);
  const auto below = [&](size_t end) { return rng.below(static_cast<uint64_t>(end)); };
  std::vector<size_t> order;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].from == comm.rank() || messages[i].to == comm.rank()) order.push_back(i);
  }
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[below(i)]);
  // What two ranks send each other with one tag stays in its order: in the places that it got, the first is the first.
  std::map<std::tuple<int, int, int>, std::vector<size_t>> places;
  for (size_t at = 0; at < order.size(); ++at) {
    const RandomMessage& m = messages[order[at]];
    places[{m.from, m.to, m.tag}].push_back(at);
  }
  for (const auto& [key, at] : places) {
    std::vector<size_t> of_key;
    for (const size_t place : at) of_key.push_back(order[place]);
    std::sort(of_key.begin(), of_key.end());
    for (size_t k = 0; k < at.size(); ++k) order[at[k]] = of_key[k];
  }
  struct Posted {
    size_t message;
    std::span<std::byte> memory;
    Communicator::Transfer transfer;
  };
  std::vector<Posted> posted;
  int n_wrong = 0;
  const auto end = [&](size_t at) {
    const auto [i, bytes, transfer] = posted[at];
    posted.erase(posted.begin() + static_cast<std::ptrdiff_t>(at));
    if (messages[i].to != comm.rank() || bytes.empty()) return;
    if (memory.read(i, bytes) != content_of(messages[i])) ++n_wrong;
  };
  for (const size_t i : order) {
    const RandomMessage& m = messages[i];
    const bool sends = m.from == comm.rank();
    std::span<std::byte> bytes;
    if (m.n_bytes > 0) bytes = memory.make(i, sends ? content_of(m) : std::vector<std::byte>(m.n_bytes));
    posted.push_back({i, bytes, sends ? comm.send(m.to, m.tag, bytes) : comm.receive(m.from, m.tag, bytes)});
    if (below(3) == 0) {
      const size_t at = below(posted.size());
      if (comm.done(posted[at].transfer)) end(at);
    }
  }
  while (!posted.empty()) {
    const size_t at = below(posted.size());
    comm.wait(posted[at].transfer);
    end(at);
  }
  return n_wrong;
}

}  // namespace fathom::test
