#include "serve/engine.h"

#include <utility>

#include "serve/crew.h"

namespace fathom::serve {
namespace {

constexpr Batching::Id kElsewhere = -1;

}  // namespace

EngineState engine_state(const Batching& batching, const PageStore* store) {
  const PagePool& pages = batching.pages();
  return {batching.n_running(),   batching.n_waiting(),
          pages.n_pages(),        pages.n_held(),
          pages.n_shared(),       pages.n_evicted(),
          batching.n_preempted(), store != nullptr ? store->state() : PageStoreState()};
}

Generation not_begun(const Error& why) {
  Generation failed;
  failed.refused = dynamic_cast<const GrammarError*>(&why) != nullptr;
  return failed;
}

struct Engine::Undelivered {
  std::mutex mutex;
  std::condition_variable changed;
  int n = 0;
  bool stops = false;
};

Engine::Engine(Context& ctx, const Model& model, const Tokenizer* tokenizer, const BatchingOptions& options,
               int64_t max_waiting, std::function<void(Events)> deliver, Crew* crew)
    : max_waiting_(max_waiting),
      deliver_(std::move(deliver)),
      store_(options.store),
      crew_(crew),
      batching_(ctx, model, tokenizer, options),
      context_(batching_.context()),
      undelivered_(std::make_shared<Undelivered>()) {
  state_.pages = batching_.pages().n_pages();
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    stops_ = true;
  }
  wake_.notify_one();
  {
    const std::lock_guard lock(undelivered_->mutex);
    undelivered_->stops = true;
  }
  undelivered_->changed.notify_one();
  thread_.join();
}

std::vector<Engine::Ticket> Engine::submit(std::vector<BatchRequest> requests) {
  std::vector<Ticket> tickets;
  {
    const std::lock_guard lock(mutex_);
    const int64_t waiting = state_.waiting + std::ssize(submitted_);
    // A request of more sequences than may wait must be possible too.
    if (waiting > 0 && waiting + std::ssize(requests) > max_waiting_) return tickets;
    for (BatchRequest& request : requests) {
      tickets.push_back(++n_submitted_);
      submitted_.emplace_back(n_submitted_, std::move(request));
    }
  }
  wake_.notify_one();
  return tickets;
}

void Engine::cancel(Ticket ticket) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(ticket);
  }
  wake_.notify_one();
}

EngineState Engine::state() const {
  const std::lock_guard lock(mutex_);
  EngineState state = state_;
  state.waiting += std::ssize(submitted_);
  if (store_ != nullptr) state.store += store_->state();  // as it is now: a thread of its own writes
  return state;
}

PassCounts Engine::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

// What other threads have asked for since.
void Engine::take_orders() {
  std::vector<std::pair<Ticket, BatchRequest>> submitted;
  std::vector<Ticket> cancelled;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    state_.waiting += std::ssize(submitted);
    cancelled.swap(cancelled_);
  }
  for (auto& [ticket, request] : submitted) {
    BatchRequest wrapped = std::move(request);
    const auto on_tokens = std::move(wrapped.on_tokens);
    const auto on_end = std::move(wrapped.on_end);
    wrapped.on_tokens = [this, on_tokens](std::string_view text, std::span<const int32_t> ids,
                                          std::span<const TokenLogprobs> logprobs, const Timings& timings) {
      if (!on_tokens) return;
      events_.push_back([on_tokens, text = std::string(text), ids = std::vector<int32_t>(ids.begin(), ids.end()),
                         logprobs = std::vector<TokenLogprobs>(logprobs.begin(), logprobs.end()),
                         timings] { on_tokens(text, ids, logprobs, timings); });
    };
    if (const auto on_prompt = std::exchange(wrapped.on_prompt, nullptr)) {
      wrapped.on_prompt = [this, on_prompt](std::span<const TokenLogprobs> logprobs) {
        events_.push_back([on_prompt, logprobs = std::vector<TokenLogprobs>(logprobs.begin(), logprobs.end())] {
          on_prompt(logprobs);
        });
      };
    }
    if (const auto on_progress = std::exchange(wrapped.on_progress, nullptr)) {
      wrapped.on_progress = [this, on_progress](const PromptProgress& progress) {
        events_.push_back([on_progress, progress] { on_progress(progress); });
      };
    }
    wrapped.on_end = [this, on_end, ticket = ticket](const Generation& result, const std::string& error) {
      ended_.push_back(ticket);
      if (on_end) events_.push_back([on_end, result, error] { on_end(result, error); });
    };
    const int rank = crew_ != nullptr ? crew_->place(wrapped) : 0;
    if (rank != 0) {
      running_[ticket] = kElsewhere;
      crew_->give(rank, ticket, std::move(wrapped));
      continue;
    }
    try {
      running_[ticket] = batching_.add(std::move(wrapped));
    } catch (const Error& error) {
      if (crew_ != nullptr) crew_->ended(0);
      if (!on_end) continue;
      events_.push_back(
          [on_end, failed = not_begun(error), message = std::string(error.what())] { on_end(failed, message); });
    }
  }
  for (const Ticket ticket : cancelled) {
    const auto found = running_.find(ticket);
    if (found == running_.end()) continue;
    if (found->second == kElsewhere) {
      crew_->cancel(ticket);
    } else {
      batching_.cancel(found->second);
      if (crew_ != nullptr) crew_->ended(0);
    }
    running_.erase(found);
  }
}

void Engine::step() {
  try {
    if (crew_ != nullptr) crew_->begin_round(batching_.counts());
    batching_.step();
    if (crew_ != nullptr) crew_->end_round();
  } catch (const std::exception& error) {
    if (crew_ != nullptr) crew_->fail(error.what());  // the others wait for this process
    batching_.fail_all(error.what());
  }
  for (const Ticket ticket : std::exchange(ended_, {})) {
    const auto found = running_.find(ticket);
    if (found == running_.end()) continue;
    if (crew_ != nullptr && found->second != kElsewhere) crew_->ended(0);
    running_.erase(found);
  }
}

void Engine::deliver() {
  if (events_.empty()) return;
  {
    const std::lock_guard lock(undelivered_->mutex);
    ++undelivered_->n;
  }
  // Goes with the events, whoever drops them and when: the engine may be gone by then.
  std::shared_ptr<void> gone(nullptr, [undelivered = undelivered_](void*) {
    {
      const std::lock_guard lock(undelivered->mutex);
      --undelivered->n;
    }
    undelivered->changed.notify_one();
  });
  events_.push_back([gone = std::move(gone)] {});
  deliver_(std::exchange(events_, {}));
}

void Engine::run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stops_ || !submitted_.empty() || !cancelled_.empty() || !running_.empty(); });
      if (stops_) return;
    }
    take_orders();
    step();
    {
      EngineState state = engine_state(batching_, nullptr);
      PassCounts counts = batching_.counts();
      if (crew_ != nullptr) {
        crew_->add_state(state);
        crew_->add_counts(counts);
      }
      const std::lock_guard lock(mutex_);
      state_ = state;
      counts_ = std::move(counts);
    }
    deliver();
    std::unique_lock lock(undelivered_->mutex);
    undelivered_->changed.wait(lock, [&] { return undelivered_->n < 2 || undelivered_->stops; });
  }
}

}  // namespace fathom::serve
