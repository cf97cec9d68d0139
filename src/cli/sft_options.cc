#include "cli/sft_options.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "parallel/mpi.h"

namespace fathom::cli {
namespace {
constexpr int64_t kMostRows = int64_t{1} << 31;
}  // namespace

void add_conversation_options(CLI::App& c, SftCommandOptions& options) {
  c.add_option("--template", options.template_file,
               "Jinja file, or deepseek-v3.2-encoding, in place of the model's chat template")
      ->type_name("FILE");
  c.add_option("--thinking", options.thinking,
               "Whether conversations think whose line does not say: on, off (default: those with reasoning_content)")
      ->check(CLI::IsMember({"on", "off"}));
  c.add_option("--train-on", options.train_on, "all-assistant, or the last answer of each conversation")
      ->check(CLI::IsMember({"all-assistant", "last"}))
      ->capture_default_str();
  c.add_option("--too-long", options.too_long, "Conversations longer than --seq-len: drop, cut, or error")
      ->check(CLI::IsMember({"drop", "cut", "error"}))
      ->capture_default_str();
  c.add_option("--skip-bad", options.sft.skip_bad, "Pass over at most so many lines that are no conversations")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
}

void add_sft_options(CLI::App& c, SftCommandOptions& options) {
  TrainOptions& o = options.trainer.train;
  o.command = "sft";
  o.batch_size = 32;
  o.lr.peak = 5e-6;  // V3 section 5.1
  o.mtp_weight = 0.1;
  o.bias_update_speed = 0;  // as at the end of pretraining
  o.prompt = "Who are you?";
  add_conversation_options(c, options);
  options.epochs = c.add_option("--epochs", options.sft.epochs,
                                "How often all is learned, where --steps does not say how long to train")
                       ->capture_default_str();
  c.add_option("--packing", options.packing,
               "best-fit: rows of --seq-len tokens, in each as many conversations as fit; none: one in a row")
      ->check(CLI::IsMember({"best-fit", "none"}))
      ->capture_default_str();
  tune::TeacherOptions& teacher = options.sft.teacher;
  c.add_option("--distill-weight", teacher.weight,
               "What the divergence from a teacher's logits counts in the loss, the rest is the cross-entropy's")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c.add_option("--distill-temperature", teacher.temperature,
               "Of both distributions in it; one of those that the logits were made for")
      ->check(CLI::Range(0.01, 1000.0))
      ->capture_default_str();
  add_trainer_options(c, options.trainer,
                      {.steps = "Optimizer steps (default: what --epochs takes)",
                       .seq_len = "Tokens a row at most (default: 4096, or the model's longest)",
                       .batch_size = "Rows a step",
                       .micro_batch = "Rows a forward pass; gradients add up (default: 1)"});
  // 0 is how the options that are not given are told.
  for (const char* name : {"--steps", "--seq-len", "--micro-batch"}) {
    c.get_option(name)->check(CLI::Range(int64_t{1}, kMostRows));
  }
}

tune::SftOptions reading_options(const SftCommandOptions& options) {
  tune::SftOptions sft = options.sft;
  sft.train.init = options.trainer.train.init;
  sft.train.model_config = options.trainer.train.model_config;
  sft.train.tokenizer = options.trainer.train.tokenizer;
  sft.train.data = options.trainer.train.data;
  sft.train.seq_len = options.trainer.train.seq_len;
  sft.train.check = stop_when_interrupted;
  if (!options.thinking.empty()) sft.thinking = options.thinking == "on";
  sft.only_last_answer = options.train_on == "last";
  sft.too_long = tune::too_long_named(options.too_long);
  if (sft.train.model_config.empty() != sft.train.init.empty()) {
    sft.chat_template = choose_chat_template(options.template_file, sft.train);
  }
  return sft;
}

tune::SftOptions sft_options(const SftCommandOptions& options, const CommonOptions& common) {
  if (started_by_mpi()) throw UsageError("sft: runs in one process; leave mpirun out");
  if (options.epochs->count() > 0 && options.trainer.train.steps > 0) {
    throw UsageError("sft: --epochs and --steps both say how long to train; give one");
  }
  TrainOptions train = trainer_options(options.trainer, common);
  if (train.dsa == Dsa::warmup) {
    throw UsageError("sft: --dsa warmup trains no answers but the indexers of long texts: that is fathom train's");
  }
  tune::SftOptions sft = reading_options(options);
  train.chat_template = sft.train.chat_template;
  sft.train = std::move(train);
  sft.packs = options.packing == "best-fit";
  return sft;
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

}  // namespace fathom::cli
