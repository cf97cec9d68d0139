#include "serve/job.h"

#include <openssl/rand.h>

#include <algorithm>
#include <ctime>

#include "base/error.h"
#include "base/terminal.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

constexpr int kClientGone = 499;  // nginx's number, for the log
constexpr const char* kAlive = ": keep-alive\n\n";
constexpr int64_t kManyLogprobs = 1 << 12;  // some ten milliseconds to write

const char* id_prefix(const JobInput& input) {
  switch (input.dialect) {
    case Dialect::messages:
      return "msg_";
    case Dialect::responses:
      return "resp_";
    case Dialect::chat:
      break;
  }
  return input.chat ? "chatcmpl-" : "cmpl-";
}

ordered_json role_json() { return {{"role", "assistant"}, {"content", ""}}; }

std::string event(const ordered_json& json) { return "data: " + json_text(json) + "\n\n"; }

}  // namespace

ApiError no_room_for_answers() {
  return {503, "answers that clients do not take fill the memory for them; ask again later", "", "server_busy"};
}

std::string random_id(std::string_view prefix) {
  constexpr std::string_view kCharacters = "0123456789abcdefghijklmnopqrstuv";
  unsigned char bytes[24];
  FATHOM_CHECK(RAND_bytes(bytes, sizeof bytes) == 1);
  std::string id(prefix);
  for (const unsigned char byte : bytes) id += kCharacters[byte % kCharacters.size()];
  return id;
}

std::string json_text(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

ordered_json timings_json(const Timings& g) {
  const int64_t computed = g.prompt_tokens - g.cached_tokens;
  const auto rate = [](int64_t n, double seconds) { return seconds > 0 ? static_cast<double>(n) / seconds : 0; };
  const double prompt_s = g.prefill_s - g.queue_s;
  return {{"cache_n", g.cached_tokens},
          {"prompt_n", computed},
          {"prompt_ms", prompt_s * 1e3},
          {"prompt_per_second", rate(computed, prompt_s)},
          {"predicted_n", g.generated_tokens},
          {"predicted_ms", g.decode_s * 1e3},
          {"predicted_per_second", rate(g.generated_tokens - 1, g.decode_s)},
          {"queue_ms", g.queue_s * 1e3},
          {"draft_n", g.drafted},
          {"draft_n_accepted", g.accepted}};
}

ordered_json progress_json(const PromptProgress& progress) {
  return {{"total", progress.total},
          {"cache", progress.cached},
          {"processed", progress.read},
          {"time_ms", static_cast<int64_t>(progress.seconds * 1e3)}};
}

int64_t most_logprobs(const JobInput& input, int64_t context) {
  const CommonRequest& request = input.request;
  int64_t n_tokens = 0;
  for (const std::vector<int32_t>& prompt : input.prompts) {
    const int64_t n_prompt = std::ssize(prompt);
    if (input.echo) n_tokens += n_prompt;
    if (!request.stream) n_tokens += std::clamp(context - n_prompt, int64_t{0}, request.max_tokens.value_or(context));
  }
  return n_tokens * request.n * (request.generation.top_logprobs + 1);
}

Job::Job(JobInput input, const Tokenizer& tokenizer, std::string model, HttpReply reply, HttpHeaders headers,
         Metrics& metrics, OnEnd on_end)
    : input_(std::move(input)),
      tokenizer_(tokenizer),
      id_(random_id(id_prefix(input_))),
      model_(std::move(model)),
      created_(std::time(nullptr)),
      reply_(std::move(reply)),
      headers_(std::move(headers)),
      metrics_(metrics),
      on_end_(std::move(on_end)),
      start_s_(monotonic_s()) {
  if (input_.dialect == Dialect::responses) response_.emplace(id_, model_, created_, std::move(input_.echo_fields));
}

void Job::start(Engine& engine, const JobSettings& settings) {
  CommonRequest& request = input_.request;
  GenerationOptions options = request.generation;
  if (!request.ignore_eos) options.eos_ids = settings.eos_ids;
  // With drafts a seed would give other tokens whenever more or fewer are made: who asks for the same gets none.
  if (options.sampler.temperature == 0 || !request.seed) options.draft_tokens = settings.draft_tokens;
  moe_layers_ = settings.moe_layers;
  keeps_answers_ = settings.keep_answers;
  elsewhere_ = settings.elsewhere;
  options.max_tokens = request.max_tokens.value_or(int64_t{1} << 40);  // the context ends it
  std::vector<BatchRequest> batch;
  n_left_ = input_.prompts.size() * static_cast<size_t>(request.n);
  choices_.reserve(n_left_);  // the callbacks point into it
  for (size_t i = 0; i < n_left_; ++i) {
    const size_t prompt = i / static_cast<size_t>(request.n);
    choices_.push_back({.prompt = prompt,
                        .chat = ChatChoice(input_.format, random_id("call_") + "_"),
                        .reasoning = ReasoningCount(tokenizer_, input_.format, input_.begun),
                        .last_token_s = start_s_,
                        .offset = TextOffset(tokenizer_, input_.echo, begins_unsaid(prompt))});
    Choice& choice = choices_.back();
    if (!input_.begun.empty()) choice.chat.push(input_.begun);
    // With a seed a prompt of a list is answered as alone.
    options.seed = settings.seed + (request.seed ? i % static_cast<size_t>(request.n) : i);
    BatchRequest& added = batch.emplace_back(BatchRequest{
        .prompt = input_.prompts[prompt],
        .options = options,
        .cache_salt = settings.cache_salt,
        .owner = settings.owner,
        .group = settings.request,
        .count_experts = request.expert_counts,
        .prompt_top_logprobs = prompt_top_logprobs(i),
        .on_prompt = [self = shared_from_this(), &choice](auto logprobs) { self->take_prompt(choice, logprobs); },
        .on_tokens = [self = shared_from_this(), &choice](
                         auto text, auto ids, auto logprobs,
                         const Timings& timings) { self->take_tokens(choice, text, ids, logprobs, timings); },
        .on_end = [self = shared_from_this(), &choice](
                      const Generation& result, const std::string& error) { self->take_end(choice, result, error); }});
    if (request.return_progress && request.stream && input_.dialect == Dialect::chat) {
      added.on_progress = [self = shared_from_this(), &choice](const PromptProgress& progress) {
        self->take_progress(choice, progress);
      };
    }
  }
  tickets_ = engine.submit(std::move(batch));
  if (tickets_.empty()) throw ApiError(429, "the server is busy: too many requests wait", "", "server_busy");
  engine_ = &engine;
  reply_.on_gone([self = shared_from_this()] {
    self->cancel_all();
    self->over(kClientGone);
  });
  if (request.stream) {
    HttpHeaders headers = headers_;
    headers.emplace_back("Cache-Control", "no-cache");
    headers.emplace_back("X-Accel-Buffering", "no");
    reply_.begin(200, "text/event-stream; charset=utf-8", kAlive, headers);
  }
}

void Job::cancel_all() {
  for (const Engine::Ticket ticket : tickets_) engine_->cancel(ticket);
}

void Job::over(int status) {
  if (std::exchange(over_, true)) return;
  metrics_.count_aborted(n_left_);
  for (size_t i = 0; keeps_answers_ && i < choices_.size(); ++i) {
    totals_.answers.push_back(input_.chat ? choices_[i].chat.message() : ordered_json(choices_[i].text));
  }
  on_end_(status, totals_);
}

void Job::fail(const ApiError& error) {
  if (over_) return;
  cancel_all();
  const bool is_message = input_.dialect == Dialect::messages;
  if (input_.request.stream) {
    if (is_message) {
      reply_.write("event: error\ndata: " + messages_error_json(error) + "\n\n");
    } else if (response_) {
      reply_.write(response_->fail(error.what(), "server_error"));
    } else {
      reply_.write("data: " + error_json(error) + "\n\ndata: [DONE]\n\n");
    }
    reply_.end();
  } else {
    HttpHeaders headers = headers_;
    if (error.status == 503) headers.emplace_back("Retry-After", "5");
    reply_.send(error.status, "application/json", is_message ? messages_error_json(error) : error_json(error), headers);
  }
  over(error.status);
}

ordered_json Job::envelope(bool chunk) const {
  const char* kind = !input_.chat ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
  return {{"id", id_}, {"object", kind}, {"created", created_}, {"model", model_}, {"system_fingerprint", "fathom"}};
}

void Job::stream_delta(Choice& choice, const ordered_json& delta) {
  const bool is_first = delta.contains("role");
  std::string events;
  if (response_) {
    events = is_first ? response_->begin() : response_->push(delta);
  } else {
    events = is_first ? choice.messages.begin(id_, model_, std::ssize(input_.prompts[choice.prompt]))
                      : choice.messages.push(delta);
  }
  if (!events.empty()) reply_.write(events);
}

void Job::stream_choice(Choice& choice, ordered_json fields, ordered_json logprobs, const char* finish) {
  if (input_.dialect != Dialect::chat) {
    if (finish == nullptr) stream_delta(choice, fields["delta"]);
    return;  // the end comes with the usage
  }
  reply_.write(event(chunk_of(choice, fields, std::move(logprobs), finish)));
}

ordered_json Job::chunk_of(const Choice& choice, const ordered_json& fields, ordered_json logprobs,
                           const char* finish) const {
  ordered_json chunk = envelope(true);
  ordered_json told = {{"index", index_of(choice)}};
  told.update(fields);
  told["logprobs"] = std::move(logprobs);
  told["finish_reason"] = finish != nullptr ? ordered_json(finish) : ordered_json(nullptr);
  chunk["choices"] = ordered_json::array({std::move(told)});
  if (input_.request.usage_in_chunks) {
    chunk["usage"] = usage_json(usage_of(choice));
  } else if (input_.request.include_usage) {
    chunk["usage"] = nullptr;
  }
  if (input_.request.timings_per_token) chunk["timings"] = timings_json(choice.timings);
  return chunk;
}

Usage Job::usage_of(const Choice& choice) {
  const Timings& t = choice.timings;
  return {t.prompt_tokens, t.cached_tokens, t.generated_tokens, choice.reasoning.tokens()};
}

// The first chunk of a choice bears the role; log probabilities stand beside the first delta.
void Job::stream_deltas(Choice& choice, std::vector<ordered_json> deltas, ordered_json logprobs) {
  if (std::exchange(choice.first, false)) {
    if (!std::exchange(choice.has_role, true)) stream_choice(choice, {{"delta", role_json()}}, nullptr, nullptr);
    if (!input_.begun.empty()) {
      // A call that the request asked for has begun in the prompt.
      ChatChoice begun(input_.format, choice.chat.call_prefix());
      std::vector<ordered_json> heads = begun.push(input_.begun);
      deltas.insert(deltas.begin(), heads.begin(), heads.end());
    }
  }
  if (deltas.empty() && !logprobs.is_null()) deltas.push_back(ordered_json::object());
  for (ordered_json& delta : deltas) {
    stream_choice(choice, {{"delta", std::move(delta)}}, std::exchange(logprobs, nullptr), nullptr);
  }
}

ordered_json Job::logprobs_json(Choice& choice, std::span<const int32_t> ids,
                                std::span<const TokenLogprobs> logprobs) const {
  if (!wants_logprobs() || ids.empty()) return nullptr;
  if (input_.chat) return chat_logprobs_json(tokenizer_, ids, logprobs);
  return completion_logprobs_json(tokenizer_, ids, logprobs, choice.offset);
}

ordered_json Job::prompt_logprobs_json_of(Choice& choice, std::span<const TokenLogprobs> logprobs) const {
  std::vector<TokenLogprobs> echoed(logprobs.begin(), logprobs.end());
  const auto n_top = static_cast<size_t>(input_.request.generation.top_logprobs);
  for (TokenLogprobs& token : echoed) token.top.resize(std::min(token.top.size(), n_top));
  return prompt_logprobs_json(tokenizer_, input_.prompts[choice.prompt], echoed, choice.offset);
}

// What the choices of a prompt have in common its first one is asked for.
ordered_json Job::ranked_logprobs_json_of(size_t prompt) const {
  const Choice& first = choices_[prompt * static_cast<size_t>(input_.request.n)];
  return ranked_logprobs_json(tokenizer_, input_.prompts[prompt], first.result.prompt_logprobs,
                              input_.request.prompt_logprobs);
}

// How many of the likeliest tokens are to be known at each place of the prompt; -1: nothing.
int64_t Job::prompt_top_logprobs(size_t choice) const {
  const CommonRequest& request = input_.request;
  const bool is_first = choice % static_cast<size_t>(request.n) == 0;
  return std::max(input_.echo ? request.generation.top_logprobs : -1, is_first ? request.prompt_logprobs : -1);
}

// A chunk that says nothing else but the role in the first, so that clients which do not know of it put the same answer
// together.
void Job::take_progress(Choice& choice, const PromptProgress& progress) {
  if (over_) return;
  choice.timings.prompt_tokens = progress.total;
  choice.timings.cached_tokens = progress.cached;
  const bool is_first = !std::exchange(choice.has_role, true);
  const ordered_json nothing = input_.chat ? ordered_json{{"delta", is_first ? role_json() : ordered_json::object()}}
                                           : ordered_json{{"text", ""}};
  ordered_json chunk = chunk_of(choice, nothing, nullptr, nullptr);
  chunk["prompt_progress"] = progress_json(progress);
  reply_.write(event(chunk));
}

bool Job::begins_unsaid(size_t prompt) const {
  return prompt < input_.unsaid_begins.size() && input_.unsaid_begins[prompt];
}

// The prompt as it was given: clients cut off as many characters.
std::string Job::echo_of(size_t prompt) const {
  const std::span<const int32_t> ids = input_.prompts[prompt];
  return tokenizer_.decode(ids.subspan(begins_unsaid(prompt) ? 1 : 0));
}

// A stream that repeats its prompt with log probabilities begins with it.
void Job::take_prompt(Choice& choice, std::span<const TokenLogprobs> logprobs) {
  if (over_ || !input_.request.stream) return;
  choice.first = false;
  stream_choice(choice, {{"text", echo_of(choice.prompt)}}, prompt_logprobs_json_of(choice, logprobs), nullptr);
}

void Job::take_tokens(Choice& choice, std::string_view text, std::span<const int32_t> ids,
                      std::span<const TokenLogprobs> logprobs, const Timings& timings) {
  if (over_) return;
  choice.timings = timings;
  const double now_s = monotonic_s();
  if (choice.ids.empty()) {
    if (totals_.first_token_s == 0) totals_.first_token_s = now_s - start_s_;
  } else {
    metrics_.observe_token_gap(now_s - choice.last_token_s);
  }
  choice.last_token_s = now_s;
  const bool streams = input_.request.stream;
  ordered_json told = streams ? logprobs_json(choice, ids, logprobs) : ordered_json(nullptr);
  choice.ids.insert(choice.ids.end(), ids.begin(), ids.end());
  if (!streams) choice.logprobs.insert(choice.logprobs.end(), logprobs.begin(), logprobs.end());
  if (input_.chat) {
    choice.reasoning.take(ids);
    std::vector<ordered_json> deltas = choice.chat.push(text);
    if (streams) stream_deltas(choice, std::move(deltas), std::move(told));
    return;
  }
  choice.text += text;
  if (!streams) return;
  std::string shown(text);
  if (std::exchange(choice.first, false) && input_.echo) shown = echo_of(choice.prompt) + shown;
  if (!shown.empty() || !told.is_null()) stream_choice(choice, {{"text", shown}}, std::move(told), nullptr);
}

void Job::take_end(Choice& choice, const Generation& result, const std::string& error) {
  if (over_) return;
  metrics_.count_end(result, !error.empty());
  if (!error.empty()) {
    --n_left_;
    return fail(result.refused ? ApiError(400, error, "", "invalid_grammar") : ApiError(500, error));
  }
  choice.result = result;
  choice.timings = timings_of(result);
  std::vector<ordered_json> rest = choice.chat.finish(result.stopped_by);
  choice.finish = totals_.finish = finish_reason_json(result.finish, choice.chat.calls_tools());
  Usage usage = usage_of(choice);
  // The choices of a prompt read it once.
  if (index_of(choice) % static_cast<size_t>(input_.request.n) != 0) usage.prompt_tokens = usage.cached_tokens = 0;
  totals_.usage += usage;
  if (input_.request.stream) {
    if (input_.chat) {
      stream_deltas(choice, std::move(rest), nullptr);
      stream_choice(choice, {{"delta", ordered_json::object()}}, nullptr, choice.finish.c_str());
    } else {
      const bool unsaid = std::exchange(choice.first, false) && input_.echo;
      ordered_json told =
          unsaid && wants_logprobs() ? prompt_logprobs_json_of(choice, result.prompt_logprobs) : ordered_json(nullptr);
      stream_choice(choice, {{"text", unsaid ? echo_of(choice.prompt) : ""}}, std::move(told), choice.finish.c_str());
    }
  }
  if (--n_left_ == 0) answer();
}

ordered_json Job::whole_choice(Choice& choice) const {
  ordered_json told = {{"index", index_of(choice)}};
  if (input_.chat) {
    told["message"] = choice.chat.message();
    told["logprobs"] = logprobs_json(choice, choice.ids, choice.logprobs);
  } else {
    told["text"] = (input_.echo ? echo_of(choice.prompt) : "") + choice.text;
    told["logprobs"] = nullptr;
    if (wants_logprobs()) {
      ordered_json all = ordered_json::object();
      if (input_.echo) all = prompt_logprobs_json_of(choice, choice.result.prompt_logprobs);
      const ordered_json output = completion_logprobs_json(tokenizer_, choice.ids, choice.logprobs, choice.offset);
      for (const auto& [name, values] : output.items()) {
        ordered_json& list = all[name];
        if (list.is_null()) list = ordered_json::array();
        list.insert(list.end(), values.begin(), values.end());
      }
      told["logprobs"] = std::move(all);
    }
  }
  told["finish_reason"] = choice.finish;
  if (!input_.chat && input_.request.prompt_logprobs >= 0)
    told["prompt_logprobs"] = ranked_logprobs_json_of(choice.prompt);
  return told;
}

// What is told beside the choices.
void Job::add_facts(ordered_json& object) const {
  object["usage"] = usage_json(totals_.usage);
  object["timings"] = timings_json(choices_[0].timings);
  if (!input_.request.expert_counts) return;
  ExpertLoad sum = choices_[0].result.expert_load;
  for (size_t i = 1; i < choices_.size(); ++i) {
    const ExpertLoad& load = choices_[i].result.expert_load;
    for (size_t l = 0; l < std::min(sum.size(), load.size()); ++l) {
      for (size_t e = 0; e < load[l].size(); ++e) sum[l][e] += load[l][e];
    }
  }
  object["experts"] = {{"layers", moe_layers_}, {"counts", sum}};
}

void Job::answer_dialect() {
  Choice& choice = choices_[0];  // there is no other
  const MessageEnd end{choice.finish, choice.result.stopped_by};
  if (input_.request.stream) {
    reply_.write(response_ ? response_->finish(choice.finish, totals_.usage)
                           : choice.messages.finish(end, totals_.usage));
    return reply_.end();
  }
  ordered_json whole;
  if (response_) {
    response_->push(choice.chat.message());
    response_->finish(choice.finish, totals_.usage);
    whole = response_->response();
  } else {
    whole = message_json(id_, model_, choice.chat.message(), end, totals_.usage);
  }
  send_whole(json_text(whole));
}

void Job::answer() {
  if (input_.dialect != Dialect::chat) {
    answer_dialect();
  } else if (input_.request.stream) {
    if (input_.request.include_usage) {
      ordered_json chunk = envelope(true);
      chunk["choices"] = ordered_json::array();
      add_facts(chunk);
      reply_.write(event(chunk));
    }
    reply_.write("data: [DONE]\n\n");
    reply_.end();
  } else if (n_logprobs() < kManyLogprobs) {
    return send_whole(whole_answer());
  } else {  // which takes so long to write that others would notice
    return elsewhere_([self = shared_from_this()] { return self->whole_answer(); },
                      [self = shared_from_this()](const std::string& text) { self->send_whole(text); });
  }
  over(200);
}

// All has ended: nothing of the choices changes any more.
std::string Job::whole_answer() {
  ordered_json whole = envelope(false);
  whole["choices"] = ordered_json::array();
  for (Choice& choice : choices_) whole["choices"].push_back(whole_choice(choice));
  // Where vLLM has it: of a chat, which has one prompt, beside the choices.
  if (input_.chat && input_.request.prompt_logprobs >= 0) whole["prompt_logprobs"] = ranked_logprobs_json_of(0);
  add_facts(whole);
  return json_text(whole);
}

void Job::send_whole(const std::string& text) {
  if (over_) return;
  if (text.empty()) return fail(ApiError(500, "the answer could not be written: out of memory"));
  if (!reply_.has_room(text.size())) return fail(no_room_for_answers());
  reply_.send(200, "application/json", text, headers_);
  over(200);
}

int64_t Job::n_logprobs() const {
  int64_t n = 0;
  for (const Choice& choice : choices_) {
    for (const auto* all : {&choice.logprobs, &choice.result.prompt_logprobs}) {
      for (const TokenLogprobs& token : *all) n += 1 + std::ssize(token.top);
    }
  }
  return n;
}

}  // namespace fathom::serve
