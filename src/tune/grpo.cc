#include "tune/grpo.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <utility>

#include "base/file.h"
#include "base/residency.h"
#include "base/terminal.h"
#include "checkpoint/hf_model.h"
#include "train/memory_check.h"
#include "train/report.h"
#include "train/step.h"
#include "train/step_logs.h"
#include "tune/grpo_step.h"

namespace fathom::tune {
namespace {

namespace fs = std::filesystem;

// Weights, gradient, two moments, and perhaps the reference.
double parameter_bytes(const GrpoOptions& o, const ModelConfig& config) {
  const double a_parameter =
      (o.loss.beta != 0 ? 3.0 : 2.0) * sizeof(float) + 2.0 * static_cast<double>(format_bytes(o.train.moments, 1));
  return static_cast<double>(count_parameters(config).total) * a_parameter;
}

// Said before memory is filled that the system cannot back.
void check_memory(const GrpoOptions& o, const ModelConfig& config) {
  const double needed = parameter_bytes(o, config), present = static_cast<double>(memory_limit_bytes());
  if (needed > present) {
    throw Error("{}: training its {} parameters takes {} of memory, there are {}; make the model smaller",
                printable(o.train.init.native()), human_count(static_cast<double>(count_parameters(config).total)),
                human_bytes(needed), human_bytes(present));
  }
  const double pass = static_cast<double>(o.pass_tokens) * sizeof(float) *
                      static_cast<double>(saved_floats_a_token(config, o.train.recompute, o.train.precision));
  if (needed + pass > present) {
    throw Error(
        "a pass over {} tokens keeps {} for its gradient, beside the parameters there are {}; give a smaller "
        "--pass-tokens, or --recompute selective or full",
        o.pass_tokens, human_bytes(pass), human_bytes(present - needed));
  }
}

TrainedState initial_state(const GrpoOptions& o, const ModelConfig& config, ThreadPool& pool) {
  TrainedState state;
  state.parameters = load_model(o.train.init, pool).parameters;
  state.config = config;
  state.first_moment = allocate_moment(state.parameters.n_trained, o.train.moments);
  state.second_moment = allocate_moment(state.parameters.n_trained, o.train.moments);
  if (o.loss.beta != 0) {
    state.average = allocate_parameters(config);
    std::ranges::copy(state.parameters.all(), state.average.all().begin());
  }
  return state;
}

Settings settings_of(const GrpoOptions& o, std::span<const Question> questions) {
  const auto on = [](bool value) { return value ? "yes" : "no"; };
  const bool has_code = o.rewards.weights[RewardKind::code] != 0;
  const std::string code_timeout = has_code ? fmt::to_string(o.rewards.limits.cpu_s) : "not set";
  return {{"data", fmt::format("{} questions, xxh3 {:016x}", questions.size(), checksum_of(questions))},
          {"questions", fmt::to_string(o.questions_a_step)},
          {"group-size", fmt::to_string(o.group_size)},
          {"mini-batches", fmt::to_string(o.mini_batches)},
          {"inner-epochs", fmt::to_string(o.inner_epochs)},
          {"pass-tokens", fmt::to_string(o.pass_tokens)},
          {"temperature", fmt::to_string(o.rollout.sampler.temperature)},
          {"top-k", fmt::to_string(o.rollout.sampler.top_k)},
          {"top-p", fmt::to_string(o.rollout.sampler.top_p)},
          {"max-tokens", fmt::to_string(o.rollout.max_tokens)},
          {"kv-type", format_traits(o.rollout.kv_type).name},
          {"draft-tokens", fmt::to_string(o.rollout.draft_tokens)},
          {"reward", to_string(o.rewards.weights)},
          {"reward-command", o.rewards.command},
          {"code-timeout", code_timeout},
          {"length-penalty", fmt::to_string(o.rewards.length_penalty)},
          {"length-free", fmt::to_string(o.rewards.length_free)},
          {"advantage by deviation", on(o.by_deviation)},
          {"loss by token", on(o.by_token)},
          {"clip-low", fmt::to_string(o.loss.clip_low)},
          {"clip-high", fmt::to_string(o.loss.clip_high)},
          {"kl", fmt::to_string(o.loss.beta)},
          {"kl-estimate", o.loss.kl == KlEstimate::plain ? "plain" : "unbiased"},
          {"mask-off-policy", o.loss.mask_off_policy ? fmt::to_string(*o.loss.mask_off_policy) : "no"},
          {"keep-routing", on(o.keep_routing)},
          {"ref-every", fmt::to_string(o.ref_every)}};
}

// What is written over must be an earlier run's samples, and nothing that is read or written elsewhere.
void check_samples_file(const GrpoOptions& o) {
  const fs::path& path = o.save_samples;
  if (path.empty()) return;
  const std::string name = printable(path.native());
  std::vector<fs::path> others = o.train.data;
  others.insert(others.end(), o.train.val_data.begin(), o.train.val_data.end());
  others.push_back(o.train.log.empty() ? o.train.out / "train.jsonl" : o.train.log);
  for (const char* own : {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                          "generation_config.json", "report.html"}) {
    others.push_back(o.train.out / own);
  }
  for (const fs::path& other : others) {
    if (same_path(path, other)) throw UsageError("grpo: --save-samples {} would overwrite what the run needs", name);
  }
  std::error_code error;
  if (!fs::is_regular_file(path, error) || fs::file_size(path, error) == 0 || error) return;
  std::string first(16, '\0');
  std::ifstream(path).read(first.data(), static_cast<std::streamsize>(first.size()));
  if (!first.starts_with("{\"step\":")) {
    throw UsageError("grpo: --save-samples {} holds something else; remove it or give another", name);
  }
}

// Writes the model directory and the report.
void finish(const GrpoRun& run, const fs::path& log_path, const Settings& settings) {
  const fs::path& out = run.options.train.out;
  run.tokenizer.save(out);  // before the model, whose config.json comes last: what is not whole does not load
  save_model(out, run.state.config, run.state.parameters.weights, {.format = run.options.train.save_format});
  if (!fs::is_regular_file(log_path))
    return log("{} cannot be read again: there is no report", printable(log_path.native()));
  write_file_atomically(out / "report.html", training_report(read_metrics(log_path), run.state.config, settings));
}

std::string progress_note(const StepDone& done) {
  std::string note = fmt::format("reward {:.4f}", done.reward);
  for (const auto& [name, value] : done.metrics.of_source) {
    if (name == "length") note += fmt::format(" length {:.0f}", value);
    if (name == "entropy") note += fmt::format(" entropy {:.3f}", value);
    if (name == "sampling_tokens_per_s") note += fmt::format(" sampling {:.0f} tok/s", value);
    if (name == "training_tokens_per_s") note += fmt::format(" training {:.0f} tok/s", value);
  }
  return note;
}

}  // namespace

void check_grpo_options(const GrpoOptions& o) {
  if (o.train.init.empty()) throw UsageError("grpo: give --init MODEL: the policy that is trained");
  if (o.train.data.empty()) throw UsageError("grpo: give --data FILE.jsonl...: questions with answers");
  constexpr int64_t kMost = int64_t{1} << 24;
  const auto within = [](const char* name, int64_t value, int64_t low) {
    if (value < low || value > kMost) throw UsageError("grpo: {} is {}, must be between {} and 2^24", name, value, low);
  };
  within("--questions", o.questions_a_step, 1);
  within("--group-size", o.group_size, 2);
  within("--mini-batches", o.mini_batches, 1);
  within("--inner-epochs", o.inner_epochs, 1);
  within("--pass-tokens", o.pass_tokens, 1);
  within("--max-tokens", o.rollout.max_tokens, 1);
  within("--max-sequences", o.rollout.max_sequences, 1);
  within("--ref-every", o.ref_every, 0);
  within("--length-free", o.rewards.length_free, 0);
  if (o.questions_a_step * o.group_size > kMost) {
    throw UsageError("grpo: --questions {} of --group-size {} make more than 2^24 answers a step", o.questions_a_step,
                     o.group_size);
  }
  if (o.questions_a_step * o.group_size % o.mini_batches != 0) {
    throw UsageError("grpo: --mini-batches {} does not divide the {} answers of a step", o.mini_batches,
                     o.questions_a_step * o.group_size);
  }
  check_sampler(o.rollout.sampler);
  if (o.rollout.sampler.temperature == 0) {
    throw UsageError("grpo: --temperature is 0, must be above it: all answers to a question would be the same");
  }
  const auto at_least = [](const char* name, double value, double low) {
    if (!(value >= low && value <= 1e30)) {
      throw UsageError("grpo: {} is {}, must be between {} and 1e30", name, value, low);
    }
  };
  at_least("--clip-low", o.loss.clip_low, 0);
  at_least("--clip-high", o.loss.clip_high, 0);
  at_least("--kl", o.loss.beta, 0);
  if (o.loss.mask_off_policy) at_least("--mask-off-policy", *o.loss.mask_off_policy, 0);
  at_least("--length-penalty", o.rewards.length_penalty, 0);
  at_least("--reward-timeout", o.rewards.command_timeout_s, 0.001);
  if (o.ref_every > 0 && o.loss.beta == 0)
    throw UsageError("grpo: --ref-every needs --kl, without it there is no reference");
  if (o.train.ema_decay != 0) throw UsageError("grpo: --ema-decay is of fathom train");
  if (o.rewards.length_free >= o.rollout.max_tokens && o.rewards.length_penalty != 0) {
    throw UsageError("grpo: --length-free {} must be below --max-tokens {}", o.rewards.length_free,
                     o.rollout.max_tokens);
  }
}

GrpoResult grpo(const GrpoOptions& given, ThreadPool& pool, const std::function<bool()>& stop_requested) {
  GrpoOptions options = given;
  TrainOptions& o = options.train;
  o.command = "grpo";
  o.lr.steps = o.steps;
  o.seq_len = 1;  // of packed text, which there is none
  o.batch_size = options.questions_a_step * options.group_size;
  o.spike_deviations = 0;  // of a loss around 0 there are none
  options.rewards.max_tokens = options.rollout.max_tokens;
  check_grpo_options(options);
  check_options(o);
  check_files(o);
  check_samples_file(options);
  const double begin_s = monotonic_s();
  Tokenizer tokenizer = Tokenizer::load(o.tokenizer.empty() ? o.init : fs::path(o.tokenizer));
  if (o.chat_template) tokenizer.set_chat_template(*o.chat_template);
  const ModelConfig config = trained_config(o, tokenizer);
  check_memory(options, config);
  if (tokenizer.vocab_size() > config.vocab_size) {
    throw Error("the tokenizer has ids up to {} and the model embeds {}; give the one of the model",
                tokenizer.vocab_size() - 1, config.vocab_size);
  }
  if (config.eos_token_ids.empty()) log("the model has no end token: every answer is cut at --max-tokens");
  const int64_t longest = config.max_position_embeddings - options.rollout.max_tokens;
  if (longest < 1) {
    throw UsageError("grpo: --max-tokens {} leaves no room for a question, the model's max_position_embeddings is {}",
                     options.rollout.max_tokens, config.max_position_embeddings);
  }
  const Balance balance = resolve_balance(o, config);
  const double alpha = balance_alpha_of(o, balance);
  const Dsa dsa = resolve_dsa(o, config);
  if (dsa == Dsa::warmup) throw UsageError("grpo: --dsa warmup is of fathom train");
  std::vector<Question> all = read_questions(o.data, tokenizer, options.questions, longest);
  const size_t n_questions = all.size();
  if (!o.val_data.empty()) {
    std::ranges::move(read_questions(o.val_data, tokenizer, options.questions, longest), std::back_inserter(all));
    const auto n_val = static_cast<int64_t>(all.size() - n_questions);
    if (o.val_sequences > 0 && n_val > o.val_sequences) all.resize(n_questions + static_cast<size_t>(o.val_sequences));
  }
  const auto questions = std::span<const Question>(all).first(n_questions);
  const auto val_questions = std::span<const Question>(all).subspan(n_questions);

  std::optional<TrainedState> begun;
  if (!o.resume || !has_checkpoints(o.out)) begun = initial_state(options, config, pool);
  const NewDirectory made(o.out);
  const DirectoryLock alone(o.out);
  require_new_run(o);
  Settings settings = settings_of(o, config, balance, alpha);
  for (const char* of_packed : {"seq-len", "batch-size", "micro-batch", "batch-start", "batch-ramp", "extend-seq-len",
                                "extend-at", "mask-documents", "spike-deviations", "ema-decay"}) {
    settings.erase(of_packed);
  }
  for (const auto& [name, value] : settings_of(options, questions)) settings[name] = value;
  TrainedState state = begun_or_resumed(o, std::move(begun), settings, pool);
  Rewards rewards(options.rewards, all);
  const fs::path log_path = o.log.empty() ? o.out / "train.jsonl" : o.log;
  o.saver.mode = resolve_save_mode(o.saver.mode, parameter_bytes(options, config),
                                   static_cast<double>(memory_limit_bytes()) - parameter_bytes(options, config));
  Saver saver(o.out, tokenizer, settings, o.saver, state.step);
  if (state.step < o.steps) check_free_space(o.out, state);
  StepLogs logs(o, log_path, options.save_samples, state.step);

  Arena arena;
  GrpoRun run{.options = options,
              .stop_requested = stop_requested,
              .ctx = {pool, arena},
              .tokenizer = tokenizer,
              .questions = questions,
              .val_questions = val_questions,
              .rewards = rewards,
              .state = std::move(state),
              .model = {},
              .reference = {},
              .gradients = {},
              .runs = {},
              .loss = {},
              .balance = balance};
  run.model = make_model(run.state.config, run.state.parameters.weights);
  run.model.precision = o.precision;
  run.model.dense_attention = dsa == Dsa::off;
  if (options.loss.beta != 0) {
    run.reference = make_model(run.state.config, run.state.average.weights);
    run.reference.dense_attention = run.model.dense_attention;
  }
  run.gradients = allocate_parameters(run.state.config, /*with_bias=*/false);
  run.loss = loss_of_run(o, run.state.config, balance, alpha);
  run.runs = trained_runs(run.state.parameters, run.state.config, run.loss);
  run.loss.recompute = o.recompute;
  run.loss.scratch = &run.scratch;
  const ParameterCount count = count_parameters(run.state.config);
  log("{} parameters, {} active a token; {} questions; {} threads", human_count(static_cast<double>(count.total)),
      human_count(static_cast<double>(count.active)), questions.size(), pool.size());

  const double run_begin_s = monotonic_s(), seconds_before = logs.metrics.seconds_before();
  if (o.check_memory) run.state_sum = state_checksum(pool, run.state);
  const StateToSave to_save = [&run]() -> const TrainedState& { return run.state; };
  GrpoResult result;
  if (run.state.step == o.steps) log("all {} steps are done; model and report are written again", o.steps);
  Progress progress("reinforcing", o.steps, run.state.step);
  const int64_t first = run.state.step + 1;
  for (int64_t step = first; step <= o.steps; ++step) {
    std::optional<StepDone> done = grpo_step(run, step);
    if (!done) {
      result.stopped = true;
      saver.save_last(run.state);
      break;
    }
    StepMetrics& m = done->metrics;
    m.seconds = seconds_before + monotonic_s() - run_begin_s;
    write_step(logs, m, done->samples, to_save, run.state.guard.skipped == 0 && !run.broken, saver);
    if (run.broken) give_up(o.out, run.last_taken, step, kBrokenState, kCalmer);
    if (!m.skipped) {
      run.last_taken = step;
      saver.taken(step);
    }
    if (m.skipped && run.state.guard.skipped > o.max_skips) {
      const int64_t n = std::exchange(run.state.guard.skipped, 0);  // who resumes has as many tries
      give_up(o.out, run.last_taken, step, fmt::format("{}; it is skipped number {} in a row", *m.skipped, n), kCalmer);
    }
    result.reward = done->reward;
    if (done->val_reward) {
      result.val_reward = done->val_reward;
      result.val_exact = done->val_exact;
      log("step {}: reward {:.4f}, validation: reward {:.4f}{}", step, done->reward, *done->val_reward,
          done->val_exact ? fmt::format(", {:.1f} % exact", 100 * *done->val_exact) : "");
    }
    progress.update(step, progress_note(*done));
    result.stopped = stop_requested && stop_requested() && step < o.steps;
    save_step(o, logs, m, to_save, result.stopped || step == o.steps, saver);
    if (result.stopped) break;
  }
  progress.finish();
  if (result.stopped) {
    log("stopped after step {}; go on with --resume", saver.saved_step());
  } else if (run.state.tokens == 0) {
    throw Error(
        "nothing was learned: in no step of {} was an answer worth more than another to the same question; see {}",
        o.steps, printable(log_path.native()));
  } else {
    finish(run, log_path, settings);
  }
  result.step = run.state.step;
  result.tokens = run.state.tokens;
  result.seconds = monotonic_s() - begin_s;
  return result;
}

}  // namespace fathom::tune
