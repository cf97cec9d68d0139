#include "cli/trainer_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/terminal.h"
#include "checkpoint/gguf_model.h"
#include "infer/generation.h"
#include "serve/prompt.h"
#include "text/chat.h"

namespace fathom::cli {
namespace {

// Prompt and continuation as text, with a seed of its own for every step.
auto make_sampler(const TrainerOptions& options, const CommonOptions& common) {
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

void add_optimizer_options(CLI::App& c, TrainerOptions& options, bool packed) {
  TrainOptions& o = options.train;
  c.add_option("--lr", o.lr.peak, "Peak learning rate")->capture_default_str();
  c.add_option("--min-lr", options.min_lr, "Learning rate at the end (default: a tenth of --lr)")
      ->check(CLI::Range(0.0, 100.0));
  c.add_option("--warmup", o.lr.warmup, "Steps of linear growth of the learning rate");
  c.add_option("--schedule", options.schedule, "constant, cosine or wsd")->capture_default_str();
  options.decay_fraction =
      c.add_option("--decay-fraction", o.lr.decay_fraction, "wsd: the part of the run in which the rate falls")
          ->capture_default_str();
  c.add_option("--weight-decay", o.weight_decay, "Decay of matrices; norms, biases and the embedding have none")
      ->capture_default_str();
  c.add_option("--beta1", o.beta1, "AdamW")->capture_default_str();
  c.add_option("--beta2", o.beta2, "AdamW")->capture_default_str();
  c.add_option("--eps", o.eps, "AdamW")->capture_default_str();
  c.add_option("--clip", o.clip, "Greatest global norm of the gradient, 0: none")->capture_default_str();
  if (packed) {
    c.add_option(
        "--ema-decay", o.ema_decay,
        "Keep a moving average of the weights with this decay, such as 0.999, and write it to OUT/average (0: none)");
    c.add_option("--spike-deviations", o.spike_deviations,
                 "Skip a step whose loss is so many standard deviations above the usual (0: none)")
        ->capture_default_str();
  }
  c.add_option("--max-skips", o.max_skips, "End after more skipped steps in a row than these")->capture_default_str();
  c.add_flag("--check-memory", o.check_memory,
             "End the run when weights or moments are not what the step before left (memory without ECC)");
  c.add_option("--precision", options.precision,
               "What products of the linear layers round their operands to: f32, bf16, fp8 (tiles of 128, as V3), "
               "fp8-per-tensor (to compare)")
      ->capture_default_str();
  c.add_option("--moments", options.moments, "AdamW's moments in f32 or bf16")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->default_str("bf16, with --precision f32 f32");
  c.add_option("--save-format", options.save_format, "Stored type of the trained model's weights: f32 or bf16")
      ->capture_default_str();
  c.add_option(
       "--balance", options.balance,
       "Expert loads: bias (loss-free), aux (balance loss of each sequence), aux-batch (of a micro-batch) or none")
      ->default_str("bias, or aux for models without correction biases");
  c.add_option("--bias-update-speed", o.bias_update_speed, "Step of the correction biases")->capture_default_str();
  c.add_option("--bias-freeze", o.bias_freeze, "Part of the steps, at the end, in which the correction biases stay")
      ->capture_default_str();
  c.add_option("--balance-alpha", o.balance_alpha,
               "Weight of the balance loss (default: 0.001 with aux and aux-batch, else 0)")
      ->check(CLI::Range(0.0, 100.0));
  c.add_option("--mtp-weight", o.mtp_weight, "Weight of the MTP loss, where the model has MTP modules")
      ->capture_default_str();
  c.add_option("--mtp-late-at", o.mtp_late_at, "Last step of --mtp-weight (0: the last of all)");
  c.add_option("--mtp-weight-late", o.mtp_weight_late, "Weight of the MTP loss behind it")
      ->needs("--mtp-late-at")
      ->capture_default_str();
  c.add_option("--dsa", options.dsa,
               "Sparse attention (V3.2): warmup trains the indexers alone beside dense attention, and gives a model "
               "of --init without any new ones; sparse trains all; off leaves them, and attends to all")
      ->check(CLI::IsMember({"auto", "off", "warmup", "sparse"}))
      ->default_str("sparse for models with indexers");
}

}  // namespace

void add_trainer_options(CLI::App& c, TrainerOptions& options, const TrainerTexts& texts) {
  TrainOptions& o = options.train;
  c.add_option("--out", o.out, "Becomes a model directory; checkpoints under DIR/checkpoints/step-N/")
      ->type_name("DIR");
  c.add_flag("--resume", o.resume, "Go on from the newest whole checkpoint under --out");
  CLI::Option* const steps = c.add_option("--steps", o.steps, texts.steps);
  if (o.steps > 0) steps->capture_default_str();
  if (texts.packed) {
    CLI::Option* const seq_len = c.add_option("--seq-len", o.seq_len, texts.seq_len);
    if (o.seq_len > 0) seq_len->capture_default_str();
    c.add_option("--batch-size", o.batch_size, texts.batch_size)->capture_default_str();
    c.add_option("--micro-batch", o.micro_batch, texts.micro_batch);
  }
  c.add_option("--recompute", options.recompute,
               "What the backward pass makes again, to save memory: none, selective (norms, MLA's up-projections, "
               "SwiGLU), full (whole layers)")
      ->capture_default_str();
  add_optimizer_options(c, options, texts.packed);
  c.add_option("--tensorboard", o.tensorboard, "Event files for TensorBoard too")->type_name("DIR");
  c.add_option("--val-data", o.val_data, texts.val_data)->type_name("PATH...");
  c.add_option("--val-every", o.val_every, "Validate every N steps (0: after the last only)");
  c.add_option("--val-sequences", o.val_sequences, "At most so many sequences before the last step (0: all)")
      ->capture_default_str();
  c.add_option("--save-every", o.save_every, "Checkpoint every N steps (0: after the last only)");
  c.add_option("--keep", o.saver.keep.newest, "Keep the newest N checkpoints (0: all)");
  c.add_option("--keep-every", o.saver.keep.every, "Beside them keep those whose step is a multiple of N (0: none)");
  c.add_option("--save-mode", options.save_mode, "Write checkpoints beside the training or between two steps")
      ->check(CLI::IsMember({"auto", "async", "sync"}))
      ->default_str("async, sync where memory for a copy of the state is short");
  c.add_option("--save-failure", options.save_failure,
               "When a checkpoint cannot be written: stop, or warn and try again when the next is due")
      ->check(CLI::IsMember({"stop", "warn"}))
      ->capture_default_str();
  c.add_option("--log", o.log, "One JSON object a step (default: train.jsonl under --out)")->type_name("FILE.jsonl");
}

void add_sample_options(CLI::App& c, TrainerOptions& options, const char* prompt) {
  TrainOptions& o = options.train;
  c.add_option("--sample-every", o.sample_every, "Write text every N steps");
  c.add_option("--prompt", o.prompt, prompt);
  c.add_option("--sample-tokens", options.sample_tokens, "Tokens of a sample")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str();
  c.add_option("--temperature", options.sample_temperature, "Of samples; 0 takes the likeliest")->capture_default_str();
}

TrainOptions trainer_options(const TrainerOptions& options, const CommonOptions& common) {
  TrainOptions o = options.train;
  if (options.decay_fraction->count() > 0 && options.schedule != "wsd") {
    throw UsageError("{}: --decay-fraction is of --schedule wsd, --schedule is {}", o.command,
                     printable(options.schedule));
  }
  o.precision = precision_named(options.precision);
  o.recompute = recompute_named(options.recompute);
  const bool narrow = options.moments == "bf16" || (options.moments == "auto" && options.precision != "f32");
  o.moments = narrow ? Format::bf16 : Format::f32;
  if (options.save_format != "f32" && options.save_format != "bf16") {
    throw UsageError("{}: --save-format {}: must be f32 or bf16", o.command, printable(options.save_format));
  }
  if (o.tokenizer.empty() && is_gguf_path(o.init)) {
    throw UsageError("{}: --init {}: name a tokenizer with --tokenizer, that of a GGUF file is not saved with a model",
                     o.command, printable(o.init.native()));
  }
  o.save_format = options.save_format == "bf16" ? Format::bf16 : Format::f32;
  o.lr.schedule = schedule_named(options.schedule);
  o.lr.min = options.min_lr < 0 ? o.lr.peak / 10 : options.min_lr;
  o.balance = balance_named(options.balance);
  o.dsa = dsa_named(options.dsa);
  o.saver.mode = save_mode_named(options.save_mode);
  o.saver.on_failure = save_failure_named(options.save_failure);
  o.seed = common.seed;
  o.sample = make_sampler(options, common);
  o.check = stop_when_interrupted;
  return o;
}

std::string choose_chat_template(const std::string& file, TrainOptions& train) {
  if (train.tokenizer.empty() && train.init.empty()) return {};  // which is said later
  const Tokenizer tokenizer = Tokenizer::load(train.tokenizer.empty() ? train.init.string() : train.tokenizer);
  std::string chosen = load_chat_template(file, tokenizer);
  const std::string model_type = read_model_config(train.init.empty() ? train.model_config : train.init).model_type;
  if (chosen.empty() && tokenizer.id_of("<｜User｜>") >= 0) chosen = serve::default_template(tokenizer, model_type);
  if (chosen == tokenizer.chat_template()) return chosen;
  if (chosen != kDeepseekV32Encoding) {
    train.chat_template = chosen;
  } else if (model_type == "deepseek_v32") {
    train.chat_template = "";  // which is what such a model's directory means by none
  } else {
    log("{} is no template that a model directory can hold: give it to serve and chat with --template, too",
        kDeepseekV32Encoding);
  }
  return chosen;
}

void report_training(const TrainOptions& options, const TrainResult& result, const CommonOptions& common,
                     const nlohmann::ordered_json& more) {
  if (result.stopped) throw Interrupted{};
  const std::string out = options.out.string();
  if (common.json) {
    nlohmann::ordered_json object{
        {"out", out}, {"step", result.step}, {"tokens", result.tokens}, {"loss", result.loss}};
    if (result.val_loss) object["val_loss"] = *result.val_loss;
    object["seconds"] = result.seconds;
    object.update(more);
    write_stdout(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } else {
    const std::string validation = result.val_loss ? fmt::format(", validation loss {:.4f}", *result.val_loss) : "";
    write_stdout(fmt::format("{}: {} steps, loss {:.4f}{}, {}; report in {}/report.html\n", printable(out), result.step,
                             result.loss, validation, human_duration(result.seconds), printable(out)));
  }
}

}  // namespace fathom::cli
