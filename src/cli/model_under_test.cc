#include "cli/model_under_test.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>

#include "base/terminal.h"
#include "serve/keys.h"

namespace fathom::cli {
namespace {

constexpr int64_t kMostContext = 32 << 10;  // unless --ctx says more

std::string key_of(const ModelUnderTestOptions& o) {
  if (!o.key_file.empty()) return serve::read_api_keys(o.key_file).front();
  const char* key = std::getenv("FATHOM_API_KEY");
  if (key == nullptr || *key == 0) return "";
  if (!serve::is_api_key(key)) throw UsageError("FATHOM_API_KEY: this is no key that a header can carry");
  return key;
}

void open_remote(const ModelUnderTestOptions& o, ModelUnderTest& opened) {
  eval::RemoteModel remote{.url = serve::parse_http_url(o.url), .name = o.url_model};
  if (remote.url.path.ends_with("/v1")) remote.url.path.resize(remote.url.path.size() - 3);  // as clients' base_url has
  if (const std::string key = key_of(o); !key.empty()) remote.headers.emplace_back("Authorization", "Bearer " + key);
  remote.limits.timeout_s = o.timeout_s;
  remote.parallel = o.parallel;
  remote.retries = o.retries;
  if (remote.name.empty()) {
    const auto names = eval::remote_models(remote, [] { return interrupted_by != 0; });
    stop_when_interrupted();
    if (names.empty())
      throw Error("{}: the server names no model; --url-model NAME says whom to ask", printable(o.url));
    remote.name = names.front();
  }
  opened.name = remote.name;
  opened.is_local = false;
  opened.answerer = std::move(remote);
}

void open_local(const ModelUnderTestOptions& o, const CommonOptions& common, std::string_view command,
                ModelUnderTest& opened) {
  require_cpu(common, command);
  opened.pool.reset(new ThreadPool(make_pool(o.placement, common)));  // which does not move
  opened.tokenizer = load_tokenizer(o.model);
  check_vocabulary(*opened.tokenizer, read_model_config(o.model), o.model);
  opened.ready = load_ready_model(o.model, o.placement, *opened.pool);
  opened.ctx.emplace(Context{*opened.pool, opened.arena});
  const Model& model = opened.ready.model;
  eval::LocalModel local{.ctx = *opened.ctx,
                         .model = model,
                         .tokenizer = *opened.tokenizer,
                         .chat_template = load_chat_template(o.template_file, *opened.tokenizer),
                         .chat = begin_and_end_of(*opened.tokenizer),
                         .batching = {},
                         .eos_ids = model.config.eos_token_ids};
  if (opened.tokenizer->eos_id() >= 0) local.eos_ids.push_back(opened.tokenizer->eos_id());
  local.batching.max_sequences = o.parallel;
  local.batching.context = o.context > 0 ? o.context : kMostContext;
  local.batching.cache_tokens = std::max(o.cache_tokens, o.context);
  local.batching.kv_type = cache_format(o.kv_type, nullptr);
  local.batching.draft_tokens = draft_tokens(o.draft, model);
  opened.name = o.model;
  opened.can_chat = !local.chat_template.empty();
  opened.answerer.emplace(std::move(local));
}

}  // namespace

std::unique_ptr<ModelUnderTest> open_model_under_test(const ModelUnderTestOptions& o, const CommonOptions& common,
                                                      std::string_view command) {
  if (o.model.empty() == o.url.empty()) {
    throw UsageError("{}: give either {} M, a model of this program, or --url URL, a server", command, o.model_option);
  }
  auto opened = std::make_unique<ModelUnderTest>();
  if (o.url.empty()) {
    open_local(o, common, command, *opened);
  } else {
    open_remote(o, *opened);
  }
  return opened;
}

void add_model_under_test_options(CLI::App& command, ModelUnderTestOptions& o) {
  CLI::Option* model =
      command.add_option(o.model_option, o.model, "Model directory or .gguf file, run in this process")
          ->type_name("MODEL");
  CLI::Option* url =
      command.add_option("--url", o.url, "Ask this server of OpenAI's API instead, http://HOST:PORT")->type_name("URL");
  url->excludes(model);
  constexpr const char* kServer = "Of a server";
  const auto of_server = [&](const char* name, auto& value, const char* help) {
    return command.add_option(name, value, help)->needs(url)->group(kServer);
  };
  of_server("--url-model", o.url_model, "Which of its models (default: the first that it names)")->type_name("NAME");
  of_server("--api-key-file", o.key_file, "The server's key is its first line (chmod 600; or FATHOM_API_KEY)")
      ->type_name("FILE");
  of_server("--timeout", o.timeout_s, "Seconds that a request may take")->check(CLI::Range(0.001, 1e6));
  of_server("--retries", o.retries, "Of a request, where the server is busy (429, 5xx) or the connection is lost")
      ->check(CLI::Range(0, 100));
  command.add_option("--parallel", o.parallel, "Requests to the server, or sequences in a pass, at a time")
      ->check(CLI::Range(1, 4096));
  constexpr const char* kLocal = "Of a model in this process";
  const auto of_model = [&](CLI::Option* option) { return option->needs(model)->group(kLocal); };
  of_model(command.add_option(o.template_option, o.template_file,
                              "Chat template: Jinja file, or deepseek-v3.2-encoding (default: model's)"))
      ->type_name("FILE");
  of_model(command.add_option("--ctx", o.context, "Tokens of one sequence at most (default: the model's, up to 32768)"))
      ->check(CLI::Range(1, 1 << 30));
  of_model(
      command.add_option("--cache-tokens", o.cache_tokens, "Tokens that the caches of all sequences hold together"))
      ->check(CLI::Range(int64_t{64}, int64_t{1} << 34));
  add_kv_type_option(command, o.kv_type);
  add_draft_options(command, o.draft);
  add_placement_options(command, o.placement);
}

}  // namespace fathom::cli
