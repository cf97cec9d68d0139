// Moves passes on while the thread that has begun them computes, so that what has come for another rank goes on to it
// at once (as the report's warps that forward inside of a node do, V3 section 3.2.2).
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/stage_pass.h"

namespace fathom {

class PassThread {
 public:
  explicit PassThread(Communicator& comm);
  ~PassThread();
  PassThread(const PassThread&) = delete;
  PassThread& operator=(const PassThread&) = delete;

  // Begins `pass`, and goes on with it beside whoever has begun it, one pass at a time; it must use nothing but what
  // such passes use until it is over. What is returned says whether it is, moving it on where nobody does just then,
  // throws what the pass has thrown, and where it goes before that the pass ends with it: nothing may be on its way to
  // what the pass has, or the job must have failed (Communicator::fail).
  StagePass::Arrived run(StagePass pass);

 private:
  struct Running;
  void work();

  Communicator& comm_;
  const std::shared_ptr<std::mutex> moving_ = std::make_shared<std::mutex>();  // of passes, while one goes on
  std::mutex mutex_;                                                           // of what follows
  std::condition_variable changed_;
  std::vector<std::shared_ptr<Running>> running_;
  bool stops_ = false;
  std::thread thread_;
};

}  // namespace fathom
