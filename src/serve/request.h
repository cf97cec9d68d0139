// The bodies of /v1/chat/completions and /v1/completions -> what is to be done: OpenAI's fields, DeepSeek's (thinking,
// prefix) and what vLLM and llama.cpp add (top_k, min_p, ...). Hostile input: every number has bounds, fields that
// nobody knows are ignored, null is as good as absent.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "infer/generation.h"

namespace fathom::serve {

// Why a request is refused, as OpenAI's error object says it.
struct ApiError : std::runtime_error {
  ApiError(int http_status, const std::string& message, std::string field = {}, std::string error_code = {});
  int status;         // 400, 401, 404, ...
  std::string param;  // the field, "messages[2].role", or empty
  std::string code;   // "invalid_value", or empty
};
// {"error": {"message", "type", "param", "code"}}
std::string error_json(const ApiError& error);

inline constexpr int64_t kMaxChoices = 128, kMaxPrompts = 1024, kMaxSequences = 4096;  // n; prompts; their product
inline constexpr int64_t kMaxTopLogprobs = 20, kMaxTools = 128;
inline constexpr int64_t kMaxStops = 16, kMaxStopBytes = 256;  // of texts, and of token ids
inline constexpr size_t kMaxKwargs = 256;                      // of chat_template_kwargs
inline constexpr int64_t kMaxPromptLogprobs = 1 << 18;         // that prompt_logprobs makes of all prompts together
// Of tokens and their likeliest, in an answer that is not streamed; echoed prompts have as many in streams too.
inline constexpr int64_t kMaxLogprobs = 1 << 18;

// What the output must be.
struct GrammarRequest {
  enum class Kind { none, json_object, json_schema, gbnf, regex };
  Kind kind = Kind::none;
  std::string param{};   // the field that asked for it
  std::string source{};  // of gbnf and regex
  nlohmann::ordered_json schema = nullptr;
};

struct CommonRequest {
  std::string model;
  int64_t n = 1;
  bool stream = false, include_usage = false;
  bool usage_in_chunks = false;       // in each of a stream, as far as it is
  std::optional<int64_t> max_tokens;  // absent: as many as the context holds
  std::optional<uint64_t> seed;
  bool ignore_eos = false;
  GrammarRequest grammar;
  bool timings_per_token = false;  // in a stream: with each piece how fast it came, as llama.cpp has it
  bool return_progress = false;    // in a stream: how far the prompt has been read, as llama.cpp has it
  int64_t prompt_logprobs = -1;    // >= 0: tell those of the prompt's tokens, and of so many likeliest, as vLLM has it
  bool expert_counts = false;      // tell which experts the answer used
  GenerationOptions generation;    // max_tokens, seed and eos_ids aside
  std::string cache_salt;          // user_id or cache_salt: only requests with the same share caches
};

using Prompt = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest : CommonRequest {
  std::vector<Prompt> prompts;
  std::optional<std::string> suffix;  // fill in the middle: what follows
  bool echo = false;
  bool add_special_tokens = true;  // the begin token in front of a text
  bool parse_special = true;       // special tokens spelled in a text are such
};

enum class ToolChoice { none, automatic, required, named };

struct ChatRequest : CommonRequest {
  // {role, content, ...} as chat templates read them: content is a string or null, thoughts are reasoning_content.
  nlohmann::ordered_json messages;
  nlohmann::ordered_json tools = nullptr;  // a list, or null
  ToolChoice tool_choice = ToolChoice::automatic;
  std::string tool;                        // the named one
  bool one_call = false;                   // at most (parallel_tool_calls: false)
  std::optional<bool> thinking;            // by thinking, reasoning_effort or chat_template_kwargs
  std::optional<int64_t> thinking_budget;  // tokens of thoughts that are generated at most
  nlohmann::ordered_json kwargs;           // chat_template_kwargs, an object
  bool continues_last = false;             // the last message is the beginning of the answer (prefix)
};

// For /tokenize: vLLM's {prompt} or {messages}, llama.cpp's {content}.
struct TokenizeRequest {
  std::string text;
  std::optional<ChatRequest> chat;
  bool add_special_tokens = true, parse_special = true, return_token_strs = false;
};

// Throw ApiError.
TokenizeRequest parse_tokenize_request(std::string_view body);
std::vector<int32_t> parse_detokenize_request(std::string_view body);  // {tokens}
CompletionRequest parse_completion_request(std::string_view body);
ChatRequest parse_chat_request(std::string_view body);

}  // namespace fathom::serve
