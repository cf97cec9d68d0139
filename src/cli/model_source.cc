// What --model may be, for all that is not the weights: a directory in the Hugging Face layout or a GGUF file.
#include "base/file.h"
#include "checkpoint/gguf_model.h"
#include "cli/command.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;

std::optional<Tokenizer> find_in_gguf(const fs::path& path) {
  const GgufFile file = open_gguf_metadata(path);
  const auto found = find_gguf_tokenizer(file);
  if (!found) return std::nullopt;
  Vocabulary vocabulary;
  vocabulary.pretokenizer = found->pretokenizer;
  vocabulary.tokens.assign(found->tokens.begin(), found->tokens.end());
  vocabulary.kinds = found->types;
  vocabulary.merges.assign(found->merges.begin(), found->merges.end());
  vocabulary.bos = found->bos;
  vocabulary.eos = found->eos;
  vocabulary.add_bos = found->add_bos;
  vocabulary.chat_template = found->chat_template;
  return Tokenizer::from_vocabulary(vocabulary, file.where() + ": tokenizer");
}

}  // namespace

Tokenizer load_tokenizer(const fs::path& model) {
  if (!is_gguf_path(model)) return Tokenizer::load(model);
  std::optional<Tokenizer> tokenizer = find_in_gguf(model);
  if (!tokenizer) throw Error("{}: has no tokenizer in it", printable(model.native()));
  return std::move(*tokenizer);
}

std::optional<Tokenizer> find_tokenizer(const fs::path& model) {
  if (is_gguf_path(model)) return find_in_gguf(model);
  const bool there = path_exists(model / "tokenizer.json") || path_exists(model / "tokenizer_config.json");
  if (!there) return std::nullopt;
  return Tokenizer::load(model);
}

std::optional<Tokenizer> find_fitting_tokenizer(const fs::path& model, const ModelConfig& config,
                                                const std::function<void(const Error&)>& unknown) {
  std::optional<Tokenizer> tokenizer;
  try {
    tokenizer = find_tokenizer(model);
  } catch (const Error& error) {
    unknown(error);
  }
  if (tokenizer) check_vocabulary(*tokenizer, config, model);
  return tokenizer;
}

void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& config, const fs::path& model) {
  if (tokenizer.vocab_size() <= config.vocab_size) return;
  throw Error(
      "{}: the tokenizer has ids up to {}, but the model's vocabulary is {} (vocab_size): they do not belong "
      "together",
      printable(model.native()), tokenizer.vocab_size() - 1, config.vocab_size);
}

}  // namespace fathom::cli
