// fathom serve: answers requests over HTTP.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/terminal.h"
#include "checkpoint/weight_memory.h"
#include "cli/command.h"
#include "parallel/mpi.h"
#include "serve/crew.h"
#include "serve/service.h"
#include "text/chat.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kFlushS = 2;  // for clients to take what was said last

struct ServeCommandOptions {
  std::string model, model_name, prefix_cache, template_file, thinking, kv_type = "auto";
  ListenOptions listen{.port = 8080};
  bool no_log = false, log_content = false;
  std::vector<std::string> cors_origins;
  int64_t max_waiting = 1024;
  double drain_s = 30;
  uint64_t prefix_cache_bytes = uint64_t{32} << 30;
  serve::HttpLimits limits;
  DraftOptions draft;
  BatchingOptions batching;
  PlacementOptions placement;
  SpreadOptions spread;
  double rebalance_s = 600, hang_s = 60;
};

// What answers, once it is loaded; taken down in the order opposite to this.
struct Loaded {
  ThreadPool pool;
  Tokenizer tokenizer;
  ReadyModel ready;
  Arena arena;
  Context ctx;
  std::optional<SpreadExperts> experts;  // where several processes generate
  PassesTogether together;
  std::unique_ptr<PageStore> store;
  std::unique_ptr<serve::Engine> engine;

  Loaded(const ServeCommandOptions& o, const CommonOptions& common)
      : pool(make_pool(o.placement, common)),
        tokenizer(load_tokenizer(o.model)),
        ready(load_ready_model(o.model, o.placement, pool)),
        ctx{pool, arena} {
    check_vocabulary(tokenizer, ready.model.config, o.model);
  }
};

// Bits of what is computed depend on the program and the CPU's instructions too.
std::unique_ptr<PageStore> open_store(const ServeCommandOptions& o, const fs::path& directory, const Model& model,
                                      const BatchingOptions& batching) {
  const std::string identity =
      fmt::format("{}\n{}\n{}", version_text(), format_traits(batching.kv_type).name, identity_of_model(o.model));
  return std::make_unique<PageStore>(directory, identity, Batching::page_bytes(model, batching),
                                     static_cast<int64_t>(o.prefix_cache_bytes));
}

// What the other processes of a job have too, and this one beside its model.
BatchingOptions batching_options(const ServeCommandOptions& o, Loaded& loaded, Communicator* comm) {
  const Model& model = loaded.ready.model;
  BatchingOptions batching = o.batching;
  batching.kv_type = cache_format(o.kv_type, nullptr);
  batching.draft_tokens = draft_tokens(o.draft, model);
  fs::path prefix_cache = o.prefix_cache;
  if (comm != nullptr) {
    SpreadOptions spread = o.spread;
    spread.mapped = is_mapped(loaded.ready.loaded);
    if (!spread.mapped) {
      log("the weights are not packed, so that every process holds all of them: fathom convert makes a directory of "
          "which each reads its part");
    }
    loaded.experts.emplace(*comm, loaded.ready.model, spread);
    loaded.together = serve::passes_together(*loaded.experts);
    batching.together = &loaded.together;
    if (!prefix_cache.empty()) prefix_cache /= fmt::format("process-{}", comm->rank());
  }
  if (!prefix_cache.empty()) {
    loaded.store = open_store(o, prefix_cache, model, batching);
    batching.store = loaded.store.get();
  }
  return batching;
}

std::string name_of(const fs::path& model) {
  fs::path name = model.lexically_normal();
  if (!name.has_filename()) name = name.parent_path();
  if (name.extension() == ".gguf") name.replace_extension();
  return name.filename().string();
}

serve::ServiceOptions service_options(const ServeCommandOptions& o, const CommonOptions& common) {
  serve::ServiceOptions s;
  s.model_name = o.model_name.empty() ? name_of(o.model) : o.model_name;
  s.version = version_text();
  s.version.resize(s.version.find('\n'));
  s.access = access_of(o.listen, "serve");
  s.access.cors_origins = o.cors_origins;
  s.log_requests = !o.no_log;
  s.log_content = o.log_content;
  s.seed = common.seed;
  return s;
}

// A template that cannot be used is better known now than by the first who asks: one that was named ends the program,
// the model's own leaves everything but chats.
void try_template(const ServeCommandOptions& o, const serve::PromptSource& prompts) {
  try {
    render_chat(prompts.chat_template, {{{"role", "user"}, {"content", "Hello"}}}, prompts.chat);
  } catch (const Error& error) {
    if (!o.template_file.empty()) throw Error("--template {}: {}", printable(o.template_file), error.what());
    log("the model's chat template cannot be used, chats are refused: {}", error.what());
  }
}

serve::PromptSource prompts_of(const ServeCommandOptions& o, const Loaded& loaded) {
  serve::PromptSource prompts{loaded.tokenizer, std::make_shared<TokenTrie>(loaded.tokenizer),
                              load_chat_template(o.template_file, loaded.tokenizer),
                              begin_and_end_of(loaded.tokenizer)};
  if (prompts.chat_template.empty()) {
    prompts.chat_template = serve::default_template(loaded.tokenizer, loaded.ready.model.config.model_type);
    log("the model has no chat template: {}",
        prompts.chat_template.find("User") == std::string::npos && prompts.chat_template != kDeepseekV32Encoding
            ? "messages are put one behind the other as they stand"
            : "that of its family serves");
  }
  prompts.call_trie = serve::call_trie(loaded.tokenizer, prompts.chat_template);
  if (!o.thinking.empty())
    prompts.chat.kwargs = {{"thinking", o.thinking == "on"}, {"enable_thinking", o.thinking == "on"}};
  return prompts;
}

serve::TokenTries tries_of(const serve::PromptSource& prompts) { return {prompts.trie, prompts.call_trie}; }

serve::Served served_of(const ServeCommandOptions& o, const Loaded& loaded, serve::PromptSource prompts,
                        int n_processes) {
  const Model& model = loaded.ready.model;
  std::vector<int64_t> eos_ids = model.config.eos_token_ids;
  if (loaded.tokenizer.eos_id() >= 0) eos_ids.push_back(loaded.tokenizer.eos_id());
  return {model,
          loaded.tokenizer,
          std::move(prompts),
          *loaded.engine,
          std::move(eos_ids),
          o.max_waiting,
          o.batching.max_sequences * n_processes,
          draft_tokens(o.draft, model)};
}

// As one of several processes, or null.
std::unique_ptr<Communicator> join_others(double hang_s) {
  if (!started_by_mpi()) return nullptr;
  std::unique_ptr<Communicator> comm = join_mpi(hang_s);
  return comm->size() > 1 ? std::move(comm) : nullptr;
}

// UsageError for what several processes cannot do.
void check_spread(const ServeCommandOptions& o, const ModelConfig& config, int n_processes) {
  const std::pair<bool, const char*> unsupported[] = {{o.placement.lock, "--mlock"},
                                                      {o.placement.huge_pages, "--hugepages"},
                                                      {o.placement.read_ahead == "on", "--read-ahead on"}};
  for (const auto& [given, name] : unsupported) {
    if (given) throw UsageError("serve: {} is for one process; leave it out with several", name);
  }
  check_spread(config, n_processes, o.spread);
}

// Of the model's experts, the part that this machine's processes need.
double expert_share(const ServeCommandOptions& o, const ModelConfig& config, int n_processes) {
  const auto experts = static_cast<double>(config.router.n_routed_experts);
  const int per_node = o.spread.ranks_per_node > 0 ? std::min(o.spread.ranks_per_node, n_processes) : n_processes;
  return std::min(1.0, (1 + o.spread.redundant_experts / experts) * per_node / n_processes);
}

// One of the job's processes but the first: generates until that one ends.
void work(ServeCommandOptions o, const CommonOptions& common, Communicator& comm) {
  set_quiet(true);  // the first one says what there is to say
  if (!serve::await_loading(comm)) return;
  try {
    o.placement.expert_share = expert_share(o, read_model_config(o.model), comm.size());
    Loaded loaded(o, common);
    const BatchingOptions batching = batching_options(o, loaded, &comm);
    serve::work_in_crew(comm, {loaded.ctx, loaded.ready.model, &loaded.tokenizer, batching, *loaded.experts,
                               tries_of(prompts_of(o, loaded))});
  } catch (const std::exception& error) {
    comm.fail(fmt::format("rank {}: {}", comm.rank(), error.what()));
    throw;
  }
}

void run(ServeCommandOptions o, const CommonOptions& common) {
  const std::unique_ptr<Communicator> comm = join_others(o.hang_s);
  if (comm != nullptr && comm->rank() > 0) return work(std::move(o), common, *comm);
  std::optional<serve::Crew> crew;
  if (comm != nullptr) crew.emplace(*comm);
  require_cpu(common, "serve");
  const Tokenizer is_there = load_tokenizer(o.model);  // before anybody is told to wait
  const ModelConfig config = read_model_config(o.model);
  if (comm != nullptr) {
    check_spread(o, config, comm->size());
    o.placement.expert_share = expert_share(o, config, comm->size());
  }
  serve::ServiceOptions service = service_options(o, common);
  const std::string name = service.model_name;

  std::unique_ptr<serve::Service> answers;
  serve::HttpServer server(
      o.listen.host, o.listen.port, o.limits,
      {[&](const serve::HttpRequest& request) { return answers->judge(request); },
       [&](const serve::HttpRefusal& refusal, std::string_view path) { return answers->refuse_unread(refusal, path); },
       [&](serve::HttpRequest request, serve::HttpReply reply) {
         answers->handle(std::move(request), std::move(reply));
       }});
  answers = std::make_unique<serve::Service>(server, std::move(service));
  const std::string url = url_of(o.listen.host, server.port());
  write_stdout(common.json
                   ? nlohmann::ordered_json{{"url", url}, {"port", server.port()}, {"model", name}}.dump() + "\n"
                   : url + "\n");

  std::unique_ptr<Loaded> loaded;
  std::optional<std::string> failure;
  std::thread loading([&] {
    try {
      const double begin_s = monotonic_s();
      if (crew) crew->begin_loading();
      loaded = std::make_unique<Loaded>(o, common);
      serve::PromptSource prompts = prompts_of(o, *loaded);
      try_template(o, prompts);
      const BatchingOptions batching = batching_options(o, *loaded, comm.get());
      if (crew) {
        crew->set_up(*loaded->experts, tries_of(prompts), o.rebalance_s, batching);
        crew->await_loaded();
        log("experts are spread over {} processes; the first, which ends all on SIGTERM, is process {} and has {} of "
            "them "
            "in all layers",
            comm->size(), getpid(), loaded->experts->n_experts_here());
      }
      loaded->engine = std::make_unique<serve::Engine>(
          loaded->ctx, loaded->ready.model, &loaded->tokenizer, batching, o.max_waiting,
          [&server](serve::Engine::Events events) {
            server.post([events = std::move(events)] {
              for (const auto& event : events) event();
            });
          },
          crew ? &*crew : nullptr);
      const auto served = std::make_shared<serve::Served>(
          served_of(o, *loaded, std::move(prompts), comm != nullptr ? comm->size() : 1));
      server.post([&, served, seconds = monotonic_s() - begin_s] {
        answers->serve(std::move(*served));
        log("{}: ready after {:.1f} s at {}; {} tokens of context, {} of cache", name, seconds, url,
            loaded->engine->context(), o.batching.cache_tokens);
      });
    } catch (const std::exception& error) {
      failure = error.what();
      server.post([&server] { server.stop(); });
    }
  });

  double drained_s = 0, abandoned_s = 0;
  server.every(0.05, [&] {
    if (interrupted_by == 0) return;
    const double now_s = monotonic_s();
    if (drained_s == 0) {
      drained_s = now_s;
      log("shutting down: answers that are begun have {:.0f} s to end", o.drain_s);
      answers->drain();
    }
    if (abandoned_s == 0 && (answers->idle() || now_s - drained_s > o.drain_s)) {
      abandoned_s = now_s;
      answers->abandon();
    }
    if (abandoned_s > 0 && (server.n_connections() == 0 || now_s - abandoned_s > kFlushS)) server.stop();
  });
  server.run();
  loading.join();
  answers->stop();
  if (loaded) loaded->engine.reset();
  if (failure) throw Error(*failure);
}

}  // namespace

void add_serve(CLI::App& app, CommonOptions& common) {
  const auto o = std::make_shared<ServeCommandOptions>();
  const auto rows = std::make_shared<std::string>("f32");
  CLI::App* c = app.add_subcommand("serve", "Answer requests over HTTP, as OpenAI's and DeepSeek's APIs do");
  c->option_defaults()->always_capture_default();
  c->add_option("--model", o->model, "Model directory or .gguf file")->required()->type_name("MODEL");
  c->add_option("--model-name", o->model_name, "What answers call it (default: the name of the directory or file)");
  add_listen_options(*c, o->listen);
  c->add_option("--cors-origin", o->cors_origins,
                "Origin whose pages may ask, or * (may be given again, or several with commas; default: none)")
      ->delimiter(',')
      ->transform([](const std::string& one) { return CLI::detail::trim_copy(one); })
      ->allow_extra_args(false);
  c->add_option("--template", o->template_file, "Jinja file, or deepseek-v3.2-encoding (default: model's)")
      ->type_name("FILE");
  c->add_option("--thinking", o->thinking, "Thoughts before answers where a request does not say: on, off")
      ->check(CLI::IsMember({"on", "off"}));
  const auto count = [&](const char* option, int64_t& value, int64_t most, const char* help) {
    c->add_option(option, value, help)->check(CLI::Range(int64_t{1}, most));
  };
  count("--max-batch", o->batching.max_sequences, 4096, "Sequences generated at a time");
  count("--ctx", o->batching.context, int64_t{1} << 30,
        "Tokens of one sequence at most (the model's limit is the other)");
  count("--cache-tokens", o->batching.cache_tokens, int64_t{1} << 34,
        "Tokens that the caches of all sequences hold together");
  c->add_option("--prefix-cache", o->prefix_cache,
                "Directory in which beginnings of prompts stay when the program ends, for this user's eyes alone")
      ->type_name("DIR");
  c->add_option("--prefix-cache-size", o->prefix_cache_bytes, "Bytes in it at most, such as 100GB")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 60))
      ->needs("--prefix-cache");
  count("--pass-tokens", o->batching.pass_tokens, 1 << 16, "Tokens of prompts read in one pass at most");
  count("--max-waiting", o->max_waiting, 1 << 20, "Sequences that may wait; more are answered 429");
  add_draft_options(*c, o->draft);
  count("--draft-sequences", o->batching.draft_sequences, 4096, "With --draft: no drafts while more are generated");
  add_kv_type_option(*c, o->kv_type);
  count("--max-connections", o->limits.connections, 1 << 20, "Open connections; more are answered 503");
  c->add_option("--max-body-bytes", o->limits.body_bytes, "Bytes of a request's body at most")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 40));
  const auto seconds = [&](const char* option, double& value, const char* help) {
    c->add_option(option, value, help)->check(CLI::Range(0.1, 1e6));
  };
  seconds("--header-timeout", o->limits.header_s, "Seconds for a request's header");
  seconds("--body-timeout", o->limits.body_s, "Seconds for a request's body");
  seconds("--idle-timeout", o->limits.idle_s, "Seconds that a connection may stay without a request");
  seconds("--write-timeout", o->limits.write_s, "Seconds for a client to take what is written");
  c->add_option("--drain-timeout", o->drain_s, "Seconds for begun answers to end on SIGTERM")
      ->check(CLI::Range(0.0, 1e6));
  c->add_flag("--no-access-log", o->no_log, "Do not tell each request on stderr");
  c->add_flag("--log-content", o->log_content, "Tell with each what it says, and what was answered");
  const auto ranks = CLI::Range(0, 1 << 20);
  c->add_option("--redundant-experts", o->spread.redundant_experts,
                "With mpirun: copies of the most asked for experts, beside one of each")
      ->check(ranks);
  c->add_option("--rebalance-every", o->rebalance_s,
                "With mpirun: seconds after which experts are dealt out anew by what was asked for; 0: never")
      ->check(CLI::Range(0.0, 1e9));
  c->add_option("--ranks-per-node", o->spread.ranks_per_node, "With mpirun: processes on a machine (0: all)")
      ->check(ranks);
  c->add_option("--expert-rows", *rows,
                "With mpirun: how rows go to experts and back: f32 (the bits of one process), "
                "bf16, fp8 (and bf16 back)")
      ->check(CLI::IsMember({"f32", "bf16", "fp8"}));
  c->add_option("--hang-timeout", o->hang_s,
                "With mpirun: seconds without a sign of life of a process before all of them end")
      ->check(CLI::Range(1.0, 1e6));
  add_placement_options(*c, o->placement);
  c->callback([o, rows, &common] {
    if (*rows == "bf16") o->spread.formats = {RowFormat::bf16, RowFormat::bf16};
    if (*rows == "fp8") o->spread.formats = {RowFormat::fp8, RowFormat::bf16};
    run(*o, common);
  });
}

}  // namespace fathom::cli
