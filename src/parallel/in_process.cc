#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>
#include <unordered_map>

#include "base/error.h"
#include "parallel/communicator.h"

namespace fathom {

void Communicator::wait(Transfer transfer) {
  for (int n = 0; !done(transfer); ++n) pause(n);
}

void Communicator::pause(int n_looks) {
  constexpr int kBusyLooks = 64, kEagerLooks = 20'000;  // about a second
  if (n_looks < kBusyLooks) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(n_looks < kEagerLooks ? 50 : 2000));
  }
}

namespace {

struct Mailboxes {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::tuple<int, int, int>, std::deque<std::vector<std::byte>>> messages;  // from, to, tag
  std::string failed;                                                                // why the job ends
};

class InProcess : public Communicator {
 public:
  InProcess(int rank, int size, std::shared_ptr<Mailboxes> boxes)
      : Communicator(rank, size), boxes_(std::move(boxes)) {}
  Transfer send(int to, int tag, std::span<const std::byte> data) override {
    FATHOM_CHECK(to >= 0 && to < size());
    const std::lock_guard lock(boxes_->mutex);
    boxes_->messages[{rank(), to, tag}].emplace_back(data.begin(), data.end());
    boxes_->changed.notify_all();
    return kSent;
  }

  Transfer receive(int from, int tag, std::span<std::byte> data) override {
    FATHOM_CHECK(from >= 0 && from < size());
    const std::lock_guard lock(boxes_->mutex);
    // Those of a kind are served in the order in which they were asked for.
    expected_[{from, tag}].push_back({++n_, data});
    return n_;
  }

  bool done(Transfer transfer) override {
    if (transfer == kSent) return true;
    const std::lock_guard lock(boxes_->mutex);
    const bool has_failed = !boxes_->failed.empty();
    // Where the job has failed, others that are awaited may have no memory any more.
    take(has_failed ? transfer : kAll);
    if (arrived_.erase(transfer) > 0) return true;
    if (has_failed) throw Error("{}", boxes_->failed);
    return false;
  }

  void fail(const std::string& message) override {
    const std::lock_guard lock(boxes_->mutex);
    if (boxes_->failed.empty()) boxes_->failed = message;
    boxes_->changed.notify_all();
  }

  void pause(int) override {
    std::unique_lock lock(boxes_->mutex);
    boxes_->changed.wait_for(lock, std::chrono::microseconds(50));
  }

 private:
  static constexpr Transfer kSent = 0, kAll = -1;
  struct Expected {
    Transfer transfer;
    std::span<std::byte> data;
  };

  // What has come, of all that are awaited or for one of them.
  void take(Transfer wanted) {
    for (auto& [key, expected] : expected_) {
      auto& box = boxes_->messages[{key.first, rank(), key.second}];
      while (!expected.empty() && !box.empty() && (wanted == kAll || wanted == expected.front().transfer)) {
        const std::vector<std::byte>& message = box.front();
        FATHOM_CHECK(message.size() == expected.front().data.size(), "{} bytes came, {} were expected", message.size(),
                     expected.front().data.size());
        std::memcpy(expected.front().data.data(), message.data(), message.size());
        arrived_[expected.front().transfer] = true;
        expected.pop_front();
        box.pop_front();
      }
    }
  }

  std::shared_ptr<Mailboxes> boxes_;
  Transfer n_ = kSent;
  std::map<std::pair<int, int>, std::deque<Expected>> expected_;  // from, tag
  std::unordered_map<Transfer, bool> arrived_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> in_process_communicators(int size) {
  const auto boxes = std::make_shared<Mailboxes>();
  std::vector<std::unique_ptr<Communicator>> all;
  for (int rank = 0; rank < size; ++rank) all.push_back(std::make_unique<InProcess>(rank, size, boxes));
  return all;
}

}  // namespace fathom
