// fathom generate: completes a prompt.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/file.h"
#include "base/terminal.h"
#include "base/utf8.h"
#include "cli/command.h"
#include "infer/generation.h"

namespace fathom::cli {
namespace {

constexpr size_t kMaxPromptBytes = size_t{64} << 20;

struct GenerateCommandOptions {
  std::string model, prompt, tokens, kv_type = "auto";
  bool has_prompt = false, has_tokens = false, ignore_eos = false, no_bos = false;
  GenerationOptions generation;
  DraftOptions draft;
  PlacementOptions placement;
};

// "1,2,3" or "[1, 2, 3]"
std::vector<int32_t> parse_tokens(std::string_view text) {
  std::string_view list = stripped(text);
  if (list.size() >= 2 && list.front() == '[' && list.back() == ']') list = list.substr(1, list.size() - 2);
  if (stripped(list).empty()) throw UsageError("--tokens: there is no id in '{}'", printable(text, 40));
  std::vector<int32_t> ids;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const std::string_view number = stripped(list.substr(begin, end - begin));
    int32_t id = 0;
    const auto [rest, error] = std::from_chars(number.data(), number.data() + number.size(), id);
    if (error != std::errc() || rest != number.data() + number.size()) {
      throw UsageError("--tokens: '{}' is no list of ids like 1,2,3", printable(list.substr(begin), 40));
    }
    ids.push_back(id);
    begin = end + 1;
  }
  return ids;
}

std::string read_stdin() {
  if (isatty(STDIN_FILENO) == 1) throw UsageError("give --prompt TEXT, --tokens \"1,2,3\", or the prompt on stdin");
  std::string text;
  char block[1 << 16];
  while (const size_t n = std::fread(block, 1, sizeof block, stdin)) {
    text.append(block, n);
    if (text.size() > kMaxPromptBytes) throw Error("the prompt on stdin is longer than 64 MiB");
  }
  if (interrupted_by != 0) throw Interrupted{};
  return text;
}

std::vector<int32_t> read_prompt(const GenerateCommandOptions& options, const Tokenizer* tokenizer) {
  if (options.has_tokens) return parse_tokens(options.tokens);
  if (tokenizer == nullptr) {
    throw Error("{}: has no tokenizer to read a text with; give --tokens", printable(options.model));
  }
  const std::string text = options.has_prompt ? options.prompt : read_stdin();
  std::vector<int32_t> ids = errors_at("the prompt", [&] { return tokenizer->encode(text); });
  const int32_t bos = tokenizer->bos_id();
  // Even where texts begin without one it is the last resort for an empty prompt.
  const bool wanted = ids.empty() || (ids.front() != bos && tokenizer->adds_bos());
  if (!options.no_bos && bos >= 0 && wanted) ids.insert(ids.begin(), bos);
  return ids;
}

void print_json(const Generation& g, std::optional<double> expert_hit_rate) {
  nlohmann::ordered_json out;
  out["ids"] = g.ids;
  out["text"] = g.text;
  out["prompt_tokens"] = g.prompt_tokens;
  out["prefill_s"] = g.prefill_s;
  out["decode_s"] = g.decode_s;
  out["tokens_per_s"] = g.tokens_per_s();
  out["main_passes"] = g.main_passes;
  out["drafted"] = g.drafted;
  out["accepted"] = g.accepted;
  if (const auto acceptance = g.acceptance()) out["acceptance"] = *acceptance;
  if (const auto speedup = g.speedup()) out["speedup"] = *speedup;
  if (expert_hit_rate) out["expert_hit_rate"] = *expert_hit_rate;
  out["finish_reason"] = finish_reason_name(g.finish);
  write_stdout(out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

void run(const GenerateCommandOptions& options, const CommonOptions& common) {
  if (options.has_prompt && options.has_tokens) throw UsageError("give either --prompt or --tokens, not both");
  check_sampler(options.generation.sampler);
  const StopFilter stops_are_valid(options.generation.stop);

  ThreadPool pool = make_pool(options.placement, common);
  const std::optional<Tokenizer> tokenizer = find_tokenizer(options.model);
  const Tokenizer* const text = tokenizer ? &*tokenizer : nullptr;
  if (text != nullptr) check_vocabulary(*text, read_model_config(options.model), options.model);
  if (text == nullptr && !options.generation.stop.empty()) {
    throw Error("{}: has no tokenizer, so --stop has no text to look at", printable(options.model));
  }
  const std::unique_ptr<Device> device = open_device(common);
  const ReadyModel ready = load_ready_model(options.model, options.placement, pool, device.get());
  const Model& model = ready.model;
  const std::vector<int32_t> prompt = read_prompt(options, text);

  GenerationOptions generation = options.generation;
  generation.seed = common.seed;
  generation.draft_tokens = draft_tokens(options.draft, model);
  if (!options.ignore_eos) generation.eos_ids = model.config.eos_token_ids;
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  const int64_t limit = std::max(model.config.max_position_embeddings, int64_t{1});
  const int64_t context = prompt_tokens + std::min(generation.max_tokens, limit);
  Arena arena = make_arena(device.get());
  Context ctx{pool, arena, device.get()};
  Sequence sequence{{},
                    make_latent_cache(model.config, std::clamp(context, int64_t{1}, limit),
                                      cache_format(options.kv_type, device.get()), device.get())};

  bool ends_line = true;
  GenerationCallbacks callbacks;
  callbacks.interrupted = [] { return interrupted_by != 0; };
  if (!common.json) {
    callbacks.on_text = [&](std::string_view piece) {
      write_stdout(piece);
      ends_line = piece.back() == '\n';
    };
  }
  const Generation result = generate(ctx, model, text, sequence, prompt, generation, callbacks);
  const std::optional<double> expert_hit_rate = hit_rate(model, result.experts);
  if (common.json) {
    print_json(result, expert_hit_rate);
  } else if (text == nullptr) {
    write_stdout(fmt::format("{}\n", fmt::join(result.ids, ",")));
  } else if (!ends_line && isatty(STDOUT_FILENO) == 1) {
    write_stdout("\n");
  }
  std::string drafts;
  if (const auto acceptance = result.acceptance()) {
    drafts = fmt::format(", {} of {} drafts accepted ({:.0f}%)", result.accepted, result.drafted, 100 * *acceptance);
  }
  if (const auto speedup = result.speedup()) drafts += fmt::format(", {:.2f}x of no drafts", *speedup);
  log("{} prompt tokens in {:.2f}s, {} tokens in {:.2f}s ({:.1f} tokens/s){}, ended by {}", result.prompt_tokens,
      result.prefill_s, result.ids.size(), result.decode_s, result.tokens_per_s(), drafts,
      finish_reason_name(result.finish));
  if (expert_hit_rate) {
    log("of the {} of experts chosen behind the first token {:.1f}% were in memory",
        human_bytes(static_cast<double>(result.experts.chosen)), 100 * *expert_hit_rate);
  }
  if (result.finish == FinishReason::interrupted) throw Interrupted{};
}

}  // namespace

void add_sampler_options(CLI::App& command, SamplerOptions& sampler) {
  command.add_option("--temperature", sampler.temperature, "0 takes the likeliest token; higher is more varied");
  command.add_option("--top-k", sampler.top_k, "Draw from the K likeliest tokens (0: all)");
  command.add_option("--top-p", sampler.top_p, "Draw from the likeliest tokens that reach this share");
  command.add_option("--min-p", sampler.min_p, "Leave out tokens this much less likely than the likeliest");
  command.add_option("--repetition-penalty", sampler.repetition_penalty, "Above 1: avoid tokens seen before");
  command.add_option("--presence-penalty", sampler.presence_penalty, "Off the logit of every token in the output");
  command.add_option("--frequency-penalty", sampler.frequency_penalty, "The same, for each time it stands there");
}

void add_draft_options(CLI::App& command, DraftOptions& options) {
  CLI::Option* draft =
      command.add_option("--draft", options.draft, "Speculative decoding, by the model's MTP module: mtp, none")
          ->check(CLI::IsMember({"mtp", "none"}));
  command.add_option("--draft-tokens", options.tokens, "Tokens to draft for each pass of the model")
      ->check(CLI::Range(1, 8))
      ->needs(draft);
}

int64_t draft_tokens(const DraftOptions& options, const Model& model) {
  if (options.draft == "none") return 0;
  if (!model.weights.mtp.empty()) return options.tokens;
  log("the model has no MTP module: it goes on without drafts");
  return 0;
}

void add_kv_type_option(CLI::App& command, std::string& kv_type) {
  std::vector<std::string> names{"auto"};
  for (const CacheType& type : kCacheTypes) names.emplace_back(type.name);
  command
      .add_option("--kv-type", kv_type,
                  fmt::format("Number format of the cache: {} (f32, on a GPU bf16)", fmt::join(names, ", ")))
      ->check(CLI::IsMember(names));
}

Format cache_format(const std::string& kv_type, const Device* device) {
  if (kv_type == "auto") return device != nullptr ? Format::bf16 : Format::f32;
  const auto* const type = std::ranges::find(kCacheTypes, kv_type, &CacheType::name);
  FATHOM_CHECK(type != std::end(kCacheTypes), "{}", kv_type);  // the option's check
  return type->format;
}

void add_generate(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<GenerateCommandOptions>();
  CLI::App* command = app.add_subcommand("generate", "Complete a prompt");
  command->option_defaults()->always_capture_default();
  command->add_option("--model", options->model, "Model directory or .gguf file")->required()->type_name("MODEL");
  CLI::Option* prompt = command->add_option("--prompt", options->prompt, "The text to continue (default: stdin)");
  CLI::Option* tokens = command->add_option("--tokens", options->tokens,
                                            "The prompt as token ids: \"1,2,3\"; nothing is put before them");
  command->add_option("--max-tokens", options->generation.max_tokens, "Tokens to generate at most")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  add_sampler_options(*command, options->generation.sampler);
  command->add_option("--stop", options->generation.stop, "End before this text (may be given again)")
      ->allow_extra_args(false)
      ->type_name("TEXT");
  command->add_flag("--ignore-eos", options->ignore_eos, "Go on behind an end token");
  command->add_flag("--no-bos", options->no_bos, "Put no begin token before the text");
  add_draft_options(*command, options->draft);
  add_placement_options(*command, options->placement);
  add_gpu_memory_option(*command, options->placement);
  add_kv_type_option(*command, options->kv_type);
  command->callback([options, prompt, tokens, &common] {
    options->has_prompt = prompt->count() > 0;
    options->has_tokens = tokens->count() > 0;
    run(*options, common);
  });
}

}  // namespace fathom::cli
