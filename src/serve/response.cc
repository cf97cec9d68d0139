#include "serve/response.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "serve/tool_calls.h"
#include "text/jinja_text.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

// What a token says, nothing for one of which the model alone knows.
std::string bytes_of(const Tokenizer& tokenizer, int32_t id) {
  return id < tokenizer.vocab_size() ? tokenizer.token_bytes(id) : std::string();
}
// What maps of completions call it: parts of characters as OpenAI spells them, since as text they would all be U+FFFD.
std::string name_of(const std::string& said) {
  if (mend_utf8(said) == said) return said;
  std::string name = "bytes:";
  for (const char byte : said) name += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
  return name;
}

ordered_json token_json(const Tokenizer& tokenizer, int32_t id, float logprob) {
  ordered_json bytes = ordered_json::array();
  const std::string said = bytes_of(tokenizer, id);
  for (const char byte : said) bytes.push_back(static_cast<uint8_t>(byte));
  return {{"token", mend_utf8(said)}, {"logprob", logprob}, {"bytes", std::move(bytes)}};
}

}  // namespace

Usage& Usage::operator+=(const Usage& other) {
  prompt_tokens += other.prompt_tokens;
  cached_tokens += other.cached_tokens;
  completion_tokens += other.completion_tokens;
  reasoning_tokens += other.reasoning_tokens;
  return *this;
}

ordered_json usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.reasoning_tokens}}},
          {"prompt_cache_hit_tokens", usage.cached_tokens},
          {"prompt_cache_miss_tokens", usage.prompt_tokens - usage.cached_tokens}};
}

const char* finish_reason_json(FinishReason reason, bool calls_tools) {
  switch (reason) {
    case FinishReason::eos:
    case FinishReason::stop:
      return calls_tools ? "tool_calls" : "stop";
    case FinishReason::length:
    case FinishReason::context:
    case FinishReason::interrupted:
      break;
  }
  return "length";
}

ordered_json chat_logprobs_json(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                                std::span<const TokenLogprobs> logprobs) {
  FATHOM_CHECK(ids.size() == logprobs.size());
  ordered_json content = ordered_json::array();
  for (size_t i = 0; i < ids.size(); ++i) {
    ordered_json token = token_json(tokenizer, ids[i], logprobs[i].logprob);
    token["top_logprobs"] = ordered_json::array();
    for (const auto& [id, logprob] : logprobs[i].top) {
      token["top_logprobs"].push_back(token_json(tokenizer, id, logprob));
    }
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

int64_t TextOffset::before(int32_t id) {
  const int64_t n = n_;
  if (std::exchange(is_unsaid_, false)) return n;
  if (id < tokenizer_.vocab_size()) n_ += static_cast<int64_t>(jinja::code_points(decoder_.push(id)));
  return n;
}

void TextOffset::end_prompt() {
  n_ += static_cast<int64_t>(jinja::code_points(decoder_.finish()));
  decoder_ = StreamDecoder(tokenizer_);
}

ordered_json completion_logprobs_json(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                                      std::span<const TokenLogprobs> logprobs, TextOffset& offset) {
  FATHOM_CHECK(ids.size() == logprobs.size());
  ordered_json tokens = ordered_json::array(), values = tokens, maps = tokens, offsets = tokens;
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string token = name_of(bytes_of(tokenizer, ids[i]));
    ordered_json map = ordered_json::object();
    for (const auto& [id, logprob] : logprobs[i].top) map.emplace(name_of(bytes_of(tokenizer, id)), logprob);
    map.emplace(token, logprobs[i].logprob);
    offsets.push_back(offset.before(ids[i]));
    tokens.push_back(token);
    values.push_back(logprobs[i].logprob);
    maps.push_back(std::move(map));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(maps)},
          {"text_offset", std::move(offsets)}};
}

ordered_json prompt_logprobs_json(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                                  std::span<const TokenLogprobs> logprobs, TextOffset& offset) {
  std::vector<TokenLogprobs> all{{0, {}}};  // nothing stands before the first
  all.insert(all.end(), logprobs.begin(), logprobs.end());
  ordered_json told = completion_logprobs_json(tokenizer, prompt, all, offset);
  told["token_logprobs"][0] = nullptr;
  told["top_logprobs"][0] = nullptr;
  offset.end_prompt();
  return told;
}

ordered_json ranked_logprobs_json(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                                  std::span<const TokenLogprobs> logprobs, int64_t n_top) {
  FATHOM_CHECK(prompt.size() == logprobs.size() + 1);
  ordered_json all = ordered_json::array({nullptr});
  for (size_t i = 0; i < logprobs.size(); ++i) {
    const TokenLogprobs& of = logprobs[i];
    ordered_json map = ordered_json::object();
    const auto add = [&](int32_t id, float logprob, int64_t rank) {
      map.emplace(
          std::to_string(id),
          ordered_json{{"logprob", logprob}, {"rank", rank}, {"decoded_token", mend_utf8(bytes_of(tokenizer, id))}});
    };
    add(prompt[i + 1], of.logprob, of.rank);
    const auto n = std::min(std::ssize(of.top), n_top);
    for (int64_t k = 0; k < n; ++k)
      add(of.top[static_cast<size_t>(k)].first, of.top[static_cast<size_t>(k)].second, k + 1);
    all.push_back(std::move(map));
  }
  return all;
}

ReasoningCount::ReasoningCount(const Tokenizer& tokenizer, const AnswerFormat& format, std::string_view begun)
    : tokenizer_(tokenizer), parser_(format) {
  parser_.push(begun);
}

void ReasoningCount::take(std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    parser_.push(bytes_of(tokenizer_, id));
    if (parser_.in_reasoning()) ++n_;
  }
}

ChatChoice::ChatChoice(const AnswerFormat& format, std::string call_prefix)
    : parser_(format), call_end_(call_end(format.calls)), call_prefix_(std::move(call_prefix)) {}

std::vector<ordered_json> ChatChoice::push(std::string_view text) { return deltas_of(parser_.push(text)); }

std::vector<ordered_json> ChatChoice::finish(std::string_view stopped_by) {
  std::vector<AnswerPart> parts;
  if (calls_tools() && !call_end_.empty() && stopped_by == call_end_) parts = parser_.push(stopped_by);
  const std::vector<AnswerPart> rest = parser_.finish();
  parts.insert(parts.end(), rest.begin(), rest.end());
  return deltas_of(parts);
}

std::vector<ordered_json> ChatChoice::deltas_of(const std::vector<AnswerPart>& parts) {
  std::vector<ordered_json> deltas;
  for (const AnswerPart& part : parts) {
    switch (part.kind) {
      case AnswerPart::Kind::reasoning:
        reasoning_ += part.text;
        deltas.push_back({{"reasoning_content", part.text}});
        break;
      case AnswerPart::Kind::content:
        content_ += part.text;
        deltas.push_back({{"content", part.text}});
        break;
      case AnswerPart::Kind::call_name:
        calls_.push_back({part.text, {}});
        deltas.push_back(
            {{"tool_calls", ordered_json::array({{{"index", part.call},
                                                  {"id", id_of(part.call)},
                                                  {"type", "function"},
                                                  {"function", {{"name", part.text}, {"arguments", ""}}}}})}});
        break;
      case AnswerPart::Kind::call_arguments:
        calls_[static_cast<size_t>(part.call)].arguments += part.text;
        deltas.push_back(
            {{"tool_calls", ordered_json::array({{{"index", part.call}, {"function", {{"arguments", part.text}}}}})}});
        break;
    }
  }
  return deltas;
}

ordered_json ChatChoice::message() const {
  // Null where there are calls and nothing is said, as OpenAI has it.
  ordered_json message{
      {"role", "assistant"},
      {"content", content_.empty() && !calls_.empty() ? ordered_json(nullptr) : ordered_json(content_)},
      {"refusal", nullptr}};  // OpenAI's is always there
  if (!reasoning_.empty()) message["reasoning_content"] = reasoning_;
  for (size_t i = 0; i < calls_.size(); ++i) {
    message["tool_calls"].push_back({{"id", id_of(static_cast<int64_t>(i))},
                                     {"type", "function"},
                                     {"function", {{"name", calls_[i].name}, {"arguments", calls_[i].arguments}}}});
  }
  return message;
}

}  // namespace fathom::serve
