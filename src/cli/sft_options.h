// The options of fine-tuning on conversations, which `sft` has in common with the commands that make something for it.
#pragma once

#include <string>

#include "cli/trainer_options.h"
#include "tune/sft.h"

namespace fathom::cli {

struct SftCommandOptions {
  TrainerOptions trainer;
  tune::SftOptions sft;
  std::string template_file, thinking, train_on = "all-assistant", too_long = "drop", packing = "best-fit";
  const CLI::Option* epochs = nullptr;
};

// What conversations are told with, and which of them are learned: --template, --thinking, --train-on, --too-long,
// --skip-bad.
void add_conversation_options(CLI::App& command, SftCommandOptions& options);
// All but what is learned and by whom (--init, --data, ...): these, --epochs and --packing, what a teacher's logits are
// learned by, and the training loop's, samples aside. The defaults of fine-tuning are put into `options`, which must
// outlive the parse.
void add_sft_options(CLI::App& command, SftCommandOptions& options);

// What was parsed, ready for tune::fine_tune(). The template is chosen where the model is known.
tune::SftOptions sft_options(const SftCommandOptions& options, const CommonOptions& common);
// Without the training loop's: ready for tune::read_learned_data().
tune::SftOptions reading_options(const SftCommandOptions& options);

// What of the data was learned, for results.
nlohmann::ordered_json counts_of(const tune::SftResult& result);

}  // namespace fathom::cli
