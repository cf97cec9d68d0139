#include "infer/generation.h"

#include <algorithm>

#include "base/terminal.h"

namespace fathom {
namespace {

constexpr uint64_t kSamplingStream = 0x5a3b1e;  // of Rng
// A longer prompt is read in pieces, so that it can be interrupted and its activations stay small.
constexpr size_t kPrefillTokens = 4096;

void check_prompt(const Model& model, const LatentCache& cache, std::span<const int32_t> prompt) {
  const auto n = static_cast<int64_t>(prompt.size());
  if (n == 0) throw Error("the prompt is empty: there is no token to continue");
  if (n > model.config.max_position_embeddings) {
    throw Error("the prompt has {} tokens, but the model reads {} at most (max_position_embeddings)", n,
                model.config.max_position_embeddings);
  }
  if (n > cache.capacity) throw Error("the prompt has {} tokens, but the context holds {}", n, cache.capacity);
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= model.config.vocab_size) {
      throw Error("the prompt's token {} at position {} is outside the model's vocabulary of {}", prompt[i], i,
                  model.config.vocab_size);
    }
  }
}

// Runs the model over `ids`, extends the sequence by them and returns the last position's logits [1, vocab].
Tensor read_tokens(Context& ctx, const Model& model, Sequence& sequence, std::span<const int32_t> ids) {
  const std::vector<int32_t> tokens(ids.begin(), ids.end());
  const int64_t first_position = sequence.cache.length;
  LatentCache* const cache = &sequence.cache;
  const Batch batch = make_batch(ctx, {&tokens, 1}, {&first_position, 1});
  const Tensor hidden = forward(ctx, model, batch, {.caches = {&cache, 1}});
  sequence.ids.insert(sequence.ids.end(), ids.begin(), ids.end());
  return head_logits(ctx, model, hidden.slice(hidden.rows() - 1, 1));
}

// Cuts the sequence back to what it shares with the prompt, one token short of all: the last one's logits are needed.
int64_t keep_common_prefix(Sequence& sequence, std::span<const int32_t> prompt) {
  const auto limit = prompt.first(prompt.size() - 1);
  const auto [end, unused] = std::mismatch(sequence.ids.begin(), sequence.ids.end(), limit.begin(), limit.end());
  sequence.ids.erase(end, sequence.ids.end());
  sequence.cache.length = static_cast<int64_t>(sequence.ids.size());
  return sequence.cache.length;
}

// From ids to the text that may be shown.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, const std::vector<std::string>& stops)
      : tokenizer_(tokenizer), decoder_(tokenizer), filter_(stops) {}
  // A model may have more rows than its tokenizer has ids: those say nothing.
  std::string push(int32_t id) {
    return id < tokenizer_.vocab_size() ? filter_.push(decoder_.push(id)) : std::string();
  }
  std::string finish() {
    std::string text = filter_.push(decoder_.finish());
    return text + filter_.finish();
  }
  bool stopped() const { return filter_.stopped(); }

 private:
  const Tokenizer& tokenizer_;
  StreamDecoder decoder_;
  StopFilter filter_;
};

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
  if (stopped_) return {};
  held_ += text;
  size_t cut = held_.size();
  for (const auto& stop : stops_) {
    if (const size_t found = held_.find(stop); found < cut) {
      cut = found;
      stopped_ = true;
    }
  }
  if (!stopped_) {
    for (const auto& stop : stops_) {
      // The longest end of the text that begins this stop text.
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > held_.size() - cut; --n) {
        if (held_.ends_with(std::string_view(stop).substr(0, n))) {
          cut = held_.size() - n;
          break;
        }
      }
    }
  }
  std::string shown = held_.substr(0, cut);
  held_.erase(0, stopped_ ? held_.size() : cut);
  return shown;
}

std::string StopFilter::finish() {
  std::string rest;
  rest.swap(held_);
  return rest;
}

Generation generate(Context& ctx, const Model& model, const Tokenizer* tokenizer, Sequence& sequence,
                    std::span<const int32_t> prompt, const GenerationOptions& options,
                    const GenerationCallbacks& callbacks) {
  check_prompt(model, sequence.cache, prompt);
  check_sampler(options.sampler);
  const int64_t context = std::min(sequence.cache.capacity, model.config.max_position_embeddings);
  Generation result;
  result.prompt_tokens = static_cast<int64_t>(prompt.size());
  result.cached_tokens = keep_common_prefix(sequence, prompt);

  std::optional<TextStream> stream;
  if (tokenizer != nullptr) stream.emplace(*tokenizer, options.stop);
  const auto show = [&](const std::string& text) {
    result.text += text;
    if (callbacks.on_text && !text.empty()) callbacks.on_text(text);
  };
  const auto interrupted = [&] { return callbacks.interrupted && callbacks.interrupted(); };

  const double start_s = monotonic_s();
  double first_token_s = start_s;
  Rng rng(options.seed, kSamplingStream);
  std::vector<int32_t> previous(prompt.begin(), prompt.end());
  std::span<const int32_t> unread = prompt.subspan(sequence.ids.size());
  while (static_cast<int64_t>(result.ids.size()) < options.max_tokens) {
    if (interrupted()) {
      result.finish = FinishReason::interrupted;
      break;
    }
    if (sequence.cache.length + static_cast<int64_t>(unread.size()) > context) {
      result.finish = FinishReason::context;
      break;
    }
    const ArenaScope scope(ctx.arena);
    const auto piece = unread.first(std::min(unread.size(), kPrefillTokens));
    const Tensor logits = read_tokens(ctx, model, sequence, piece);
    unread = unread.subspan(piece.size());
    if (!unread.empty()) continue;

    const int32_t id = sample({logits.f32(), static_cast<size_t>(logits.cols())}, previous,
                              static_cast<int64_t>(result.ids.size()), options.sampler, rng);
    if (result.ids.empty()) first_token_s = monotonic_s();
    result.ids.push_back(id);
    previous.push_back(id);
    if (std::find(options.eos_ids.begin(), options.eos_ids.end(), id) != options.eos_ids.end()) {
      result.finish = FinishReason::eos;
      break;
    }
    if (stream) {
      show(stream->push(id));
      if (stream->stopped()) {
        result.finish = FinishReason::stop;
        break;
      }
    }
    unread = {&previous.back(), 1};
  }
  if (stream) {
    show(stream->finish());
    if (stream->stopped()) result.finish = FinishReason::stop;
  }
  const double end_s = monotonic_s();
  result.prefill_s = (result.ids.empty() ? end_s : first_token_s) - start_s;
  result.decode_s = result.ids.empty() ? 0 : end_s - first_token_s;
  return result;
}

}  // namespace fathom
