// Whatever speaks OpenAI's API behind a URL, asked (eval/answerer.h): several requests at a time, tried again where the
// server has no time.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "base/json.h"
#include "base/terminal.h"
#include "base/utf8.h"
#include "eval/answerer_kinds.h"
#include "eval/task_files.h"
#include "serve/event_stream.h"

namespace fathom::eval {
namespace {

using nlohmann::ordered_json;

constexpr double kLookS = 0.05;               // between two looks whether the work is to end
constexpr double kTellFromS = 3;              // waits of so long are told
constexpr int kRefusals[] = {400, 413, 422};  // of this request, whoever asks how often
constexpr int64_t kUnreadable = 2;            // times that a reply which cannot be read is asked for again

struct Request {
  std::string method = "POST", path, body;
  std::string id;  // begins the message of its failure
};

struct Reply {
  int status = 0;
  std::string body;
  double seconds = 0;
  std::string unreadable{};  // why it was given up
  bool ok() const { return status == 200 && unreadable.empty(); }
  std::string failure() const {
    return unreadable.empty() ? fmt::format("{} {}", status, serve::error_message_of(body)) : unreadable;
  }
};

// A reply of 200 that is no answer.
struct Unreadable : Error {
  Unreadable(const std::string& message, bool is_error) : Error(message), tells_error(is_error) {}
  bool tells_error;  // {"error": ...}, as of a server that has no time
};

// Requests of a RemoteModel, `parallel` at a time. on_reply gets answers and refusals, and may throw Unreadable: the
// request is sent again, and at last on_reply gets the reply as one that is not ok().
struct Jobs {
  RemoteModel& remote;
  int64_t n;
  const std::function<Request(int64_t)>& request_of;
  const std::function<void(int64_t, const Reply&)>& on_reply;
  serve::HttpClient client{remote.url, remote.limits};
  int64_t next = 0, ended = 0;
  bool interrupted = false;

  struct Job {
    int64_t number;
    Request request;
    double begin_s;
    int64_t tries = 0;
    double retry_after_s = -1;
    Reply reply{};
  };

  void begin() {
    if (next == n) return;
    const int64_t number = next++;
    send(std::make_shared<Job>(Job{number, request_of(number), monotonic_s()}));
  }
  void send(const std::shared_ptr<Job>& job) {
    job->reply = {};
    job->retry_after_s = -1;
    client.send(serve::request_text(remote.url, job->request.method, job->request.path, remote.headers,
                                    job->request.body, remote.limits.keep_alive),
                {.header = [job](int status, const std::string&) { job->reply.status = status; },
                 .body =
                     [job](const std::string& piece, double) {
                       job->reply.body += piece;
                       return serve::HttpNext::more;
                     },
                 .end = [this, job](serve::HttpEnd end, const std::string& why) { on_end(job, end, why); },
                 .retry_after = [job](double seconds) { job->retry_after_s = seconds; }});
  }
  void on_end(const std::shared_ptr<Job>& job, serve::HttpEnd end, const std::string& why) {
    const int status = job->reply.status;
    const std::string where = fmt::format("http://{}{}{}: {}", printable(remote.url.authority),
                                          printable(remote.url.path), job->request.path, job->request.id);
    if (end == serve::HttpEnd::complete) {
      const bool refused = std::find(std::begin(kRefusals), std::end(kRefusals), status) != std::end(kRefusals);
      if (status == 200 || refused) return finish(job, where);
      const std::string told = job->reply.failure();
      if (status != 408 && status != 409 && status != 429 && status < 500) throw Error("{}: {}", where, told);
      return try_again(job, where, told);
    }
    if (end == serve::HttpEnd::too_large) return again_or_give_up(job, where, why, kUnreadable);
    try_again(job, where, why);
  }
  void again_or_give_up(const std::shared_ptr<Job>& job, const std::string& where, const std::string& why,
                        int64_t retries) {
    if (job->tries < std::min(retries, remote.retries)) return try_again(job, where, why);
    job->reply.body.clear();
    job->reply.unreadable = fmt::format("{}, {} times", why, job->tries + 1);
    finish(job, where);
  }
  void try_again(const std::shared_ptr<Job>& job, const std::string& where, const std::string& why) {
    if (job->tries == remote.retries) {
      throw Error("{}: {}, after {} tries; what was answered before is kept", where, why, job->tries + 1);
    }
    // Those that failed together do not come back together.
    const double spread = 1 + 0.02 * static_cast<double>(job->number % 16);
    const double backed_off = remote.first_wait_s * std::exp2(static_cast<double>(job->tries)) * spread;
    const double wait_s = std::max(std::min(backed_off, remote.longest_wait_s),
                                   std::min(job->retry_after_s, remote.longest_asked_wait_s));
    ++job->tries;
    if (wait_s >= kTellFromS) log("{}: {}; asked again in {:.0f} s", where, why, wait_s);
    client.at(monotonic_s() + wait_s, [this, job] { send(job); });
  }
  void finish(const std::shared_ptr<Job>& job, const std::string& where) {
    job->reply.seconds = monotonic_s() - job->begin_s;
    try {
      on_reply(job->number, job->reply);
    } catch (const Unreadable& error) {
      if (!job->reply.ok()) throw;
      return again_or_give_up(job, where, error.what(), error.tells_error ? remote.retries : kUnreadable);
    }
    ++ended;
    begin();
    if (ended == n) client.stop();
  }
};

// False where the work was interrupted.
bool run_jobs(RemoteModel& remote, int64_t n, const std::function<Request(int64_t)>& request_of,
              const std::function<void(int64_t, const Reply&)>& on_reply, const Interrupted& interrupted) {
  if (n == 0) return true;
  Jobs jobs{remote, n, request_of, on_reply};
  jobs.client.every(kLookS, [&] {
    if (!interrupted || !interrupted()) return;
    jobs.interrupted = true;
    jobs.client.stop();
  });
  for (int64_t i = 0; i < std::max<int64_t>(remote.parallel, 1); ++i) jobs.begin();
  jobs.client.run();
  return !jobs.interrupted;
}

std::string dump(const ordered_json& json) { return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace); }

ordered_json body_of(const RemoteModel& remote) {
  ordered_json body = ordered_json::object();
  if (!remote.name.empty()) body["model"] = remote.name;
  return body;
}

Request request_of(const RemoteModel& remote, const Question& question, int64_t sample) {
  const bool talks = !question.messages.is_null();
  ordered_json body = body_of(remote);
  if (talks) {
    body["messages"] = question.messages;
    if (question.thinking) {
      body["chat_template_kwargs"] = {{"thinking", *question.thinking}, {"enable_thinking", *question.thinking}};
    }
  } else {
    body["prompt"] = question.prompt;
  }
  body["max_tokens"] = question.max_tokens;
  body["temperature"] = question.temperature;
  body["top_p"] = question.top_p;
  if (question.top_k > 0) body["top_k"] = question.top_k;
  body["seed"] = question.seed + static_cast<uint64_t>(sample);
  if (!question.stop.empty()) body["stop"] = question.stop;
  return {.path = talks ? "/v1/chat/completions" : "/v1/completions", .body = dump(body), .id = question.id};
}

std::string text_in(simdjson::dom::element object, const char* key) {
  std::string_view text;
  return object[key].get(text) == simdjson::SUCCESS ? std::string(text) : std::string();
}

int64_t count_in(simdjson::dom::element object, const char* key) {
  int64_t n = 0;
  return object[key].get_int64().get(n) == simdjson::SUCCESS ? std::max<int64_t>(n, 0) : 0;
}

// JSON with U+FFFD for bytes that are no UTF-8 and for halves of surrogate pairs, which servers cut tokens into.
std::string mended_json(std::string_view body) {
  std::string text = mend_utf8(body);
  const auto escaped_unit = [&](size_t at) {  // of \uXXXX
    unsigned unit = 0;
    if (text.compare(at, 2, "\\u") != 0 || at + 6 > text.size()) return unit;
    const auto [end, error] = std::from_chars(&text[at + 2], &text[at] + 6, unit, 16);
    return error == std::errc() && end == &text[at] + 6 ? unit : 0U;
  };
  for (size_t at = text.find('\\'); at != std::string::npos; at = text.find('\\', at)) {
    const unsigned unit = escaped_unit(at) & 0xFC00U;
    if (unit == 0xD800 && at + 12 <= text.size() && (escaped_unit(at + 6) & 0xFC00U) == 0xDC00) {
      at += 12;
      continue;
    }
    if (unit == 0xD800 || unit == 0xDC00) text.replace(at, 6, "\\ufffd");
    at += 2;
  }
  return text;
}

// Unreadable where it is no JSON, or says an error.
JsonDocument parse_reply(const Reply& reply) {
  JsonDocument document = [&] {
    try {
      return JsonDocument::parse(mended_json(reply.body), "the answer");
    } catch (const Error& error) {
      throw Unreadable(error.what(), /*is_error=*/false);
    }
  }();
  simdjson::dom::element error;
  if (document.root().is_object() && document.root()["error"].get(error) == simdjson::SUCCESS && !error.is_null()) {
    throw Unreadable(fmt::format("200 with an error: {}", serve::error_message_of(reply.body)), /*is_error=*/true);
  }
  return document;
}

// The first choice. Unreadable where there is none.
simdjson::dom::element choice_in(const JsonDocument& document) {
  simdjson::dom::element choice;
  if (document.root()["choices"].at(0).get(choice)) {
    throw Unreadable("the answer has no choice", /*is_error=*/false);
  }
  return choice;
}

// A text, or the texts of a list of parts. Nothing is said where there is null.
std::string content_in(simdjson::dom::element object, const char* key) {
  simdjson::dom::element value;
  std::string_view text;
  simdjson::dom::array parts;
  if (object[key].get(value) || value.is_null()) return "";
  if (value.get(text) == simdjson::SUCCESS) return std::string(text);
  if (value.get(parts)) {
    throw Unreadable(fmt::format("the answer's {} is no text", key), /*is_error=*/false);
  }
  std::string all;
  for (const simdjson::dom::element part : parts) all += text_in(part, "text");
  return all;
}

Answer read_answer(const Question& question, const Reply& reply) {
  Answer answer;
  answer.seconds = reply.seconds;
  if (!reply.ok()) {
    answer.error = reply.failure();
    return answer;
  }
  const JsonDocument document = parse_reply(reply);
  const simdjson::dom::element choice = choice_in(document);
  answer.finish = text_in(choice, "finish_reason");
  simdjson::dom::element message, usage;
  if (question.messages.is_null()) {
    answer.text = content_in(choice, "text");
  } else {
    if (choice["message"].get(message)) {
      throw Unreadable("the answer has no message", /*is_error=*/false);
    }
    answer.text = content_in(message, "content");
    answer.reasoning = text_in(message, "reasoning_content");
    if (answer.reasoning.empty()) answer.reasoning = text_in(message, "reasoning");  // vLLM's name
    part_thoughts(answer);
  }
  if (!document.root()["usage"].get(usage)) {
    answer.prompt_tokens = count_in(usage, "prompt_tokens");
    answer.tokens = count_in(usage, "completion_tokens");
  }
  return answer;
}

// ---- Tokens and their probabilities

std::vector<int32_t> read_tokens(const Reply& reply) {
  const JsonDocument document = parse_reply(reply);
  std::vector<int32_t> ids;
  simdjson::dom::array list;
  if (document.root()["tokens"].get(list)) throw Error("/tokenize: the answer has no list of tokens");
  for (const simdjson::dom::element element : list) {
    int64_t id = 0;
    if (element.get_int64().get(id) || id < 0 || id > INT32_MAX) throw Error("/tokenize: what is told is no token id");
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

Request tokenize_request(const RemoteModel& remote, const std::string& text, bool add_begin, const std::string& id) {
  ordered_json body = body_of(remote);
  body["prompt"] = text;
  body["add_special_tokens"] = add_begin;
  return {.path = "/tokenize", .body = dump(body), .id = id};
}

// Of each text; nothing where the server has no /tokenize.
std::optional<std::vector<std::vector<int32_t>>> tokenize(RemoteModel& remote, const std::vector<std::string>& texts,
                                                          bool add_begin, const Interrupted& interrupted) {
  std::vector<std::vector<int32_t>> ids(texts.size());
  if (texts.empty()) return ids;
  try {
    const bool whole = run_jobs(
        remote, std::ssize(texts),
        [&](int64_t i) { return tokenize_request(remote, texts[static_cast<size_t>(i)], add_begin, "tokens"); },
        [&](int64_t i, const Reply& reply) {
          if (!reply.ok()) throw Error("/tokenize: {}", reply.failure());
          ids[static_cast<size_t>(i)] = read_tokens(reply);
        },
        interrupted);
    if (!whole) ids.clear();
  } catch (const Error& error) {
    return std::nullopt;
  }
  return ids;
}

// A text, or ids, to be told again with the log probability of each of its tokens.
struct Echo {
  std::string id, text{};
  std::vector<int32_t> ids{};
  size_t begin = 0;  // of what is wanted: in ids, or without these in characters of the text
};

Request echo_request(const RemoteModel& remote, const Echo& echo) {
  ordered_json body = body_of(remote);
  body["prompt"] = echo.ids.empty() ? ordered_json(echo.text) : ordered_json(echo.ids);
  // Servers differ in whether they take 0. What is generated is not looked at.
  body["max_tokens"] = 1;
  body["temperature"] = 0;
  body["logprobs"] = 1;
  body["echo"] = true;
  return {.path = "/v1/completions", .body = dump(body), .id = echo.id};
}

// Of a text: the first token of the continuation, and where the prompt ends.
std::pair<size_t, size_t> find_in_text(simdjson::dom::element logprobs, const Echo& echo, size_t n_told) {
  simdjson::dom::array list;
  if (logprobs["text_offset"].get(list)) {
    throw Error("{}: the server has no /tokenize, and tells no text_offset of tokens", echo.id);
  }
  std::vector<int64_t> offsets;
  for (const simdjson::dom::element element : list) {
    int64_t offset = 0;
    if (element.get_int64().get(offset)) throw Error("{}: text_offset is no list of numbers", echo.id);
    offsets.push_back(offset);
  }
  if (offsets.size() != n_told) throw Error("{}: text_offset has another length than token_logprobs", echo.id);
  const auto begin = static_cast<int64_t>(echo.begin);
  const auto end = n_characters(echo.text);
  size_t first = 0, last = 0;
  while (first < offsets.size() && offsets[first] < begin) ++first;
  // A token that ends in the continuation is a part of it.
  if (first > 0 && (first == offsets.size() || offsets[first] > begin)) --first;
  while (last < offsets.size() && offsets[last] < end) ++last;
  return {first, last};
}

ChoiceScore read_echo(const Echo& echo, const Reply& reply) {
  const JsonDocument document = parse_reply(reply);
  const simdjson::dom::element choice = choice_in(document);
  simdjson::dom::element logprobs;
  simdjson::dom::array values, tops;
  if (choice["logprobs"].get(logprobs) || logprobs["token_logprobs"].get(values)) {
    throw Error(
        "{}: the server tells no log probabilities of the prompt (echo with logprobs), which this task is judged by; "
        "tasks that generate need none",
        printable(echo.id));
  }
  const bool has_tops = logprobs["top_logprobs"].get(tops) == simdjson::SUCCESS;
  size_t first = echo.begin, last = echo.ids.size();
  if (echo.ids.empty()) std::tie(first, last) = find_in_text(logprobs, echo, values.size());
  if (first == 0 || first >= last || last > values.size() || (has_tops && tops.size() != values.size())) {
    throw Error("{}: log probabilities of {} tokens for a prompt of {}: the server does not echo it",
                printable(echo.id), values.size(), last);
  }
  ChoiceScore score{.greedy = has_tops, .tokens = static_cast<int64_t>(last - first)};
  for (size_t i = first; i < last; ++i) {
    double value = 0;
    if (values.at(i).get_double().get(value)) throw Error("{}: a token has no log probability", printable(echo.id));
    score.logprob += value;
    simdjson::dom::object top;
    if (!score.greedy || tops.at(i).get(top)) {
      score.greedy = false;
      continue;
    }
    for (const simdjson::dom::key_value_pair other : top) {
      double other_value = 0;
      if (!other.value.get_double().get(other_value)) score.greedy &= other_value <= value;
    }
  }
  return score;
}

// Each text once, whatever asks for it.
struct Texts {
  std::vector<std::string> all{};
  std::unordered_map<std::string, size_t> known{};
  size_t add(const std::string& text) {
    const auto [at, is_new] = known.try_emplace(text, all.size());
    if (is_new) all.push_back(text);
    return at->second;
  }
};

constexpr size_t kTogether = 256;  // questions whose tokens are asked for before they are scored

}  // namespace

void answer_questions(RemoteModel& remote, std::span<const Question> questions, const OnAnswer& tell,
                      const Interrupted& interrupted, const Skip& skip) {
  std::vector<std::pair<size_t, int64_t>> wanted;
  for (size_t q = 0; q < questions.size(); ++q) {
    for (int64_t sample = 0; sample < questions[q].samples; ++sample) {
      if (!skip || !skip(q, sample)) wanted.emplace_back(q, sample);
    }
  }
  run_jobs(
      remote, std::ssize(wanted),
      [&](int64_t i) {
        const auto& one = wanted[static_cast<size_t>(i)];
        return request_of(remote, questions[one.first], one.second);
      },
      [&](int64_t i, const Reply& reply) {
        const auto& one = wanted[static_cast<size_t>(i)];
        tell(one.first, one.second, read_answer(questions[one.first], reply));
      },
      interrupted);
}

namespace {

// What is asked of a server for questions, and whose choice each is.
struct Echoes {
  std::vector<Echo> all{};
  std::vector<std::pair<size_t, size_t>> whose{};
  std::vector<size_t> waiting{};  // of each question
};

Echoes echoes_of(RemoteModel& remote, std::span<const ChoiceQuestion> questions, std::optional<bool>& has_tokenize,
                 std::vector<ChoiceAnswer>& answers, const Interrupted& interrupted) {
  Echoes echoes;
  Texts texts;
  std::vector<std::pair<size_t, size_t>> places;  // context, whole
  for (size_t q = 0; q < questions.size(); ++q) {
    const ChoiceQuestion& question = questions[q];
    if (!question.messages.is_null()) {
      throw UsageError("{}: a server tells no probabilities of answers in a conversation; leave --chat out",
                       question.id);
    }
    echoes.waiting.push_back(question.continuations.size());
    for (size_t c = 0; c < question.continuations.size(); ++c) {
      const auto [context, continuation] = with_spaces_moved(question.context, question.continuations[c]);
      places.emplace_back(texts.add(context), texts.add(context + continuation));
      echoes.whose.emplace_back(q, c);
      echoes.all.push_back(
          {.id = question.id, .text = context + continuation, .begin = static_cast<size_t>(n_characters(context))});
    }
  }
  if (!has_tokenize.value_or(true)) return echoes;
  const auto ids = tokenize(remote, texts.all, true, interrupted);
  has_tokenize = ids.has_value();
  if (!ids || ids->size() != texts.all.size()) return echoes;
  for (size_t i = 0; i < echoes.all.size(); ++i) {
    const auto& context = (*ids)[places[i].first];
    const auto& whole = (*ids)[places[i].second];
    // One token at least is read, and one asked for.
    const size_t n = std::min(std::max<size_t>(context.size(), 1), std::max<size_t>(whole.size(), 1) - 1);
    echoes.all[i].ids.assign(context.begin(), context.begin() + static_cast<int64_t>(std::min(n, context.size())));
    if (context.empty() && n > 0) echoes.all[i].ids.push_back(whole[0]);
    echoes.all[i].begin = n;
    echoes.all[i].ids.insert(echoes.all[i].ids.end(), whole.begin() + static_cast<int64_t>(n), whole.end());
    answers[echoes.whose[i].first].context_tokens = static_cast<int64_t>(n);
  }
  return echoes;
}

}  // namespace

void score_choices(RemoteModel& remote, std::span<const ChoiceQuestion> all, const OnChoices& tell,
                   const Interrupted& interrupted) {
  std::optional<bool> has_tokenize;
  for (size_t first = 0; first < all.size(); first += kTogether) {
    const auto questions = all.subspan(first, std::min(kTogether, all.size() - first));
    std::vector<ChoiceAnswer> answers(questions.size());
    Echoes echoes = echoes_of(remote, questions, has_tokenize, answers, interrupted);
    for (size_t q = 0; q < questions.size(); ++q) answers[q].scores.resize(questions[q].continuations.size());
    if (interrupted && interrupted()) return;
    const bool whole = run_jobs(
        remote, std::ssize(echoes.all),
        [&](int64_t i) { return echo_request(remote, echoes.all[static_cast<size_t>(i)]); },
        [&](int64_t i, const Reply& reply) {
          const auto& whose = echoes.whose[static_cast<size_t>(i)];
          ChoiceAnswer& answer = answers[whose.first];
          if (!reply.ok()) {
            answer.error = reply.failure();
          } else {
            answer.scores[whose.second] = read_echo(echoes.all[static_cast<size_t>(i)], reply);
          }
          if (--echoes.waiting[whose.first] > 0) return;
          if (!answer.error.empty()) answer.scores.clear();
          tell(first + whose.first, std::move(answer));
        },
        interrupted);
    if (!whole) return;
  }
}

std::vector<int32_t> tokens_of(RemoteModel& remote, const std::string& text, bool add_begin,
                               const Interrupted& interrupted) {
  std::vector<int32_t> ids;
  run_jobs(
      remote, 1, [&](int64_t) { return tokenize_request(remote, text, add_begin, "the server's tokens"); },
      [&](int64_t, const Reply& reply) {
        if (!reply.ok()) throw Error("/tokenize: {}", reply.failure());
        ids = read_tokens(reply);
      },
      interrupted);
  return ids;
}

void score_windows(RemoteModel& remote, Windows windows, const OnWindow& tell, const Interrupted& interrupted) {
  const auto echo_of = [&](int64_t i) {
    return Echo{.id = fmt::format("window {}", i), .ids = windows[static_cast<size_t>(i)], .begin = 1};
  };
  run_jobs(
      remote, std::ssize(windows), [&](int64_t i) { return echo_request(remote, echo_of(i)); },
      [&](int64_t i, const Reply& reply) {
        if (!reply.ok()) throw Error("window {}: {}", i, reply.failure());
        tell(static_cast<size_t>(i), read_echo(echo_of(i), reply).logprob);
      },
      interrupted);
}

std::vector<std::string> remote_models(const RemoteModel& remote, const Interrupted& interrupted) {
  RemoteModel once = remote;
  once.retries = std::min<int64_t>(remote.retries, 2);  // a server that is not there is better known soon
  std::vector<std::string> names;
  run_jobs(
      once, 1, [](int64_t) { return Request{.method = "GET", .path = "/v1/models", .id = "the names of its models"}; },
      [&](int64_t, const Reply& reply) {
        const std::string where = fmt::format("http://{}{}/v1/models", remote.url.authority, remote.url.path);
        if (!reply.ok()) throw Error("{}: {}", where, reply.failure());
        const JsonDocument document = parse_reply(reply);
        simdjson::dom::array list;
        if (document.root()["data"].get(list)) throw Error("{}: it names no models", printable(where));
        for (const simdjson::dom::element model : list) names.push_back(text_in(model, "id"));
      },
      interrupted);
  return names;
}

}  // namespace fathom::eval
