// fathom train: pretrains from text.
#include "train/train.h"

#include <CLI/CLI.hpp>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/terminal.h"
#include "checkpoint/gguf_model.h"
#include "cli/command.h"
#include "infer/generation.h"
#include "parallel/mpi.h"
#include "train/parallel_train.h"
#include "train/sharded_state.h"

namespace fathom::cli {
namespace {

struct Options {
  TrainOptions train;
  std::string schedule = "cosine", balance = "auto", dsa = "auto", precision = "f32", moments = "auto",
              save_format = "f32";
  std::string recompute = "none";
  std::string save_mode = "auto", save_failure = "stop";
  double min_lr = -1;
  int pp = 0, ep = 0, dp = 0, ranks_per_node = 0;  // 0: not given
  std::string pp_schedule = "1f1b";
  double hang_s = 60;
  int64_t sample_tokens = 200;
  double sample_temperature = 0.8;
};

// Prompt and continuation as text, with a seed of its own for every step.
auto make_sampler(const Options& options, const CommonOptions& common) {
  GenerationOptions generation;
  generation.max_tokens = options.sample_tokens;
  generation.sampler.temperature = options.sample_temperature;
  check_sampler(generation.sampler);
  return [generation, seed = common.seed](Context& ctx, const Model& model, const Tokenizer& tokenizer,
                                          std::span<const int32_t> prompt, int64_t step) mutable {
    generation.eos_ids = model.config.eos_token_ids;
    generation.seed = seed + static_cast<uint64_t>(step);
    const int64_t context =
        std::min(model.config.max_position_embeddings, static_cast<int64_t>(prompt.size()) + generation.max_tokens);
    Sequence sequence{{}, make_latent_cache(model.config, context)};
    return tokenizer.decode(prompt, /*skip_special=*/true) +
           generate(ctx, model, &tokenizer, sequence, prompt, generation).text;
  };
}

// What the processes are for: those that no option names go to dp.
ParallelLayout layout_of(const Options& o, int n_ranks) {
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
TrainResult train_with_mpi(const Options& options, ThreadPool& pool, const std::function<bool()>& stop_requested) {
  const std::unique_ptr<Communicator> comm = join_mpi(options.hang_s);
  try {
    return train_on_ranks(options.train, layout_of(options, comm->size()), *comm, pool, stop_requested);
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
bool has_layout(const Options& o) { return started_by_mpi() || o.pp > 0 || o.ep > 0 || o.dp > 0; }

void run(Options options, const CommonOptions& common) {
  require_cpu(common, "train");
  TrainOptions& train_options = options.train;
  train_options.precision = precision_named(options.precision);
  train_options.recompute = recompute_named(options.recompute);
  const bool narrow = options.moments == "bf16" || (options.moments == "auto" && options.precision != "f32");
  train_options.moments = narrow ? Format::bf16 : Format::f32;
  if (options.save_format != "f32" && options.save_format != "bf16") {
    throw UsageError("train: --save-format {}: must be f32 or bf16", printable(options.save_format));
  }
  if (train_options.tokenizer.empty() && is_gguf_path(train_options.init)) {
    throw UsageError(
        "train: --init {}: name a tokenizer with --tokenizer, that of a GGUF file is not saved with a model",
        printable(train_options.init.native()));
  }
  train_options.save_format = options.save_format == "bf16" ? Format::bf16 : Format::f32;
  train_options.lr.schedule = schedule_named(options.schedule);
  train_options.lr.min = options.min_lr < 0 ? train_options.lr.peak / 10 : options.min_lr;
  train_options.balance = balance_named(options.balance);
  train_options.dsa = dsa_named(options.dsa);
  train_options.saver.mode = save_mode_named(options.save_mode);
  train_options.saver.on_failure = save_failure_named(options.save_failure);
  train_options.seed = common.seed;
  train_options.sample = make_sampler(options, common);
  train_options.check = stop_when_interrupted;
  ThreadPool pool(thread_count(common));
  const auto stop_requested = [] { return interrupted_by != 0; };
  const bool many = has_layout(options);
  const TrainResult result =
      many ? train_with_mpi(options, pool, stop_requested) : train(train_options, pool, stop_requested);
  if (result.stopped && interrupted_by == 0) interrupted_by = SIGTERM;  // another process of the job got it
  if (many && !is_first_of_mpi()) throw ToldElsewhere{result.stopped ? 128 + interrupted_by : 0};
  if (result.stopped) throw Interrupted{};
  const std::string out = train_options.out.string();
  if (common.json) {
    nlohmann::ordered_json object{
        {"out", out}, {"step", result.step}, {"tokens", result.tokens}, {"loss", result.loss}};
    if (result.val_loss) object["val_loss"] = *result.val_loss;
    object["seconds"] = result.seconds;
    write_stdout(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } else {
    const std::string validation = result.val_loss ? fmt::format(", validation loss {:.4f}", *result.val_loss) : "";
    write_stdout(fmt::format("{}: {} steps, loss {:.4f}{}, {}; report in {}/report.html\n", printable(out), result.step,
                             result.loss, validation, human_duration(result.seconds), printable(out)));
  }
}

}  // namespace

void add_train(CLI::App& app, CommonOptions& common) {
  auto options = std::make_shared<Options>();
  TrainOptions& o = options->train;
  o.steps = 1000;
  o.seq_len = 256;
  o.batch_size = 8;
  o.lr.peak = 1e-3;
  CLI::App* c = app.add_subcommand("train", "Pretrain a model from text");
  c->add_option("--model-config", o.model_config, "Train a new model of this shape: a Hugging Face config.json")
      ->type_name("FILE");
  c->add_option("--init", o.init, "Start from the weights of a model directory or .gguf file")->type_name("MODEL");
  c->add_option("--data", o.data,
                "What to learn from: UTF-8 text, .jsonl with `text`, both also as .gz or .zst, directories of such "
                "files, or one dataset that fathom tokenize wrote")
      ->type_name("PATH...");
  c->add_option("--fim-rate", o.fim_rate, "Part of the documents to rearrange for fill-in-the-middle")
      ->capture_default_str();
  c->add_option("--tokenizer", o.tokenizer, "tokenizer.json, a directory with one, or bytes (default: that of --init)");
  c->add_option("--out", o.out, "Becomes a model directory; checkpoints under DIR/checkpoints/step-N/")
      ->type_name("DIR");
  c->add_flag("--resume", o.resume, "Go on from the newest whole checkpoint under --out");
  c->add_option("--steps", o.steps, "Optimizer steps")->capture_default_str();
  c->add_option("--seq-len", o.seq_len, "Tokens a sequence")->capture_default_str();
  c->add_option("--batch-size", o.batch_size, "Sequences a step")->capture_default_str();
  c->add_option("--micro-batch", o.micro_batch, "Sequences a forward pass; gradients add up (default: the batch)");
  c->add_option("--batch-start", o.batch_start, "Sequences of the first step, which grow to --batch-size");
  c->add_option("--batch-ramp", o.batch_ramp, "Steps over which they do");
  c->add_option("--recompute", options->recompute,
                "What the backward pass makes again, to save memory: none, selective (norms, MLA's up-projections, "
                "SwiGLU), full (whole layers)")
      ->capture_default_str();
  c->add_flag("--mask-documents", o.mask_documents, "Attention, MTP and targets stay within a document");
  c->add_option("--extend-seq-len", o.extend_seq_len,
                "Tokens a sequence after step --extend-at, with as many tokens a step as before");
  c->add_option("--extend-at", o.extend_at, "Last step of --seq-len");
  c->add_option("--lr", o.lr.peak, "Peak learning rate")->capture_default_str();
  c->add_option("--min-lr", options->min_lr, "Learning rate at the end (default: a tenth of --lr)")
      ->check(CLI::Range(0.0, 100.0));
  c->add_option("--warmup", o.lr.warmup, "Steps of linear growth of the learning rate");
  c->add_option("--schedule", options->schedule, "constant, cosine or wsd")->capture_default_str();
  CLI::Option* decay =
      c->add_option("--decay-fraction", o.lr.decay_fraction, "wsd: the part of the run in which the rate falls")
          ->capture_default_str();
  c->add_option("--weight-decay", o.weight_decay, "Decay of matrices; norms, biases and the embedding have none")
      ->capture_default_str();
  c->add_option("--beta1", o.beta1, "AdamW")->capture_default_str();
  c->add_option("--beta2", o.beta2, "AdamW")->capture_default_str();
  c->add_option("--eps", o.eps, "AdamW")->capture_default_str();
  c->add_option(
      "--ema-decay", o.ema_decay,
      "Keep a moving average of the weights with this decay, such as 0.999, and write it to OUT/average (0: none)");
  c->add_option("--clip", o.clip, "Greatest global norm of the gradient, 0: none")->capture_default_str();
  c->add_option("--spike-deviations", o.spike_deviations,
                "Skip a step whose loss is so many standard deviations above the usual (0: none)")
      ->capture_default_str();
  c->add_option("--max-skips", o.max_skips, "End after more skipped steps in a row than these")->capture_default_str();
  c->add_flag("--check-memory", o.check_memory,
              "End the run when weights or moments are not what the step before left (memory without ECC)");
  c->add_option("--precision", options->precision,
                "What products of the linear layers round their operands to: f32, bf16, fp8 (tiles of 128, as V3), "
                "fp8-per-tensor (to compare)")
      ->capture_default_str();
  c->add_option("--moments", options->moments, "AdamW's moments in f32 or bf16")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->default_str("bf16, with --precision f32 f32");
  c->add_option("--save-format", options->save_format, "Stored type of the trained model's weights: f32 or bf16")
      ->capture_default_str();
  c->add_option(
       "--balance", options->balance,
       "Expert loads: bias (loss-free), aux (balance loss of each sequence), aux-batch (of a micro-batch) or none")
      ->default_str("bias, or aux for models without correction biases");
  c->add_option("--bias-update-speed", o.bias_update_speed, "Step of the correction biases")->capture_default_str();
  c->add_option("--bias-freeze", o.bias_freeze, "Part of the steps, at the end, in which the correction biases stay")
      ->capture_default_str();
  c->add_option("--balance-alpha", o.balance_alpha,
                "Weight of the balance loss (default: 0.001 with aux and aux-batch, else 0)")
      ->check(CLI::Range(0.0, 100.0));
  c->add_option("--mtp-weight", o.mtp_weight, "Weight of the MTP loss, where the model has MTP modules")
      ->capture_default_str();
  c->add_option("--mtp-late-at", o.mtp_late_at, "Last step of --mtp-weight (0: the last of all)");
  c->add_option("--mtp-weight-late", o.mtp_weight_late, "Weight of the MTP loss behind it")
      ->needs("--mtp-late-at")
      ->capture_default_str();
  c->add_option("--dsa", options->dsa,
                "Sparse attention (V3.2): warmup trains the indexers alone beside dense attention, and gives a model "
                "of --init without any new ones; sparse trains all; off leaves them, and attends to all")
      ->check(CLI::IsMember({"auto", "off", "warmup", "sparse"}))
      ->default_str("sparse for models with indexers");
  std::vector<CLI::Option*> of_warmup = {
      c->add_option("--index-n-heads", o.indexer.n_heads, "Heads of a new indexer")->capture_default_str(),
      c->add_option("--index-head-dim", o.indexer.head_dim, "Their width")->capture_default_str(),
      c->add_option("--index-topk", o.indexer.topk, "Tokens that it chooses")->capture_default_str()};
  CLI::Option* const yarn =
      c->add_option("--yarn-factor", o.yarn_factor,
                    "Have the model of --init read so many times longer sequences, by YaRN (V3 section 4.3)");
  c->add_option("--yarn-original", o.yarn_original, "Than these tokens (default: its max_position_embeddings)")
      ->needs(yarn);
  c->add_option("--tensorboard", o.tensorboard, "Event files for TensorBoard too")->type_name("DIR");
  c->add_option("--val-data", o.val_data, "What is not learned from; as --data")->type_name("PATH...");
  c->add_option("--val-every", o.val_every, "Validate every N steps (0: after the last only)");
  c->add_option("--val-sequences", o.val_sequences, "At most so many sequences before the last step (0: all)")
      ->capture_default_str();
  c->add_option("--save-every", o.save_every, "Checkpoint every N steps (0: after the last only)");
  c->add_option("--keep", o.saver.keep.newest, "Keep the newest N checkpoints (0: all)");
  c->add_option("--keep-every", o.saver.keep.every, "Beside them keep those whose step is a multiple of N (0: none)");
  c->add_option("--save-mode", options->save_mode, "Write checkpoints beside the training or between two steps")
      ->check(CLI::IsMember({"auto", "async", "sync"}))
      ->default_str("async, sync where memory for a copy of the state is short");
  c->add_option("--save-failure", options->save_failure,
                "When a checkpoint cannot be written: stop, or warn and try again when the next is due")
      ->check(CLI::IsMember({"stop", "warn"}))
      ->capture_default_str();
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
  c->add_option("--log", o.log, "One JSON object a step (default: train.jsonl under --out)")->type_name("FILE.jsonl");
  c->add_option("--sample-every", o.sample_every, "Write text every N steps");
  c->add_option("--prompt", o.prompt, "What samples begin with (default: a line end)");
  c->add_option("--sample-tokens", options->sample_tokens, "Tokens of a sample")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str();
  c->add_option("--temperature", options->sample_temperature, "Of samples; 0 takes the likeliest")
      ->capture_default_str();
  c->callback([options, &common, decay, of_many = std::array{per_node, hang, pp_schedule}, of_warmup] {
    for (const CLI::Option* const each : of_warmup) {
      if (each->count() > 0 && options->dsa != "warmup")
        throw UsageError("train: {} is of --dsa warmup, which makes new indexers", each->get_name());
    }
    for (const CLI::Option* const each : of_many) {
      if (each->count() == 0 || has_layout(*options)) continue;
      throw UsageError("train: {} is for several processes; start them with mpirun", each->get_name());
    }
    if (decay->count() > 0 && options->schedule != "wsd") {
      throw UsageError("train: --decay-fraction is of --schedule wsd, --schedule is {}", printable(options->schedule));
    }
    run(*options, common);
  });
}

}  // namespace fathom::cli
