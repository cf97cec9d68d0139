// fathom train: pretrains from text.
#include <CLI/CLI.hpp>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/terminal.h"
#include "cli/command.h"
#include "cli/trainer_options.h"
#include "ops/device.h"
#include "parallel/mpi.h"
#include "train/parallel_train.h"
#include "train/sharded_state.h"

namespace fathom::cli {
namespace {

struct TrainCommandOptions {
  TrainerOptions trainer;
  int pp = 0, ep = 0, dp = 0, ranks_per_node = 0;  // 0: not given
  std::string pp_schedule = "1f1b";
  double hang_s = 60;
};

// What the processes are for: those that no option names go to dp.
ParallelLayout layout_of(const TrainCommandOptions& o, int n_ranks) {
  ParallelLayout layout;
  layout.pp = std::max(o.pp, 1);
  layout.ep = std::max(o.ep, 1);
  layout.dp = o.dp > 0 ? o.dp : std::max(n_ranks / layout.pp, 1);
  layout.ranks_per_node = o.ranks_per_node;
  for (const auto& [name, kind] : kScheduleKinds) {
    if (name == o.pp_schedule) layout.schedule = kind;
  }
  return layout;
}

// One line on stderr, by the process that knows why, while it still holds the others in MPI: the first that leaves with
// an error has mpirun kill the rest.
TrainResult train_with_mpi(const TrainCommandOptions& options, const TrainOptions& train_options, ThreadPool& pool,
                           const std::function<bool()>& stop_requested) {
  const std::unique_ptr<Communicator> comm = join_mpi(options.hang_s);
  try {
    return train_on_ranks(train_options, layout_of(options, comm->size()), *comm, pool, stop_requested);
  } catch (const UsageError& error) {  // the same in all of them
    if (comm->rank() == 0) report(error.what(), 2);
    throw ToldElsewhere{2};
  } catch (const FailedTogether& error) {
    if (error.tells) report(error.what(), 1);
    throw ToldElsewhere{1};
  } catch (const std::exception& error) {
    comm->fail(fmt::format("rank {}: {}", comm->rank(), error.what()));
    throw;
  }
}

// Whether the options of several processes count; a process by itself may take them too.
bool has_layout(const TrainCommandOptions& o) { return started_by_mpi() || o.pp > 0 || o.ep > 0 || o.dp > 0; }

void run(const TrainCommandOptions& options, const CommonOptions& common) {
  TrainOptions train_options = trainer_options(options.trainer, common);
  const bool many = has_layout(options);
  if (many) require_cpu(common, "train in several processes");
  const std::unique_ptr<Device> device = open_device(common);
  train_options.device = device.get();
  ThreadPool pool(thread_count(common));
  const auto stop_requested = [] { return interrupted_by != 0; };
  const TrainResult result =
      many ? train_with_mpi(options, train_options, pool, stop_requested) : train(train_options, pool, stop_requested);
  if (result.stopped && interrupted_by == 0) interrupted_by = SIGTERM;  // another process of the job got it
  if (many && !is_first_of_mpi()) throw ToldElsewhere{result.stopped ? 128 + interrupted_by : 0};
  report_training(train_options, result, common, nlohmann::ordered_json::object());
}

// What there is to be read, and how it is cut.
void add_data_options(CLI::App& c, TrainOptions& o) {
  c.add_option("--model-config", o.model_config, "Train a new model of this shape: a Hugging Face config.json")
      ->type_name("FILE");
  c.add_option("--init", o.init, "Start from the weights of a model directory or .gguf file")->type_name("MODEL");
  c.add_option("--data", o.data,
               "What to learn from: UTF-8 text, .jsonl with `text`, both also as .gz or .zst, directories of such "
               "files, or one dataset that fathom tokenize wrote")
      ->type_name("PATH...");
  c.add_option("--fim-rate", o.fim_rate, "Part of the documents to rearrange for fill-in-the-middle")
      ->capture_default_str();
  c.add_option("--tokenizer", o.tokenizer, "tokenizer.json, a directory with one, or bytes (default: that of --init)");
  c.add_option("--batch-start", o.batch_start, "Sequences of the first step, which grow to --batch-size");
  c.add_option("--batch-ramp", o.batch_ramp, "Steps over which they do");
  c.add_flag("--mask-documents", o.mask_documents, "Attention, MTP and targets stay within a document");
  c.add_option("--extend-seq-len", o.extend_seq_len,
               "Tokens a sequence after step --extend-at, with as many tokens a step as before");
  c.add_option("--extend-at", o.extend_at, "Last step of --seq-len");
}

}  // namespace

void add_train(CLI::App& app, CommonOptions& common) {
  auto options = std::make_shared<TrainCommandOptions>();
  TrainOptions& o = options->trainer.train;
  o.steps = 1000;
  o.seq_len = 256;
  o.batch_size = 8;
  o.lr.peak = 1e-3;
  CLI::App* c = app.add_subcommand("train", "Pretrain a model from text");
  add_data_options(*c, o);
  add_trainer_options(*c, options->trainer);
  std::vector<CLI::Option*> of_warmup = {
      c->add_option("--index-n-heads", o.indexer.n_heads, "Heads of a new indexer")->capture_default_str(),
      c->add_option("--index-head-dim", o.indexer.head_dim, "Their width")->capture_default_str(),
      c->add_option("--index-topk", o.indexer.topk, "Tokens that it chooses")->capture_default_str()};
  CLI::Option* const yarn =
      c->add_option("--yarn-factor", o.yarn_factor,
                    "Have the model of --init read so many times longer sequences, by YaRN (V3 section 4.3)");
  c->add_option("--yarn-original", o.yarn_original, "Than these tokens (default: its max_position_embeddings)")
      ->needs(yarn);
  const auto ranks = CLI::Range(1, 1 << 20);
  c->add_option("--pp", options->pp, "With mpirun: stages of the pipeline, a process each (default: 1)")->check(ranks);
  c->add_option("--ep", options->ep, "With mpirun: processes that share a layer's experts (default: 1)")->check(ranks);
  c->add_option("--dp", options->dp,
                "With mpirun: processes that each have sequences of their own (default: all there are)")
      ->check(ranks);
  CLI::Option* const per_node =
      c->add_option("--ranks-per-node", options->ranks_per_node,
                    "Of those that share experts, so that rows cross once to each node (default: all on one)")
          ->check(ranks);
  CLI::Option* const hang =
      c->add_option("--hang-timeout", options->hang_s,
                    "With mpirun: seconds without a sign of life of a process before all of them end")
          ->check(CLI::Range(1.0, 1e6))
          ->capture_default_str();
  c->add_option("--trace", o.trace, "With mpirun: what each process did in the last steps, for Perfetto")
      ->type_name("FILE.json");
  std::vector<std::string> schedules;
  for (const auto& each : kScheduleKinds) schedules.emplace_back(each.name);
  CLI::Option* const pp_schedule = c->add_option("--pp-schedule", options->pp_schedule,
                                                 "In what order the pipeline works: fathom plan schedule draws it")
                                       ->check(CLI::IsMember(schedules))
                                       ->capture_default_str();
  add_sample_options(*c, options->trainer, "What samples begin with (default: a line end)");
  c->callback([options, &common, of_many = std::array{per_node, hang, pp_schedule}, of_warmup] {
    for (const CLI::Option* const each : of_warmup) {
      if (each->count() > 0 && options->trainer.dsa != "warmup")
        throw UsageError("train: {} is of --dsa warmup, which makes new indexers", each->get_name());
    }
    for (const CLI::Option* const each : of_many) {
      if (each->count() == 0 || has_layout(*options)) continue;
      throw UsageError("train: {} is for several processes; start them with mpirun", each->get_name());
    }
    run(*options, common);
  });
}

}  // namespace fathom::cli
