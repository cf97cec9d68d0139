#include "infer/output.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "ops/log_softmax.h"

namespace fathom {
namespace {

constexpr uint64_t kSamplingStream = 0x5a3b1e;  // of Rng
constexpr float kNever = -std::numeric_limits<float>::infinity();

int64_t rank_of(std::span<const float> logits, int32_t id) {
  const auto at = static_cast<size_t>(id);
  const float own = logits[at];
  const auto lower = logits.first(at), higher = logits.subspan(at);
  return 1 + std::count_if(lower.begin(), lower.end(), [own](float x) { return x >= own; }) +
         std::count_if(higher.begin(), higher.end(), [own](float x) { return x > own; });
}

void keep_alone(std::span<float> logits, int32_t id) {
  if (id < 0 || id >= std::ssize(logits)) throw Error("token {} must come next, and the model has no such token", id);
  const float kept = logits[static_cast<size_t>(id)];
  std::fill(logits.begin(), logits.end(), kNever);
  logits[static_cast<size_t>(id)] = kept;
}

}  // namespace

TokenLogprobs token_logprobs(std::span<const float> logits, int32_t id, int64_t n_top) {
  const LogSoftmax all(logits);
  TokenLogprobs told{static_cast<float>(all[id]), {}, rank_of(logits, id)};
  if (n_top <= 0) return told;
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min(n_top, std::ssize(order));
  std::partial_sort(order.begin(), end, order.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  });
  for (auto of = order.begin(); of != end; ++of) told.top.emplace_back(*of, static_cast<float>(all[*of]));
  return told;
}

Output::Output(const Tokenizer* tokenizer, const GenerationOptions& options, std::span<const int32_t> prompt)
    : options_(options),
      previous_(prompt.begin(), prompt.end()),
      rng_(options.seed, kSamplingStream),
      filter_(options.stop) {
  check_sampler(options.sampler);
  result.prompt_tokens = std::ssize(prompt);
  if (tokenizer == nullptr) return;
  tokenizer_ = tokenizer;
  decoder_.emplace(*tokenizer);
  if (options.constraint) constraint_.emplace(*options.constraint);
  if (options.thinking_budget) thinking_budget_.emplace(*options.thinking_budget);
  n_readable_ = tokenizer->vocab_size();  // a model may have more rows than its tokenizer has ids
}

std::string Output::emit(int32_t id) {
  result.ids.push_back(id);
  previous_.push_back(id);
  for (const std::vector<int64_t>* ends : {&options_.eos_ids, &options_.stop_ids}) {
    if (std::find(ends->begin(), ends->end(), id) == ends->end()) continue;
    end(FinishReason::eos);
    return {};
  }
  if (!decoder_) return {};
  const bool is_readable = id < n_readable_;
  std::string text = is_readable ? decoder_->push(id) : std::string();
  if (thinking_budget_) thinking_budget_->take(text);
  if (!is_readable) return {};
  if (constraint_) constraint_->take(tokenizer_->token_bytes(id));
  if (n_generated() > options_.min_tokens) text = filter_.push(text);
  if (filter_.stopped() || (constraint_ && constraint_->is_whole())) end(FinishReason::stop);
  return text;
}

void Output::mask(std::span<float> logits) {
  if (const auto forced = thinking_budget_ ? thinking_budget_->forced() : std::nullopt)
    return keep_alone(logits, *forced);
  if (constraint_) constraint_->mask(logits, options_.eos_ids);
  if (n_generated() < options_.min_tokens) hold_back_ends(logits);
}

// Unless nothing else may come: a constraint's end is the output's.
void Output::hold_back_ends(std::span<float> logits) const {
  std::vector<std::pair<int64_t, float>> held;
  for (const std::vector<int64_t>* ends : {&options_.eos_ids, &options_.stop_ids}) {
    for (const int64_t id : *ends) {
      if (id < 0 || id >= std::ssize(logits)) continue;
      held.emplace_back(id, std::exchange(logits[static_cast<size_t>(id)], kNever));
    }
  }
  if (!constraint_ || std::any_of(logits.begin(), logits.end(), [](float x) { return x != kNever; })) return;
  // Backwards: an id that stands twice was there the first time.
  for (auto it = held.rbegin(); it != held.rend(); ++it) logits[static_cast<size_t>(it->first)] = it->second;
}

// `row`: the logits behind penalties and masks, which p was made of.
void Output::record(std::span<const float> row, const Distribution& p, int32_t id) {
  SamplingRecord& to = result.sampling;
  const SamplerOptions& sampler = options_.sampler;
  const bool is_cut = sampler.top_k > 0 || sampler.top_p < 1 || sampler.min_p > 0 || sampler.temperature == 0;
  const size_t begin = to.kept.size();
  if (is_cut) {
    if (to.begins.empty()) to.begins.push_back(0);
    for (const Candidate& c : p) to.kept.push_back(c.id);
    to.begins.push_back(std::ssize(to.kept));
  }
  const LogSoftmax of_row(row, sampler.temperature == 0 ? 1 : sampler.temperature,
                          std::span<const int32_t>(to.kept).subspan(begin));
  to.logprobs.push_back(static_cast<float>(of_row[id]));
  to.entropies.push_back(static_cast<float>(of_row.entropy(std::ssize(row))));
}

void Output::end(FinishReason why) {
  result.finish = why;
  goes_on_ = false;
}

std::string Output::take(Tensor logits, std::span<const Draft> drafts) {
  std::string text;
  result.drafted += std::ssize(drafts);
  for (size_t i = 0; goes_on_ && i <= drafts.size(); ++i) {
    const std::span<float> row(logits.f32_row(static_cast<int64_t>(i)), static_cast<size_t>(logits.cols()));
    if (options_.top_logprobs >= 0) logits_.assign(row.begin(), row.end());
    mask(row);
    const Draft* const draft = i < drafts.size() ? &drafts[i] : nullptr;
    const Distribution p = distribution(row, previous_, n_generated(), options_.sampler);
    int32_t id = p.front().id;
    if (draft != nullptr) {
      id = verify_draft(p, *draft, rng_);
    } else if (options_.sampler.temperature != 0) {
      id = draw(p, rng_);
    }
    if (options_.record_sampling) record(row, p, id);
    if (options_.top_logprobs >= 0) result.logprobs.push_back(token_logprobs(logits_, id, options_.top_logprobs));
    text += emit(id);
    if (draft == nullptr || id != draft->id) break;
    ++result.accepted;
  }
  result.text += text;
  return text;
}

std::string Output::finish() {
  if (!decoder_) return {};
  std::string text = filter_.push(decoder_->finish());
  text += filter_.finish();
  if (filter_.stopped()) result.finish = FinishReason::stop;
  result.stopped_by = filter_.stopped_by();
  result.text += text;
  return text;
}

}  // namespace fathom
