// A chunk's way through a stage, as a coroutine: straight code that computes, sends, and at `co_await` lets something
// else compute until its messages have come. What else goes on beside that (parallel/collectives.h) is one too.
#pragma once

#include <coroutine>
#include <exception>
#include <functional>
#include <memory>
#include <utility>

namespace fathom {

class [[nodiscard]] StagePass {
 public:
  // Whether what is awaited has come; moves it on.
  using Arrived = std::function<bool()>;

  struct promise_type {
    Arrived awaited;
    std::unique_ptr<StagePass> inner;  // that is awaited
    std::exception_ptr failed;
    StagePass get_return_object() { return StagePass(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { failed = std::current_exception(); }
    std::suspend_always await_transform(Arrived arrived) {
      awaited = std::move(arrived);
      return {};
    }
    // Goes on behind the end of a pass of its own, which may have begun.
    std::suspend_always await_transform(StagePass&& pass) {
      inner = std::make_unique<StagePass>(std::move(pass));
      return {};
    }
  };

  // co_await after_others(): what other passes have waited for, and has come, goes first.
  static Arrived after_others() {
    return [] { return true; };
  }

  StagePass() = default;
  StagePass(StagePass&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  StagePass& operator=(StagePass&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~StagePass() {
    if (!handle_) return;
    // What is awaited may use what the code has on its stack.
    handle_.promise().awaited = nullptr;
    handle_.promise().inner = nullptr;
    handle_.destroy();
  }

  bool over() const { return !handle_ || handle_.done(); }
  // Whether go_on() has something to do at once.
  bool can_go_on() {
    promise_type& promise = handle_.promise();
    if (promise.inner != nullptr && !promise.inner->over()) return promise.inner->can_go_on();
    if (promise.awaited && !promise.awaited()) return false;
    promise.awaited = nullptr;
    return true;
  }
  // To the next wait, or to the end. Throws what the code throws.
  void go_on() {
    promise_type& promise = handle_.promise();
    if (promise.inner != nullptr) {
      if (!promise.inner->over()) promise.inner->go_on();
      if (!promise.inner->over()) return;
      promise.inner.reset();
    }
    handle_.resume();
    if (const std::exception_ptr failed = std::exchange(promise.failed, nullptr)) std::rethrow_exception(failed);
  }

 private:
  explicit StagePass(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  std::coroutine_handle<promise_type> handle_;
};

}  // namespace fathom
