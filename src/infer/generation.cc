#include "infer/generation.h"

#include <algorithm>

#include "base/terminal.h"
#include "infer/draft.h"
#include "infer/output.h"
#include "text/begun.h"

namespace fathom {
namespace {

// A longer prompt is read in pieces, so that it can be interrupted and its activations stay small.
// With drafts, one pass of these many judges none: beside it the others' gain is told. It costs a hundredth at most.
constexpr int64_t kPlainPassEvery = 32, kFirstPlainPass = 8;

// Runs the model over `ids` and the drafts behind them, and extends the sequence by both.
PassResult read_tokens(Context& ctx, const Model& model, Sequence& sequence, std::span<const int32_t> ids,
                       std::span<const Draft> drafts, const PassOptions& options) {
  std::vector<int32_t> tokens(ids.begin(), ids.end());
  for (const Draft& draft : drafts) tokens.push_back(draft.id);
  LatentCache* const cache = &sequence.cache;
  const PassResult result = sequence.passes.run(ctx, model, {&tokens, 1}, {&cache, 1}, options);
  sequence.ids.insert(sequence.ids.end(), tokens.begin(), tokens.end());
  return result;
}

void cut(Sequence& sequence, int64_t length) {
  sequence.ids.resize(static_cast<size_t>(length));
  sequence.cache.length = length;
}

// Cuts the sequence back to what it shares with the prompt, one token short of all: the last one's logits are needed.
// To draft, the module must read all tokens, with hidden states that are there only while the model reads them too:
// what it has not read is read again by both.
int64_t keep_common_prefix(Sequence& sequence, std::span<const int32_t> prompt, bool drafting) {
  const auto limit = prompt.first(prompt.size() - 1);
  const auto [end, unused] = std::mismatch(sequence.ids.begin(), sequence.ids.end(), limit.begin(), limit.end());
  const int64_t shared = end - sequence.ids.begin();
  int64_t& read_by_mtp = sequence.mtp_cache.length;
  read_by_mtp = std::min(read_by_mtp, std::max<int64_t>(shared - 1, 0));  // its row i knows token i+1
  cut(sequence, drafting ? read_by_mtp : shared);
  return sequence.cache.length;
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::eos:
      return "eos";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::context:
      return "context";
    case FinishReason::interrupted:
      return "interrupted";
  }
  return "";
}

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const auto& stop : stops_) {
    if (stop.empty()) throw UsageError("a stop text must not be empty");
  }
}

std::string StopFilter::push(std::string_view text) {
  if (stopped()) return {};
  held_ += text;
  size_t cut = held_.size();
  for (const auto& stop : stops_) {
    if (const size_t found = held_.find(stop); found < cut) {
      cut = found;
      stopped_by_ = stop;
    }
  }
  if (!stopped()) {
    for (const auto& stop : stops_) cut = std::min(cut, held_.size() - begun(held_, stop));
  }
  std::string shown = held_.substr(0, cut);
  held_.erase(0, stopped() ? held_.size() : cut);
  return shown;
}

std::string StopFilter::finish() {
  std::string rest;
  rest.swap(held_);
  return rest;
}

std::optional<double> Generation::acceptance() const {
  if (drafted == 0) return std::nullopt;
  return static_cast<double>(accepted) / static_cast<double>(drafted);
}

std::optional<double> Generation::speedup() const {
  if (drafted == 0 || plain_passes == 0) return std::nullopt;
  return tokens_per_s() * plain_s / static_cast<double>(plain_passes);
}

void check_prompt(const Model& model, int64_t context, std::span<const int32_t> prompt) {
  const auto n = static_cast<int64_t>(prompt.size());
  if (n == 0) throw Error("the prompt is empty: there is no token to continue");
  if (n > model.config.max_position_embeddings) {
    throw Error("the prompt has {} tokens, but the model reads {} at most (max_position_embeddings)", n,
                model.config.max_position_embeddings);
  }
  if (n > context) throw Error("the prompt has {} tokens, but the context holds {}", n, context);
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= model.config.vocab_size) {
      throw Error("the prompt's token {} at position {} is outside the model's vocabulary of {}", prompt[i], i,
                  model.config.vocab_size);
    }
  }
}

Generation generate(Context& ctx, const Model& model, const Tokenizer* tokenizer, Sequence& sequence,
                    std::span<const int32_t> prompt, const GenerationOptions& options,
                    const GenerationCallbacks& callbacks) {
  check_prompt(model, sequence.cache.capacity, prompt);
  Output output(tokenizer, options, prompt);
  const int64_t context = std::min(sequence.cache.capacity, model.config.max_position_embeddings);
  Generation& result = output.result;
  const bool drafting = options.draft_tokens > 0 && !model.weights.mtp.empty();
  if (drafting && sequence.mtp_cache.capacity == 0) {
    sequence.mtp_cache =
        make_mtp_cache(model.config, sequence.cache.capacity, sequence.cache.layout.format, ctx.device);
  }
  result.cached_tokens = keep_common_prefix(sequence, prompt, drafting);

  const auto show = [&](const std::string& text) {
    if (callbacks.on_text && !text.empty()) callbacks.on_text(text);
  };
  const auto interrupted = [&] { return callbacks.interrupted && callbacks.interrupted(); };

  const double start_s = monotonic_s();
  double first_token_s = start_s;
  const auto experts_seen = [&] { return model.reading != nullptr ? model.reading->seen : ExpertBytes(); };
  ExpertBytes first_token_experts = experts_seen();
  const std::vector<int32_t>& previous = output.previous();

  // One form for the whole prompt, however many passes read it: its logits do not depend on the pieces.
  const bool expand = result.prompt_tokens - result.cached_tokens >= kExpandFrom;
  std::vector<Draft> drafts;  // for what follows `previous`
  int64_t passes_behind_prompt = 0;
  while (output.goes_on()) {
    if (interrupted()) {
      result.finish = FinishReason::interrupted;
      break;
    }
    const auto unread = std::span<const int32_t>(previous).subspan(sequence.ids.size());
    if (sequence.cache.length + static_cast<int64_t>(unread.size()) > context) {
      result.finish = FinishReason::context;
      break;
    }
    const ArenaScope scope(ctx.arena);
    const bool reads_prompt = result.ids.empty();
    const double pass_start_s = monotonic_s();
    const auto piece = unread.first(std::min(unread.size(), static_cast<size_t>(kPrefillTokens)));
    const bool whole = piece.size() == unread.size();
    const auto n_drafts = static_cast<int64_t>(drafts.size());
    const auto [hidden, logits] = read_tokens(
        ctx, model, sequence, piece, drafts,
        {.expand_from = expand && reads_prompt ? kExpandAll : kExpandNone, .n_logits = whole ? n_drafts + 1 : 0});
    ++result.main_passes;
    if (!whole) {
      if (drafting) read_mtp(ctx, model, sequence.mtp_cache, hidden, unread.subspan(1, piece.size()));
      continue;
    }
    const std::string text = output.take(logits, drafts);
    if (reads_prompt) {
      first_token_s = monotonic_s();
      first_token_experts = experts_seen();
    }
    show(text);
    drafts.clear();
    if (n_drafts == 0 && !reads_prompt) {
      ++result.plain_passes;
      result.plain_s += monotonic_s() - pass_start_s;
    }
    // The last token of the output has not been read, whether it was drafted or not.
    cut(sequence, static_cast<int64_t>(previous.size()) - 1);

    const int64_t room = std::min(options.max_tokens - output.n_generated(), context - sequence.cache.length) - 1;
    if (const int64_t n = std::min(options.draft_tokens, room); drafting && output.goes_on() && n > 0) {
      const Tensor kept = hidden.slice(0, sequence.cache.length - sequence.mtp_cache.length);
      const bool plain = passes_behind_prompt++ % kPlainPassEvery == kFirstPlainPass;
      drafts = draft_tokens(ctx, model, sequence.mtp_cache, kept, previous, output.n_generated(), plain ? 0 : n,
                            options.sampler, output.rng());
    }
  }
  show(output.finish());
  const double end_s = monotonic_s();
  result.experts = experts_seen() - first_token_experts;
  result.prefill_s = (result.ids.empty() ? end_s : first_token_s) - start_s;
  result.decode_s = result.ids.empty() ? 0 : end_s - first_token_s;
  return std::move(output.result);
}

}  // namespace fathom
