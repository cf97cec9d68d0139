// A model that answers: one in this process, by continuous batching, or whatever speaks OpenAI's API behind a URL.
// Answers come in any order, as they are ready. Greedy answers of one model are the same either way.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "infer/batching.h"
#include "serve/http_client.h"
#include "text/chat.h"

namespace fathom::eval {

struct LocalModel {
  Context& ctx;  // of the CPU
  const Model& model;
  const Tokenizer& tokenizer;
  std::string chat_template;  // empty: conversations cannot be asked
  ChatOptions chat;           // begin and end token
  BatchingOptions batching;
  std::vector<int64_t> eos_ids;
};

struct RemoteModel {
  serve::HttpUrl url;  // without /v1
  std::string name;    // "model" of the requests
  serve::HttpHeaders headers;
  serve::HttpClientLimits limits;
  int64_t parallel = 8;        // requests at a time
  int64_t retries = 8;         // of one request, when the server has no time (408, 429, 5xx) or the connection is lost
  double first_wait_s = 0.5;   // before the first of them, then twice as long each time, or as Retry-After says
  double longest_wait_s = 60;  // of these
  double longest_asked_wait_s = 3600;  // that Retry-After may ask for
};

using Answerer = std::variant<LocalModel, RemoteModel>;

struct Question {
  std::string id;  // begins what is told of its failure
  // A conversation, [{role, content, ...}]; null: `prompt`, a text to continue.
  nlohmann::ordered_json messages = nullptr;
  std::string prompt{};
  std::optional<bool> thinking{};  // of a conversation, where its template has both ways
  double temperature = 0, top_p = 1;
  int64_t top_k = 0;  // 0: all. Local; servers that know the field
  int64_t max_tokens = 1024;
  std::vector<std::string> stop{};
  int64_t samples = 1;
  uint64_t seed = 0;  // sample i has seed + i
};

struct Answer {
  std::string text;         // without thoughts, where it is one of a conversation
  std::string reasoning{};  // the thoughts
  std::string finish{};     // "stop", "length", or what the server says
  // Why there is none: the prompt is too long, the server refuses the request (400, 413, 422), or what it answers
  // cannot be read, however often it is asked.
  std::string error{};
  int64_t prompt_tokens = 0, tokens = 0;  // tokens: generated, thoughts included; 0 where a server does not tell
  double seconds = 0;                     // from the moment it was asked
};

// Whether the work is to end early; asked some times a second.
using Interrupted = std::function<bool()>;
using OnAnswer = std::function<void(size_t question, int64_t sample, Answer answer)>;

// Asks every question as often as it has samples, and tells each answer once; after an interruption those that were
// ready. `skip` (may be empty): the sample is not wanted. Error where the model itself fails, where a server cannot be
// reached, refuses the key or the model, or has no time for longer than the retries; answers told before stay told.
void answer_questions(Answerer& answerer, std::span<const Question> questions, const OnAnswer& tell,
                      const Interrupted& interrupted = {},
                      const std::function<bool(size_t question, int64_t sample)>& skip = {});

// Continuations whose probabilities are compared.
struct ChoiceQuestion {
  std::string id;
  std::string context;  // may be empty: the begin token stands there then
  std::vector<std::string> continuations{};
  nlohmann::ordered_json messages = nullptr;  // a conversation instead, of a local model: continuations are its answer
};

struct ChoiceScore {
  double logprob = 0;   // of the whole continuation, natural logarithm
  bool greedy = false;  // it is what the model would write
  int64_t tokens = 0;   // of the continuation
};

struct ChoiceAnswer {
  std::vector<ChoiceScore> scores{};  // [continuations]
  int64_t context_tokens = 0;
  bool truncated = false;  // the context's begin was left out, as there is no room for it
  std::string error{};     // why there are no scores
};

// Scores are those of lm-evaluation-harness: spaces at the context's end go to the continuation, whose tokens are those
// of both together behind as many as the context has alone; a text that is too long loses its begin. A URL needs
// /v1/completions with echo and logprobs; where the server has no /tokenize, tokens are parted by where they stand in
// the text. Errors as above.
void score_choices(Answerer& answerer, std::span<const ChoiceQuestion> questions,
                   const std::function<void(size_t question, ChoiceAnswer answer)>& tell,
                   const Interrupted& interrupted = {});

// A text as token ids, behind the begin token where texts of this model begin with one. Error where a server has no
// /tokenize.
std::vector<int32_t> tokens_of(Answerer& answerer, const std::string& text, bool add_begin,
                               const Interrupted& interrupted = {});

// Log probability of each window's tokens behind its first.
void score_windows(Answerer& answerer, std::span<const std::vector<int32_t>> windows,
                   const std::function<void(size_t window, double logprob)>& tell, const Interrupted& interrupted = {});

// The names of a server's models. Error where it does not tell.
std::vector<std::string> remote_models(const RemoteModel& remote, const Interrupted& interrupted = {});

}  // namespace fathom::eval
