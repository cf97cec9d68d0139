// fathom chat: talks in the terminal.
#include "text/chat.h"

#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/terminal.h"
#include "base/utf8.h"
#include "cli/command.h"
#include "infer/generation.h"
#include "text/answer_parser.h"

namespace fathom::cli {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxLineBytes = size_t{16} << 20;
constexpr size_t kMaxTemplateBytes = size_t{1} << 20;
constexpr int64_t kDefaultContext = 32768;
constexpr int kPollMs = 200;  // a signal between two looks waits this long at most

constexpr const char* kHelp =
    "/help    this text\n"
    "/reset   forget the conversation\n"
    "/exit    leave (or Ctrl-D)\n"
    "Ctrl-C   stop the answer\n";

struct ChatCommandOptions {
  std::string model, template_file, system, thinking, kv_type = "auto";
  int64_t context = 0;
  GenerationOptions generation;
  DraftOptions draft;
  PlacementOptions placement;
};

// Lines of stdin. On a terminal with a prompt, and Ctrl-C leaves only when it is pressed twice.
class LineReader {
 public:
  bool terminal() const { return terminal_; }

  // false: there is no more line.
  bool next(std::string& line) {
    if (terminal_) std::fputs("> ", stderr);
    bool asked = false;
    for (size_t seen = 0;;) {
      if (const size_t end = held_.find('\n', seen); end != std::string::npos) {
        line = held_.substr(0, end);
        held_.erase(0, end + 1);
        return true;
      }
      seen = held_.size();
      if (seen > kMaxLineBytes) throw Error("standard input: a line has more than {} bytes", kMaxLineBytes);
      if (ended_) break;
      if (interrupted_by != 0) {
        if (!terminal_ || interrupted_by != SIGINT || asked) throw Interrupted{};
        interrupted_by = 0;
        asked = true;
        std::fputs("\nTo leave: /exit, Ctrl-D, or Ctrl-C again\n> ", stderr);
      }
      read_more();
    }
    if (terminal_) std::fputs("\n", stderr);
    line = std::move(held_);
    held_.clear();
    return !line.empty();
  }

 private:
  void read_more() {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    if (poll(&input, 1, kPollMs) <= 0) return;
    char block[1 << 12];
    const ssize_t n = read(STDIN_FILENO, block, sizeof block);
    if (n < 0 && errno != EINTR && errno != EAGAIN) throw Error("standard input: {}", std::strerror(errno));
    if (n > 0) held_.append(block, static_cast<size_t>(n));
    ended_ = n == 0;
  }

  const bool terminal_ = isatty(STDIN_FILENO) == 1;
  bool ended_ = false;
  std::string held_;
};

// What a model says must not steer the terminal.
std::string without_controls(std::string_view text) {
  std::string shown(text);
  std::erase_if(shown,
                [](char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f; });
  return shown;
}

// What of an answer later turns see: not the thoughts before it.
std::string answer_of(std::string_view chat_template, std::string_view prompt_end, std::string_view text) {
  AnswerFormat format = answer_format_of(chat_template, prompt_end);
  format.calls = CallFormat::none;  // nobody here to call
  format.trims_newlines = false;
  AnswerParser parser(format);
  std::string content;
  for (const auto& parts : {parser.push(text), parser.finish()}) {
    for (const AnswerPart& part : parts) {
      if (part.kind == AnswerPart::Kind::content) content += part.text;
    }
  }
  return content;
}

// The conversation so far: messages, or plain text for a model without a template.
struct Conversation {
  std::string chat_template;
  ChatOptions chat;
  std::string system;
  ordered_json messages = ordered_json::array();
  std::string text{};

  bool plain() const { return chat_template.empty(); }

  void reset() {
    text = system;
    messages = ordered_json::array();
    if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  }

  // The prompt that asks for the answer to `line`.
  ChatPrompt ask(const Tokenizer& tokenizer, const std::string& line) {
    if (!plain()) {
      messages.push_back({{"role", "user"}, {"content", line}});
      return encode_chat(tokenizer, chat_template, messages, chat);
    }
    if (!text.empty() && text.back() != '\n') text += '\n';
    text += line;
    ChatPrompt prompt{text, tokenizer.encode(text)};
    const int32_t bos = tokenizer.bos_id();  // a template writes it itself
    if (tokenizer.adds_bos() && (prompt.ids.empty() || prompt.ids.front() != bos)) {
      prompt.ids.insert(prompt.ids.begin(), bos);
    }
    return prompt;
  }

  void answered(std::string_view prompt_end, std::string_view answer) {
    if (plain()) {
      text += answer;
    } else {
      messages.push_back({{"role", "assistant"}, {"content", answer_of(chat_template, prompt_end, answer)}});
    }
  }
};

struct Chat {
  const ChatCommandOptions& options;
  const CommonOptions& common;
  const Tokenizer& tokenizer;
  const Model& model;
  Context& ctx;
  Conversation conversation;
  Sequence sequence;
  uint64_t turns = 0;
};

void check_length(const Chat& chat, const ChatPrompt& prompt) {
  if (const int64_t context = chat.sequence.cache.capacity; std::ssize(prompt.ids) > context) {
    throw Error("the conversation has {} tokens, but the context holds {}; /reset begins a new one", prompt.ids.size(),
                context);
  }
}

void print_json(const Generation& g) {
  ordered_json out{{"text", g.text},
                   {"ids", g.ids},
                   {"prompt_tokens", g.prompt_tokens},
                   {"cached_tokens", g.cached_tokens},
                   {"tokens_per_s", g.tokens_per_s()},
                   {"drafted", g.drafted},
                   {"accepted", g.accepted},
                   {"finish_reason", finish_reason_name(g.finish)}};
  if (const auto acceptance = g.acceptance()) out["acceptance"] = *acceptance;
  if (const auto speedup = g.speedup()) out["speedup"] = *speedup;
  write_stdout(out.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n");
}

Generation generate_answer(Chat& chat, const std::vector<int32_t>& prompt) {
  GenerationOptions generation = chat.options.generation;
  generation.seed = chat.common.seed + chat.turns++;
  GenerationCallbacks callbacks;
  callbacks.interrupted = [] { return interrupted_by != 0; };
  bool ends_line = false;
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  if (!chat.common.json) {
    callbacks.on_text = [&](std::string_view piece) {
      write_stdout(terminal ? without_controls(piece) : piece);
      ends_line = piece.back() == '\n';
    };
  }
  Generation result = generate(chat.ctx, chat.model, &chat.tokenizer, chat.sequence, prompt, generation, callbacks);
  if (chat.common.json) {
    print_json(result);
  } else if (!ends_line) {
    write_stdout("\n");
  }
  return result;
}

// Answers one line. On an Error the conversation is as it was before.
void answer(Chat& chat, const std::string& line, bool terminal) {
  if (const size_t at = first_invalid_utf8(line); at != kNoPosition && !chat.tokenizer.is_bytes()) {
    throw Error("standard input: not UTF-8 at byte {} of the line", at);
  }
  const Conversation before = chat.conversation;
  Generation result;
  try {
    const ChatPrompt prompt = chat.conversation.ask(chat.tokenizer, line);
    check_length(chat, prompt);
    result = generate_answer(chat, prompt.ids);
    chat.conversation.answered(prompt.own_end, result.text);
  } catch (const Error&) {
    chat.conversation = before;
    throw;
  }
  if (result.finish == FinishReason::context) {
    log_line(fmt::format("the context of {} tokens is full; /reset begins a new conversation",
                         chat.sequence.cache.capacity));
  }
  if (result.finish != FinishReason::interrupted) return;
  if (!terminal || interrupted_by != SIGINT) throw Interrupted{};
  interrupted_by = 0;
  log("stopped");
}

void talk(Chat& chat) {
  LineReader lines;
  chat.conversation.reset();
  for (std::string line; lines.next(line);) {
    const size_t last = line.find_last_not_of(" \t\r");
    if (last == std::string::npos) continue;
    line.resize(last + 1);
    if (line == "/exit") return;
    if (line == "/help") {
      std::fputs(kHelp, stderr);
    } else if (line == "/reset") {
      chat.conversation.reset();
    } else if (line[0] == '/' && line.find_first_not_of("abcdefghijklmnopqrstuvwxyz", 1) == std::string::npos) {
      log_line(fmt::format("there is no command {}; /help lists them", printable(line, 40)));
    } else if (!lines.terminal()) {
      answer(chat, line, false);
    } else {
      try {
        answer(chat, line, true);
      } catch (const Error& e) {  // the next line may do better
        log_line(e.what());
      }
    }
  }
}

ChatOptions chat_options(const ChatCommandOptions& options, const Tokenizer& tokenizer) {
  ChatOptions chat = begin_and_end_of(tokenizer);
  // Templates know the switch by either name.
  if (!options.thinking.empty()) {
    const bool on = options.thinking == "on";
    chat.kwargs = {{"thinking", on}, {"enable_thinking", on}};
  }
  return chat;
}

void run(ChatCommandOptions options, const CommonOptions& common) {
  check_sampler(options.generation.sampler);
  const StopFilter stops_are_valid(options.generation.stop);
  ThreadPool pool = make_pool(options.placement, common);
  const Tokenizer tokenizer = load_tokenizer(options.model);
  check_vocabulary(tokenizer, read_model_config(options.model), options.model);
  Conversation conversation{load_chat_template(options.template_file, tokenizer), chat_options(options, tokenizer),
                            options.system};
  if (conversation.plain()) {
    if (!options.thinking.empty()) throw UsageError("--thinking: the model has no chat template to say it with");
    log("the model has no chat template: it continues the text as it stands");
  }
  const std::unique_ptr<Device> device = open_device(common);
  const ReadyModel ready = load_ready_model(options.model, options.placement, pool, device.get());
  const Model& model = ready.model;

  options.generation.draft_tokens = draft_tokens(options.draft, model);
  options.generation.eos_ids = model.config.eos_token_ids;
  if (tokenizer.eos_id() >= 0) options.generation.eos_ids.push_back(tokenizer.eos_id());
  const int64_t limit = std::max(model.config.max_position_embeddings, int64_t{1});
  const int64_t context = std::min(options.context > 0 ? options.context : kDefaultContext, limit);
  Arena arena = make_arena(device.get());
  Context ctx{pool, arena, device.get()};
  LatentCache cache =
      make_latent_cache(model.config, context, cache_format(options.kv_type, device.get()), device.get());
  Chat chat{options, common, tokenizer, model, ctx, std::move(conversation), {{}, std::move(cache)}};
  talk(chat);
}

}  // namespace

std::string load_chat_template(const std::string& file, const Tokenizer& tokenizer) {
  if (file.empty()) return tokenizer.chat_template();
  if (file == kDeepseekV32Encoding) return file;
  std::string source = read_file(file, kMaxTemplateBytes);
  if (const size_t at = first_invalid_utf8(source); at != kNoPosition) {
    throw Error("{}: not UTF-8 at byte {}", printable(file), at);
  }
  return source;
}

ChatOptions begin_and_end_of(const Tokenizer& tokenizer) {
  ChatOptions chat;
  if (tokenizer.bos_id() >= 0) chat.bos_token = tokenizer.token_bytes(tokenizer.bos_id());
  if (tokenizer.eos_id() >= 0) chat.eos_token = tokenizer.token_bytes(tokenizer.eos_id());
  return chat;
}

void add_chat(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<ChatCommandOptions>();
  options->generation.max_tokens = 2048;
  CLI::App* command = app.add_subcommand("chat", "Talk with a model in the terminal");
  command->option_defaults()->always_capture_default();
  command->add_option("--model", options->model, "Model directory or .gguf file")->required()->type_name("MODEL");
  command->add_option("--system", options->system, "What the model is told before the conversation");
  command->add_option("--thinking", options->thinking, "Ask the template for thoughts before the answer: on, off")
      ->check(CLI::IsMember({"on", "off"}));
  command->add_option("--template", options->template_file, "Jinja file, or deepseek-v3.2-encoding (default: model's)")
      ->type_name("FILE");
  command->add_option("--ctx", options->context, "Tokens of context (default: the model's, 32768 at most)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  command->add_option("--max-tokens", options->generation.max_tokens, "Tokens of an answer at most")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  add_sampler_options(*command, options->generation.sampler);
  command->add_option("--stop", options->generation.stop, "End an answer before this text (may be given again)")
      ->allow_extra_args(false)
      ->type_name("TEXT");
  add_draft_options(*command, options->draft);
  add_kv_type_option(*command, options->kv_type);
  add_placement_options(*command, options->placement);
  add_gpu_memory_option(*command, options->placement);
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace fathom::cli
