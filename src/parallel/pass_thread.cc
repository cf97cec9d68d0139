#include "parallel/pass_thread.h"

#include <atomic>

namespace fathom {

struct PassThread::Running {
  const std::shared_ptr<std::mutex> moving;
  StagePass pass;
  std::atomic<bool> over = false;
  std::exception_ptr failed{};  // once it is over

  // As far as it goes without waiting; whether it went. `moving` must be locked.
  bool advance() {
    bool has_moved = false;
    try {
      while (!over && pass.can_go_on()) {
        has_moved = true;
        pass.go_on();
        over = pass.over();
      }
    } catch (...) {
      failed = std::current_exception();
      over = true;
    }
    return has_moved;
  }
  void give_up() {
    const std::lock_guard lock(*moving);
    over = true;
    pass = {};
  }
};

PassThread::PassThread(Communicator& comm) : comm_(comm), thread_([this] { work(); }) {}

PassThread::~PassThread() {
  {
    const std::lock_guard lock(mutex_);
    stops_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

StagePass::Arrived PassThread::run(StagePass pass) {
  const std::shared_ptr<Running> running(new Running{moving_, std::move(pass)});
  {
    const std::lock_guard lock(*moving_);
    running->advance();
  }
  if (!running->over) {
    {
      const std::lock_guard lock(mutex_);
      running_.push_back(running);
    }
    changed_.notify_one();
  }
  const std::shared_ptr<Running> owner(running.get(), [running](Running* r) { r->give_up(); });
  return [owner] {
    if (!owner->over) {
      // Who waits is sooner there than a thread that sleeps.
      const std::unique_lock lock(*owner->moving, std::try_to_lock);
      if (lock) owner->advance();
    }
    if (!owner->over) return false;
    if (owner->failed) std::rethrow_exception(owner->failed);
    return true;
  };
}

void PassThread::work() {
  constexpr int kSleeping = 100;  // looks in vain: who computes needs the core, and who waits looks himself
  for (int n_looks = kSleeping;; ++n_looks) {
    std::vector<std::shared_ptr<Running>> now;
    {
      std::unique_lock lock(mutex_);
      std::erase_if(running_, [](const auto& each) { return each->over.load(); });
      if (running_.empty()) n_looks = kSleeping;
      changed_.wait(lock, [this] { return stops_ || !running_.empty(); });
      if (stops_) return;
      now = running_;
    }
    for (const auto& each : now) {
      const std::lock_guard lock(*moving_);
      if (each->advance()) n_looks = kSleeping;
    }
    comm_.pause(n_looks);
  }
}

}  // namespace fathom
