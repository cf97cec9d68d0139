// fathom tokenize: text to ids and back; makes datasets of tokens, and vocabularies.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/terminal.h"
#include "cli/command.h"
#include "text/bpe_trainer.h"
#include "text/chat.h"
#include "text/dataset.h"
#include "text/tokenizer.h"

namespace fathom::cli {
namespace {

constexpr size_t kMaxInputBytes = size_t{1} << 30;

struct TokenizeCommandOptions {
  std::string model, out, template_file;
  std::vector<std::string> data;
  bool decode = false, jsonl = false, chat = false;
  int64_t train = 0;
  double fim_rate = 0;
};

std::string read_stdin() {
  std::string input;
  std::vector<char> block(size_t{1} << 16);
  while (const size_t n = std::fread(block.data(), 1, block.size(), stdin)) {
    if (input.size() + n > kMaxInputBytes) throw Error("standard input: has more than {} bytes", kMaxInputBytes);
    input.append(block.data(), n);
  }
  if (std::ferror(stdin) != 0) throw Error("standard input: cannot read");
  return input;
}

std::vector<int32_t> ids_of(simdjson::dom::element value, const std::string& where) {
  simdjson::dom::array list;
  if (value.get(list)) throw Error("{}: expected a list of token ids", where);
  std::vector<int32_t> ids;
  for (const simdjson::dom::element entry : list) {
    int64_t id = 0;
    if (entry.get(id) || id < INT32_MIN || id > INT32_MAX)
      throw Error("{}: element {} is no token id", where, ids.size());
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

std::string json_of(const std::vector<int32_t>& ids) { return fmt::format("[{}]", fmt::join(ids, ", ")); }

std::string one_line(const Tokenizer& tokenizer, std::string_view text_line, const std::string& where) {
  const JsonDocument line = JsonDocument::parse(text_line, where);
  simdjson::dom::element value;
  if (!line.root()["ids"].get(value)) {
    const std::vector<int32_t> ids = ids_of(value, line.where());
    return nlohmann::json(errors_at(where, [&] { return tokenizer.decode(ids); })).dump();
  }
  std::string_view text;
  if (line.root()["text"].get(text)) throw Error("{}: expected an object with \"text\" or \"ids\"", line.where());
  return json_of(errors_at(where, [&] { return tokenizer.encode(text); }));
}

// An object with messages, and perhaps tools and kwargs (the template's variables) -> {"text", "ids"}.
std::string one_chat(const Tokenizer& tokenizer, const std::string& chat_template, std::string_view line,
                     const std::string& where) {
  JsonDocument::parse(line, where);  // its checks
  const auto object = nlohmann::ordered_json::parse(line, nullptr, false);
  if (!object.is_object() || !object.contains("messages")) throw Error("{}: expected an object with messages", where);
  ChatOptions options = begin_and_end_of(tokenizer);
  options.add_generation_prompt = false;  // kwargs may ask for it
  if (object.contains("tools")) options.tools = object["tools"];
  if (object.contains("kwargs")) options.kwargs = object["kwargs"];
  return errors_at(where, [&] {
    const std::string text = render_chat(chat_template, object["messages"], options);
    return nlohmann::ordered_json{{"text", text}, {"ids", tokenizer.encode(text)}}.dump();
  });
}

// Calls line_result(line, where) for each line that is not blank and writes what it gives.
template <class F>
void run_lines(std::string_view input, F line_result) {
  for (int64_t number = 1; !input.empty(); ++number) {
    const size_t end = std::min(input.find('\n'), input.size());
    const std::string_view line = input.substr(0, end);
    input.remove_prefix(std::min(end + 1, input.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    write_stdout(line_result(line, fmt::format("standard input: line {}", number)) + "\n");
  }
}

std::vector<std::filesystem::path> paths_of(const TokenizeCommandOptions& options) {
  return {options.data.begin(), options.data.end()};
}

void run_training(const TokenizeCommandOptions& options) {
  if (options.data.empty() || options.out.empty()) {
    throw UsageError("tokenize: --train needs --data PATH... and --out FILE");
  }
  if (options.fim_rate != 0) throw UsageError("tokenize: --train makes a vocabulary: leave --fim-rate out");
  const auto files = find_text_files(paths_of(options));
  for (const auto& file : files) {
    if (same_path(options.out, file.path))
      throw UsageError("tokenize: --out {} is a text that is read", printable(options.out));
  }
  DocumentReader documents(files);
  write_file_atomically(options.out, train_bpe(documents, options.train));
}

void make_dataset(const TokenizeCommandOptions& o, const CommonOptions& common) {
  if (o.out.empty()) throw UsageError("tokenize: --data needs --out DIR: where the dataset goes");
  if (o.decode || o.jsonl || o.chat)
    throw UsageError("tokenize: --data makes a dataset: leave --decode, --jsonl and --chat out");
  if (!(o.fim_rate >= 0 && o.fim_rate <= 1)) {
    throw UsageError("tokenize: --fim-rate is {}, must be between 0 and 1", o.fim_rate);
  }
  const double start_s = monotonic_s();
  const Tokenizer tokenizer = load_tokenizer(o.model);
  TokenizeOptions options;
  options.tokenizer_name = o.model;
  options.fim_rate = o.fim_rate;
  options.seed = common.seed;
  options.check = stop_when_interrupted;
  ThreadPool pool(thread_count(common));
  const DatasetInfo info = tokenize_files(tokenizer, find_text_files(paths_of(o)), o.out, options, pool);
  if (common.json) {
    const nlohmann::ordered_json json{{"out", o.out},
                                      {"documents", info.n_documents},
                                      {"tokens", info.n_tokens},
                                      {"shards", info.shards.size()},
                                      {"seconds", monotonic_s() - start_s}};
    write_stdout(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } else {
    write_stdout(fmt::format("{}: {} documents, {} tokens, {}\n", printable(o.out), info.n_documents, info.n_tokens,
                             human_duration(monotonic_s() - start_s)));
  }
}

void run(const TokenizeCommandOptions& options, const CommonOptions& common) {
  if (options.train != 0) return run_training(options);
  if (options.model.empty()) throw UsageError("tokenize: give --model, or --train to make a vocabulary");
  if (!options.data.empty()) return make_dataset(options, common);
  if (!options.out.empty() || options.fim_rate != 0) {
    throw UsageError("tokenize: --out and --fim-rate belong to --data PATH...: text to tokenize");
  }
  if (options.chat && options.decode) throw UsageError("tokenize: give either --chat or --decode, not both");
  if (!options.chat && !options.template_file.empty()) throw UsageError("tokenize: --template needs --chat");
  const Tokenizer tokenizer = load_tokenizer(options.model);
  if (options.chat) {
    const std::string chat_template = load_chat_template(options.template_file, tokenizer);
    return run_lines(read_stdin(), [&](std::string_view line, const std::string& where) {
      return one_chat(tokenizer, chat_template, line, where);
    });
  }
  const std::string input = read_stdin();
  if (options.jsonl) {
    return run_lines(input,
                     [&](std::string_view line, const std::string& where) { return one_line(tokenizer, line, where); });
  }
  if (options.decode) {
    const JsonDocument document = JsonDocument::parse(input, "standard input");
    const std::vector<int32_t> ids = ids_of(document.root(), "standard input");
    return write_stdout(errors_at("standard input", [&] { return tokenizer.decode(ids); }));
  }
  write_stdout(json_of(errors_at("standard input", [&] { return tokenizer.encode(input); })) + "\n");
}

}  // namespace

void add_tokenize(CLI::App& app, CommonOptions& common) {
  auto options = std::make_shared<TokenizeCommandOptions>();
  CLI::App* command = app.add_subcommand("tokenize", "Text to token ids and back; makes datasets and vocabularies");
  command->add_option("--model", options->model, "Model directory, .gguf file, tokenizer.json or the word bytes");
  command->add_flag("--decode", options->decode, "Read a JSON list of ids, write the text");
  command->add_flag("--jsonl", options->jsonl, "Read an object with text (or ids) a line, write ids (or text) a line");
  command->add_flag("--chat", options->chat, "Read an object with messages a line, write the prompt's text and ids");
  command->add_option("--template", options->template_file, "With --chat: Jinja file, or deepseek-v3.2-encoding")
      ->type_name("FILE");
  command->add_option("--train", options->train, "Make a byte-level BPE vocabulary of this many ids");
  command
      ->add_option("--data", options->data,
                   "Tokenize this text into a dataset, or with --train learn from it: UTF-8 text, .jsonl with `text`, "
                   "both also as .gz or .zst, and directories of such files")
      ->type_name("PATH...");
  command->add_option("--out", options->out,
                      "With --data: the dataset to write, a directory; with --train the tokenizer.json");
  command
      ->add_option("--fim-rate", options->fim_rate,
                   "With --data: the part of the documents to rearrange for fill-in-the-middle")
      ->capture_default_str();
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace fathom::cli
