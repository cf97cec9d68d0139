// What is generated behind a prompt: tokens drawn from logits, drafts judged, text as far as it may be shown, until
// something ends it. Where the logits come from is the caller's.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "infer/draft.h"
#include "infer/generation.h"

namespace fathom {

// Of one row of logits: the log probability of `id`, and those of the n_top likeliest.
TokenLogprobs token_logprobs(std::span<const float> logits, int32_t id, int64_t n_top);

class Output {
 public:
  // tokenizer may be null: then there is no text and no stop text. Throws UsageError for options outside their range.
  Output(const Tokenizer* tokenizer, const GenerationOptions& options, std::span<const int32_t> prompt);

  // logits: [drafts + 1, vocab], changed in place. Row i judges draft i; the one behind the last draft gives one token
  // more. Returns the text that may be shown now. Error as distribution() has it.
  std::string take(Tensor logits, std::span<const Draft> drafts = {});
  // The text that was held back, when no more comes.
  std::string finish();

  const std::vector<int32_t>& previous() const { return previous_; }  // prompt and output
  int64_t n_prompt() const { return result.prompt_tokens; }
  int64_t n_generated() const { return std::ssize(result.ids); }
  bool goes_on() const { return goes_on_ && n_generated() < options_.max_tokens; }
  const GenerationOptions& options() const { return options_; }
  Rng& rng() { return rng_; }

  Generation result;

 private:
  std::string emit(int32_t id);
  // What the model does not choose: logits of tokens that may not come become -inf.
  void mask(std::span<float> logits);
  void hold_back_ends(std::span<float> logits) const;
  void record(std::span<const float> row, const Distribution& p, int32_t id);
  void end(FinishReason why);

  GenerationOptions options_;
  const Tokenizer* tokenizer_ = nullptr;
  std::vector<int32_t> previous_;
  Rng rng_;
  StopFilter filter_;
  std::optional<StreamDecoder> decoder_;
  std::optional<ConstraintState> constraint_;
  std::optional<ThinkingBudgetState> thinking_budget_;
  int64_t n_readable_ = 0;  // ids below this say something
  bool goes_on_ = true;
  std::vector<float> logits_;  // of the next token, as the model gave them
};

}  // namespace fathom
