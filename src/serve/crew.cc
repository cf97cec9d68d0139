#include "serve/crew.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/terminal.h"

namespace fathom::serve {
namespace {

constexpr int kOrderTag = 1 << 9, kReportTag = kOrderTag + 1;
constexpr double kCountsS = 0.25;  // between two reports of counts, which may be large

// A text of any length, on its way.
class TextSent {
 public:
  TextSent(Communicator& comm, int to, int tag, std::string text)
      : text_(std::make_unique<std::string>(std::move(text))),
        length_(std::make_unique<int64_t>(std::ssize(*text_))),
        exchange_(comm) {
    exchange_.send(to, tag, std::as_bytes(std::span(length_.get(), 1)));
    if (!text_->empty()) exchange_.send(to, tag, std::as_bytes(std::span(*text_)));
  }
  void wait() { exchange_.wait(); }

 private:
  std::unique_ptr<std::string> text_;  // which must not move
  std::unique_ptr<int64_t> length_;
  Exchange exchange_;
};

std::string receive_text(Communicator& comm, int from, int tag) {
  int64_t length = 0;
  comm.wait(comm.receive(from, tag, std::as_writable_bytes(std::span(&length, 1))));
  std::string text(static_cast<size_t>(length), '\0');
  if (length > 0) comm.wait(comm.receive(from, tag, std::as_writable_bytes(std::span(text))));
  return text;
}

void add(PassSizes& sum, const PassSizes& sizes) {
  for (size_t i = 0; i < sizes.counts.size(); ++i) sum.counts[i] += sizes.counts[i];
  sum.sum += sizes.sum;
}
void add(std::vector<int64_t>& sum, const std::vector<int64_t>& values) {
  sum.resize(std::max(sum.size(), values.size()));
  for (size_t i = 0; i < values.size(); ++i) sum[i] += values[i];
}
void add(ExpertLoad& sum, const ExpertLoad& load) {
  sum.resize(std::max(sum.size(), load.size()));
  for (size_t l = 0; l < load.size(); ++l) add(sum[l], load[l]);
}

uint64_t key_of(const PageStore::Name& name) {
  uint64_t key = 0;
  std::memcpy(&key, name.data(), sizeof key);
  return key;
}

}  // namespace

PassesTogether passes_together(SpreadExperts& experts) {
  return {.join_pass = [&experts](Context& ctx) { experts.join_pass(ctx); },
          .join_module = [&experts](Context& ctx) { experts.join_module(ctx); },
          .any = [&experts](bool mine) { return experts.any(mine); }};
}

Crew::Crew(Communicator& comm) : comm_(comm) {
  const auto size = static_cast<size_t>(comm.size());
  n_given_.resize(size);
  orders_.resize(size);
  last_.resize(size);
}

Crew::~Crew() {
  for (RankOrder& order : orders_) order = {.kind = RankOrder::Kind::stop};
  try {
    send_orders();
  } catch (const std::exception&) {  // the job ends already
  }
}

void Crew::send_orders() {
  std::vector<TextSent> sent;
  for (int rank = 1; rank < comm_.size(); ++rank) {
    RankOrder& order = orders_[static_cast<size_t>(rank)];
    sent.emplace_back(comm_, rank, kOrderTag, packed(std::exchange(order, {}), tries_));
  }
  for (TextSent& each : sent) each.wait();
}

void Crew::begin_loading() {
  for (RankOrder& order : orders_) order.kind = RankOrder::Kind::load;
  send_orders();
}

void Crew::await_loaded() {
  for (int rank = 1; rank < comm_.size(); ++rank) {
    const std::string names = receive_text(comm_, rank, kReportTag);
    for (size_t at = 0; at < names.size(); at += sizeof(PageStore::Name)) {
      PageStore::Name name;
      std::memcpy(name.data(), names.data() + at, name.size());
      readers_[key_of(name)] = rank;
    }
  }
  if (store_ == nullptr) return;
  for (const PageStore::Name& name : store_->names()) readers_[key_of(name)] = 0;
}

void Crew::set_up(SpreadExperts& experts, TokenTries tries, double rebalance_s, const BatchingOptions& batching) {
  experts_ = &experts;
  store_ = batching.store;
  drafts_ = batching.draft_tokens > 0;
  tries_ = std::move(tries);
  rebalance_s_ = rebalance_s;
  rebalanced_s_ = monotonic_s();
}

// Of its first pages, each with those before it.
std::vector<uint64_t> Crew::page_keys(const BatchRequest& request) const {
  std::vector<uint64_t> keys;
  if (store_ != nullptr) {
    for (const PageStore::Name& name : page_names(*store_, request, drafts_)) keys.push_back(key_of(name));
    return keys;
  }
  uint64_t key = std::hash<std::string>()(request.cache_salt);
  const std::span<const int32_t> ids(request.prompt);
  constexpr auto kPage = static_cast<size_t>(kCachePageRows);
  for (size_t begin = 0; begin + kPage < ids.size(); begin += kPage) {
    const auto page = std::as_bytes(ids.subspan(begin, kPage));
    key ^= std::hash<std::string_view>()({reinterpret_cast<const char*>(page.data()), page.size()});
    key *= 0x9E3779B97F4A7C15u;
    key ^= key >> 32;
    keys.push_back(key);
  }
  return keys;
}

int Crew::place(const BatchRequest& request) {
  const auto least = std::min_element(n_given_.begin(), n_given_.end()) - n_given_.begin();
  auto rank = static_cast<size_t>(least);
  const std::vector<uint64_t> keys = page_keys(request);
  constexpr int64_t kMoreToDo = 4;  // requests, for the sake of a prompt's beginning
  for (const uint64_t key : keys) {
    const auto found = readers_.find(key);
    if (found == readers_.end()) break;
    const auto reader = static_cast<size_t>(found->second);
    if (n_given_[reader] < n_given_[static_cast<size_t>(least)] + kMoreToDo) rank = reader;
  }
  constexpr size_t kMostRemembered = size_t{1} << 20;
  if (readers_.size() > kMostRemembered) readers_.clear();
  for (const uint64_t key : keys) readers_[key] = static_cast<int>(rank);
  ++n_given_[rank];
  return static_cast<int>(rank);
}

void Crew::give(int rank, Engine::Ticket ticket, BatchRequest request) {
  given_[ticket] = {rank, request};
  orders_[static_cast<size_t>(rank)].requests.emplace_back(ticket, std::move(request));
}

void Crew::cancel(Engine::Ticket ticket) {
  const auto found = given_.find(ticket);
  if (found == given_.end()) return;
  orders_[static_cast<size_t>(found->second.rank)].cancelled.push_back(ticket);
  ended(found->second.rank);
  given_.erase(found);
}

// Experts move to where those that are asked for most have more copies, by what was asked for since they last did.
void Crew::rebalance(const PassCounts& counts) {
  if (rebalance_s_ == 0 || monotonic_s() - rebalanced_s_ < rebalance_s_) return;
  rebalanced_s_ = monotonic_s();
  PassCounts all = counts;
  add_counts(all);
  ExpertLoad load = all.expert_tokens;
  std::erase_if(load, [](const auto& row) { return row.empty(); });
  ExpertLoad since = load;
  int64_t n = 0;
  for (size_t l = 0; l < balanced_load_.size(); ++l) {
    for (size_t e = 0; e < since[l].size(); ++e) since[l][e] -= balanced_load_[l][e];
  }
  for (const auto& row : since) n = std::max(n, *std::max_element(row.begin(), row.end()));
  constexpr int64_t kTooFew = 64;  // tokens of the most asked for, which say nothing
  if (n < kTooFew) return;
  balanced_load_ = std::move(load);
  const std::vector<ExpertPlacement> placements = experts_->placements_for(since);
  log("experts are dealt out anew: the busiest process has {:.2f} times the mean to do instead of {:.2f} times",
      experts_->worst_load(since, placements), experts_->worst_load(since, experts_->placements()));
  for (RankOrder& order : orders_) order.placements = placements;
  experts_->place(placements);
}

void Crew::begin_round(const PassCounts& counts) {
  comm_.tell(fmt::format("round {}", ++n_rounds_));
  rebalance(counts);
  send_orders();
}

void Crew::end_round() {
  for (int rank = 1; rank < comm_.size(); ++rank) take(rank, unpacked_report(receive_text(comm_, rank, kReportTag)));
}

void Crew::take(int rank, RankReport report) {
  for (RankEvent& event : std::exchange(report.events, {})) {
    const auto found = given_.find(event.ticket);
    if (found == given_.end()) continue;  // cancelled
    const BatchRequest& request = found->second.request;
    switch (event.kind) {
      case RankEvent::Kind::tokens:
        request.on_tokens(event.text, event.ids, event.logprobs, event.timings);
        break;
      case RankEvent::Kind::prompt:
        request.on_prompt(event.logprobs);
        break;
      case RankEvent::Kind::progress:
        request.on_progress(event.progress);
        break;
      case RankEvent::Kind::end:
        request.on_end(event.result, event.text);
        ended(rank);
        given_.erase(found);
    }
  }
  RankReport& last = last_[static_cast<size_t>(rank)];
  if (!report.counts) report.counts = std::move(last.counts);
  last = std::move(report);
}

void Crew::add_state(EngineState& sum) const {
  for (const RankReport& report : last_) {
    const EngineState& s = report.state;
    for (auto field : {&EngineState::running, &EngineState::waiting, &EngineState::pages, &EngineState::pages_held,
                       &EngineState::pages_shared, &EngineState::pages_evicted, &EngineState::preemptions}) {
      sum.*field += s.*field;
    }
    sum.store += s.store;
  }
}

void Crew::add_counts(PassCounts& sum) const {
  for (const RankReport& report : last_) {
    if (!report.counts) continue;
    const PassCounts& c = *report.counts;
    add(sum.tokens, c.tokens);
    add(sum.sequences, c.sequences);
    for (auto field : {&PassCounts::passes, &PassCounts::asked_tokens, &PassCounts::prompt_tokens,
                       &PassCounts::cached_tokens, &PassCounts::loaded_tokens, &PassCounts::generated_tokens,
                       &PassCounts::drafts, &PassCounts::drafted, &PassCounts::accepted, &PassCounts::corrupted}) {
      sum.*field += c.*field;
    }
    add(sum.accepted_at, c.accepted_at);
    add(sum.expert_tokens, c.expert_tokens);
  }
}

bool await_loading(Communicator& comm) {
  return unpacked_order(receive_text(comm, 0, kOrderTag), {}).kind == RankOrder::Kind::load;
}

namespace {

// The callbacks of a request, which become events of the round's report.
void tell(BatchRequest& request, Engine::Ticket ticket, std::vector<RankEvent>& events,
          std::unordered_map<Engine::Ticket, Batching::Id>& running) {
  using Kind = RankEvent::Kind;
  request.on_tokens = [&events, ticket](std::string_view text, std::span<const int32_t> ids,
                                        std::span<const TokenLogprobs> logprobs, const Timings& timings) {
    events.push_back({.ticket = ticket,
                      .kind = Kind::tokens,
                      .text = std::string(text),
                      .ids = {ids.begin(), ids.end()},
                      .logprobs = {logprobs.begin(), logprobs.end()},
                      .timings = timings});
  };
  if (request.on_prompt) {
    request.on_prompt = [&events, ticket](std::span<const TokenLogprobs> logprobs) {
      events.push_back({.ticket = ticket, .kind = Kind::prompt, .logprobs = {logprobs.begin(), logprobs.end()}});
    };
  }
  if (request.on_progress) {
    request.on_progress = [&events, ticket](const PromptProgress& progress) {
      events.push_back({.ticket = ticket, .kind = Kind::progress, .progress = progress});
    };
  }
  request.on_end = [&events, &running, ticket](const Generation& result, const std::string& error) {
    events.push_back({.ticket = ticket, .kind = Kind::end, .text = error, .result = result});
    running.erase(ticket);
  };
}

}  // namespace

void work_in_crew(Communicator& comm, const CrewMember& member) {
  Batching batching(member.ctx, member.model, member.tokenizer, member.batching);
  std::unordered_map<Engine::Ticket, Batching::Id> running;
  std::string names;  // of the pages that are here in files
  if (member.batching.store != nullptr) {
    for (const PageStore::Name& name : member.batching.store->names()) names.append(name.begin(), name.end());
  }
  TextSent(comm, 0, kReportTag, std::move(names)).wait();  // loaded
  double counted_s = 0;
  std::vector<RankEvent> events;
  for (int64_t round = 0;;) {
    comm.tell(fmt::format("waiting behind round {}", round));
    RankOrder order = unpacked_order(receive_text(comm, 0, kOrderTag), member.tries);
    if (order.kind == RankOrder::Kind::stop) return;
    comm.tell(fmt::format("round {}", ++round));
    if (!order.placements.empty()) member.experts.place(order.placements);
    for (auto& [ticket, request] : order.requests) {
      tell(request, ticket, events, running);
      const auto on_end = request.on_end;
      try {
        const Batching::Id id = batching.add(std::move(request));
        running[ticket] = id;
      } catch (const Error& error) {
        on_end(not_begun(error), error.what());
      }
    }
    for (const Engine::Ticket ticket : order.cancelled) {
      const auto found = running.find(ticket);
      if (found == running.end()) continue;
      batching.cancel(found->second);
      running.erase(found);
    }
    const bool more = batching.step();
    RankReport report{.events = std::exchange(events, {}), .state = engine_state(batching, member.batching.store)};
    if (!more || monotonic_s() - counted_s > kCountsS) {
      counted_s = monotonic_s();
      report.counts = batching.counts();
    }
    TextSent(comm, 0, kReportTag, packed(std::move(report))).wait();
  }
}

}  // namespace fathom::serve
