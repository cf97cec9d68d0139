// fathom convert: the same model in other number formats.
#include "cli/convert.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/terminal.h"
#include "base/utf8.h"
#include "checkpoint/hf_save.h"
#include "checkpoint/imatrix.h"
#include "infer/score.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;

// What it is written as.
enum class Kind { hugging_face, packed, gguf };

// What a directory has beside config and weights.
constexpr std::string_view kGenerationConfig = "generation_config.json";  // which is there in any case
constexpr const char* kOtherFiles[] = {"generation_config.json",  "tokenizer.json",      "tokenizer_config.json",
                                       "special_tokens_map.json", "chat_template.jinja", "chat_template.json"};

Kind kind_of(const ConvertCommand& o, const Recipe& recipe) {
  if (path_is_directory(o.to) && fs::path(o.to).extension() == ".gguf") {
    throw UsageError("convert: {} is a directory; remove it, or give another name", printable(o.to));
  }
  if (is_gguf_path(o.to)) {
    if (o.packed) throw UsageError("convert: --packed writes a directory, and {} is a file", printable(o.to));
    if (recipe.experts == Format::f8_e4m3)
      throw UsageError("convert: GGUF has no FP8; take another --to than {}", recipe.name);
    return Kind::gguf;
  }
  return o.packed || is_block_format(recipe.experts) ? Kind::packed : Kind::hugging_face;
}

WeightSizes sizes_of(const ConvertCommand& o, const Recipe& recipe, Kind kind) {
  switch (kind) {
    case Kind::hugging_face:
      return hf_sizes(o.from, recipe.experts);
    case Kind::gguf:
      return gguf_sizes(o.from, recipe);
    case Kind::packed:
      break;
  }
  return packed_sizes(o.from, recipe);
}

void print_sizes(const ConvertCommand& o, const CommonOptions& common, const Recipe& recipe, Kind kind) {
  int64_t numbers = 0, bytes = 0;
  nlohmann::ordered_json by_type;
  std::string text;
  for (const auto& [format, size] : sizes_of(o, recipe, kind)) {
    numbers += size.numbers;
    bytes += size.bytes;
    const char* name = format_traits(format).name;
    by_type[name] = {{"numbers", size.numbers}, {"bytes", size.bytes}};
    text += fmt::format("{:<6} {:>9} numbers {:>12}\n", name, human_count(static_cast<double>(size.numbers)),
                        human_bytes(static_cast<double>(size.bytes)));
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

// The tokenizer, which must fit the model. One that fathom does not know is no reason to leave the weights: a
// directory's is copied, and that of a GGUF file left out.
std::optional<Tokenizer> known_tokenizer(const std::string& from) {
  check_model_path(from);
  return find_fitting_tokenizer(from, read_model_config(from), [&](const Error& error) {
    if (is_gguf_path(from)) log("{}; the directory gets no tokenizer", error.what());
  });
}

// Tokenizer, template and generation config: copies, or what a GGUF file says of them. Those of an older model go.
void write_other_files(const ConvertCommand& o, const std::optional<Tokenizer>& tokenizer) {
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
  if (tokenizer && is_gguf_path(o.from)) tokenizer->save(o.to);
}

void write_gguf(const ConvertCommand& o, const Recipe& recipe, ThreadPool& pool, const ConvertOptions& options) {
  const std::optional<Tokenizer> tokenizer = find_tokenizer(o.from);
  const NewDirectory folder(fs::path(o.to).parent_path());
  if (!tokenizer) return convert_to_gguf(o.from, o.to, recipe, nullptr, pool, options);
  check_vocabulary(*tokenizer, read_model_config(o.from), o.from);
  const Vocabulary lists = tokenizer->vocabulary();
  const GgufTokenizer views{lists.pretokenizer, {lists.tokens.begin(), lists.tokens.end()},
                            lists.kinds,        {lists.merges.begin(), lists.merges.end()},
                            lists.bos,          lists.eos,
                            lists.add_bos,      lists.chat_template};
  convert_to_gguf(o.from, o.to, recipe, &views, pool, options);
}

void write_model(const ConvertCommand& o, const Recipe& recipe, Kind kind, const Imatrix* imatrix, ThreadPool& pool) {
  ConvertOptions options{.imatrix = imatrix, .check = stop_when_interrupted, .write_others = {}};
  if (kind == Kind::gguf) return write_gguf(o, recipe, pool, options);
  const std::optional<Tokenizer> tokenizer = known_tokenizer(o.from);
  options.write_others = [&] { write_other_files(o, tokenizer); };
  if (kind == Kind::packed) {
    convert_model(o.from, o.to, recipe, pool, options);
  } else {
    convert_to_hf(o.from, o.to, recipe.experts, pool, options);
  }
}

// What goes together, before anything is read.
void check_options(const ConvertCommand& o) {
  if (!o.make_imatrix.empty()) {
    const bool alone = o.format.empty() && o.imatrix.empty() && o.report.empty() && !o.dry_run && !o.packed;
    if (!alone) throw UsageError("convert: --make-imatrix writes no model: leave --to and what belongs to it out");
    if (o.to.empty()) throw UsageError("convert: give the file to write the importance matrix to, behind the model");
  } else {
    if (o.format.empty()) throw UsageError("convert: give --to NAME, one of {}", recipe_names());
    if (o.dry_run && !o.report.empty()) throw UsageError("convert: a --dry-run writes nothing to --report on");
    if (!o.dry_run && o.to.empty()) {
      throw UsageError("convert: give the directory or .gguf file to write, behind the model");
    }
    if (o.window > 0 && o.report.empty()) throw UsageError("convert: --window belongs to --report or --make-imatrix");
  }
  std::error_code none;
  if (fs::equivalent(o.from, o.to, none)) throw UsageError("convert: {} would overwrite itself", printable(o.to));
}

// Whether some weight's encoder chooses by importance: q8_0 and floats do not.
bool uses_importance(const Recipe& r) {
  const Format formats[] = {r.attention, r.kv_b, r.dense, r.shared, r.experts, r.experts_down, r.head};
  return std::any_of(std::begin(formats), std::end(formats),
                     [](Format format) { return is_block_format(format) && format != Format::q8_0; });
}

std::optional<Imatrix> find_imatrix(const ConvertCommand& o, const Recipe& recipe) {
  if (o.imatrix.empty()) return std::nullopt;
  if (!uses_importance(recipe)) throw UsageError("convert: --imatrix changes nothing in --to {}", o.format);
  check_model_path(o.from);
  Imatrix imatrix = read_imatrix(o.imatrix);
  fit_imatrix(imatrix, read_model_config(o.from));
  return imatrix;
}

void run(const ConvertCommand& o, const CommonOptions& common) {
  require_cpu(common, "convert");
  check_options(o);
  if (!o.make_imatrix.empty()) return make_imatrix(o, common);
  const Recipe* recipe = find_recipe(o.format);
  if (recipe == nullptr) {
    throw UsageError("--to {}: no such format; there are {}", printable(o.format, 80), recipe_names());
  }
  const Kind kind = kind_of(o, *recipe);
  const std::optional<Imatrix> imatrix = find_imatrix(o, *recipe);
  if (o.dry_run) return print_sizes(o, common, *recipe, kind);
  std::vector<std::vector<int32_t>> windows;
  if (!o.report.empty()) {  // before the work: it may be no text, and the model too large to run
    windows = read_windows(o, o.report);
    check_fits_in_memory(o.from);
  }
  ThreadPool pool(thread_count(common));
  const double start = monotonic_s();
  write_model(o, *recipe, kind, imatrix ? &*imatrix : nullptr, pool);
  remove_report(o.to);  // of an older model there
  log("{}: {} as {}, {}", printable(o.to), printable(o.from), o.format, human_duration(monotonic_s() - start));
  if (!o.report.empty()) write_report(o, common, windows, pool);
}
}  // namespace

std::vector<std::vector<int32_t>> read_windows(const ConvertCommand& o, const std::string& text_file) {
  check_model_path(o.from);
  constexpr size_t kMaxTextFile = size_t{1} << 30;
  const ModelConfig config = read_model_config(o.from);
  const Tokenizer tokenizer = load_tokenizer(o.from);
  check_vocabulary(tokenizer, config, o.from);
  const std::string where = printable(text_file), text = read_file(text_file, kMaxTextFile);
  if (const size_t at = first_invalid_utf8(text); at != kNoPosition) {
    throw Error("{}: is no UTF-8 text: byte {} belongs to no character", where, at);
  }
  std::vector<std::vector<int32_t>> windows = text_windows(text, where, tokenizer, config, o.window, "convert");
  errors_at(where, [&] { check_sequences(config, windows); });
  return windows;
}

void add_convert(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<ConvertCommand>();
  CLI::App* command = app.add_subcommand("convert", "Write a model in another number format");
  command->option_defaults()->always_capture_default();
  command->add_option("SRC", options->from, "Model directory or .gguf file")->required();
  command->add_option("DST", options->to, "Directory to write, or a .gguf file");
  command->add_option("--to", options->format, "Format of the weights: " + recipe_names())->type_name("NAME");
  command->add_flag("--packed", options->packed,
                    "f32, bf16, f16, fp8: a directory in the kernels' own layout, which is mapped as it stands, in "
                    "place of a Hugging Face directory");
  command->add_flag("--dry-run", options->dry_run, "Print the size by type and write nothing");
  command->add_option("--imatrix", options->imatrix, "Quantize by the importance matrix in this file")
      ->type_name("FILE");
  command
      ->add_option("--report", options->report,
                   "Tell how far the result is from SRC over this text: KL divergence, likeliest tokens, perplexity, "
                   "weights. Written beside it")
      ->type_name("TEXT");
  command
      ->add_option("--make-imatrix", options->make_imatrix,
                   "Run SRC over this text and write its importance matrix to DST, nothing else")
      ->type_name("TEXT");
  command
      ->add_option("--window", options->window,
                   "Tokens in a window of those texts (default: 2048, or the model's context)")
      ->check(CLI::Range(2, 1 << 30));
  command->callback([options, &common] { run(*options, common); });
}

}  // namespace fathom::cli
