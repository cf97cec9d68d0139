#include "tune/grpo_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/terminal.h"
#include "text/answer_parser.h"
#include "train/balance.h"
#include "train/memory_check.h"
#include "train/step.h"
#include "tune/advantages.h"
#include "tune/packing.h"

namespace fathom::tune {
namespace {

constexpr uint64_t kQuestionStream = 0x9e57, kMiniBatchStream = 0x3b47c4;  // of Rng

// What of a step's answers its updates need.
struct Answered {
  const Question* question;
  Sample sample;
  Completion completion;
  Reward reward;
  double advantage = 0;
  bool learns = false;
  std::vector<float> reference;  // log probabilities
  ChosenExperts experts;
  Trained trained() const { return {question, &sample}; }
  int64_t n_tokens() const { return std::ssize(question->prompt) + std::ssize(sample.ids); }
};

// The model that samples, and is saved: exact, whatever training rounds.
Model exact(const Model& model) {
  Model same = model;
  same.precision = Precision::f32;
  return same;
}

std::string text_of(const Tokenizer& tokenizer, const Sample& sample) {
  std::vector<int32_t> ids = sample.ids;
  if (sample.ended) ids.pop_back();
  std::erase_if(ids, [&](int32_t id) { return id >= tokenizer.vocab_size(); });  // rows that the model has beyond
  return tokenizer.decode(ids);
}

// Tokens in front of the last </think>; nothing without one.
std::optional<int64_t> thought_tokens(const Tokenizer& tokenizer, const Sample& sample) {
  std::string bytes;
  std::vector<size_t> ends;
  for (const int32_t id : sample.ids) {
    if (id < tokenizer.vocab_size()) bytes += tokenizer.token_bytes(id);
    ends.push_back(bytes.size());
  }
  const size_t at = bytes.rfind(kEndThink);
  if (at == std::string::npos) return std::nullopt;
  return std::ranges::upper_bound(ends, at) - ends.begin();
}

std::optional<std::vector<Answered>> answer(GrpoRun& run, std::span<const Wanted> wanted, const RolloutOptions& options,
                                            RolloutCounts& counts) {
  auto samples = sample_answers(run.ctx, exact(run.model), wanted, options, counts, run.stop_requested);
  if (!samples) return std::nullopt;
  std::vector<Answered> answers(wanted.size());
  std::vector<Completion> completions;
  for (size_t i = 0; i < answers.size(); ++i) {
    answers[i].question = wanted[i].question;
    answers[i].sample = std::move((*samples)[i]);
    const Sample& sample = answers[i].sample;
    completions.push_back({wanted[i].question, text_of(run.tokenizer, sample), std::ssize(sample.ids), sample.cut});
  }
  auto judged = run.rewards.judge(run.ctx.pool, completions, run.stop_requested);
  if (!judged) return std::nullopt;
  for (size_t i = 0; i < answers.size(); ++i) {
    answers[i].completion = std::move(completions[i]);
    answers[i].reward = std::move((*judged)[i]);
  }
  return answers;
}

// Returns how many groups say nothing: all their rewards are equal.
int64_t set_advantages(const GrpoOptions& o, std::vector<Answered>& answers) {
  int64_t n_equal = 0;
  const auto size = static_cast<size_t>(o.group_size);
  for (size_t first = 0; first < answers.size(); first += size) {
    std::vector<double> rewards;
    for (size_t i = first; i < first + size; ++i) rewards.push_back(answers[i].reward.total);
    const std::vector<double> of_group = advantages(rewards, o.by_deviation);
    const bool says_nothing = std::ranges::all_of(of_group, [](double a) { return a == 0; });
    n_equal += says_nothing ? 1 : 0;
    for (size_t i = first; i < first + size; ++i) {
      answers[i].advantage = of_group[i - first];
      // Of others the gradient would be 0.
      answers[i].learns = answers[i].advantage != 0 || o.loss.beta != 0;
    }
  }
  return n_equal;
}

// Passes of at most pass_tokens, or of one answer.
std::vector<std::vector<Answered*>> passes_of(const GrpoOptions& o, std::span<Answered* const> answers) {
  std::vector<std::vector<Answered*>> passes;
  int64_t n_tokens = 0;
  for (Answered* const each : answers) {
    if (!each->learns) continue;
    if (passes.empty() || n_tokens + each->n_tokens() > o.pass_tokens) {
      passes.emplace_back();
      n_tokens = 0;
    }
    passes.back().push_back(each);
    n_tokens += each->n_tokens();
  }
  return passes;
}

SampleBatch batch_of(GrpoRun& run, std::span<Answered* const> answers) {
  std::vector<Trained> trained;
  for (const Answered* const each : answers) trained.push_back(each->trained());
  return make_sample_batch(run.ctx, trained, run.options.rollout.sampler);
}

bool keeps_routing(const GrpoRun& run) {
  const GrpoOptions& o = run.options;
  // One update in f32 makes the same choices by itself.
  const bool changes = o.mini_batches * o.inner_epochs > 1 || run.model.precision != Precision::f32;
  const auto& layers = run.model.weights.layers;
  return o.keep_routing && changes &&
         std::ranges::any_of(layers, [](const LayerWeights& l) { return bool(l.moe.gate); });
}

// What is to be known before the weights change: the reference's log probabilities, and the experts that sampling
// chose.
void prepare(GrpoRun& run, std::vector<Answered>& answers) {
  const bool routing = keeps_routing(run), reference = run.options.loss.beta != 0;
  if (!routing && !reference) return;
  std::vector<Answered*> all;
  for (Answered& each : answers) all.push_back(&each);
  for (const std::vector<Answered*>& pass : passes_of(run.options, all)) {
    const ArenaScope scope(run.ctx.arena);
    const SampleBatch made = batch_of(run, pass);
    if (routing) {
      std::vector<Tensor> chosen;
      target_logprobs(run.ctx, exact(run.model), made.batch, made.targets, {}, &chosen, &made.mask);
      std::vector<ChosenExperts> cut = cut_by_sample(made.batch, chosen);
      for (size_t s = 0; s < pass.size(); ++s) pass[s]->experts = std::move(cut[s]);
    }
    if (reference) {
      const Tensor logprobs =
          target_logprobs(run.ctx, run.reference, made.batch, made.targets, {}, nullptr, &made.mask);
      for (size_t s = 0; s < pass.size(); ++s) {
        const float* const first = logprobs.f32() + made.first_rows[s];
        pass[s]->reference.assign(first, first + pass[s]->sample.ids.size());
      }
    }
  }
}

// Of the answers of a mini-batch that learn, what the losses beside the policy's are means over.
void set_scales(GrpoRun& run, std::span<Answered* const> answers, LossOptions& loss) {
  int64_t n_sequences = 0, n_tokens = 0, n_mtp = 0;
  for (const Answered* const each : answers) {
    if (!each->learns) continue;
    const int64_t n_prompt = std::ssize(each->question->prompt), n = std::ssize(each->sample.ids);
    for (int64_t m = 1; m <= std::ssize(run.model.weights.mtp); ++m) {
      n_mtp += std::max<int64_t>(std::min(n, n_prompt + n - 1 - m), 0);
    }
    n_tokens += each->n_tokens();
    ++n_sequences;
  }
  const auto per = [](int64_t n) { return n > 0 ? 1.0 / static_cast<double>(n) : 0; };
  loss.mtp_scale = per(n_mtp);
  loss.indexer_scale = per(n_tokens);
  loss.balance_scale = per(n_sequences);
}

struct MiniBatchLoss {
  LossResult loss;
  PolicyLossSums policy;
};
// Loss and gradient of a mini-batch. Nothing when it may be, and is, told to stop between two passes.
std::optional<MiniBatchLoss> gradients(GrpoRun& run, std::span<Answered* const> answers, bool may_stop) {
  const GrpoOptions& o = run.options;
  const bool routing = keeps_routing(run);
  std::memset(run.gradients.memory.data(), 0, run.gradients.memory.size());
  int64_t n_tokens = 0;
  for (const Answered* const each : answers) n_tokens += std::ssize(each->sample.ids);
  const auto weight_of = [&](const Answered& each) {
    const auto n = static_cast<double>(std::ssize(each.sample.ids));
    return o.by_token ? 1 / static_cast<double>(n_tokens) : 1 / (static_cast<double>(answers.size()) * n);
  };
  MiniBatchLoss total;
  LossOptions loss = run.loss;
  set_scales(run, answers, loss);
  const std::vector<std::vector<Answered*>> passes = passes_of(o, answers);
  for (const std::vector<Answered*>& pass : passes) {
    if (may_stop && run.stop_requested && run.stop_requested()) return std::nullopt;
    const ArenaScope scope(run.ctx.arena);
    SampleBatch made = batch_of(run, pass);
    if (routing) {
      std::vector<const ChosenExperts*> experts;
      for (const Answered* const each : pass) experts.push_back(&each->experts);
      made.batch.experts = joined(run.ctx, run.model, experts);
    }
    const TargetWeights weights = [&](std::span<const float> logprobs, std::span<float> of_targets) {
      std::ranges::fill(of_targets, 0.0f);
      for (size_t s = 0; s < pass.size(); ++s) {
        const Answered& each = *pass[s];
        const auto first = static_cast<size_t>(made.first_rows[s]), n = each.sample.ids.size();
        policy_loss(o.loss, each.advantage, weight_of(each), logprobs.subspan(first, n), each.sample.sampling.logprobs,
                    each.reference, of_targets.subspan(first, n), total.policy);
      }
    };
    loss.target_weights = &weights;
    loss.mask = &made.mask;
    total.loss += loss_and_gradients(run.ctx, run.model, run.gradients.weights, made.batch, made.targets, loss);
  }
  return total;
}

// What the updates of a step come to.
struct Updates {
  LossResult loss;
  PolicyLossSums policy;
  PolicyLossSums first;  // before anything has changed
  double grad_norm = 0;  // the greatest
  int64_t taken = 0, skipped = 0;
  std::string why;  // of the last that was skipped
};

std::optional<Updates> update(GrpoRun& run, int64_t step, std::vector<Answered>& answers) {
  const GrpoOptions& o = run.options;
  Updates done;
  const int64_t n_updates = o.mini_batches * o.inner_epochs;
  const size_t size = answers.size() / static_cast<size_t>(o.mini_batches);
  std::vector<Answered*> order;
  for (Answered& each : answers) order.push_back(&each);
  Rng rng(sample_seed(o.train.seed, step, 0, 0), kMiniBatchStream);
  for (int64_t u = 0; u < n_updates; ++u) {
    const auto part = static_cast<size_t>(u % o.mini_batches);
    if (part == 0 && o.mini_batches > 1) shuffle(order, rng);
    const std::span<Answered* const> mini_batch = std::span(order).subspan(part * size, size);
    if (std::ranges::none_of(mini_batch, [](const Answered* a) { return a->learns; })) continue;
    const bool unchanged = done.taken == 0;
    const auto whole = gradients(run, mini_batch, unchanged);
    if (!whole) return std::nullopt;
    const GradientNorms norms = gradient_norms(run.ctx, run.gradients);
    if (unchanged) done.first += whole->policy;
    const LossGuard no_spikes{};
    done.why = reason_to_skip(no_spikes, whole->policy.loss, whole->loss.mtp_loss(), norms.all(), 0);
    if (!biases_are_finite(run.model.weights)) done.why = kBrokenBias;
    if (!done.why.empty()) {
      ++done.skipped;
      log("step {}, update {}: skipped: {}", step, u + 1, done.why);
      continue;
    }
    const int64_t number = (step - 1) * n_updates + u + 1;
    const double lr = learning_rate(o.train.lr, step);
    run.broken |= !update_parameters(run.ctx, o.train, run.state, run.gradients, run.runs, number, lr, norms);
    if (const double speed = bias_speed(o.train, run.balance, step); speed != 0)
      update_biases(run.model.weights, whole->loss.expert_load, speed);
    done.loss += whole->loss;
    done.policy += whole->policy;
    done.grad_norm = std::max(done.grad_norm, norms.all());
    ++done.taken;
  }
  return done;
}

struct Mean {
  double sum = 0, squares = 0, greatest = 0;
  int64_t n = 0;
  void add(double x) {
    sum += x;
    squares += x * x;
    greatest = n == 0 ? x : std::max(greatest, x);
    ++n;
  }
  double mean() const { return n > 0 ? sum / static_cast<double>(n) : 0; }
  double deviation() const {
    return n > 0 ? std::sqrt(std::max(squares / static_cast<double>(n) - mean() * mean(), 0.0)) : 0;
  }
};

// What is said of rewards and lengths, by name.
void describe(const GrpoRun& run, std::span<const Answered> answers, StepMetrics& m) {
  const RewardWeights& w = run.options.rewards.weights;
  Mean reward, length, thoughts, entropy, penalty;
  std::array<Mean, kRewardKinds> parts;
  int64_t n_cut = 0;
  for (const Answered& each : answers) {
    reward.add(each.reward.total);
    length.add(static_cast<double>(std::ssize(each.sample.ids)));
    if (const auto n = thought_tokens(run.tokenizer, each.sample)) thoughts.add(static_cast<double>(*n));
    for (const float h : each.sample.sampling.entropies) entropy.add(h);
    penalty.add(each.reward.length);
    n_cut += each.sample.cut ? 1 : 0;
    for (size_t k = 0; k < kRewardKinds; ++k) {
      if (each.reward.parts[k]) parts[k].add(*each.reward.parts[k]);
    }
  }
  auto& named = m.of_source;
  named.emplace_back("reward", reward.mean());
  named.emplace_back("reward_std", reward.deviation());
  for (size_t k = 0; k < kRewardKinds; ++k) {
    if (w.of[k] != 0) named.emplace_back(reward_name(static_cast<RewardKind>(k)), parts[k].mean());
  }
  if (run.options.rewards.length_penalty != 0) named.emplace_back("length_penalty", penalty.mean());
  named.emplace_back("length", length.mean());
  named.emplace_back("length_max", length.greatest);
  if (thoughts.n > 0) {
    named.emplace_back("thought_length", thoughts.mean());
    named.emplace_back("thought_length_max", thoughts.greatest);
  }
  named.emplace_back("cut", static_cast<double>(n_cut) / static_cast<double>(answers.size()));
  named.emplace_back("entropy", entropy.mean());
}

std::string sample_lines(const GrpoRun& run, int64_t step, std::span<const Answered> answers) {
  std::string lines;
  if (run.options.save_samples.empty()) return lines;
  for (size_t i = 0; i < answers.size(); ++i) {
    const Answered& each = answers[i];
    nlohmann::ordered_json line{{"step", step},
                                {"id", each.question->id},
                                {"sample", static_cast<int64_t>(i) % run.options.group_size},
                                {"question", each.question->text},
                                {"answer", nullptr},
                                {"completion", each.completion.text},
                                {"tokens", each.completion.tokens},
                                {"cut", each.completion.cut},
                                {"reward", each.reward.total},
                                {"advantage", each.advantage}};
    if (each.question->answer) line["answer"] = *each.question->answer;
    for (size_t k = 0; k < kRewardKinds; ++k) {
      if (each.reward.parts[k]) line[reward_name(static_cast<RewardKind>(k))] = *each.reward.parts[k];
    }
    if (each.reward.length != 0) line["length_penalty"] = each.reward.length;
    if (!each.reward.why.empty()) line["why"] = each.reward.why;
    lines += line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  }
  return lines;
}

// Greedy answers to the questions that are not learned from.
void validate(GrpoRun& run, int64_t step, StepDone& done) {
  if (run.val_questions.empty() || !validates(run.options.train, step)) return;
  RolloutOptions greedy = run.options.rollout;
  greedy.sampler = {.temperature = 0};
  std::vector<Wanted> wanted;
  for (const Question& q : run.val_questions) wanted.push_back({&q, 0});
  RolloutCounts counts;
  const auto answers = answer(run, wanted, greedy, counts);
  if (!answers) return;  // told to stop
  Mean reward, exact_answers;
  for (const Answered& each : *answers) {
    reward.add(each.reward.total);
    if (!each.question->answer) continue;
    const bool right = is_exact(each.completion.text, each.question->begun_thoughts, *each.question->answer);
    exact_answers.add(right ? 1 : 0);
  }
  done.val_reward = reward.mean();
  done.metrics.of_source.emplace_back("val_reward", reward.mean());
  if (exact_answers.n == 0) return;
  done.val_exact = exact_answers.mean();
  done.metrics.of_source.emplace_back("val_exact", exact_answers.mean());
}

}  // namespace

std::vector<size_t> questions_of_step(uint64_t seed, size_t n_questions, int64_t questions_a_step, int64_t step) {
  std::vector<size_t> chosen, order(n_questions);
  int64_t epoch = -1;
  const auto n = static_cast<int64_t>(n_questions);
  for (int64_t at = (step - 1) * questions_a_step; at < step * questions_a_step; ++at) {
    if (at / n != epoch) {
      epoch = at / n;
      std::iota(order.begin(), order.end(), size_t{0});
      Rng rng(sample_seed(seed, epoch, 0, 0), kQuestionStream);
      shuffle(order, rng);
    }
    chosen.push_back(order[static_cast<size_t>(at % n)]);
  }
  return chosen;
}

std::optional<StepDone> grpo_step(GrpoRun& run, int64_t step) {
  const GrpoOptions& o = run.options;
  const double begin_s = monotonic_s();
  std::vector<Wanted> wanted;
  int64_t place = 0;
  for (const size_t q : questions_of_step(o.train.seed, run.questions.size(), o.questions_a_step, step)) {
    for (int64_t s = 0; s < o.group_size; ++s) {
      wanted.push_back({&run.questions[q], sample_seed(o.train.seed, step, place, s)});
    }
    ++place;
  }
  RolloutCounts counts;
  auto answers = answer(run, wanted, o.rollout, counts);
  if (!answers) return std::nullopt;
  const int64_t n_equal = set_advantages(o, *answers);
  const double trained_s = monotonic_s();
  prepare(run, *answers);
  if (run.state_sum && *run.state_sum != state_checksum(run.ctx.pool, run.state)) {
    give_up(o.train.out, run.last_taken, step, kLostBits, kSoundMemory);
  }
  const std::optional<Updates> updates = update(run, step, *answers);
  if (!updates) return std::nullopt;

  StepDone done;
  StepMetrics& m = done.metrics;
  m = metrics_of(o.train, step, updates->loss, updates->grad_norm);
  const PolicyLossSums& policy = updates->policy;
  const auto per = [](double sum, int64_t n) { return n > 0 ? sum / static_cast<double>(n) : 0; };
  m.loss = per(policy.loss, updates->taken);
  run.state.step = step;
  run.state.lr = m.lr;
  if (updates->taken == 0 && updates->skipped > 0) {
    count_skipped(updates->why, m, run.state);
  } else {
    count_taken(updates->loss, m, run.state);
  }
  const double now_s = monotonic_s();
  set_speed(updates->loss, now_s - begin_s, m, run.state);
  if (reports_load(o.train, step)) m.bias_ranges = bias_ranges(run.model.weights);
  describe(run, *answers, m);
  done.reward = m.of_source.front().second;
  auto& named = m.of_source;
  if (o.loss.beta != 0) named.emplace_back("kl", per(policy.kl, policy.tokens));
  named.emplace_back("clip_fraction", per(static_cast<double>(policy.clipped), policy.tokens));
  if (o.loss.mask_off_policy) {
    named.emplace_back("masked_fraction", per(static_cast<double>(policy.masked), policy.answers));
  }
  if (const PolicyLossSums& first = updates->first; first.tokens > 0) {
    named.emplace_back("mean_log_ratio", per(first.log_ratio, first.tokens));
    named.emplace_back("greatest_log_ratio", first.greatest_log_ratio);
  }
  named.emplace_back("groups_without_signal", per(static_cast<double>(n_equal), o.questions_a_step));
  named.emplace_back("updates", static_cast<double>(updates->taken));
  named.emplace_back("sampling_tokens_per_s", static_cast<double>(counts.tokens) / std::max(counts.seconds, 1e-9));
  named.emplace_back("training_tokens_per_s",
                     static_cast<double>(updates->loss.main_targets) / std::max(now_s - trained_s, 1e-9));
  if (counts.drafted > 0) {
    named.emplace_back("draft_acceptance", static_cast<double>(counts.accepted) / static_cast<double>(counts.drafted));
  }
  done.samples = sample_lines(run, step, *answers);
  if (o.ref_every > 0 && o.loss.beta != 0 && step % o.ref_every == 0) {
    std::ranges::copy(run.state.parameters.all(), run.state.average.all().begin());
  }
  if (run.state_sum) run.state_sum = state_checksum(run.ctx.pool, run.state);
  if (!run.broken) validate(run, step, done);
  return done;
}

}  // namespace fathom::tune
