// Several processes that generate together, of which the first is asked (mpirun fathom serve): the experts are spread
// over all of them (parallel/spread_experts.h), and each has requests of its own, with their attention and caches.
// Rounds: the first hands out requests, all run a pass, and tell the first what came of it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "parallel/collectives.h"
#include "parallel/spread_experts.h"
#include "serve/rank_messages.h"

namespace fathom::serve {

// What passes of a Batching need of the others. It must stay where it is, and so must they.
PassesTogether passes_together(SpreadExperts& experts);

// The first process' side. Used by one thread at a time.
class Crew {
 public:
  explicit Crew(Communicator& comm);
  ~Crew();  // they end
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  void begin_loading();  // the model, on the others too
  void await_loaded();
  // What rounds need of this process; rebalance_s: experts are dealt out anew every so often, 0: never. batching: whose
  // store, where it has one, is like the others', and says who has which pages in files.
  void set_up(SpreadExperts& experts, TokenTries tries, double rebalance_s, const BatchingOptions& batching);

  // Which rank takes it: that which has read the most of the prompt's beginning, unless others have less to do. 0:
  // this.
  int place(const BatchRequest& request);
  void give(int rank, Engine::Ticket ticket, BatchRequest request);
  void cancel(Engine::Ticket ticket);
  void ended(int rank) { --n_given_[static_cast<size_t>(rank)]; }  // of place()'s, whichever way

  // Around the first's own pass. `counts`: its own so far, by which experts move. end_round() calls the callbacks of
  // what was given.
  void begin_round(const PassCounts& counts);
  void end_round();

  // Of the others, as of the last round.
  void add_state(EngineState& state) const;
  void add_counts(PassCounts& counts) const;
  void fail(const std::string& why) { comm_.fail(why); }

 private:
  struct Given {
    int rank;
    BatchRequest request;  // for its callbacks
  };
  void send_orders();
  void take(int rank, RankReport report);
  void rebalance(const PassCounts& counts);
  std::vector<uint64_t> page_keys(const BatchRequest& request) const;

  Communicator& comm_;
  SpreadExperts* experts_ = nullptr;
  TokenTries tries_;
  double rebalance_s_ = 0, rebalanced_s_ = 0;
  int64_t n_rounds_ = 0;
  ExpertLoad balanced_load_;      // all that had been asked for then
  std::vector<int64_t> n_given_;  // [rank]: requests that have not ended
  const PageStore* store_ = nullptr;
  bool drafts_ = false;
  std::unordered_map<uint64_t, int> readers_;  // of a prompt's first pages
  std::vector<RankOrder> orders_;              // [rank]: of the next round
  std::unordered_map<Engine::Ticket, Given> given_;
  std::vector<RankReport> last_;  // [rank], without events
};

// The others' side: what a process generates with, until the first one leaves.
struct CrewMember {
  Context& ctx;
  const Model& model;
  const Tokenizer* tokenizer;
  BatchingOptions batching;
  SpreadExperts& experts;
  TokenTries tries;
};
// Whether to load; false: the first process has ended before.
bool await_loading(Communicator& comm);
void work_in_crew(Communicator& comm, const CrewMember& member);

}  // namespace fathom::serve
