// What goes between the process that is asked and those that generate with it: requests there, what comes of them back.
// Messages of one job, between copies of one program: not checked as files are.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "infer/batching.h"
#include "parallel/eplb.h"
#include "serve/engine.h"

namespace fathom::serve {

// By which constraints make their masks: the same on all ranks, in the same order.
using TokenTries = std::vector<std::shared_ptr<const TokenTrie>>;

struct RankOrder {
  enum class Kind : uint8_t { load, round, stop };
  Kind kind = Kind::round;
  std::vector<std::pair<Engine::Ticket, BatchRequest>> requests{};  // of the callbacks it is told which there are
  std::vector<Engine::Ticket> cancelled{};
  std::vector<ExpertPlacement> placements{};  // that hold from this round on; empty: as before
};

// What a callback of a request is told.
struct RankEvent {
  enum class Kind : uint8_t { tokens, prompt, progress, end };
  Engine::Ticket ticket;
  Kind kind;
  std::string text{};  // of tokens; of an end: the error
  std::vector<int32_t> ids{};
  std::vector<TokenLogprobs> logprobs{};  // of tokens, or of the prompt
  Timings timings{};
  PromptProgress progress{};
  Generation result{};
};

struct RankReport {
  std::vector<RankEvent> events{};
  EngineState state{};
  std::optional<PassCounts> counts{};
};

std::string packed(RankOrder order, const TokenTries& tries);
std::string packed(RankReport report);
// The callbacks of an order's requests do nothing: they say whether they are wanted.
RankOrder unpacked_order(std::string_view bytes, const TokenTries& tries);
RankReport unpacked_report(std::string_view bytes);

}  // namespace fathom::serve
