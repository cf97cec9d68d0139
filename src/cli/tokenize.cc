// fathom tokenize: text to ids and back; makes vocabularies.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"
#include "cli/command.h"
#include "text/bpe_trainer.h"
#include "text/tokenizer.h"

namespace fathom::cli {
namespace {

constexpr size_t kMaxInputBytes = size_t{1} << 30;

struct Options {
  std::string model, out, template_file;
  std::vector<std::string> data;
  bool decode = false, jsonl = false, chat = false;
  int64_t train = 0;
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

void run_training(const Options& options) {
  if (options.data.empty() || options.out.empty()) {
    throw UsageError("tokenize: --train needs --data FILE... and --out FILE");
  }
  std::vector<std::string> texts;
  for (const std::string& file : options.data) {
    texts.push_back(read_file(file, kMaxInputBytes));
    if (const size_t at = first_invalid_utf8(texts.back()); at != kNoPosition) {
      throw Error("{}: not UTF-8 at byte {}", printable(file), at);
    }
  }
  write_file_atomically(options.out, train_bpe(texts, options.train));
}

void run(const Options& options) {
  if (options.train != 0) return run_training(options);
  if (options.model.empty()) throw UsageError("tokenize: give --model, or --train to make a vocabulary");
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

void add_tokenize(CLI::App& app, CommonOptions&) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("tokenize", "Text to token ids and back; makes vocabularies");
  command->add_option("--model", options->model, "Model directory, .gguf file, tokenizer.json or the word bytes");
  command->add_flag("--decode", options->decode, "Read a JSON list of ids, write the text");
  command->add_flag("--jsonl", options->jsonl, "Read an object with text (or ids) a line, write ids (or text) a line");
  command->add_flag("--chat", options->chat, "Read an object with messages a line, write the prompt's text and ids");
  command->add_option("--template", options->template_file, "With --chat: Jinja file, or deepseek-v3.2-encoding")
      ->type_name("FILE");
  command->add_option("--train", options->train, "Make a byte-level BPE vocabulary of this many ids");
  command->add_option("--data", options->data, "With --train: UTF-8 text to learn from");
  command->add_option("--out", options->out, "With --train: the tokenizer.json to write");
  command->callback([options] { run(*options); });
}

}  // namespace fathom::cli
