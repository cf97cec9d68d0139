#include "train/parallel_train.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/terminal.h"
#include "train/balance.h"
#include "train/memory_check.h"
#include "train/metrics.h"
#include "train/reading.h"
#include "train/report.h"
#include "train/sharded_saver.h"
#include "train/sharded_state.h"
#include "train/step.h"
#include "train/tensorboard.h"
#include "train/trace.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

struct ParallelRun {
  const TrainOptions& options;
  RankState& ranks;
  ThreadPool& pool;
  const Reading& reading;
  LossOptions loss;
  Balance balance;
  TrainedState numbers;  // without weights and moments, which are in `ranks`
  double begin_s = 0, seconds_before = 0;
  std::optional<uint64_t> state_sum{};  // of this rank's state behind the last update, where it is checked
  bool changed = false;                 // on some rank, since then
  bool not_finite = false;              // what the last step was skipped for
  bool broken = false;
  int64_t last_taken = 0;
  TraceWriter trace{};
};

// This column's micro-batches of a step, and scales for the mean over all of them.
PipelineStep step_of_column(const ParallelRun& run, int64_t step) {
  std::vector<Examples> all = step_examples(run.reading, step);
  const int64_t n_modules = run.ranks.config.num_nextn_predict_layers;
  PipelineStep part{{}, loss_of_step(run.options, run.loss, step, all, n_modules)};
  const int64_t each = std::ssize(all) / run.ranks.layout.width(), first = each * run.ranks.column;
  for (int64_t i = first; i < first + each; ++i) part.chunks.push_back(std::move(all[static_cast<size_t>(i)]));
  return part;
}

LossResult validation_loss(ParallelRun& run, int64_t step) {
  std::vector<Examples> all;
  for_each_validation(run.reading, step, [&](const Examples& part) { all.push_back(part); });
  // Dealt out to the columns; each column's pipeline reads what it gets.
  const int width = run.ranks.layout.width();
  PipelineStep own{{}, {}};
  for (size_t i = static_cast<size_t>(run.ranks.column); i < all.size(); i += static_cast<size_t>(width)) {
    own.chunks.push_back(std::move(all[i]));
  }
  const auto most = static_cast<size_t>((std::ssize(all) + width - 1) / width);
  return parallel_loss(run.ranks, run.pool, own, most);
}

StepMetrics train_step(ParallelRun& run, int64_t step) {
  const TrainOptions& o = run.options;
  const double begin_s = monotonic_s();
  const PipelineStep part = step_of_column(run, step);
  const bool traced = !o.trace.empty() && step > o.steps - kTracedSteps;
  StepTrace trace;
  const ParallelGradients gradients = parallel_gradients(run.ranks, run.pool, part, traced ? &trace : nullptr);
  if (traced) run.trace.add(step, trace);
  const LossResult& loss = gradients.loss;
  StepMetrics m = metrics_of(o, step, loss, gradients.norm);
  // All ranks have the same numbers, so that they skip together.
  std::string why = begin_step(o, m, run.numbers);
  run.not_finite = !is_finite(m);
  if (!biases_are_finite(run.ranks)) {  // which one rank sees
    run.not_finite = true;
    why = kBrokenBias;
  }
  run.changed = o.check_memory && is_on_any(run.ranks.all, *run.state_sum != state_checksum(run.pool, run.ranks));
  if (run.changed) why = kLostBits;
  if (!why.empty()) {
    if (run.ranks.all.index == 0) log("step {}: skipped: {}", step, why);
    count_skipped(std::move(why), m, run.numbers);
  } else {
    run.broken = !parallel_update(run.ranks, run.pool, step, loss.expert_load,
                                  {.lr = m.lr,
                                   .weight_decay = o.weight_decay,
                                   .beta1 = o.beta1,
                                   .beta2 = o.beta2,
                                   .eps = o.eps,
                                   .gradient_scale = gradient_scale(o, m.grad_norm),
                                   .bias_update_speed = bias_speed(o, run.balance, step)});
    run.last_taken = step;
    if (o.ema_decay > 0) move_average(run.ranks, run.pool, average_decay(o, step));
    if (run.state_sum) run.state_sum = state_checksum(run.pool, run.ranks);
    count_taken(loss, m, run.numbers);
  }
  set_speed(loss, monotonic_s() - begin_s, m, run.numbers);
  if (validates(o, step)) {
    set_validation(validation_loss(run, step), m, run.numbers);
    if (o.ema_decay > 0) {
      swap_average(run.ranks);
      m.val_loss_average = validation_loss(run, step).loss();
      swap_average(run.ranks);
    }
  }
  m.seconds = run.seconds_before + monotonic_s() - run.begin_s;
  return m;
}

void check_attention(const ModelConfig& config) {
  if (!config.is_mla()) {
    throw UsageError("train: models of the kind {} train in one process so far; leave mpirun out", config.model_type);
  }
  if (!config.is_sparse()) return;
  throw UsageError("train: a model with an indexer (deepseek_v32) trains in one process so far; leave mpirun out");
}

// Every step's micro-batches must be the same number in every column.
void check_all_steps(const TrainOptions& o, const ParallelLayout& layout, const ModelConfig& config,
                     const Reading& reading) {
  int64_t checked_n = -1, checked_size = -1;
  for (int64_t step = 1; step <= o.steps; ++step) {
    const int64_t n = reading.sequences(step).n, size = reading.phase(step).micro_batch;
    if (n == checked_n && size == checked_size) continue;
    check_layout(layout, layout.n_ranks(), config, n, size);
    checked_n = n;
    checked_size = size;
  }
}

// Ranks that were told other things, or do not see the same files, would wait for each other or train apart.
void check_agreement(const RankGroup& all, const TrainOptions& o, Settings told) {
  told.erase(kInstructionSet);  // machines may differ: whoever updates a weight sends it to the others
  told["steps"] = fmt::to_string(o.steps);
  told["resume"] = o.resume ? "yes" : "no";
  told["checkpoints under --out"] = has_checkpoints(o.out) ? "yes" : "no";
  told["init"] = o.init.native();
  told["recompute"] = fmt::to_string(static_cast<int>(o.recompute));
  told["max-skips"] = fmt::to_string(o.max_skips);
  told["check-memory"] = o.check_memory ? "yes" : "no";
  told["val-every"] = fmt::to_string(o.val_every);
  told["val-sequences"] = fmt::to_string(o.val_sequences);
  told["save-every"] = fmt::to_string(o.save_every);
  told["save-mode"] = fmt::to_string(static_cast<int>(o.saver.mode));
  told["trace"] = o.trace.empty() ? "no" : "yes";
  std::string failed;
  const std::vector<std::string> texts = gather_texts(all, nlohmann::json(told).dump());
  for (size_t rank = 1; rank < texts.size() && failed.empty(); ++rank) {
    for (const auto& [name, value] : nlohmann::json::parse(texts[rank]).get<Settings>()) {
      if (told[name] == value) continue;
      failed = fmt::format(
          "rank {} differs from rank 0: {} is {} there and {} here; all processes need the same options, files and "
          "program, and must see the same --out",
          rank, name, printable(value, 200), printable(told[name], 200));
      break;
    }
  }
  fail_together(all, failed);
}

}  // namespace

TrainResult train_on_ranks(const TrainOptions& given, const ParallelLayout& layout, Communicator& comm,
                           ThreadPool& pool, const std::function<bool()>& stop_requested) {
  TrainOptions options = given;
  options.lr.steps = options.steps;
  if (options.micro_batch == 0) options.micro_batch = 1;
  check_options(options);
  check_files(options);
  if (options.sample_every > 0) {
    throw UsageError("train: --sample-every is for one process, which has the whole model; leave it out with several");
  }
  if (!options.trace.empty() && !path_is_directory(fs::absolute(options.trace).parent_path())) {
    throw UsageError("train: --trace {} lies in no directory", printable(options.trace.native()));
  }
  const double begin_s = monotonic_s();
  const bool is_first = comm.rank() == 0;
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer.empty() ? options.init : fs::path(options.tokenizer));
  const ModelConfig config = trained_config(options, tokenizer);
  check_fit(options, config, tokenizer);
  check_attention(config);
  check_layout(layout, comm.size(), config, options.batch_size, options.micro_batch);
  if (options.mask_documents && tokenizer.eos_id() < 0) {
    throw UsageError("train: --mask-documents needs a tokenizer with an end token, which tells documents apart");
  }
  require_new_run(options);
  const Balance balance = resolve_balance(options, config);
  const double alpha = balance_alpha_of(options, balance);

  // One of them makes the data, the others find it made.
  std::vector<int> ranks(static_cast<size_t>(comm.size()));
  for (size_t r = 0; r < ranks.size(); ++r) ranks[r] = static_cast<int>(r);
  const RankGroup all = make_group(comm, ranks, 0);
  std::optional<NewDirectory> made;
  std::optional<DirectoryLock> alone;
  std::optional<Reading> reading;
  std::string failed;
  for (const bool turn_of_first : {true, false}) {
    if (is_first == turn_of_first) {
      try {
        if (is_first) {
          made.emplace(options.out);
          alone.emplace(options.out);
        }
        reading.emplace(open_reading(options, tokenizer, pool));
        check_all_steps(options, layout, config, *reading);
      } catch (const std::exception& error) {
        failed = error.what();
      }
    }
    fail_together(all, failed);
  }
  Settings settings = settings_of(options, config, balance, alpha);
  settings.merge(settings_of(*reading));
  check_agreement(all, options, settings);

  const auto n_chunks = static_cast<int>(count_micro_batches(*reading, 1) / layout.width());
  const std::unique_ptr<RankState> state =
      make_rank_state(comm, layout, config, n_chunks, options.moments, options.precision);
  ParallelRun run{.options = options,
                  .ranks = *state,
                  .pool = pool,
                  .reading = *reading,
                  .loss = loss_of_run(options, config, balance, alpha),
                  .balance = balance,
                  .numbers = {}};
  run.loss.recompute = options.recompute;
  if (options.resume && has_checkpoints(options.out)) {
    int64_t step = 0;
    if (is_first) {
      try {
        step = read_trainer(newest_whole_checkpoint(options.out), settings).step;
      } catch (const std::exception& error) {
        failed = error.what();
      }
    }
    fail_together(all, failed);
    broadcast(all, 0, std::as_writable_bytes(std::span(&step, 1)));
    const fs::path directory = checkpoint_directory(options.out, step);
    run.numbers = read_trainer(directory, settings);
    if (options.ema_decay > 0) begin_average(*state);
    load_sharded_checkpoint(directory, *state, pool);
    if (is_first) {
      log("resuming after step {}", step);
      tell_changed_rate(options, run.numbers);
    }
  } else if (!options.init.empty()) {
    load_sharded_model(options.init, *state, pool);
  } else {
    for (Stage& stage : state->stages) initialize(stage.parameters, config, options.seed);
  }
  if (options.ema_decay > 0 && run.numbers.step == 0) begin_average(*state);
  if (run.numbers.step > options.steps) {
    throw UsageError("train: the checkpoint is of step {}, --steps is {}", run.numbers.step, options.steps);
  }

  const fs::path log_path = options.log.empty() ? options.out / "train.jsonl" : options.log;
  std::optional<MetricsLog> metrics_log;
  std::optional<TensorboardLog> tensorboard;
  if (is_first) {
    metrics_log.emplace(log_path, run.numbers.step);
    if (!options.tensorboard.empty()) tensorboard.emplace(options.tensorboard, run.numbers.step + 1);
    const ParameterCount count = count_parameters(config);
    log("{} parameters, {} active a token; {} tokens of text; {} ranks: {} stages, {} columns, experts over {}",
        human_count(static_cast<double>(count.total)), human_count(static_cast<double>(count.active)),
        human_count(static_cast<double>(reading->data.train.ids.size())), comm.size(), state->schedule.n_stages(),
        layout.width(), layout.ep);
    run.seconds_before = metrics_log->seconds_before();
  }
  if (options.check_memory) run.state_sum = state_checksum(pool, *state);
  run.begin_s = monotonic_s();
  TrainResult result;
  std::optional<Progress> progress;
  if (is_first) progress.emplace("training", options.steps, run.numbers.step);
  ShardedSaver saver(options.out, *state, tokenizer, settings, options.saver, run.numbers.step);
  // What cannot be logged ends the run of all, unless it is to go on.
  const auto log_on_first = [&](const auto& work) {
    try {
      if (is_first) work();
    } catch (const Error& error) {
      if (options.saver.on_failure == SaveFailure::stop) {
        failed = error.what();
      } else {
        log("{}; training goes on", error.what());
      }
    }
    fail_together(all, failed);
  };
  // For a reason that all ranks have, and the first of them tells.
  const auto end_with = [&](const auto& gives_up) {
    saver.wait();
    try {
      gives_up();
    } catch (const Error& error) {
      throw FailedTogether(error.what(), is_first);
    }
  };
  for (int64_t step = run.numbers.step + 1; step <= options.steps; ++step) {
    const StepMetrics m = train_step(run, step);
    log_on_first([&] {
      metrics_log->write(m);
      if (tensorboard) tensorboard->write(m);
    });
    if (run.changed) {
      end_with([&] { give_up(options.out, run.last_taken, step, *m.skipped, kSoundMemory); });
    }
    if (run.broken) {
      end_with([&] { give_up(options.out, run.last_taken, step, kBrokenState, kCalmer); });
    }
    if (!m.skipped) saver.taken(step);
    if (m.skipped && run.numbers.guard.skipped > options.max_skips) {
      const int64_t n = std::exchange(run.numbers.guard.skipped, 0);  // who resumes has as many tries
      const std::string why = fmt::format("{}; it is skipped number {} in a row", *m.skipped, n);
      if (run.not_finite) end_with([&] { give_up(options.out, run.last_taken, step, why, kCalmer); });
      saver.save_last(run.numbers);
      end_with([&] { give_up_with_saved(options.out, step, why); });
    }
    if (is_first && m.val_loss) {
      log("step {}: loss {:.4f}, validation {:.4f}, {:.0f} tokens/s", step, m.loss, *m.val_loss, m.tokens_per_s);
    }
    if (progress) progress->update(step, fmt::format("loss {:.4f} {:.0f} tok/s", m.loss, m.tokens_per_s));
    // A signal may have come to some of them only, or to each in another step.
    result.stopped = is_on_any(all, stop_requested && stop_requested() && step < options.steps);
    saver.poll();
    const bool due = options.save_every > 0 && step % options.save_every == 0 && !m.skipped;
    const bool is_last = result.stopped || step == options.steps;
    if (due || is_last) log_on_first([&] { metrics_log->sync(); });
    if (is_last) {
      saver.save_last(run.numbers);
    } else if (due) {
      saver.save(run.numbers);
    }
    if (result.stopped) break;
  }
  if (progress) progress->finish();
  if (run.trace.n_steps() > 0) {
    std::string table;
    try {
      table = run.trace.write(all, options.trace);
    } catch (const std::exception& error) {
      failed = error.what();
    }
    fail_together(all, failed);
    if (is_first) log("{}: the last {} steps\n{}", printable(options.trace.native()), run.trace.n_steps(), table);
  }
  if (result.stopped) {
    if (is_first) log("stopped after step {}; go on with --resume", run.numbers.step);
  } else {
    save_sharded_model(options.out, *state, tokenizer, options.save_format);
    if (options.ema_decay > 0) {
      swap_average(*state);
      save_sharded_model(options.out / "average", *state, tokenizer, options.save_format);
    }
    if (is_first && fs::is_regular_file(log_path)) {
      write_file_atomically(options.out / "report.html", training_report(read_metrics(log_path), config, settings));
    }
    barrier(all);
  }
  result.step = run.numbers.step;
  result.tokens = run.numbers.tokens;
  result.loss = run.numbers.loss;
  result.val_loss = run.numbers.val_loss;
  result.seconds = monotonic_s() - begin_s;
  return result;
}

}  // namespace fathom
