// The model that a command asks questions: one of this program, or a server.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cli/command.h"
#include "eval/answerer.h"

namespace fathom::cli {

struct ModelUnderTestOptions {
  std::string model, url, url_model, key_file, template_file, kv_type = "auto";
  int64_t parallel = 16;             // requests, or sequences in a pass, at a time
  int64_t context = 0;               // tokens of one sequence at most; 0: the model's, at most 32768
  int64_t cache_tokens = 128 << 10;  // of all sequences together
  double timeout_s = 600;
  int64_t retries = 8;
  DraftOptions draft;
  PlacementOptions placement;
  const char *model_option = "--model", *template_option = "--template";  // what a command calls them
};
// --model, --url and what belongs to either; a command may leave both out, and must then not open it.
void add_model_under_test_options(CLI::App& command, ModelUnderTestOptions& options);

// Owns what its answerer refers to.
struct ModelUnderTest {
  std::string name;      // the model's directory or file, or the URL's model
  bool is_local = true;  // has tokens of its own
  bool can_chat = true;  // has a chat template, as a server is taken to have
  std::unique_ptr<ThreadPool> pool{};
  std::optional<Tokenizer> tokenizer{};
  ReadyModel ready{};
  Arena arena{};
  std::optional<Context> ctx{};
  std::optional<eval::Answerer> answerer{};
};
// UsageError of `command` where not exactly one of the model and --url is given. Asks a server for its models, so that
// one that is not there is told at once.
std::unique_ptr<ModelUnderTest> open_model_under_test(const ModelUnderTestOptions& options, const CommonOptions& common,
                                                      std::string_view command);

}  // namespace fathom::cli
