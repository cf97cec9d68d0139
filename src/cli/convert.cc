// fathom convert: the same model in other number formats.
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/terminal.h"
#include "checkpoint/hf_save.h"
#include "checkpoint/packed_model.h"
#include "cli/command.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string from, to, format;
  bool dry_run = false, packed = false;
};

// What it is written as.
enum class Kind { hugging_face, packed, gguf };

// What a directory has beside config and weights.
constexpr std::string_view kGenerationConfig = "generation_config.json";  // which is there in any case
constexpr const char* kOtherFiles[] = {"generation_config.json",  "tokenizer.json",      "tokenizer_config.json",
                                       "special_tokens_map.json", "chat_template.jinja", "chat_template.json"};

Kind kind_of(const Options& o, const Recipe& recipe) {
  if (is_gguf_path(o.to)) {
    if (o.packed) throw UsageError("convert: --packed writes a directory, and {} is a file", printable(o.to));
    return Kind::gguf;
  }
  return o.packed || is_block_format(recipe.experts) ? Kind::packed : Kind::hugging_face;
}

void print_sizes(const Options& o, const CommonOptions& common, const Recipe& recipe, Kind kind) {
  int64_t numbers = 0, bytes = 0;
  nlohmann::ordered_json by_type;
  std::string text;
  const auto sizes = kind == Kind::hugging_face ? hf_sizes(o.from, recipe.experts) : packed_sizes(o.from, recipe);
  for (const WeightBytes& size : sizes) {
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

// The tokenizer that a GGUF file holds. One that fathom does not know is no reason to leave the weights.
std::optional<Tokenizer> tokenizer_in_gguf(const std::string& from) {
  if (!is_gguf_path(from)) return std::nullopt;
  try {
    return find_tokenizer(from);
  } catch (const Error& error) {
    log("{}; the directory gets no tokenizer", error.what());
    return std::nullopt;
  }
}

// Tokenizer, template and generation config: copies, or what a GGUF file says of them. Those of an older model go.
void write_other_files(const Options& o, const std::optional<Tokenizer>& in_gguf) {
  for (const char* name : kOtherFiles) {
    constexpr size_t kMaxBytes = size_t{1} << 28;
    const fs::path file = fs::path(o.from) / name, to = fs::path(o.to) / name;
    std::error_code ignored;
    if (path_is_directory(o.from) && path_exists(file)) {
      write_file_atomically(to, read_file(file, kMaxBytes));
    } else if (name != kGenerationConfig) {
      fs::remove(to, ignored);
    }
  }
  if (in_gguf) in_gguf->save(o.to);
}

void stop_when_interrupted() {
  if (interrupted_by != 0) throw Interrupted{};
}

void write_gguf(const Options& o, const Recipe& recipe, ThreadPool& pool, const ConvertOptions& options) {
  const std::optional<Tokenizer> tokenizer = find_tokenizer(o.from);
  if (!tokenizer) return convert_to_gguf(o.from, o.to, recipe, nullptr, pool, options);
  const Vocabulary lists = tokenizer->vocabulary();
  const GgufTokenizer views{lists.pretokenizer, {lists.tokens.begin(), lists.tokens.end()},
                            lists.kinds,        {lists.merges.begin(), lists.merges.end()},
                            lists.bos,          lists.eos,
                            lists.chat_template};
  convert_to_gguf(o.from, o.to, recipe, &views, pool, options);
}

void write_model(const Options& o, const Recipe& recipe, Kind kind, ThreadPool& pool) {
  ConvertOptions options{.check = stop_when_interrupted, .write_others = {}};
  if (kind == Kind::gguf) return write_gguf(o, recipe, pool, options);
  const std::optional<Tokenizer> in_gguf = tokenizer_in_gguf(o.from);
  options.write_others = [&] { write_other_files(o, in_gguf); };
  if (kind == Kind::packed) {
    convert_model(o.from, o.to, recipe, pool, options);
  } else {
    convert_to_hf(o.from, o.to, recipe.experts, pool, options);
  }
}

void run(const Options& o, const CommonOptions& common) {
  const Recipe* recipe = find_recipe(o.format);
  if (recipe == nullptr) {
    throw UsageError("--to {}: no such format; there are {}", printable(o.format, 80), recipe_names());
  }
  const Kind kind = kind_of(o, *recipe);
  if (o.dry_run) return print_sizes(o, common, *recipe, kind);
  if (o.to.empty()) throw UsageError("convert: give the directory or .gguf file to write, behind the model");
  std::error_code none;
  if (fs::equivalent(o.from, o.to, none)) throw UsageError("convert: {} would overwrite itself", printable(o.to));
  ThreadPool pool(thread_count(common));
  const double start = monotonic_s();
  write_model(o, *recipe, kind, pool);
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
  command->add_flag("--packed", options->packed,
                    "f32, bf16, f16, fp8: a directory in the kernels' own layout, which is mapped as it stands, in "
                    "place of a Hugging Face directory");
  command->add_flag("--dry-run", options->dry_run, "Print the size by type and write nothing");
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace fathom::cli
