// fathom grpo: reinforcement learning with verifiable rewards.
#include "tune/grpo.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/terminal.h"
#include "cli/command.h"
#include "cli/trainer_options.h"
#include "parallel/mpi.h"

namespace fathom::cli {
namespace {

struct GrpoCommandOptions {
  TrainerOptions trainer;
  tune::GrpoOptions grpo;
  DraftOptions draft;
  std::string template_file, thinking, kv_type = "auto", reward, advantage = "mean", loss_by = "sequence",
                                       kl_estimate = "unbiased";
  bool plain = false, no_keep_routing = false;
  const CLI::Option *length_free = nullptr, *mask_off_policy = nullptr;
  double off_policy = 0, code_timeout = eval::SandboxLimits{}.cpu_s;
};

tune::QuestionOptions question_options(const GrpoCommandOptions& options, TrainOptions& train) {
  tune::QuestionOptions questions = options.grpo.questions;
  if (options.plain) {
    if (!options.template_file.empty() || !options.thinking.empty() || !questions.system.empty()) {
      throw UsageError("grpo: --plain asks without a template; leave out --template, --thinking and --system");
    }
    return questions;
  }
  if (train.init.empty()) return questions;  // which is told with the other options
  questions.chat_template = choose_chat_template(options.template_file, train);
  if (questions.chat_template.empty()) {
    throw UsageError("grpo: the model has no chat template; give --template FILE, or --plain to ask without one");
  }
  if (!options.thinking.empty()) {
    questions.kwargs = {{"thinking", options.thinking == "on"}, {"enable_thinking", options.thinking == "on"}};
  }
  return questions;
}

void run(const GrpoCommandOptions& options, const CommonOptions& common) {
  if (started_by_mpi()) throw UsageError("grpo: runs in one process; leave mpirun out");
  tune::GrpoOptions grpo = options.grpo;
  require_cpu(common, "grpo");
  grpo.train = trainer_options(options.trainer, common);
  grpo.questions = question_options(options, grpo.train);
  grpo.rewards.weights = tune::parse_reward_weights(options.reward);
  if (options.length_free->count() == 0) grpo.rewards.length_free = grpo.rollout.max_tokens / 2;
  grpo.rewards.limits = eval::limits_of_time(options.code_timeout);
  grpo.rollout.kv_type = cache_format(options.kv_type, nullptr);
  grpo.rollout.draft_tokens = options.draft.draft == "mtp" ? options.draft.tokens : 0;
  grpo.by_deviation = options.advantage == "deviation";
  grpo.by_token = options.loss_by == "token";
  grpo.keep_routing = !options.no_keep_routing;
  grpo.loss.kl = options.kl_estimate == "plain" ? tune::KlEstimate::plain : tune::KlEstimate::unbiased;
  if (options.mask_off_policy->count() > 0) grpo.loss.mask_off_policy = options.off_policy;
  ThreadPool pool(thread_count(common));
  const tune::GrpoResult result = tune::grpo(grpo, pool, [] { return interrupted_by != 0; });
  if (result.stopped) throw Interrupted{};
  const std::string out = grpo.train.out.string();
  if (common.json) {
    nlohmann::ordered_json object{
        {"out", out}, {"step", result.step}, {"tokens", result.tokens}, {"reward", result.reward}};
    if (result.val_reward) object["val_reward"] = *result.val_reward;
    if (result.val_exact) object["val_exact"] = *result.val_exact;
    object["seconds"] = result.seconds;
    write_stdout(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    return;
  }
  std::string validation;
  if (result.val_reward) validation = fmt::format(", validation reward {:.4f}", *result.val_reward);
  if (result.val_exact) validation += fmt::format(", {:.1f} % exact", 100 * *result.val_exact);
  write_stdout(fmt::format("{}: {} steps, reward {:.4f}{}, {}; report in {}/report.html\n", printable(out), result.step,
                           result.reward, validation, human_duration(result.seconds), printable(out)));
}

void add_reward_options(CLI::App& c, GrpoCommandOptions& options) {
  tune::RewardOptions& r = options.grpo.rewards;
  c.add_option("--reward", options.reward,
               "What answers are worth, with weights: exact, format, code, command, such as exact=1,format=0.1")
      ->type_name("KIND=WEIGHT,...");
  c.add_option("--reward-command", r.command,
               "A program for --reward command: started once, it reads {id, question, answer, completion} a line and "
               "says {\"reward\": x} for each")
      ->type_name("CMD");
  c.add_option("--reward-timeout", r.command_timeout_s, "Seconds that it may think about one answer")
      ->capture_default_str();
  c.add_option("--code-timeout", options.code_timeout,
               "Seconds of CPU that a test of code may take, twice that on the clock")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  c.add_option("--length-penalty", r.length_penalty,
               "Off the reward of an answer of --max-tokens, less where it is shorter, nothing up to --length-free");
  options.length_free =
      c.add_option("--length-free", r.length_free, "Tokens without a penalty (default: half of --max-tokens)");
}

void add_sampling_options(CLI::App& c, GrpoCommandOptions& options) {
  tune::GrpoOptions& g = options.grpo;
  c.add_option("--questions", g.questions_a_step, "Questions a step")->capture_default_str();
  c.add_option("--group-size", g.group_size, "Answers sampled to each")->capture_default_str();
  c.add_option("--max-tokens", g.rollout.max_tokens, "Tokens of an answer at most")->capture_default_str();
  c.add_option("--temperature", g.rollout.sampler.temperature, "Of the samples")->capture_default_str();
  c.add_option("--top-p", g.rollout.sampler.top_p, "Draw from the likeliest tokens that reach this share")
      ->capture_default_str();
  c.add_option("--top-k", g.rollout.sampler.top_k, "Draw from the K likeliest tokens (0: all)");
  c.add_option("--max-sequences", g.rollout.max_sequences, "Answers sampled at a time")->capture_default_str();
  add_kv_type_option(c, options.kv_type);
  add_draft_options(c, options.draft);
}

void add_loss_options(CLI::App& c, GrpoCommandOptions& options) {
  tune::GrpoOptions& g = options.grpo;
  c.add_option("--advantage", options.advantage,
               "What an answer is worth beside its group: its reward less the group's mean (V3.2), or deviation: that "
               "over the group's standard deviation (V3, R1)")
      ->check(CLI::IsMember({"mean", "deviation"}))
      ->capture_default_str();
  c.add_option("--loss-by", options.loss_by,
               "What counts alike in a mini-batch: sequence (an answer, its tokens less the more they are) or token")
      ->check(CLI::IsMember({"sequence", "token"}))
      ->capture_default_str();
  c.add_option("--clip-low", g.loss.clip_low, "Below 1 by this, the ratio of policies is clipped")
      ->capture_default_str();
  c.add_option("--clip-high", g.loss.clip_high, "And above it by this (R1: 10)")->capture_default_str();
  c.add_option("--mini-batches", g.mini_batches, "Updates that a step's answers are split into (R1: 16)")
      ->capture_default_str();
  c.add_option("--inner-epochs", g.inner_epochs, "Times that a step learns from its answers")->capture_default_str();
  c.add_option("--pass-tokens", g.pass_tokens, "Tokens of a pass that trains; gradients add up")->capture_default_str();
  c.add_option("--kl", g.loss.beta, "Weight of the KL divergence from the reference, --init (0: none; R1: 0.001)")
      ->capture_default_str();
  c.add_option("--kl-estimate", options.kl_estimate, "unbiased (V3.2) or plain (V3, R1)")
      ->check(CLI::IsMember({"unbiased", "plain"}))
      ->capture_default_str();
  c.add_option("--ref-every", g.ref_every, "The policy becomes the reference every N steps (0: never; R1: 400)");
  options.mask_off_policy =
      c.add_option("--mask-off-policy", options.off_policy,
                   "Leave out answers that are worse than their group and from whose sampling the policy has moved, "
                   "by a mean of log ratios above this (V3.2)")
          ->type_name("DELTA");
  c.add_flag("--no-keep-routing", options.no_keep_routing,
             "Let routers choose experts anew in every update of a step (V3.2 keeps those of sampling)");
}

}  // namespace

void add_grpo(CLI::App& app, CommonOptions& common) {
  auto options = std::make_shared<GrpoCommandOptions>();
  TrainOptions& o = options->trainer.train;
  o.command = "grpo";
  o.steps = 100;
  o.lr.peak = 1e-6;
  o.weight_decay = 0;
  o.mtp_weight = 0;
  o.bias_update_speed = 0;
  options->trainer.schedule = "constant";
  CLI::App* c = app.add_subcommand("grpo", "Reinforce what answers are right (GRPO)");
  c->add_option("--init", o.init, "The policy: a model directory or .gguf file")->type_name("MODEL");
  c->add_option("--data", o.data,
                "Questions: .jsonl with `question`, `prompt` or `messages`, and `answer` or `tests`; also .gz, .zst")
      ->type_name("FILE...");
  c->add_option("--tokenizer", o.tokenizer, "tokenizer.json, a directory with one, or bytes (default: that of --init)");
  c->add_flag("--plain", options->plain, "A question is the prompt as it stands, without a chat template");
  c->add_option("--template", options->template_file, "Jinja file, or deepseek-v3.2-encoding (default: the model's)");
  c->add_option("--thinking", options->thinking, "Ask the template for thoughts before the answer: on, off")
      ->check(CLI::IsMember({"on", "off"}));
  c->add_option("--system", options->grpo.questions.system, "A message of the system before each question");
  add_reward_options(*c, *options);
  add_sampling_options(*c, *options);
  add_loss_options(*c, *options);
  TrainerTexts texts;
  texts.val_data = "Questions that are not learned from, answered greedily; as --data";
  texts.steps = "Steps: answers sampled, and the updates that they make";
  texts.packed = false;
  add_trainer_options(*c, options->trainer, texts);
  c->add_option("--save-samples", options->grpo.save_samples, "Every answer with its reward, a JSON object a line")
      ->type_name("FILE.jsonl");
  c->callback([options, &common] { run(*options, common); });
}

}  // namespace fathom::cli
