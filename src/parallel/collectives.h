// What groups of ranks do together, made of messages between two. Sums are taken in the order of the ranks, so that the
// same layout gives the same bits whoever is first.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/stage_pass.h"

namespace fathom {

// Ranks that do something together, in an order that all of them know; this process is one of them.
struct RankGroup {
  Communicator* comm = nullptr;
  std::vector<int> ranks;
  int index = 0;  // of this process
  int tag = 0;    // of its messages: groups that share two ranks have tags of their own

  int size() const { return static_cast<int>(ranks.size()); }
};
// Error unless comm's own rank is among `ranks`.
RankGroup make_group(Communicator& comm, std::vector<int> ranks, int tag);

// Messages that are under way. wait() is due before their memory goes.
class [[nodiscard]] Exchange {
 public:
  explicit Exchange(Communicator& comm) : comm_(&comm) {}
  void send(int to, int tag, std::span<const std::byte> data) { transfers_.push_back(comm_->send(to, tag, data)); }
  void receive(int from, int tag, std::span<std::byte> data) { transfers_.push_back(comm_->receive(from, tag, data)); }
  bool done();  // moves it on; once true, always
  void wait();

 private:
  Communicator* comm_;
  std::vector<Communicator::Transfer> transfers_;
};

// For a pass that goes on when it is there.
StagePass::Arrived arrival(Exchange exchange);
// To its end, with nothing beside it. n_eager: looks in vain before the first pause, where messages are under way for
// less time than a thread that sleeps needs to wake up.
void finish(StagePass& pass, Communicator& comm, int n_eager = 0);

// Rows of every member to every member: `sent[i]` goes to member i, `received[i]` comes from it, and may be empty. What
// a member has for itself is copied at once. Returns what is under way. Where several are at a time, in orders that may
// differ from rank to rank, each has a `tag` (added to the group's) of its own.
Exchange all_to_all(const RankGroup& group, std::span<const std::span<const std::byte>> sent,
                    std::span<const std::span<std::byte>> received, int tag = 0);

// Of n elements, the part that member `index` of `size` looks after: [begin, end), in pieces of 16 elements.
struct Shard {
  size_t begin = 0, end = 0;
};
Shard shard_of(size_t n, int size, int index);

// data[own shard] becomes the sum over all members, in their order; what stands in the rest is undefined then.
// A pass, so that it may go on beside other things: it sends when it begins, and adds in pieces what has come. Group
// and data must stay until it is over, and data as it is.
StagePass reduce_scatter(const RankGroup& group, std::span<float> data);
// Every member's own shard of data to all. Returns what is under way.
Exchange all_gather(const RankGroup& group, std::span<float> data);
// Both: the same bits everywhere.
void all_reduce(const RankGroup& group, std::span<float> data);

// Of few numbers, summed in the order of the ranks.
void sum_over(const RankGroup& group, std::span<double> values);
void sum_over(const RankGroup& group, std::span<int64_t> values);
// Whether it is so on one of them.
bool is_on_any(const RankGroup& group, bool here);
// From member `root` to all.
void broadcast(const RankGroup& group, int root, std::span<std::byte> data);
// The texts of all members, to member 0; nothing elsewhere.
std::vector<std::string> gather_texts(const RankGroup& group, const std::string& text);
void barrier(const RankGroup& group);

}  // namespace fathom
