// Messages by tag over what has none: a transport that matches what two ranks begin by order alone, and keeps a send
// until its receive is there, as NCCL does.
//
// Whoever receives tells the sender "ready (tag)" by a small message of another communicator, the host. The sender,
// once it has a send of that tag too, begins it and tells "go (tag)"; the receiver begins receives in the order of the
// gos. So both sides begin the same messages in the same order, and the memory of both is there.
//
// Nobody waits in a circle, however many ranks there are: of each rank at most at_a_time() sends and as many receives
// are begun, apart from each other. A receive that is begun has its send begun too, so that it waits for nothing but
// the bytes and ends; so every go is served at last, and every send ends. All that the transport has to grant is that
// those few move on beside each other.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace fathom {

class OrderedTransport {
 public:
  // What is begun and not seen to be done.
  using Handle = int;

  virtual ~OrderedTransport() = default;
  // How many sends, and how many receives, may be begun at a time.
  virtual int at_a_time() const = 0;
  // Never empty; from one rank to another only one at a time.
  virtual Handle begin_send(int to, std::span<const std::byte> data) = 0;
  virtual Handle begin_receive(int from, std::span<std::byte> data) = 0;
  // Moves it on; once true the handle is free again.
  virtual bool done(Handle handle) = 0;
  // The job cannot go on: gives up what is begun, without waiting for others.
  virtual void abort() = 0;
};

// Of the host's tags the one that is used: in front of those of pipelines (train/parallel_step.cc), and below 32767,
// which every MPI allows. Tags of messages over the transport travel inside and may be any.
inline constexpr int kControlTag = (1 << 10) - 1;

// Ranks are the host's, which must live longer and may be used beside it. No rank sends to itself. Messages move on
// while somebody looks at one (done, send, receive). Whoever destroys it waits for those it has had to do with to
// destroy theirs, but where an exception is on its way or fail() was called.
std::unique_ptr<Communicator> communicate_over(std::unique_ptr<OrderedTransport> transport, Communicator& host);

}  // namespace fathom
