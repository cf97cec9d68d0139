// What is generated -> the objects of OpenAI's API: choices whole or in deltas, log probabilities, usage.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "infer/generation.h"
#include "text/answer_parser.h"
#include "text/tokenizer.h"

namespace fathom::serve {

// Both OpenAI's fields and DeepSeek's.
struct Usage {
  int64_t prompt_tokens = 0, cached_tokens = 0;  // of the prompt, found in the cache
  int64_t completion_tokens = 0, reasoning_tokens = 0;

  Usage& operator+=(const Usage& other);
};
nlohmann::ordered_json usage_json(const Usage& usage);

// "stop", "length" or "tool_calls".
const char* finish_reason_json(FinishReason reason, bool calls_tools);

// {"content": [{token, logprob, bytes, top_logprobs}]}, of a chat's choice.
nlohmann::ordered_json chat_logprobs_json(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                                          std::span<const TokenLogprobs> logprobs);

// Characters of the text in front of each token of a completion. One that several tokens make counts behind the last.
class TextOffset {
 public:
  // Special tokens stand in the text of a prompt that is told again, and not in the output's. unsaid_begin: the first
  // one was put in front of that text, and has none.
  TextOffset(const Tokenizer& tokenizer, bool begins_with_prompt, bool unsaid_begin = false)
      : tokenizer_(tokenizer), decoder_(tokenizer, !begins_with_prompt), is_unsaid_(unsaid_begin) {}
  int64_t before(int32_t id);  // the next token
  void end_prompt();

 private:
  const Tokenizer& tokenizer_;
  StreamDecoder decoder_;
  bool is_unsaid_;  // the next one
  int64_t n_ = 0;
};
// {tokens, token_logprobs, top_logprobs, text_offset}, of a completion's next tokens. The map of a token has its own
// value too; parts of characters have names like bytes:\xc3.
nlohmann::ordered_json completion_logprobs_json(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                                                std::span<const TokenLogprobs> logprobs, TextOffset& offset);
// The same of a prompt that is told again: logprobs are those from the second token on, the first has none.
nlohmann::ordered_json prompt_logprobs_json(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                                            std::span<const TokenLogprobs> logprobs, TextOffset& offset);

// vLLM's list for the tokens of a prompt: null for the first, then {ID: {logprob, rank, decoded_token}} of the token
// itself and the n_top likeliest. logprobs as above, of n_top at least.
nlohmann::ordered_json ranked_logprobs_json(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                                            std::span<const TokenLogprobs> logprobs, int64_t n_top);

// How many of an answer's tokens are thoughts, each judged by what is known behind it: however many come at a time,
// and whatever of their text is held back, the number is the same.
class ReasoningCount {
 public:
  // begun: what of the answer stands in the prompt.
  ReasoningCount(const Tokenizer& tokenizer, const AnswerFormat& format, std::string_view begun);
  void take(std::span<const int32_t> ids);
  int64_t tokens() const { return n_; }

 private:
  const Tokenizer& tokenizer_;
  AnswerParser parser_;
  int64_t n_ = 0;
};

// One choice of a chat, as its text comes in.
class ChatChoice {
 public:
  // call_prefix: what the ids of its tool calls begin with.
  ChatChoice(const AnswerFormat& format, std::string call_prefix);

  // Deltas of the message, for a stream.
  std::vector<nlohmann::ordered_json> push(std::string_view text);
  // stopped_by: the text that ended the output and does not stand in it. Where that is a call's end, the call is whole.
  std::vector<nlohmann::ordered_json> finish(std::string_view stopped_by = {});

  // {role, content, reasoning_content, tool_calls} so far.
  nlohmann::ordered_json message() const;
  const std::string& call_prefix() const { return call_prefix_; }
  bool calls_tools() const { return parser_.n_calls() > 0; }

 private:
  struct Call {
    std::string name, arguments;
  };
  std::vector<nlohmann::ordered_json> deltas_of(const std::vector<AnswerPart>& parts);
  std::string id_of(int64_t call) const { return call_prefix_ + std::to_string(call); }

  AnswerParser parser_;
  std::string call_end_;
  std::string call_prefix_, content_, reasoning_;
  std::vector<Call> calls_;
};

}  // namespace fathom::serve
