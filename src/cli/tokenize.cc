// fathom tokenize: text to ids and back; makes vocabularies.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "cli/command.h"
#include "text/bpe_trainer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace fathom::cli {
namespace {

constexpr size_t kMaxInputBytes = size_t{1} << 30;

struct Options {
  std::string model, out;
  std::vector<std::string> data;
  bool decode = false, jsonl = false;
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

std::string one_line(const Tokenizer& tokenizer, const JsonDocument& line) {
  simdjson::dom::element value;
  if (!line.root()["ids"].get(value)) return nlohmann::json(tokenizer.decode(ids_of(value, line.where()))).dump();
  std::string_view text;
  if (line.root()["text"].get(text)) throw Error("{}: expected an object with \"text\" or \"ids\"", line.where());
  return json_of(tokenizer.encode(text));
}

void run_lines(const Tokenizer& tokenizer, std::string_view input) {
  for (int64_t number = 1; !input.empty(); ++number) {
    const size_t end = std::min(input.find('\n'), input.size());
    const std::string_view line = input.substr(0, end);
    input.remove_prefix(std::min(end + 1, input.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const JsonDocument document = JsonDocument::parse(line, fmt::format("standard input: line {}", number));
    write_stdout(one_line(tokenizer, document) + "\n");
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
  const Tokenizer tokenizer = Tokenizer::load(options.model);
  const std::string input = read_stdin();
  if (options.jsonl) return run_lines(tokenizer, input);
  if (options.decode) {
    const JsonDocument document = JsonDocument::parse(input, "standard input");
    return write_stdout(tokenizer.decode(ids_of(document.root(), "standard input")));
  }
  write_stdout(json_of(tokenizer.encode(input)) + "\n");
}

}  // namespace

void add_tokenize(CLI::App& app, CommonOptions&) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("tokenize", "Text to token ids and back; makes vocabularies");
  command->add_option("--model", options->model, "Model directory, tokenizer.json or the word bytes");
  command->add_flag("--decode", options->decode, "Read a JSON list of ids, write the text");
  command->add_flag("--jsonl", options->jsonl, "Read an object with text (or ids) a line, write ids (or text) a line");
  command->add_option("--train", options->train, "Make a byte-level BPE vocabulary of this many ids");
  command->add_option("--data", options->data, "With --train: UTF-8 text to learn from");
  command->add_option("--out", options->out, "With --train: the tokenizer.json to write");
  command->callback([options] { run(*options); });
}

}  // namespace fathom::cli
