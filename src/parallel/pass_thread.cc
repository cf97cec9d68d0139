#include "parallel/pass_thread.h"

namespace fathom {

struct PassThread::Running {
  std::mutex mutex;  // of the pass
  StagePass pass;
  std::atomic<bool> over = false;
  std::exception_ptr failed;  // once it is over

  // One wait further, where what it waits for has come. Whether it was so.
  bool advance() {
    const std::lock_guard lock(mutex);
    if (over) return false;
    try {
      if (!pass.can_go_on()) return false;
      pass.go_on();
    } catch (...) {
      failed = std::current_exception();
    }
    over = failed != nullptr || pass.over();
    return true;
  }
  void give_up() {
    const std::lock_guard lock(mutex);
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
  const auto running = std::make_shared<Running>();
  running->pass = std::move(pass);
  running->advance();
  if (!running->over) {
    n_looks_ = 0;
    {
      const std::lock_guard lock(mutex_);
      running_.push_back(running);
    }
    changed_.notify_one();
  }
  const std::shared_ptr<Running> owner(running.get(), [running](Running* r) { r->give_up(); });
  return [owner] {
    if (!owner->over) return false;
    if (owner->failed) std::rethrow_exception(owner->failed);
    return true;
  };
}

void PassThread::work() {
  while (true) {
    std::vector<std::shared_ptr<Running>> now;
    {
      std::unique_lock lock(mutex_);
      std::erase_if(running_, [](const auto& each) { return each->over.load(); });
      changed_.wait(lock, [this] { return stops_ || !running_.empty(); });
      if (stops_) return;
      now = running_;
    }
    bool has_moved = false;
    for (const auto& each : now) has_moved = each->advance() || has_moved;
    if (has_moved) {
      n_looks_ = 0;
    } else {
      comm_.pause(n_looks_++);
    }
  }
}

}  // namespace fathom
