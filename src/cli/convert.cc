// fathom convert: the same model in other number formats.
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/terminal.h"
#include "checkpoint/packed_model.h"
#include "cli/command.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string from, to, format;
  bool dry_run = false;
};

constexpr const char* kOtherFiles[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};

void print_sizes(const Options& o, const CommonOptions& common, const Recipe& recipe) {
  int64_t numbers = 0, bytes = 0;
  nlohmann::ordered_json by_type;
  std::string text;
  for (const WeightBytes& size : packed_sizes(o.from, recipe)) {
    numbers += size.numbers;
    bytes += size.bytes;
    by_type[format_traits(size.format).name] = {{"numbers", size.numbers}, {"bytes", size.bytes}};
    text += fmt::format("{:<6} {:>9} numbers {:>12}\n", format_traits(size.format).name,
                        human_count(static_cast<double>(size.numbers)), human_bytes(static_cast<double>(size.bytes)));
  }
  const double bits = 8 * static_cast<double>(bytes) / static_cast<double>(numbers);
  if (common.json) {
    const nlohmann::ordered_json json{{"bytes", bytes}, {"bits_per_number", bits}, {"by_type", by_type}};
    write_stdout(json.dump() + "\n");
    return;
  }
  write_stdout(fmt::format("{}total  {:>9} numbers {:>12}, {:.2f} bits a number\n", text,
                           human_count(static_cast<double>(numbers)), human_bytes(static_cast<double>(bytes)), bits));
}

// Of a directory; a GGUF file has none.
void copy_other_files(const Options& o) {
  for (const char* name : kOtherFiles) {
    const fs::path file = fs::path(o.from) / name;
    constexpr size_t kMaxBytes = size_t{1} << 28;
    if (!path_is_directory(o.from) || !path_exists(file)) continue;
    write_file_atomically(fs::path(o.to) / name, read_file(file, kMaxBytes));
  }
}

void stop_when_interrupted() {
  if (interrupted_by != 0) throw Interrupted{};
}

void write_gguf(const Options& o, const Recipe& recipe, ThreadPool& pool) {
  const std::optional<Tokenizer> tokenizer = find_tokenizer(o.from);
  if (!tokenizer) return convert_to_gguf(o.from, o.to, recipe, nullptr, pool, stop_when_interrupted);
  const Vocabulary lists = tokenizer->vocabulary();
  const GgufTokenizer views{lists.pretokenizer, {lists.tokens.begin(), lists.tokens.end()},
                            lists.kinds,        {lists.merges.begin(), lists.merges.end()},
                            lists.bos,          lists.eos,
                            lists.chat_template};
  convert_to_gguf(o.from, o.to, recipe, &views, pool, stop_when_interrupted);
}

void run(const Options& o, const CommonOptions& common) {
  const Recipe* recipe = find_recipe(o.format);
  if (recipe == nullptr) {
    throw UsageError("--to {}: no such format; there are {}", printable(o.format, 80), recipe_names());
  }
  if (o.dry_run) return print_sizes(o, common, *recipe);
  if (o.to.empty()) throw UsageError("convert: give the directory or .gguf file to write, behind the model");
  std::error_code none;
  if (fs::equivalent(o.from, o.to, none)) throw UsageError("convert: {} would overwrite itself", printable(o.to));
  ThreadPool pool(thread_count(common));
  const double start = monotonic_s();
  if (is_gguf_path(o.to)) {
    write_gguf(o, *recipe, pool);
  } else {
    convert_model(o.from, o.to, *recipe, pool, stop_when_interrupted);
    copy_other_files(o);
  }
  log("{}: {} as {}, {}", printable(o.to), printable(o.from), o.format, human_duration(monotonic_s() - start));
}
}  // namespace

void add_convert(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("convert", "Write a model in another number format");
  command->option_defaults()->always_capture_default();
  command->add_option("SRC", options->from, "Model directory or .gguf file")->required();
  command->add_option("DST", options->to, "Directory to write, or a .gguf file");
  command->add_option("--to", options->format, "Format of the weights: " + recipe_names())
      ->required()
      ->type_name("NAME");
  command->add_flag("--dry-run", options->dry_run, "Print the size by type and write nothing");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace fathom::cli
