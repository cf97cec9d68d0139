#include "train/step.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/terminal.h"
#include "checkpoint/hf_model.h"
#include "train/balance.h"

namespace fathom {
namespace {

void give_indexer(const TrainOptions& o, ModelConfig& config) {
  if (config.is_sparse()) {
    if (o.indexer == TrainOptions().indexer || o.indexer == config.indexer) return;
    throw UsageError(
        "{}: the model of --init has an indexer already, of {} heads of {} that choose {} tokens; leave out "
        "--index-n-heads, --index-head-dim and --index-topk",
        o.command, config.indexer.n_heads, config.indexer.head_dim, config.indexer.topk);
  }
  if (config.model_type != "deepseek_v3" || config.q_lora_rank == 0) {
    throw UsageError(
        "{}: --dsa warmup gives an indexer to models of the kind deepseek_v3 with a q_lora_rank, which it reads",
        o.command);
  }
  config.model_type = "deepseek_v32";
  config.indexer = o.indexer;
}

// As V3 section 4.3 has it.
void extend_by_yarn(const TrainOptions& o, ModelConfig& config) {
  if (config.llama3_scaling) {
    throw UsageError(
        "train: the model of --init is extended already, by Llama 3's rope scaling: leave --yarn-factor out");
  }
  if (config.rope_scaling && o.yarn_original == 0) {
    throw UsageError(
        "{}: the model of --init is extended already, by {} from {} tokens; say with --yarn-original how many "
        "tokens --yarn-factor multiplies now",
        o.command, config.rope_scaling->factor, config.rope_scaling->original_max_position_embeddings);
  }
  const int64_t original = o.yarn_original > 0 ? o.yarn_original : config.max_position_embeddings;
  const double longest = o.yarn_factor * static_cast<double>(original);
  if (longest > static_cast<double>(int64_t{1} << 31)) {
    throw UsageError("{}: --yarn-factor {} of {} tokens makes more than 2^31", o.command, o.yarn_factor, original);
  }
  config.rope_scaling = YarnScaling{
      .factor = o.yarn_factor, .original_max_position_embeddings = original, .mscale = 1, .mscale_all_dim = 1};
  if (!config.is_mla()) config.rope_scaling->mscale = config.rope_scaling->mscale_all_dim = 0;  // as Qwen 2 has it
  config.max_position_embeddings = static_cast<int64_t>(longest);
}

}  // namespace

ModelConfig trained_config(const TrainOptions& o, const Tokenizer& tokenizer) {
  ModelConfig config = read_model_config(o.init.empty() ? o.model_config : o.init);
  config.weight_block_rows = config.weight_block_cols = 0;  // trained weights are f32
  if (o.dsa == Dsa::warmup) give_indexer(o, config);
  if (o.yarn_factor > 0) extend_by_yarn(o, config);
  check_config(config, printable((o.init.empty() ? o.model_config : o.init).native()));
  if (config.bos_token_id < 0) config.bos_token_id = tokenizer.bos_id();
  if (config.eos_token_ids.empty() && tokenizer.eos_id() >= 0) config.eos_token_ids = {tokenizer.eos_id()};
  return config;
}

double balance_alpha_of(const TrainOptions& o, Balance balance) {
  if (o.balance_alpha >= 0) return o.balance_alpha;
  return balance == Balance::aux || balance == Balance::aux_batch ? 1e-3 : 0;
}

LossOptions loss_of_run(const TrainOptions& o, const ModelConfig& config, Balance balance, double alpha) {
  LossOptions loss;
  loss.mtp_weight = config.num_nextn_predict_layers > 0 ? o.mtp_weight : 0;
  loss.balance_alpha = alpha;
  loss.balance_over_batch = balance == Balance::aux_batch;
  const Dsa dsa = resolve_dsa(o, config);
  loss.train_indexers = dsa == Dsa::sparse || dsa == Dsa::warmup;
  loss.indexers_alone = dsa == Dsa::warmup;
  if (loss.indexers_alone && config.num_nextn_predict_layers > 0) loss.mtp_weight = 1;  // their layers' indexers too
  return loss;
}

LossOptions loss_of_step(const TrainOptions& o, const LossOptions& of_run, int64_t step,
                         std::span<const Examples> micro_batches, int64_t n_mtp_modules) {
  LossOptions loss = of_run;
  const bool late = o.mtp_late_at > 0 && step > o.mtp_late_at;
  if (loss.mtp_weight > 0 && late && !loss.indexers_alone) loss.mtp_weight = o.mtp_weight_late;
  int64_t n_main = 0, n_mtp = 0, n_sequences = 0, n_tokens = 0;
  for (const Examples& part : micro_batches) {
    n_main += part.n_main;
    n_mtp += count_mtp_targets(part, n_mtp_modules);
    n_sequences += part.n_sequences();
    for (const std::vector<int32_t>& sequence : part.sequences) n_tokens += std::ssize(sequence);
  }
  const auto per = [](int64_t n) { return n > 0 ? 1.0 / static_cast<double>(n) : 0; };
  loss.main_scale = per(n_main);
  loss.mtp_scale = per(n_mtp);
  loss.indexer_scale = per(n_tokens);
  loss.balance_scale = per(loss.balance_over_batch ? std::ssize(micro_batches) : n_sequences);
  return loss;
}

double gradient_scale(const TrainOptions& o, double norm) { return o.clip > 0 && norm > o.clip ? o.clip / norm : 1; }

double bias_speed(const TrainOptions& o, Balance balance, int64_t step) {
  if (o.dsa == Dsa::warmup) return 0;
  const bool frozen = static_cast<double>(step) > static_cast<double>(o.steps) * (1 - o.bias_freeze);
  return balance == Balance::bias && !frozen ? o.bias_update_speed : 0;
}

double average_decay(const TrainOptions& o, int64_t step) {
  const auto n = static_cast<double>(step);
  return std::min(o.ema_decay, (1 + n) / (10 + n));
}

StepMetrics metrics_of(const TrainOptions& o, int64_t step, const LossResult& loss, double gradient_norm) {
  StepMetrics m;
  m.step = step;
  m.steps = o.steps;
  m.loss = loss.loss();
  if (loss.mtp_targets > 0) m.mtp_loss = loss.mtp_loss();
  if (loss.taught_targets > 0) m.divergence = loss.divergence();
  if (loss.indexer.n > 0) {
    m.indexer_loss = loss.indexer.kl_mean();
    if (loss.indexer.n_recall > 0) m.indexer_recall = loss.indexer.recall_mean();
  }
  m.lr = learning_rate(o.lr, step);
  m.grad_norm = gradient_norm;
  m.max_violation = max_violation(loss.expert_load);
  if (reports_load(o, step)) {
    m.expert_load = loss.expert_load;
    m.layer_violations = max_violations(loss.expert_load);
  }
  return m;
}

bool is_finite(const StepMetrics& m) {
  return std::isfinite(m.loss) && std::isfinite(m.mtp_loss.value_or(0)) && std::isfinite(m.indexer_loss.value_or(0)) &&
         std::isfinite(m.divergence.value_or(0)) && std::isfinite(m.grad_norm);
}

std::string begin_step(const TrainOptions& o, const StepMetrics& m, TrainedState& state) {
  // The losses of longer sequences, whose far positions are new to the model, are no spikes of those before.
  if (o.extend_seq_len > 0 && m.step == o.extend_at + 1) state.guard = {.skipped = state.guard.skipped};
  state.step = m.step;
  state.lr = m.lr;
  return reason_to_skip(state.guard, m.loss, m.mtp_loss.value_or(0), m.grad_norm, o.spike_deviations);
}

void count_skipped(std::string why, StepMetrics& m, TrainedState& state) {
  ++state.guard.skipped;
  m.skipped = std::move(why);
}

void count_taken(const LossResult& loss, const StepMetrics& m, TrainedState& state) {
  count_taken(state.guard, m.loss);
  state.tokens += loss.main_targets;
  state.loss = m.loss;
}

void set_speed(const LossResult& loss, double seconds, StepMetrics& m, const TrainedState& state) {
  m.tokens = state.tokens;
  m.tokens_per_s = static_cast<double>(loss.main_targets) / std::max(seconds, 1e-9);
}

bool reports_load(const TrainOptions& o, int64_t step) {
  constexpr int64_t kSnapshots = 60;  // over a run
  return step == o.steps || step == 1 || step % std::max<int64_t>(1, o.steps / kSnapshots) == 0;
}

bool validates(const TrainOptions& o, int64_t step) {
  return !o.val_data.empty() && (step == o.steps || (o.val_every > 0 && step % o.val_every == 0));
}

void set_validation(const LossResult& validation, StepMetrics& m, TrainedState& state) {
  m.val_loss = state.val_loss = validation.loss();
  m.val_layer_violations = max_violations(validation.expert_load);
  m.val_max_violation = max_violation(validation.expert_load);
}

void require_new_run(const TrainOptions& o) {
  if (o.resume || !has_checkpoints(o.out)) return;
  throw UsageError("{}: {} holds checkpoints of an earlier run; go on with --resume or give another --out", o.command,
                   printable(o.out.native()));
}

TrainedState begun_or_resumed(const TrainOptions& o, std::optional<TrainedState> begun, const Settings& settings,
                              ThreadPool& pool) {
  if (begun && o.resume) log("no checkpoint under {}, starting at the beginning", printable(o.out.native()));
  TrainedState state = begun ? std::move(*begun) : load_newest_checkpoint(o.out, settings, pool);
  if (!begun) {
    log("resuming after step {}", state.step);
    tell_changed_rate(o, state);
  }
  if (state.step > o.steps) {
    throw UsageError("{}: the checkpoint is of step {}, --steps is {}", o.command, state.step, o.steps);
  }
  return state;
}

void tell_changed_rate(const TrainOptions& o, const TrainedState& state) {
  if (!state.lr || state.step >= o.steps) return;
  const double now = learning_rate(o.lr, state.step);
  if (std::abs(now - *state.lr) <= 1e-9 * o.lr.peak) return;
  log("step {} had the learning rate {:.3g}; with --steps {} its schedule has {:.3g} there and goes on from that",
      state.step, *state.lr, o.steps, now);
}

void give_up(const std::filesystem::path& out, int64_t last_taken, int64_t step, const std::string& why,
             const char* advice) {
  const int64_t good = checkpoint_before(out, last_taken);
  throw Error("step {}: {}. {}: {}", step, why,
              good > 0
                  ? fmt::format("The last good checkpoint is {}", printable(checkpoint_directory(out, good).native()))
                  : "No good checkpoint was saved before",
              advice);
}

void give_up_with_saved(const std::filesystem::path& out, int64_t step, const std::string& why) {
  throw Error("step {}: {}. The weights before are saved in {}: {}", step, why,
              printable(checkpoint_directory(out, step).native()), kCalmer);
}

}  // namespace fathom
