// One request that generates: its choices as their tokens come, streamed or gathered. On the server's thread alone.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "serve/engine.h"
#include "serve/http.h"
#include "serve/messages_api.h"
#include "serve/metrics.h"
#include "serve/prompt.h"
#include "serve/response.h"
#include "serve/responses_api.h"

namespace fathom::serve {

// How a chat is answered: as OpenAI's Chat Completions, Anthropic's Messages or OpenAI's Responses.
enum class Dialect { chat, messages, responses };

// What a request is about, ready to be generated.
struct JobInput {
  bool chat = true;
  Dialect dialect = Dialect::chat;
  CommonRequest request;
  bool echo = false;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<bool> unsaid_begins{};  // of prompts to be told again: whose first token their text did not have
  AnswerFormat format{};              // of a chat
  std::string begun{};
  nlohmann::ordered_json echo_fields{};  // of Dialect::responses
};

// How many log probabilities are gathered before any is sent, at most: of an echoed prompt, which is told at once, and
// of all tokens of an answer that is not streamed.
int64_t most_logprobs(const JobInput& input, int64_t context);

// How it is generated.
struct JobSettings {
  std::vector<int64_t> eos_ids;
  std::string cache_salt;
  std::string owner;    // who asks
  int64_t request = 0;  // its number
  uint64_t seed = 0;
  int64_t draft_tokens = 0;         // for requests whose tokens do not hang on them
  std::vector<int64_t> moe_layers;  // their numbers
  bool keep_answers = false;        // for JobTotals
  // Has a text made on another thread, and gives it to `use` on this one; an empty one where that failed.
  std::function<void(std::function<std::string()> make, std::function<void(std::string)> use)> elsewhere{};
};

struct JobTotals {
  Usage usage;
  std::string finish;  // of the last choice to end
  double first_token_s = 0;
  nlohmann::ordered_json answers{};  // of the choices: texts, or messages of a chat
};

class Job : public std::enable_shared_from_this<Job> {
 public:
  using OnEnd = std::function<void(int status, const JobTotals& totals)>;

  // model: the name in the answer. on_end: called once, when all is answered or the client is gone (status 499).
  Job(JobInput input, const Tokenizer& tokenizer, std::string model, HttpReply reply, HttpHeaders headers,
      Metrics& metrics, OnEnd on_end);

  // Throws ApiError 429 where the queue is full.
  void start(Engine& engine, const JobSettings& settings);
  // Ends what has not ended with an error.
  void fail(const ApiError& error);

 private:
  struct Choice {
    size_t prompt;
    ChatChoice chat;
    ReasoningCount reasoning;
    std::string text;
    std::vector<int32_t> ids;
    std::vector<TokenLogprobs> logprobs;
    std::string finish;
    Generation result;
    double last_token_s = 0;
    TextOffset offset;      // of what comes
    bool first = true;      // nothing has been streamed,
    bool has_role = false;  // the role apart
    Timings timings{};      // so far
    MessageStream messages{};
  };

  void take_progress(Choice& choice, const PromptProgress& progress);
  bool begins_unsaid(size_t prompt) const;
  std::string echo_of(size_t prompt) const;
  void take_prompt(Choice& choice, std::span<const TokenLogprobs> logprobs);
  void take_tokens(Choice& choice, std::string_view text, std::span<const int32_t> ids,
                   std::span<const TokenLogprobs> logprobs, const Timings& timings);
  void take_end(Choice& choice, const Generation& result, const std::string& error);
  static Usage usage_of(const Choice& choice);  // so far
  nlohmann::ordered_json chunk_of(const Choice& choice, const nlohmann::ordered_json& fields,
                                  nlohmann::ordered_json logprobs, const char* finish) const;
  void stream_choice(Choice& choice, nlohmann::ordered_json fields, nlohmann::ordered_json logprobs,
                     const char* finish);
  void stream_deltas(Choice& choice, std::vector<nlohmann::ordered_json> deltas, nlohmann::ordered_json logprobs);
  nlohmann::ordered_json logprobs_json(Choice& choice, std::span<const int32_t> ids,
                                       std::span<const TokenLogprobs> logprobs) const;
  nlohmann::ordered_json prompt_logprobs_json_of(Choice& choice, std::span<const TokenLogprobs> logprobs) const;
  void stream_delta(Choice& choice, const nlohmann::ordered_json& delta);
  void answer_dialect();
  std::string whole_answer();
  void send_whole(const std::string& text);
  int64_t n_logprobs() const;
  nlohmann::ordered_json whole_choice(Choice& choice) const;
  nlohmann::ordered_json envelope(bool chunk) const;
  void add_facts(nlohmann::ordered_json& object) const;
  void answer();
  void cancel_all();
  void over(int status);
  size_t index_of(const Choice& choice) const { return static_cast<size_t>(&choice - choices_.data()); }
  int64_t prompt_top_logprobs(size_t choice) const;
  nlohmann::ordered_json ranked_logprobs_json_of(size_t prompt) const;
  bool wants_logprobs() const { return input_.request.generation.top_logprobs >= 0; }

  JobInput input_;
  const Tokenizer& tokenizer_;
  std::string id_, model_;
  int64_t created_;
  HttpReply reply_;
  HttpHeaders headers_;
  Metrics& metrics_;
  OnEnd on_end_;
  Engine* engine_ = nullptr;
  std::vector<int64_t> moe_layers_;
  std::vector<Engine::Ticket> tickets_;
  std::vector<Choice> choices_;
  std::optional<ResponseStream> response_;  // of Dialect::responses
  size_t n_left_ = 0;
  JobTotals totals_;
  double start_s_;
  bool over_ = false, keeps_answers_ = false;
  decltype(JobSettings::elsewhere) elsewhere_;
};

ApiError no_room_for_answers();                             // 503: see HttpReply::has_room
std::string random_id(std::string_view prefix);             // and 24 random characters
std::string json_text(const nlohmann::ordered_json& json);  // on one line; what is no UTF-8 becomes U+FFFD
nlohmann::ordered_json timings_json(const Timings& timings);
nlohmann::ordered_json progress_json(const PromptProgress& progress);

}  // namespace fathom::serve
