// The thread on which everything is generated: takes requests from any other, runs passes as long as there is work,
// and hands over what they give.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "infer/batching.h"

namespace fathom::serve {

struct EngineState {
  int64_t running = 0, waiting = 0;  // sequences
  int64_t pages = 0, pages_held = 0, pages_shared = 0, pages_evicted = 0, preemptions = 0;
  PageStoreState store{};  // nothing without one
};

EngineState engine_state(const Batching& batching, const PageStore* store);
// Of a request that Batching::add() refuses.
Generation not_begun(const Error& why);

class Crew;

class Engine {
 public:
  using Ticket = int64_t;
  // One pass, as the thread is behind it: how it went, and the callbacks of its requests, to be called in this order.
  using Events = std::vector<std::function<void()>>;

  // `deliver` is called on the engine's thread, behind each pass that gave something. While events of two passes are
  // still there, called or not, the engine waits: what writes answers is not to fall behind. crew: other processes that
  // generate too, of which this is the first; the engine alone uses it.
  Engine(Context& ctx, const Model& model, const Tokenizer* tokenizer, const BatchingOptions& options,
         int64_t max_waiting, std::function<void(Events events)> deliver, Crew* crew = nullptr);
  ~Engine();  // stops; what runs is dropped without a word

  // Takes them all, or none where max_waiting already wait: then nothing is returned. Their callbacks become events.
  // The prompts must be such as check_prompt() accepts. From any thread.
  std::vector<Ticket> submit(std::vector<BatchRequest> requests);
  void cancel(Ticket ticket);  // its callbacks may still come, from before
  EngineState state() const;
  PassCounts counts() const;
  int64_t context() const { return context_; }

 private:
  struct Undelivered;
  void run();
  void take_orders();
  void step();
  void deliver();

  const int64_t max_waiting_;
  const std::function<void(Events)> deliver_;
  const PageStore* const store_;
  Crew* const crew_;
  Batching batching_;
  const int64_t context_;
  Events events_;                                     // of the pass that runs
  std::shared_ptr<Undelivered> undelivered_;          // with those that are out
  std::unordered_map<Ticket, Batching::Id> running_;  // on the thread alone; kElsewhere: in the crew
  std::vector<Ticket> ended_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::pair<Ticket, BatchRequest>> submitted_;
  std::vector<Ticket> cancelled_;
  Ticket n_submitted_ = 0;
  bool stops_ = false;
  EngineState state_;
  PassCounts counts_;
  std::thread thread_;
};

}  // namespace fathom::serve
