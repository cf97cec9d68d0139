#include "infer/output.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fathom {
namespace {

constexpr uint64_t kSamplingStream = 0x5a3b1e;  // of Rng

}  // namespace

Output::Output(const Tokenizer* tokenizer, const GenerationOptions& options, std::span<const int32_t> prompt)
    : options_(options),
      previous_(prompt.begin(), prompt.end()),
      rng_(options.seed, kSamplingStream),
      filter_(options.stop) {
  check_sampler(options.sampler);
  result.prompt_tokens = std::ssize(prompt);
  if (tokenizer == nullptr) return;
  decoder_.emplace(*tokenizer);
  n_readable_ = tokenizer->vocab_size();  // a model may have more rows than its tokenizer has ids
}

void Output::tell(int32_t id) {
  const std::vector<float>& logits = logits_;
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const double log_sum = largest + std::log(sum);
  const auto logprob = [&](int32_t of) { return static_cast<float>(logits[static_cast<size_t>(of)] - log_sum); };
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const int64_t n = std::min(options_.top_logprobs, std::ssize(order));
  std::partial_sort(order.begin(), order.begin() + n, order.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  });
  TokenLogprobs told{logprob(id), {}};
  for (int64_t i = 0; i < n; ++i)
    told.top.emplace_back(order[static_cast<size_t>(i)], logprob(order[static_cast<size_t>(i)]));
  result.logprobs.push_back(std::move(told));
}

std::string Output::emit(int32_t id) {
  result.ids.push_back(id);
  previous_.push_back(id);
  if (std::find(options_.eos_ids.begin(), options_.eos_ids.end(), id) != options_.eos_ids.end()) {
    result.finish = FinishReason::eos;
    goes_on_ = false;
    return {};
  }
  if (!decoder_ || id >= n_readable_) return {};
  std::string text = filter_.push(decoder_->push(id));
  if (filter_.stopped()) {
    result.finish = FinishReason::stop;
    goes_on_ = false;
  }
  return text;
}

std::string Output::take(Tensor logits, std::span<const Draft> drafts) {
  std::string text;
  const auto row = [&](size_t i) {
    const std::span<float> all(logits.f32_row(static_cast<int64_t>(i)), static_cast<size_t>(logits.cols()));
    if (options_.top_logprobs >= 0) logits_.assign(all.begin(), all.end());
    return all;
  };
  result.drafted += std::ssize(drafts);
  for (size_t i = 0; goes_on_ && i < drafts.size(); ++i) {
    const Draft& draft = drafts[i];
    const int32_t id = verify_draft(distribution(row(i), previous_, n_generated(), options_.sampler), draft, rng_);
    if (options_.top_logprobs >= 0) tell(id);
    text += emit(id);
    if (id != draft.id) {
      result.text += text;
      return text;
    }
    ++result.accepted;
  }
  if (goes_on_) {
    const int32_t id = sample(row(drafts.size()), previous_, n_generated(), options_.sampler, rng_);
    if (options_.top_logprobs >= 0) tell(id);
    text += emit(id);
  }
  result.text += text;
  return text;
}

std::string Output::finish() {
  if (!decoder_) return {};
  std::string text = filter_.push(decoder_->finish());
  text += filter_.finish();
  if (filter_.stopped()) result.finish = FinishReason::stop;
  result.text += text;
  return text;
}

}  // namespace fathom
