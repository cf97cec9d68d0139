// The routes: who may ask for what, and what is answered. On the server's thread, but for what takes long (reading
// bodies, templates, tokenizing), which a thread of its own does.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "serve/access.h"
#include "serve/engine.h"
#include "serve/http.h"
#include "serve/job.h"
#include "serve/metrics.h"
#include "serve/prompt.h"

namespace fathom::serve {

struct ServiceOptions {
  std::string model_name, version;
  Access access;
  bool log_requests = true;
  bool log_content = false;  // and what they and their answers say
  uint64_t seed = 0;         // of requests without one, each of which gets another
};

// What is there once the model is loaded. All of it outlives the service.
struct Served {
  const Model& model;
  const Tokenizer& tokenizer;
  PromptSource prompts;
  Engine& engine;
  std::vector<int64_t> eos_ids;
  int64_t max_waiting, max_batch;
  int64_t draft_tokens;  // 0: none
};

class Service {
 public:
  Service(HttpServer& server, ServiceOptions options);
  ~Service();

  // Bodies are read for who may ask, by the key; what is said to others is handle()'s.
  HttpVerdict judge(const HttpRequest& request) const;
  // Of what never became a request.
  HttpRefusalText refuse_unread(const HttpRefusal& refusal, std::string_view path);
  void handle(HttpRequest request, HttpReply reply);
  void serve(const Served& served);  // from now on
  // No more work. What runs may end until abandon().
  void drain();
  void abandon();
  bool idle() const { return jobs_.empty() && prepared_.empty(); }
  void stop();  // behind the server's end, before what is Served goes

 private:
  struct Call;
  struct Route;
  using CallPtr = std::shared_ptr<Call>;
  static const std::vector<Route>& routes();

  void refuse(const CallPtr& call, const ApiError& error);
  void answer(const CallPtr& call, int status, std::string_view content_type, std::string_view body);
  void answer_options(const CallPtr& call);
  void answer_json(const CallPtr& call, const nlohmann::ordered_json& json);
  void log(const Call& call, int status, const JobTotals* totals) const;
  HttpHeaders headers_of(const Call& call) const;
  const Served& loaded() const;  // ApiError 503 while there is no model,
  const Served& served() const;  // or it is to end
  void check_room() const;

  void get_file(const CallPtr& call);
  void get_health(const CallPtr& call);
  void get_ready(const CallPtr& call);
  void get_version(const CallPtr& call);
  void get_metrics(const CallPtr& call);
  void get_models(const CallPtr& call);
  void get_tokenizer_info(const CallPtr& call);
  void post_chat(const CallPtr& call);
  void post_messages(const CallPtr& call);
  void post_responses(const CallPtr& call);
  void post_count_tokens(const CallPtr& call);
  static ChatRequest chat_request(std::string_view body);
  JobInput prepare_chat(ChatRequest request) const;
  void post_completion(const CallPtr& call);
  void post_tokenize(const CallPtr& call);
  void post_detokenize(const CallPtr& call);
  void post_apply_template(const CallPtr& call);
  nlohmann::ordered_json model_json() const;

  // prepare() on another thread, then use() of what it returned on this one, unless the client is gone. ApiErrors of
  // both are answered.
  template <class Prepare, class Use>
  void prepare(const CallPtr& call, Prepare prepare, Use use);
  void start(const CallPtr& call, JobInput input);

  HttpServer& server_;
  ServiceOptions options_;
  Metrics metrics_;
  std::optional<Served> served_;
  bool draining_ = false;
  std::unordered_set<std::shared_ptr<Job>> jobs_;
  uint64_t n_jobs_ = 0;
  int64_t created_;

  struct Preparations;
  std::set<CallPtr> prepared_;  // waiting for it, or in it
  std::unique_ptr<Preparations> short_, long_;
};

}  // namespace fathom::serve
