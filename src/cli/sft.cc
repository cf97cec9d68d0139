// fathom sft: supervised fine-tuning on conversations.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/sft_options.h"
#include "ops/device.h"

namespace fathom::cli {

void add_sft(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<SftCommandOptions>();
  TrainOptions& o = options->trainer.train;
  CLI::App* c = app.add_subcommand("sft", "Fine-tune a model on conversations: their answers are learned");
  c->add_option("--init", o.init, "The model to fine-tune: a directory or .gguf file")->type_name("MODEL");
  c->add_option("--model-config", o.model_config, "Instead of it a new model of this shape: a Hugging Face config.json")
      ->type_name("FILE");
  c->add_option("--tokenizer", o.tokenizer, "tokenizer.json, a directory with one, or bytes (default: that of --init)");
  c->add_option("--data", o.data,
                "Conversations: .jsonl with `messages`, or `prompt` and `completion`, also as .gz or .zst, or "
                "directories of such files")
      ->type_name("PATH...");
  c->add_option("--teacher-logits", options->sft.teacher.logits,
                "Learn a teacher's logits of the same conversations, too: what fathom distill logits wrote")
      ->type_name("DIR");
  add_sft_options(*c, *options);
  for (const char* name : {"--distill-weight", "--distill-temperature"}) c->get_option(name)->needs("--teacher-logits");
  add_sample_options(*c, options->trainer, "The question that samples answer");
  c->callback([options, &common] {
    tune::SftOptions sft = sft_options(*options, common);
    const std::unique_ptr<Device> device = open_device(common);
    sft.train.device = device.get();
    ThreadPool pool(thread_count(common));
    const tune::SftResult result = tune::fine_tune(sft, pool, [] { return interrupted_by != 0; });
    report_training(sft.train, result.train, common, counts_of(result));
  });
}

}  // namespace fathom::cli
