// Messages between the processes (ranks) that work on one job. Everything else - sums, exchanges, pipelines - is made
// of these few functions, so that a result depends on the ranks' order alone and never on who was first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace fathom {

// Used by the thread that computes and, for its transfers, by one that moves passes on (parallel/pass_thread.h).
class Communicator {
 public:
  // Names a message on its way; one that is done must not be used again.
  using Transfer = int64_t;

  Communicator(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  int rank() const { return rank_; }
  int size() const { return size_; }

  // Both return at once; the memory must stay until the message is done. Messages from one rank to another with one tag
  // come in the order in which they were sent, and have the length that is received.
  virtual Transfer send(int to, int tag, std::span<const std::byte> data) = 0;
  virtual Transfer receive(int from, int tag, std::span<std::byte> data) = 0;
  // Whether it has arrived, or the memory that was sent may be used again. Moves all other messages on too.
  virtual bool done(Transfer transfer) = 0;
  // Until it is done, without keeping a core from who else could use it. Error where the job ends meanwhile.
  void wait(Transfer transfer);
  // What this rank is at, for who watches over the ranks: "forward of chunk 3".
  virtual void tell(const std::string& what) { (void)what; }
  // The job cannot go on: the others' waits end too, or the processes themselves, with `message` on stderr.
  virtual void fail(const std::string& message) = 0;
  // Between two looks at a message that is not there, of which so many were in vain.
  virtual void pause(int n_looks);

 private:
  const int rank_, size_;
};

// Ranks of one process, for tests and for layouts tried on one machine, each on a thread of its own. What is sent is
// copied.
std::vector<std::unique_ptr<Communicator>> in_process_communicators(int size);

}  // namespace fathom
