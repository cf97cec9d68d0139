#include "train/train.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "base/file.h"
#include "base/residency.h"
#include "base/terminal.h"
#include "checkpoint/hf_model.h"
#include "model/loss.h"
#include "ops/adamw.h"
#include "ops/device.h"
#include "ops/embedding.h"
#include "ops/machine.h"
#include "train/balance.h"
#include "train/device_state.h"
#include "train/memory_check.h"
#include "train/reading.h"
#include "train/report.h"
#include "train/step.h"
#include "train/step_logs.h"
#include "train/update.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr double kSecondsBeforePeak = 5;

// Weights, two moments, perhaps an average: the state, which saving beside the training copies.
double state_bytes(const TrainOptions& o, const ModelConfig& config) {
  const double a_parameter =
      (o.ema_decay > 0 ? 2.0 : 1.0) * sizeof(float) + 2.0 * static_cast<double>(format_bytes(o.moments, 1));
  return static_cast<double>(count_parameters(config).total) * a_parameter;
}

// The state and the gradient.
double parameter_bytes(const TrainOptions& o, const ModelConfig& config) {
  return state_bytes(o, config) + static_cast<double>(count_parameters(config).total) * sizeof(float);
}

// Said before memory is filled that the system cannot back.
void check_memory(const TrainOptions& o, const ModelConfig& config, const fs::path& from) {
  const auto count = static_cast<double>(count_parameters(config).total);
  const double needed = parameter_bytes(o, config), present = static_cast<double>(memory_limit_bytes());
  if (needed > present) {
    throw Error("{}: training its {} parameters takes {} of memory, there are {}; make the model smaller",
                printable(from.native()), human_count(count), human_bytes(needed), human_bytes(present));
  }
}

double memory_beside_parameters(const TrainOptions& o, const ModelConfig& config) {
  return static_cast<double>(memory_limit_bytes()) - parameter_bytes(o, config);
}

double tokens_of_pass(const TrainOptions& o) {
  return static_cast<double>(o.micro_batch > 0 ? o.micro_batch : o.batch_size) * static_cast<double>(o.seq_len);
}

// What a micro-batch leaves for its backward pass.
double batch_bytes(const TrainOptions& o, ModelConfig config) {
  if (std::max(o.seq_len, o.extend_seq_len) <= config.indexer.topk) config.indexer.topk = 0;  // nothing is chosen
  return tokens_of_pass(o) * static_cast<double>(saved_floats_a_token(config, o.recompute, o.precision)) *
         sizeof(float);
}

// It must fit beside the parameters.
void check_batch_memory(const TrainOptions& o, const ModelConfig& config) {
  const double needed = batch_bytes(o, config);
  if (o.device != nullptr) {
    const double beside = parameter_bytes(o, config), present = static_cast<double>(o.device->free_bytes());
    if (needed + beside <= present) return;
    throw Error(
        "weights, gradient and moments take {}, and a pass over {:.0f} tokens keeps {} for its gradient; of the GPU's "
        "memory {} are free; give a smaller --micro-batch or --batch-size, --recompute selective or full, or a smaller "
        "model",
        human_bytes(beside), tokens_of_pass(o), human_bytes(needed), human_bytes(present));
  }
  const double present = memory_beside_parameters(o, config);
  if (needed <= present) return;
  throw Error(
      "a pass over {:.0f} tokens keeps {} for its gradient, beside the parameters there are {}; give a "
      "smaller --micro-batch or --batch-size, or --recompute selective or full",
      tokens_of_pass(o), human_bytes(needed), human_bytes(std::max(present, 0.0)));
}

// What is trained, before anything is allocated for it.
ModelConfig initial_config(const TrainOptions& o, const Tokenizer& tokenizer) {
  ModelConfig config = trained_config(o, tokenizer);
  check_memory(o, config, o.init.empty() ? o.model_config : o.init);
  return config;
}

// The weights of a model without indexers, beside new ones.
Parameters with_indexers(const LoadedModel& loaded, const ModelConfig& config, uint64_t seed) {
  Parameters parameters = allocate_parameters(config);
  initialize(parameters, config, seed);
  std::unordered_map<std::string, Tensor> there;
  for_each_tensor(loaded.parameters.weights, loaded.config,
                  [&](const NamedTensor& t) { there.emplace(t.name, t.view); });
  for_each_tensor(parameters.weights, config, [&](const NamedTensor& t) {
    if (const auto found = there.find(t.name); found != there.end()) {
      std::memcpy(t.view.data, found->second.data, static_cast<size_t>(t.view.size_bytes()));
    }
  });
  return parameters;
}

TrainedState initial_state(const TrainOptions& o, const ModelConfig& config, ThreadPool& pool) {
  TrainedState state;
  if (!o.init.empty()) {
    LoadedModel loaded = load_model(o.init, pool);
    state.parameters = config.is_sparse() == loaded.config.is_sparse() ? std::move(loaded.parameters)
                                                                       : with_indexers(loaded, config, o.seed);
  } else {
    state.parameters = allocate_parameters(config);
    initialize(state.parameters, config, o.seed);
  }
  state.config = config;
  state.first_moment = allocate_moment(state.parameters.n_trained, o.moments);
  state.second_moment = allocate_moment(state.parameters.n_trained, o.moments);
  if (o.ema_decay > 0) {
    state.average = allocate_parameters(state.config);
    std::ranges::copy(state.parameters.all(), state.average.all().begin());
  }
  return state;
}

// A sample as a block of lines fit for a terminal.
std::string indented(std::string_view text) {
  std::string block;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    block += (block.empty() ? "  | " : "\n  | ") + printable(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return block;
}

// Everything that a step works on.
struct Run {
  const TrainOptions& options;
  const std::function<bool()>& stop_requested;
  Context ctx;  // of the device, where there is one
  const Tokenizer& tokenizer;
  const ExampleSource& source;
  const std::vector<int32_t>& prompt;
  TrainedState state;      // what the host has of it
  TrainedState on_device;  // and the device
  Model model;             // views of trained().parameters
  Parameters gradients;
  TrainedRuns runs;
  LossOptions loss;
  Balance balance;
  Arena scratch;  // of what is made again
  double begin_s = 0, measured_peak = 0;
  double seconds_before = 0;            // of training, before a --resume
  int64_t last_taken = 0;               // step, of this process
  bool not_finite = false;              // the last step's loss or gradient, or a bias
  bool broken = false;                  // the last step has left weights or moments that are not finite
  std::optional<uint64_t> state_sum{};  // of what the last update left, where that is checked
  bool changed = false;                 // it is not what it was

  // What the steps work on.
  TrainedState& trained() { return ctx.device != nullptr ? on_device : state; }
  const TrainedState& trained() const { return ctx.device != nullptr ? on_device : state; }
  // `state` as it is now.
  const TrainedState& fetched() {
    if (ctx.device != nullptr) copy_from_device(*ctx.device, state, on_device);
    return state;
  }

  // Of the machine, a second; 0 in the first seconds, so that a short run does not wait for the measurement, and of a
  // device.
  double peak_flops() {
    if (ctx.device != nullptr) return 0;
    if (measured_peak == 0 && monotonic_s() - begin_s > kSecondsBeforePeak) {
      measured_peak = 1e9 * measure_f32_gflops(ctx.pool);
    }
    return measured_peak;
  }
};

// Loss and gradient of a step's batch, and what was read for it.
struct BatchGradients {
  LossResult loss;
  int64_t n_tokens = 0, n_sequences = 0;
};
// Micro-batch by micro-batch. Nothing when it is told to stop between two.
std::optional<BatchGradients> batch_gradients(Run& run, int64_t step) {
  const std::vector<Examples> parts = run.source.examples(run.ctx, run.model, step);
  const LossOptions loss = loss_of_step(run.options, run.loss, step, parts, std::ssize(run.model.weights.mtp));
  fill_zero(run.ctx, Tensor(run.gradients.memory.data(), Format::f32, {run.gradients.n_total}));
  BatchGradients total;
  for (const Examples& part : parts) {
    if (&part != parts.data() && run.stop_requested && run.stop_requested()) return std::nullopt;
    const ArenaScope scope(run.ctx.arena);
    const auto [batch, targets] = make_example(run.ctx, part);
    LossOptions of_part = loss;
    of_part.target_weights = part.weights ? &part.weights : nullptr;
    total.loss += loss_and_gradients(run.ctx, run.model, run.gradients.weights, batch, targets, of_part);
    total.n_tokens += batch.n_tokens();
    total.n_sequences += batch.n_sequences();
  }
  return total;
}

// The average moves after every step that is taken.
void average_weights(Run& run, int64_t step) {
  if (run.options.ema_decay == 0) return;
  move_average(run.ctx, run.trained().average.all(), run.trained().parameters.all(),
               static_cast<float>(average_decay(run.options, step)));
}

// The model with the averaged weights.
Model averaged(const Run& run) {
  Model model = run.model;
  model.weights = run.trained().average.weights;
  return model;
}

// Mean main loss over what the source validates on.
LossResult validation_loss(Run& run, const Model& model, int64_t step) {
  LossResult total;
  run.source.validation(step, [&](const Examples& part) {
    const ArenaScope scope(run.ctx.arena);
    const Example example = make_example(run.ctx, part);
    total += loss(run.ctx, model, example.batch, example.targets, {});
  });
  return total;
}

// As the model will be used, and on the host: a device has its weights row by row.
std::string sample(Run& run, int64_t step) {
  Model exact = run.model;
  exact.precision = Precision::f32;
  exact.weights = run.fetched().parameters.weights;
  Arena arena;
  Context host{run.ctx.pool, arena};
  return run.options.sample(host, exact, run.tokenizer, run.prompt, step);
}

// Nothing, and nothing changed, when it is told to stop before the gradient is whole.
std::optional<StepMetrics> train_step(Run& run, int64_t step) {
  const TrainOptions& o = run.options;
  const double begin_s = monotonic_s();
  const std::optional<BatchGradients> whole = batch_gradients(run, step);
  if (!whole) return std::nullopt;
  const LossResult& loss = whole->loss;
  const GradientNorms norms = gradient_norms(run.ctx, run.gradients);
  StepMetrics m = metrics_of(o, step, loss, norms.all());
  std::string why = begin_step(o, m, run.state);
  run.changed = run.state_sum && *run.state_sum != state_checksum(run.ctx.pool, run.state);
  run.not_finite = !is_finite(m);
  if (!biases_are_finite(run.state.parameters.weights)) {  // which neither loss nor gradient tells
    run.not_finite = true;
    why = kBrokenBias;
  }
  if (run.changed) why = kLostBits;
  if (!why.empty()) {
    log("step {}: skipped: {}", step, why);
    count_skipped(std::move(why), m, run.state);
  } else {
    run.broken = !update_parameters(run.ctx, o, run.trained(), run.gradients, run.runs, step, m.lr, norms);
    if (const double speed = bias_speed(o, run.balance, step); speed != 0) {
      update_biases(run.state.parameters.weights, loss.expert_load, speed);
      if (run.ctx.device != nullptr) upload_biases(*run.ctx.device, run.on_device, run.state);
    }
    run.last_taken = step;
    average_weights(run, step);
    if (run.state_sum) run.state_sum = state_checksum(run.ctx.pool, run.state);
    count_taken(loss, m, run.state);
  }
  const double seconds = monotonic_s() - begin_s;
  set_speed(loss, seconds, m, run.state);
  if (const double peak = run.peak_flops(); peak > 0) {
    const bool with_mtp = loss.mtp_targets > 0;
    const int64_t seq_len = (whole->n_tokens + whole->n_sequences - 1) / std::max<int64_t>(whole->n_sequences, 1);
    const double flops = training_flops_a_token(run.state.config, seq_len, with_mtp);
    m.mfu = static_cast<double>(whole->n_tokens) / std::max(seconds, 1e-9) * flops / peak;
  }
  if (reports_load(o, step)) m.bias_ranges = bias_ranges(run.state.parameters.weights);
  if (run.source.describe) run.source.describe(m);
  if (run.source.validation && validates(o, step)) {
    set_validation(validation_loss(run, run.model, step), m, run.state);
    if (o.ema_decay > 0) m.val_loss_average = validation_loss(run, averaged(run), step).loss();
  }
  if (o.sample_every > 0 && (step == o.steps || step % o.sample_every == 0)) {
    m.sample = sample(run, step);
  }
  m.seconds = run.seconds_before + monotonic_s() - run.begin_s;
  return m;
}

// Writes the model directory, that of the averaged weights inside it, and the report.
void finish(Run& run, const fs::path& log_path, const Settings& settings) {
  run.fetched();
  const fs::path& out = run.options.out;
  run.tokenizer.save(out);  // before the model, whose config.json comes last: what is not whole does not load
  save_model(out, run.state.config, run.state.parameters.weights, {.format = run.options.save_format});
  if (run.options.ema_decay > 0) {
    make_directory(out / "average");
    run.tokenizer.save(out / "average");
    save_model(out / "average", run.state.config, run.state.average.weights, {.format = run.options.save_format});
  }
  if (!fs::is_regular_file(log_path))
    return log("{} cannot be read again: there is no report", printable(log_path.native()));
  write_file_atomically(out / "report.html", training_report(read_metrics(log_path), run.state.config, settings));
}

}  // namespace

TrainResult train(const TrainOptions& given, const OpenSource& open, ThreadPool& pool,
                  const std::function<bool()>& stop_requested) {
  TrainOptions options = given;
  options.lr.steps = options.steps;
  check_options(options);
  check_files(options);
  if (!options.trace.empty())
    throw UsageError("{}: --trace is for several processes; start them with mpirun", options.command);
  const double begin_s = monotonic_s();
  Tokenizer tokenizer = Tokenizer::load(options.tokenizer.empty() ? options.init : fs::path(options.tokenizer));
  if (options.chat_template) tokenizer.set_chat_template(*options.chat_template);
  const ModelConfig config = initial_config(options, tokenizer);
  check_fit(options, config, tokenizer);
  check_device(options, config);
  check_batch_memory(options, config);
  if (options.mask_documents && tokenizer.eos_id() < 0) {
    throw UsageError("{}: --mask-documents needs a tokenizer with an end token, which tells documents apart",
                     options.command);
  }
  const double of_pass = options.device != nullptr ? 0 : batch_bytes(options, config);
  options.saver.mode = resolve_save_mode(options.saver.mode, state_bytes(options, config),
                                         memory_beside_parameters(options, config) - of_pass);
  const std::vector<int32_t> prompt =
      options.prompt_ids.empty() ? tokenizer.encode(options.prompt) : options.prompt_ids;
  if (options.sample_every > 0) {
    FATHOM_CHECK(options.sample);
    if (prompt.empty())
      throw UsageError("{}: --prompt is empty; samples need something to go on from", options.command);
    if (static_cast<int64_t>(prompt.size()) >= config.max_position_embeddings) {
      throw UsageError("{}: --prompt has {} tokens, must be below the model's max_position_embeddings {}",
                       options.command, prompt.size(), config.max_position_embeddings);
    }
  }
  const Balance balance = resolve_balance(options, config);
  const double alpha = balance_alpha_of(options, balance);
  const Dsa dsa = resolve_dsa(options, config);
  // Where a checkpoint is to be gone on from, there may be no room for two states.
  std::optional<TrainedState> begun;
  if (!options.resume || !has_checkpoints(options.out)) begun = initial_state(options, config, pool);
  const NewDirectory made(options.out);
  const DirectoryLock alone(options.out);
  require_new_run(options);
  const ExampleSource source = open(options, config, tokenizer, pool);
  Settings settings = settings_of(options, config, balance, alpha);
  for (const auto& [name, value] : source.settings) settings[name] = value;
  TrainedState state = begun_or_resumed(options, std::move(begun), settings, pool);
  const fs::path log_path = options.log.empty() ? options.out / "train.jsonl" : options.log;
  Saver saver(options.out, tokenizer, settings, options.saver, state.step);
  if (state.step < options.steps) check_free_space(options.out, state);
  StepLogs logs(options, log_path, {}, state.step);

  const Device* const device = options.device;
  const auto make_arena = [&] { return device != nullptr ? Arena(device->allocate) : Arena(); };
  Arena arena = make_arena();
  Run run{.options = options,
          .stop_requested = stop_requested,
          .ctx = {pool, arena, device},
          .tokenizer = tokenizer,
          .source = source,
          .prompt = prompt,
          .state = std::move(state),
          .on_device = {},
          .model = {},
          .gradients = {},
          .runs = {},
          .loss = {},
          .balance = balance,
          .scratch = make_arena()};
  if (device != nullptr) run.on_device = copy_to_device(*device, run.state);
  const StateToSave to_save = [&run]() -> const TrainedState& { return run.fetched(); };
  run.model = make_model(run.state.config, run.trained().parameters.weights);
  run.model.precision = options.precision;
  run.model.dense_attention = dsa == Dsa::off || dsa == Dsa::warmup;
  run.gradients = allocate_parameters(run.state.config, /*with_bias=*/false, {}, device);
  run.loss = loss_of_run(options, run.state.config, balance, alpha);
  run.runs = trained_runs(run.state.parameters, run.state.config, run.loss);
  run.loss.recompute = options.recompute;
  run.loss.scratch = &run.scratch;
  const ParameterCount count = count_parameters(run.state.config);
  log("{} parameters, {} active a token; {}; {}", human_count(static_cast<double>(count.total)),
      human_count(static_cast<double>(count.active)), source.contents,
      device != nullptr ? device->name : fmt::format("{} threads", pool.size()));

  if (options.lr.warmup > options.steps) {
    log("--warmup {} ends behind the last step {}: the learning rate stays below --lr", options.lr.warmup,
        options.steps);
  }
  if (options.check_memory) run.state_sum = state_checksum(pool, run.state);
  run.begin_s = monotonic_s();
  run.seconds_before = logs.metrics.seconds_before();
  TrainResult result;
  if (run.state.step == options.steps) log("all {} steps are done; model and report are written again", options.steps);
  const std::optional<double>& val_loss = run.state.val_loss;
  Progress progress("training", options.steps, run.state.step);
  const int64_t first = run.state.step + 1;
  for (int64_t step = first; step <= options.steps; ++step) {
    const std::optional<StepMetrics> done = train_step(run, step);
    if (!done) {
      result.stopped = true;
      saver.save_last(to_save());
      break;
    }
    const StepMetrics& m = *done;
    write_step(logs, m, {}, to_save, run.state.guard.skipped == 0 && !run.broken, saver);
    if (run.changed) give_up(options.out, run.last_taken, step, *m.skipped, kSoundMemory);
    if (run.broken) give_up(options.out, run.last_taken, step, kBrokenState, kCalmer);
    if (!m.skipped) saver.taken(step);
    if (m.skipped && run.state.guard.skipped > options.max_skips) {
      const int64_t n = std::exchange(run.state.guard.skipped, 0);  // who resumes has as many tries
      const std::string why = fmt::format("{}; it is skipped number {} in a row", *m.skipped, n);
      if (run.not_finite) give_up(options.out, run.last_taken, step, why, kCalmer);
      saver.save_last(to_save());
      give_up_with_saved(options.out, step, why);
    }
    if (m.val_loss) {
      log("step {}: loss {:.4f}, validation {:.4f}, {:.0f} tokens/s", step, m.loss, *m.val_loss, m.tokens_per_s);
    }
    if (m.sample) log("step {}, sample:\n{}", step, indented(*m.sample));
    progress.update(step, fmt::format("loss {:.4f}{}{} {:.0f} tok/s{}", m.loss,
                                      m.indexer_loss ? fmt::format(" indexer {:.3f} ({:.1f} %)", *m.indexer_loss,
                                                                   100 * m.indexer_recall.value_or(1))
                                                     : "",
                                      val_loss ? fmt::format(" val {:.4f}", *val_loss) : "", m.tokens_per_s,
                                      m.mfu ? fmt::format(", {:.0f} % MFU", 100 * *m.mfu) : ""));
    result.stopped = stop_requested && stop_requested() && step < options.steps;
    save_step(options, logs, m, to_save, result.stopped || step == options.steps, saver);
    if (result.stopped) break;
  }
  progress.finish();
  if (result.stopped) {
    log("stopped after step {}; go on with --resume", saver.saved_step());
  } else if (run.state.tokens == 0) {
    throw Error("no token was learned from: no step of {} was taken, or the data has no targets; see {}", options.steps,
                printable(log_path.native()));
  } else {
    finish(run, log_path, settings);
  }
  result.step = run.state.step;
  result.tokens = run.state.tokens;
  result.loss = run.state.loss;
  result.val_loss = val_loss;
  result.seconds = monotonic_s() - begin_s;
  return result;
}

TrainResult train(const TrainOptions& options, ThreadPool& pool, const std::function<bool()>& stop_requested) {
  const OpenSource open = [](const TrainOptions& o, const ModelConfig&, const Tokenizer& tokenizer, ThreadPool& p) {
    return open_text(o, tokenizer, p);
  };
  return train(options, open, pool, stop_requested);
}

}  // namespace fathom
