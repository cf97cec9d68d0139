#include "serve/service.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "base/terminal.h"
#include "base/utf8.h"
#include "serve/page_file.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMostPrepared = 256;    // requests that wait to be read
constexpr size_t kShortBody = 16 << 10;  // bytes
constexpr size_t kMostIdBytes = 128;     // of an X-Request-Id
constexpr const char* kJson = "application/json";
// DeepSeek's names for one model without and with thoughts.
constexpr const char *kChatAlias = "deepseek-chat", *kReasonerAlias = "deepseek-reasoner";

// HEAD goes where GET does.
std::string allowed_of(const std::string& methods) {
  return methods + (methods.find("GET") != std::string::npos ? ", HEAD" : "") + ", OPTIONS";
}

// Clients send the slash of a name like owner/model as %2F.
std::string unquoted(std::string_view path) {
  std::string text;
  for (size_t i = 0; i < path.size(); ++i) {
    unsigned byte = 0;
    const char* digits = path.data() + i + 1;
    if (path[i] == '%' && i + 2 < path.size() && std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2) {
      text += static_cast<char>(byte);
      i += 2;
    } else {
      text += path[i];
    }
  }
  return text;
}

// Of the names of headers that a page wants to send, those that are such, each with a comma in front: clients have many
// of their own (x-stainless-..., anthropic-version).
std::string more_headers(std::string_view asked) {
  constexpr size_t kMostBytes = 4096;
  std::string names;
  if (asked.size() > kMostBytes) return names;
  while (!asked.empty()) {
    const size_t comma = std::min(asked.find(','), asked.size());
    std::string_view name = asked.substr(0, comma);
    asked.remove_prefix(std::min(comma + 1, asked.size()));
    while (name.starts_with(' ')) name.remove_prefix(1);
    while (name.ends_with(' ')) name.remove_suffix(1);
    const bool is_name = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    });
    if (is_name) names += fmt::format(", {}", name);
  }
  return names;
}

// In the form of the API that the path belongs to.
std::string error_text(const ApiError& error, std::string_view path) {
  const bool is_message = path.starts_with("/v1/messages") || path.starts_with("/anthropic/v1/messages");
  return is_message ? messages_error_json(error) : error_json(error);
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

}  // namespace

struct Service::Call {
  HttpRequest request;
  HttpReply reply;
  double start_s = monotonic_s();
  std::string id{};
  std::string route{};
  std::optional<size_t> key{};
  std::string allowed_origin{};
  std::string methods{};  // that the route takes
  bool gone = false;
};

struct Service::Route {
  const char* method;
  const char* path;  // one that ends in * is a beginning
  void (Service::*handle)(const CallPtr& call);
  bool open = false;  // to everybody
};

const std::vector<Service::Route>& Service::routes() {
  static const std::vector<Route> all = {
      {"GET", "/health", &Service::get_health, true},
      {"GET", "/ready", &Service::get_ready, true},
      {"GET", "/version", &Service::get_version},
      {"GET", "/metrics", &Service::get_metrics},
      {"GET", "/v1/models", &Service::get_models},
      {"GET", "/v1/models/*", &Service::get_models},
      {"GET", "/models", &Service::get_models},
      {"GET", "/models/*", &Service::get_models},
      {"GET", "/beta/models", &Service::get_models},
      {"GET", "/tokenizer_info", &Service::get_tokenizer_info},
      {"POST", "/v1/chat/completions", &Service::post_chat},
      {"POST", "/chat/completions", &Service::post_chat},
      {"POST", "/beta/chat/completions", &Service::post_chat},
      {"POST", "/v1/completions", &Service::post_completion},
      {"POST", "/completions", &Service::post_completion},
      {"POST", "/beta/completions", &Service::post_completion},
      {"POST", "/v1/responses", &Service::post_responses},
      {"POST", "/responses", &Service::post_responses},
      {"POST", "/v1/messages", &Service::post_messages},
      {"POST", "/anthropic/v1/messages", &Service::post_messages},
      {"POST", "/v1/messages/count_tokens", &Service::post_count_tokens},
      {"POST", "/anthropic/v1/messages/count_tokens", &Service::post_count_tokens},
      {"POST", "/tokenize", &Service::post_tokenize},
      {"POST", "/detokenize", &Service::post_detokenize},
      {"POST", "/apply-template", &Service::post_apply_template},
  };
  return all;
}

Service::Service(HttpServer& server, ServiceOptions options)
    : server_(server),
      options_(std::move(options)),
      metrics_(options_.model_name),
      created_(std::time(nullptr)),
      short_(std::make_unique<Preparations>()),
      long_(std::make_unique<Preparations>()) {}

// Work on a thread of its own, in its order.
struct Service::Preparations {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> waiting;
  bool stops = false;
  std::thread thread{[this] { run(); }};

  ~Preparations() {
    {
      const std::lock_guard lock(mutex);
      stops = true;
    }
    wake.notify_one();
    thread.join();
  }
  void add(std::function<void()> work) {
    {
      const std::lock_guard lock(mutex);
      waiting.push_back(std::move(work));
    }
    wake.notify_one();
  }
  void run() {
    for (;;) {
      std::function<void()> work;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stops || !waiting.empty(); });
        if (stops) return;
        work = std::move(waiting.front());
        waiting.pop_front();
      }
      work();
    }
  }
};

Service::~Service() = default;

void Service::stop() {
  short_.reset();
  long_.reset();
}

void Service::serve(const Served& served) { served_.emplace(served); }

const Served& Service::loaded() const {
  if (!served_) throw ApiError(503, "the model is being loaded", "", "loading");
  return *served_;
}

const Served& Service::served() const {
  if (draining_) throw ApiError(503, "the server is shutting down", "", "shutting_down");
  return loaded();
}

void Service::drain() {
  draining_ = true;
  server_.drain();
}

void Service::abandon() {
  const auto jobs = jobs_;
  const ApiError end(503, "the server is shutting down", "", "shutting_down");
  for (const auto& job : jobs) job->fail(end);
  for (const CallPtr& call : std::exchange(prepared_, {})) refuse(call, end);
}

// ---- Calls

HttpVerdict Service::judge(const HttpRequest& request) const {
  try {
    check_origin(options_.access, request);
    for (const Route& route : routes()) {
      if (route.path != request.path || route.method != request.method || request.method != "POST") continue;
      const std::optional<size_t> key = check_key(options_.access, request);
      return {.wants_body = true, .owner = key ? options_.access.keys.name(*key) : ""};
    }
  } catch (const ApiError&) {
  }
  return {};
}

HttpRefusalText Service::refuse_unread(const HttpRefusal& refusal, std::string_view path) {
  const std::string id = random_id("req-");
  if (options_.log_requests && !quiet()) {
    log_line(json_text({{"time", utc_now()},
                        {"id", id},
                        {"path", printable(path)},
                        {"status", refusal.status},
                        {"error", refusal.what()}}));
  }
  metrics_.count_http("", refusal.status);
  return {error_text(ApiError(refusal.status, refusal.what()), path), {{"X-Request-Id", id}}};
}

void Service::handle(HttpRequest request, HttpReply reply) {
  const auto call = std::make_shared<Call>(Call{std::move(request), std::move(reply)});
  const std::string* given = call->request.header("x-request-id");
  const bool usable =
      given != nullptr && !given->empty() && given->size() <= kMostIdBytes &&
      std::all_of(given->begin(), given->end(), [](char c) { return c > 0x20 && c < 0x7f && c != '"' && c != '\\'; });
  call->id = usable ? *given : random_id("req-");
  call->reply.on_gone([call] { call->gone = true; });
  try {
    check_origin(options_.access, call->request);
    if (const std::string* origin = call->request.header("origin")) {
      for (const std::string& allowed : options_.access.cors_origins) {
        if (allowed == "*" || allowed == *origin) call->allowed_origin = *origin;
      }
    }
    std::string_view method = call->request.method;
    if (method == "HEAD") method = "GET";
    std::string& methods = call->methods;
    for (const Route& route : routes()) {
      const std::string_view path = route.path;
      const bool fits = path.ends_with('*') ? call->request.path.starts_with(path.substr(0, path.size() - 1))
                                            : call->request.path == path;
      if (!fits) continue;
      call->route = path;
      if (method == route.method) {
        if (!route.open) call->key = check_key(options_.access, call->request);
        return (this->*route.handle)(call);
      }
      methods += (methods.empty() ? "" : ", ") + std::string(route.method);
    }
    if (methods.empty() && find_page_file("chat", call->request.path)) {
      call->route = "page";
      if (method == "GET") return get_file(call);
      methods = "GET";
    }
    if (methods.empty())
      throw ApiError(404, fmt::format("there is no {}", printable(call->request.path)), "", "not_found");
    if (method == "OPTIONS") return answer_options(call);
    throw ApiError(405, fmt::format("{} takes {} alone", printable(call->request.path), methods), "",
                   "method_not_allowed");
  } catch (const ApiError& error) {
    refuse(call, error);
  } catch (const std::exception& error) {
    refuse(call, ApiError(500, error.what()));
  }
}

HttpHeaders Service::headers_of(const Call& call) const {
  HttpHeaders headers = {{"X-Request-Id", call.id}, {"X-Content-Type-Options", "nosniff"}};
  if (!call.allowed_origin.empty()) {
    headers.emplace_back("Access-Control-Allow-Origin", call.allowed_origin);
    headers.emplace_back("Access-Control-Expose-Headers", "Retry-After, X-Request-Id");
    headers.emplace_back("Vary", "Origin");
  }
  return headers;
}

void Service::answer(const CallPtr& call, int status, std::string_view content_type, std::string_view body) {
  if (!call->reply.has_room(body.size())) return refuse(call, no_room_for_answers());
  call->reply.send(status, content_type, body, headers_of(*call));
  log(*call, status, nullptr);
  metrics_.count_http(call->route, status);
}

void Service::answer_options(const CallPtr& call) {
  HttpHeaders headers = headers_of(*call);
  headers.emplace_back("Allow", allowed_of(call->methods));
  if (!call->allowed_origin.empty()) {
    const std::string* asked = call->request.header("access-control-request-headers");
    headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    headers.emplace_back("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key, X-Request-Id" +
                                                             (asked != nullptr ? more_headers(*asked) : ""));
  }
  call->reply.send(204, "", "", headers);
  log(*call, 204, nullptr);
  metrics_.count_http(call->route, 204);
}

void Service::answer_json(const CallPtr& call, const ordered_json& json) { answer(call, 200, kJson, json_text(json)); }

void Service::refuse(const CallPtr& call, const ApiError& error) {
  HttpHeaders headers = headers_of(*call);
  if (error.status == 429 || error.status == 503) headers.emplace_back("Retry-After", error.status == 429 ? "1" : "5");
  if (error.status == 405) headers.emplace_back("Allow", allowed_of(call->methods));
  if (error.status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  if (error.status == 429) metrics_.count_refusal();
  call->reply.send(error.status, kJson, error_text(error, call->request.path), headers);
  log(*call, error.status, nullptr);
  metrics_.count_http(call->route, error.status);
}

// One object a line. Prompts and answers are told where that is asked for alone.
void Service::log(const Call& call, int status, const JobTotals* totals) const {
  if (!options_.log_requests || quiet()) return;
  ordered_json line{{"time", utc_now()},
                    {"id", call.id},
                    {"method", call.request.method},
                    {"path", printable(call.request.path)},
                    {"status", status},
                    {"seconds", monotonic_s() - call.start_s}};
  if (call.key) line["key"] = *call.key;
  if (options_.log_content && !call.request.body.empty()) line["request"] = call.request.body;
  if (totals != nullptr) {
    if (options_.log_content) line["answers"] = totals->answers;
    line["prompt_tokens"] = totals->usage.prompt_tokens;
    line["cached_tokens"] = totals->usage.cached_tokens;
    line["completion_tokens"] = totals->usage.completion_tokens;
    line["first_token_s"] = totals->first_token_s;
    line["finish_reason"] = totals->finish;
  }
  log_line(json_text(line));
}

// ---- Work that takes long

template <class Prepare, class Use>
void Service::prepare(const CallPtr& call, Prepare prepare, Use use) {
  if (prepared_.size() >= kMostPrepared)
    throw ApiError(429, "the server is busy: too many requests wait", "", "server_busy");
  prepared_.insert(call);
  auto work = [this, call, prepare = std::move(prepare), use = std::move(use)] {
    using Prepared = decltype(prepare(call->request.body));
    std::shared_ptr<Prepared> prepared;
    std::optional<ApiError> error;
    try {
      prepared = std::make_shared<Prepared>(prepare(call->request.body));
    } catch (const ApiError& refusal) {
      error = refusal;
    } catch (const std::exception& failure) {
      error = ApiError(500, failure.what());
    }
    server_.post([this, call, prepared, error, use] {
      if (prepared_.erase(call) == 0) return;  // refused since: the server ends
      if (call->gone) return log(*call, 499, nullptr);
      try {
        if (error) throw *error;
        use(std::move(*prepared));
      } catch (const ApiError& refusal) {
        refuse(call, refusal);
      } catch (const std::exception& failure) {
        refuse(call, ApiError(500, failure.what()));
      }
    });
  };
  // Who asks little does not wait for who asks much.
  (call->request.body.size() <= kShortBody ? short_ : long_)->add(std::move(work));
}

// ---- Generation

void Service::check_room() const {
  if (served().engine.state().waiting >= served_->max_waiting) {
    throw ApiError(429, "the server is busy: too many requests wait", "", "server_busy");
  }
}

namespace {

// Checks what the engine takes for granted.
void check_prompts(const Served& served, const JobInput& input) {
  if (const int64_t most = served.max_batch + served.max_waiting; std::ssize(input.prompts) * input.request.n > most) {
    throw ApiError(400, fmt::format("n: this server takes at most {} sequences with a request", most), "n",
                   "invalid_value");
  }
  int64_t n_logprobs = 0;
  for (const std::vector<int32_t>& prompt : input.prompts)
    n_logprobs += std::ssize(prompt) * (input.request.prompt_logprobs + 1);
  if (n_logprobs * (input.chat ? 1 : input.request.n) > kMaxPromptLogprobs) {
    throw ApiError(400, fmt::format("prompt_logprobs: at most {} for all prompts together", kMaxPromptLogprobs),
                   "prompt_logprobs", "invalid_value");
  }
  for (const std::vector<int32_t>& prompt : input.prompts) {
    try {
      check_prompt(served.model, served.engine.context(), prompt);
    } catch (const Error& error) {
      const bool too_long = std::ssize(prompt) > served.engine.context();
      throw ApiError(400, error.what(), input.chat ? "messages" : "prompt",
                     too_long ? "context_length_exceeded" : "invalid_value");
    }
  }
  if (most_logprobs(input, served.engine.context()) > kMaxLogprobs) {
    throw ApiError(
        400,
        fmt::format("logprobs: {}max_tokens, times n, times the likeliest of each (top_logprobs) and itself, "
                    "may be {}: ask for less{}",
                    input.echo ? "tokens of prompts (echo) and " : "", kMaxLogprobs,
                    input.request.stream ? "" : ", or for a stream"),
        "logprobs", "invalid_value");
  }
}

// Who names no length of an answer with log probabilities gets as many tokens as may be gathered.
void bound_gathered(CommonRequest& request, int64_t n_prompts) {
  const int64_t n_top = request.generation.top_logprobs;
  if (request.stream || request.max_tokens || n_top < 0) return;
  request.max_tokens = std::max<int64_t>(1, kMaxLogprobs / (n_prompts * request.n * (n_top + 1)));
}

}  // namespace

namespace {

// What work() returns. What it refuses is said by the names that another API has for it.
template <class Work>
auto with_names(ApiError (*renamed)(const ApiError&), const Work& work) {
  try {
    return work();
  } catch (const ApiError& error) {
    throw renamed(error);
  }
}

}  // namespace

// What a chat asks for by its fields and by the name of its model.
ChatRequest Service::chat_request(std::string_view body) {
  ChatRequest request = parse_chat_request(body);
  if (!request.thinking && request.model == kReasonerAlias) request.thinking = true;
  if (!request.thinking && request.model == kChatAlias) request.thinking = false;
  return request;
}

JobInput Service::prepare_chat(ChatRequest request) const {
  ChatInput chat = chat_input(served_->prompts, request);
  JobInput input{.chat = true, .prompts = {std::move(chat.ids)}, .format = chat.format, .begun = std::move(chat.begun)};
  input.request = std::move(request);
  input.request.generation.constraint = chat.constraint;
  input.request.generation.thinking_budget = std::move(chat.thinking_budget);
  if (!chat.call_end.empty()) input.request.generation.stop.push_back(std::move(chat.call_end));
  bound_gathered(input.request, 1);
  check_prompts(*served_, input);
  return input;
}

void Service::post_chat(const CallPtr& call) {
  served();
  check_room();
  prepare(
      call, [this](const std::string& body) { return prepare_chat(chat_request(body)); },
      [this, call](JobInput input) { start(call, std::move(input)); });
}

void Service::post_messages(const CallPtr& call) {
  served();
  check_room();
  prepare(
      call,
      [this](const std::string& body) {
        const std::string chat = chat_body_of_messages(body, false);
        JobInput input = with_names(messages_error, [&] { return prepare_chat(chat_request(chat)); });
        input.dialect = Dialect::messages;
        return input;
      },
      [this, call](JobInput input) { start(call, std::move(input)); });
}

void Service::post_responses(const CallPtr& call) {
  served();
  check_room();
  prepare(
      call,
      [this](const std::string& body) {
        ResponseInput asked = response_input(body);
        JobInput input = with_names(response_error, [&] { return prepare_chat(chat_request(asked.chat)); });
        input.dialect = Dialect::responses;
        input.echo_fields = std::move(asked.echo);
        return input;
      },
      [this, call](JobInput input) { start(call, std::move(input)); });
}

void Service::post_count_tokens(const CallPtr& call) {
  served();
  prepare(
      call,
      [this](const std::string& body) {
        // Whatever its length: who asks wants to know by how much it is too long.
        const std::string chat = chat_body_of_messages(body, true);
        return with_names(messages_error,
                          [&] { return std::ssize(chat_input(served_->prompts, chat_request(chat)).ids); });
      },
      [this, call](int64_t n) {
        answer_json(call, {{"input_tokens", n}});
      });
}

void Service::post_completion(const CallPtr& call) {
  const Served& s = served();
  check_room();
  prepare(
      call,
      [&s](const std::string& body) {
        CompletionRequest request = parse_completion_request(body);
        JobInput input{.chat = false, .echo = request.echo, .prompts = completion_inputs(s.prompts, request)};
        if (request.echo) input.unsaid_begins = unsaid_begins(s.tokenizer, request);
        input.request = std::move(request);
        input.request.generation.constraint = constraint_of(s.prompts, input.request.grammar, "");
        check_prompts(s, input);
        return input;
      },
      [this, call](JobInput input) { start(call, std::move(input)); });
}

void Service::start(const CallPtr& call, JobInput input) {
  const Served& s = served();
  const uint64_t seed = input.request.seed.value_or(options_.seed + 0x9e3779b97f4a7c15 * ++n_jobs_);
  // Caches are shared among requests with one key and one salt. Files of them outlive the file of keys, whose lines may
  // change places.
  const std::string owner = call->key ? options_.access.keys.name(*call->key) : "";
  const std::string salt = fmt::format("{}:{}", owner, input.request.cache_salt);
  auto holder = std::make_shared<std::weak_ptr<Job>>();
  const auto job =
      std::make_shared<Job>(std::move(input), s.tokenizer, options_.model_name, call->reply, headers_of(*call),
                            metrics_, [this, call, holder](int status, const JobTotals& totals) {
                              log(*call, status, &totals);
                              metrics_.count_http(call->route, status);
                              metrics_.count_request(monotonic_s() - call->start_s);
                              if (const auto ended = holder->lock()) jobs_.erase(ended);
                            });
  *holder = job;
  JobSettings settings{s.eos_ids, salt,           owner, static_cast<int64_t>(n_jobs_),
                       seed,      s.draft_tokens, {},    options_.log_content};
  settings.elsewhere = [this](const std::function<std::string()>& make, const std::function<void(std::string)>& use) {
    long_->add([this, make, use] {
      auto text = std::make_shared<std::string>();
      try {
        *text = make();
      } catch (const std::exception&) {  // there is no memory; nothing else can fail
      }
      server_.post([text, use] { use(std::move(*text)); });
    });
  };
  const ModelConfig& config = s.model.config;
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    if (config.is_moe(l)) settings.moe_layers.push_back(l);
  }
  job->start(s.engine, settings);
  jobs_.insert(job);
}

// ---- The rest

// The page and what belongs to it; openapi.json.
void Service::get_file(const CallPtr& call) {
  const std::optional<PageFile> file = find_page_file("chat", call->request.path);
  HttpHeaders headers = headers_of(*call);
  for (auto& header : page_headers()) headers.push_back(std::move(header));
  call->reply.send(200, file->content_type, file->content, headers);
  log(*call, 200, nullptr);
  metrics_.count_http(call->route, 200);
}

void Service::get_health(const CallPtr& call) {
  loaded();
  answer_json(call, {{"status", "ok"}});
}

void Service::get_ready(const CallPtr& call) {
  served();
  answer_json(call, {{"status", "ready"}});
}

void Service::get_version(const CallPtr& call) { answer_json(call, {{"version", options_.version}}); }

void Service::get_metrics(const CallPtr& call) {
  const EngineState state = served_ ? served_->engine.state() : EngineState();
  const PassCounts counts = served_ ? served_->engine.counts() : PassCounts();
  answer(call, 200, "text/plain; version=0.0.4; charset=utf-8", metrics_.text(state, counts, server_.n_connections()));
}

// While it is being loaded there is none: clients that wait for a server by asking for its models ask it something
// next.
ordered_json Service::model_json() const {
  const Served& s = loaded();
  const ModelConfig& config = s.model.config;
  return {{"id", options_.model_name},
          {"object", "model"},
          {"created", created_},
          {"owned_by", "fathom"},
          {"max_model_len", s.engine.context()},
          {"meta",
           {{"vocab_size", config.vocab_size},
            {"n_ctx_train", config.max_position_embeddings},
            {"n_embd", config.hidden_size},
            {"n_layer", config.num_hidden_layers}}}};
}

void Service::get_models(const CallPtr& call) {
  if (!call->route.ends_with('*')) {
    return answer_json(call, {{"object", "list"}, {"data", ordered_json::array({model_json()})}});
  }
  const std::string name = unquoted(std::string_view(call->request.path).substr(call->route.size() - 1));
  if (name != options_.model_name && name != kChatAlias && name != kReasonerAlias) {
    throw ApiError(404, fmt::format("there is no model {}, only {}", printable(name), options_.model_name), "model",
                   "model_not_found");
  }
  ordered_json model = model_json();
  model["id"] = name;
  answer_json(call, model);
}

void Service::get_tokenizer_info(const CallPtr& call) {
  const Served& s = served();
  const auto token = [&](int32_t id) {
    return id >= 0 ? ordered_json(s.tokenizer.token_bytes(id)) : ordered_json(nullptr);
  };
  answer_json(call, {{"tokenizer_class", "PreTrainedTokenizerFast"},
                     {"bos_token", token(s.tokenizer.bos_id())},
                     {"eos_token", token(s.tokenizer.eos_id())},
                     {"pad_token", token(s.tokenizer.eos_id())},
                     {"add_bos_token", s.tokenizer.adds_bos()},
                     {"vocab_size", s.tokenizer.vocab_size()},
                     {"model_max_length", s.engine.context()},
                     {"chat_template", s.prompts.chat_template}});
}

void Service::post_tokenize(const CallPtr& call) {
  const Served& s = served();
  prepare(
      call,
      [&s](const std::string& body) {
        const TokenizeRequest request = parse_tokenize_request(body);
        const std::vector<int32_t> ids =
            request.chat ? chat_input(s.prompts, *request.chat).ids
                         : text_ids(s.tokenizer, request.text, request.add_special_tokens, request.parse_special);
        ordered_json out{{"count", ids.size()}, {"max_model_len", s.engine.context()}, {"tokens", ids}};
        if (request.return_token_strs) {
          for (const int32_t id : ids) out["token_strs"].push_back(mend_utf8(s.tokenizer.token_bytes(id)));
        }
        return json_text(out);  // here: it may be long
      },
      [this, call](const std::string& text) { answer(call, 200, kJson, text); });
}

void Service::post_detokenize(const CallPtr& call) {
  const Served& s = served();
  prepare(
      call,
      [&s](const std::string& body) {
        try {
          const std::string text = s.tokenizer.decode(parse_detokenize_request(body));
          return json_text({{"prompt", text}, {"content", text}});
        } catch (const Error& error) {
          throw ApiError(400, fmt::format("tokens: {}", error.what()), "tokens", "invalid_value");
        }
      },
      [this, call](const std::string& text) { answer(call, 200, kJson, text); });
}

void Service::post_apply_template(const CallPtr& call) {
  const Served& s = served();
  prepare(
      call,
      [&s](const std::string& body) {
        return json_text({{"prompt", chat_input(s.prompts, parse_chat_request(body)).text}});
      },
      [this, call](const std::string& text) { answer(call, 200, kJson, text); });
}

}  // namespace fathom::serve
