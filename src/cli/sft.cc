// fathom sft: supervised fine-tuning on conversations.
#include "tune/sft.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "base/terminal.h"
#include "cli/command.h"
#include "cli/trainer_options.h"
#include "parallel/mpi.h"
#include "serve/prompt.h"

namespace fathom::cli {
namespace {

struct Options {
  TrainerOptions trainer;
  tune::SftOptions sft;
  std::string template_file, thinking, train_on = "all-assistant", too_long = "drop", packing = "best-fit";
};

// The template to tell conversations with, and, where the model is to have it from now on, train.chat_template.
void choose_template(const Options& options, tune::SftOptions& sft) {
  TrainOptions& train = sft.train;
  if (train.tokenizer.empty() && train.init.empty()) return;  // which is said later
  const Tokenizer tokenizer = Tokenizer::load(train.tokenizer.empty() ? train.init.string() : train.tokenizer);
  sft.chat_template = load_chat_template(options.template_file, tokenizer);
  const std::string model_type = read_model_config(train.init.empty() ? train.model_config : train.init).model_type;
  if (sft.chat_template.empty() && tokenizer.id_of("<｜User｜>") >= 0) {
    sft.chat_template = serve::default_template(tokenizer, model_type);
  }
  if (sft.chat_template == tokenizer.chat_template()) return;
  if (sft.chat_template != kDeepseekV32Encoding) {
    train.chat_template = sft.chat_template;
  } else if (model_type == "deepseek_v32") {
    train.chat_template = "";  // which is what such a model's directory means by none
  } else {
    log("{} is no template that a model directory can hold: give it to serve and chat with --template, too",
        kDeepseekV32Encoding);
  }
}

nlohmann::ordered_json counts_of(const tune::SftResult& result) {
  const tune::SftCounts& c = result.counts;
  return {{"steps", result.steps},
          {"conversations", c.conversations},
          {"sequences", c.sequences},
          {"rows", c.rows},
          {"data_tokens", c.tokens},
          {"data_trained_tokens", c.trained_tokens},
          {"cut", c.cut},
          {"dropped", c.dropped},
          {"without_answer", c.without_answer},
          {"bad", c.bad}};
}

void run(const Options& options, const CommonOptions& common) {
  if (started_by_mpi()) throw UsageError("sft: runs in one process; leave mpirun out");
  tune::SftOptions sft = options.sft;
  sft.train = trainer_options(options.trainer, common);
  if (sft.train.dsa == Dsa::warmup) {
    throw UsageError("sft: --dsa warmup trains no answers but the indexers of long texts: that is fathom train's");
  }
  if (!options.thinking.empty()) sft.thinking = options.thinking == "on";
  sft.only_last_answer = options.train_on == "last";
  sft.too_long = tune::too_long_named(options.too_long);
  sft.packs = options.packing == "best-fit";
  if (sft.train.model_config.empty() != sft.train.init.empty()) choose_template(options, sft);
  ThreadPool pool(thread_count(common));
  const tune::SftResult result = tune::fine_tune(sft, pool, [] { return interrupted_by != 0; });
  report_training(sft.train, result.train, common, counts_of(result));
}

}  // namespace

void add_sft(CLI::App& app, CommonOptions& common) {
  const auto options = std::make_shared<Options>();
  tune::SftOptions& sft = options->sft;
  TrainOptions& o = options->trainer.train;
  o.command = "sft";
  o.batch_size = 32;
  o.lr.peak = 5e-6;  // V3 section 5.1
  o.mtp_weight = 0.1;
  o.bias_update_speed = 0;  // as at the end of pretraining
  o.prompt = "Who are you?";
  CLI::App* c = app.add_subcommand("sft", "Fine-tune a model on conversations: their answers are learned");
  c->add_option("--init", o.init, "The model to fine-tune: a directory or .gguf file")->type_name("MODEL");
  c->add_option("--model-config", o.model_config, "Instead of it a new model of this shape: a Hugging Face config.json")
      ->type_name("FILE");
  c->add_option("--tokenizer", o.tokenizer, "tokenizer.json, a directory with one, or bytes (default: that of --init)");
  c->add_option("--data", o.data,
                "Conversations: .jsonl with `messages`, or `prompt` and `completion`, also as .gz or .zst, or "
                "directories of such files")
      ->type_name("PATH...");
  c->add_option("--template", options->template_file,
                "Jinja file, or deepseek-v3.2-encoding, in place of the model's chat template")
      ->type_name("FILE");
  c->add_option("--thinking", options->thinking,
                "Whether conversations think whose line does not say: on, off (default: those with reasoning_content)")
      ->check(CLI::IsMember({"on", "off"}));
  c->add_option("--train-on", options->train_on, "all-assistant, or the last answer of each conversation")
      ->check(CLI::IsMember({"all-assistant", "last"}))
      ->capture_default_str();
  CLI::Option* const epochs =
      c->add_option("--epochs", sft.epochs, "How often all is learned, where --steps does not say how long to train")
          ->capture_default_str();
  c->add_option("--too-long", options->too_long, "Conversations longer than --seq-len: drop, cut, or error")
      ->check(CLI::IsMember({"drop", "cut", "error"}))
      ->capture_default_str();
  c->add_option("--packing", options->packing,
                "best-fit: rows of --seq-len tokens, in each as many conversations as fit; none: one in a row")
      ->check(CLI::IsMember({"best-fit", "none"}))
      ->capture_default_str();
  c->add_option("--skip-bad", sft.skip_bad, "Pass over at most so many lines that are no conversations")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  add_trainer_options(*c, options->trainer,
                      {.steps = "Optimizer steps (default: what --epochs takes)",
                       .seq_len = "Tokens a row at most (default: 4096, or the model's longest)",
                       .batch_size = "Rows a step",
                       .micro_batch = "Rows a forward pass; gradients add up (default: 1)"});
  add_sample_options(*c, options->trainer, "The question that samples answer");
  c->callback([options, &common, epochs] {
    if (epochs->count() > 0 && options->trainer.train.steps > 0) {
      throw UsageError("sft: --epochs and --steps both say how long to train; give one");
    }
    run(*options, common);
  });
}

}  // namespace fathom::cli
