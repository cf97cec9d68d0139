// One sequence, generated token by token: the prompt in one pass, then a token a pass over the latent cache, or with
// drafts (infer/draft.h) as many tokens a pass as were proposed rightly, and one.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "infer/constraint.h"
#include "infer/passes.h"
#include "infer/sampler.h"
#include "infer/thinking_budget.h"
#include "model/forward.h"
#include "text/tokenizer.h"

namespace fathom {

// A conversation's tokens as far as the model has read them. Lives across calls: what a new prompt shares with it from
// the start is not computed again.
struct Sequence {
  std::vector<int32_t> ids;  // [cache.length]
  LatentCache cache;
  LatentCache mtp_cache{};  // of the drafting module, made by the first call that drafts; never longer than the other
  Passes passes{};
};

struct GenerationOptions {
  SamplerOptions sampler;
  int64_t max_tokens = 256;
  std::vector<std::string> stop;    // texts that end the output and do not stand in it
  std::vector<int64_t> eos_ids;     // empty: nothing but the limits and `stop` ends the output
  std::vector<int64_t> stop_ids{};  // end it too, where a constraint lets them come as any token
  int64_t min_tokens = 0;           // nothing but a constraint's end ends the output before so many
  uint64_t seed = 0;
  int64_t draft_tokens = 0;  // tokens that the MTP module proposes for each pass at most; without a module: none
  std::shared_ptr<const Constraint> constraint{};   // that the output must follow; its end ends the output
  std::optional<ThinkingBudget> thinking_budget{};  // takes precedence over a constraint: none may hold within thoughts
  int64_t top_logprobs = -1;     // >= 0: tell each token's log probability, and those of so many likeliest
  bool record_sampling = false;  // tell what each token was drawn from
};

// What the tokens of an output were drawn from, for who trains on them (ops/cross_entropy.h, SamplingMask).
struct SamplingRecord {
  std::vector<float> logprobs;   // [ids], of the token by the distribution that was drawn from
  std::vector<float> entropies;  // [ids], of that
  // Row i kept kept[begins[i]] up to kept[begins[i + 1]]; both are empty without top_k, top_p and min_p.
  std::vector<int64_t> begins;
  std::vector<int32_t> kept;
};

// Log probabilities by the model itself, before penalties and temperature.
struct TokenLogprobs {
  float logprob;                               // of the token that was taken
  std::vector<std::pair<int32_t, float>> top;  // the likeliest first; of equal ones the lower id
  int64_t rank = 1;                            // of the token among all in this order, from 1
  bool operator==(const TokenLogprobs&) const = default;
};

enum class FinishReason { eos, stop, length, context, interrupted };
const char* finish_reason_name(FinishReason reason);  // "eos", "stop", "length", "context", "interrupted"

struct Generation {
  std::vector<int32_t> ids;                      // as generated, an end token included
  std::vector<TokenLogprobs> logprobs;           // of the ids, where asked for
  SamplingRecord sampling{};                     // likewise
  std::vector<TokenLogprobs> prompt_logprobs{};  // of the prompt's, from the second on, where asked for (Batching)
  std::string text;                              // what the ids say, without special tokens, cut before a stop text
  FinishReason finish = FinishReason::length;
  std::string stopped_by{};  // the stop text, where one ended the output
  bool refused = false;      // it failed for what the request asked for: a grammar that cannot be followed
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, found in the sequence
  int64_t main_passes = 0;    // of the main model, the prompt's included
  int64_t drafted = 0;        // tokens proposed to these passes
  int64_t accepted = 0;       // of those, tokens in `ids`
  ExpertLoad expert_load{};  // of each MoE layer, tokens of the output that each expert got, where asked for (Batching)
  ExpertBytes experts;       // chosen behind the first token; counted where the model does not fit in memory
  double queue_s = 0;        // before anything was read of the prompt (Batching)
  double prefill_s = 0;      // until the first token is known, queue_s included
  double decode_s = 0;       // from there to the last
  int64_t plain_passes = 0;  // behind the prompt, that judged no draft
  double plain_s = 0;        // in these

  double tokens_per_s() const { return decode_s > 0 ? static_cast<double>(ids.size() - 1) / decode_s : 0; }
  // Of the drafts; nothing where there were none.
  std::optional<double> acceptance() const;
  // tokens_per_s() beside that of the plain passes, of which some are put in between: rough for a short output.
  // Nothing where there were no drafts or no plain pass.
  std::optional<double> speedup() const;
};

// What the caller hears and says while a generation runs; both may be empty.
struct GenerationCallbacks {
  std::function<void(std::string_view)> on_text;  // whole characters, never a part of a stop text
  std::function<bool()> interrupted;              // asked between passes
};

// Continues `prompt`. tokenizer may be null: then there is no text and no stop text. Throws Error for a prompt that is
// empty, longer than the model's or the sequence's context, or holds ids outside the vocabulary.
Generation generate(Context& ctx, const Model& model, const Tokenizer* tokenizer, Sequence& sequence,
                    std::span<const int32_t> prompt, const GenerationOptions& options,
                    const GenerationCallbacks& callbacks = {});

// Throws Error for a prompt that is empty, longer than the model's context or this one, or holds ids outside the
// vocabulary.
void check_prompt(const Model& model, int64_t context, std::span<const int32_t> prompt);

// Finds stop texts in text that arrives in pieces.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);  // UsageError for an empty one
  // What can be shown now: all but an end that may be the beginning of a stop text. Nothing after stopped().
  std::string push(std::string_view text);
  std::string finish();  // what was held back, when no more text comes
  bool stopped() const { return !stopped_by_.empty(); }
  const std::string& stopped_by() const { return stopped_by_; }

 private:
  std::vector<std::string> stops_;
  std::string held_, stopped_by_;
};

}  // namespace fathom
