// fathom eval: benchmark scores of a model or a server.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/checksum.h"
#include "base/file.h"
#include "base/terminal.h"
#include "cli/command.h"
#include "cli/model_under_test.h"
#include "eval/report.h"
#include "eval/run.h"
#include "infer/page_store.h"

namespace fathom::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct EvalCommandOptions {
  ModelUnderTestOptions model;
  eval::RunOptions run;
  std::string data, out, thinking;
  int64_t limit = 0, shots = 0, max_tokens = 0;
  double temperature = 0, top_p = 1, time_limit = eval::SandboxLimits{}.cpu_s;
  bool chat = false, resume = false;
};

struct CompareOptions {
  std::string a, b;
};

std::string first_line(std::string text) { return text.substr(0, text.find('\n')); }

// What names the model in OUT, so that the answers of another, or of the same asked in another way, are not put beside
// its own.
Json model_identity(const EvalCommandOptions& o, const ModelUnderTest& opened) {
  if (!opened.is_local) return {{"model", opened.name}, {"url", o.model.url}};
  const auto& local = std::get<eval::LocalModel>(*opened.answerer);
  const int64_t context =
      std::min({local.batching.context, local.batching.cache_tokens, local.model.config.max_position_embeddings});
  Json json{{"model", fs::path(o.model.model).lexically_normal().string()},
            {"files", xxh3_of(identity_of_model(o.model.model))},
            {"kv_type", o.model.kv_type},
            {"context", context},                            // cuts answers
            {"draft_tokens", local.batching.draft_tokens}};  // other samples of the same distribution
  if (!local.chat_template.empty()) json["template"] = xxh3_of(local.chat_template);
  return json;
}

std::string result_text(const eval::TaskResult& r) {
  std::string text;
  for (const eval::Measure& m : r.measures) {
    text += fmt::format("{:<14}{:<14}{:>10}   {:<20}{:>8}\n", r.task, m.name, eval::value_text(m),
                        eval::interval_text(m), m.n);
  }
  return text;
}

void save_report(const fs::path& out, const eval::Report& report) {
  if (out.empty()) return;
  write_file_atomically(out / "results.json", eval::report_json(report).dump(1) + "\n");
  write_file_atomically(out / "report.md", eval::markdown_report(report));
  write_file_atomically(out / "report.html", eval::html_report(report));
}

// Results of tasks that OUT has from before, but for those that are run now.
std::vector<eval::TaskResult> other_results(const fs::path& out, const std::vector<eval::TaskPlan>& plans) {
  const fs::path path = out / "results.json";
  if (out.empty() || !path_exists(path)) return {};
  std::vector<eval::TaskResult> results = eval::read_report(path).results;
  std::erase_if(results, [&](const eval::TaskResult& r) {
    return std::any_of(plans.begin(), plans.end(), [&](const auto& plan) { return plan.task->name == r.task; });
  });
  return results;
}

void check_sandbox(const eval::RunOptions& run) {
  const auto is_code = [](const std::string& name) { return eval::find_task(name).kind == eval::TaskKind::code; };
  if (std::none_of(run.tasks.begin(), run.tasks.end(), is_code)) return;
  if (run.unsandboxed) {
    log("--unsandboxed: what the model writes runs with all of your rights");
    return;
  }
  if (const std::string why = eval::why_no_sandbox(); !why.empty()) {
    throw Error(
        "programs that a model writes are run in a sandbox alone, and there is none: {}; --unsandboxed runs them with "
        "all of your rights",
        why);
  }
}

void run(const EvalCommandOptions& o, const CommonOptions& common) {
  eval::RunOptions run = o.run;
  if (run.tasks.empty()) throw UsageError("eval: --task NAME,... says what to ask (fathom eval --help has the names)");
  if (o.data.empty()) throw UsageError("eval: --data PATH says where the questions are: a file, or the folder of them");
  for (const std::string& name : run.tasks) eval::find_task(name);
  run.data = o.data;
  run.out = o.out;
  run.seed = common.seed;
  run.limits = eval::limits_of_time(o.time_limit);
  if (!o.thinking.empty()) run.thinking = o.thinking == "on";
  if (o.resume && (o.out.empty() || !path_exists(fs::path(o.out) / "settings.json"))) {
    throw UsageError("eval: --resume: {} has no run to go on with",
                     o.out.empty() ? "no --out is given, which" : printable(o.out));
  }
  check_sandbox(run);
  run.judges = thread_count(common);

  const std::unique_ptr<ModelUnderTest> opened = open_model_under_test(o.model, common, "eval");
  stop_when_interrupted();
  run.model = model_identity(o, *opened);
  run.can_chat = opened->can_chat;
  const std::vector<eval::TaskPlan> plans = eval::plan_run(run, opened->is_local);
  std::optional<DirectoryLock> alone;
  if (!o.out.empty()) {
    make_directory(o.out);
    alone.emplace(o.out);
  }
  if (o.out.empty() && !common.json) log("without --out nothing is kept but the scores");
  const bool goes_on = eval::check_out(run, plans);
  if (goes_on) log("{}: goes on with what is answered there", printable(o.out));

  eval::Report report{run.model, first_line(version_text()), other_results(run.out, plans)};
  const auto interrupted = [] { return interrupted_by != 0; };
  bool told_head = common.json;
  for (const eval::TaskPlan& plan : plans) {
    std::optional<Progress> progress;
    const eval::TaskResult result = eval::run_task(
        *opened->answerer, run, plan,
        [&](int64_t done, int64_t total, const std::string& note) {
          if (!progress) progress.emplace(std::string(plan.task->name), total, done);
          progress->update(done, note);
        },
        interrupted);
    progress.reset();
    stop_when_interrupted();
    if (result.failed > 0) {
      log("{}: {} questions could not be asked and count as wrong (\"error\" in {})", plan.task->name, result.failed,
          o.out.empty() ? "the records of --out" : printable((run.out / (result.task + ".jsonl")).native()));
    }
    if (result.truncated > 0) {
      log("{}: {} prompts were longer than the model's context and lost their begin", plan.task->name,
          result.truncated);
    }
    report.results.push_back(result);
    save_report(run.out, report);
    if (!told_head) {
      write_stdout(fmt::format("{:<14}{:<14}{:>10}   {:<20}{:>8}\n", "task", "measure", "value", "95 % interval", "n"));
      told_head = true;
    }
    write_stdout(common.json ? eval::result_json(result).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"
                             : result_text(result));
  }
  if (!o.out.empty())
    log("{}: answers in TASK.jsonl, scores in results.json, report.md and report.html", printable(o.out));
}

// ---- Two runs

eval::Report report_in(const fs::path& folder) {
  if (!path_exists(folder / "results.json")) {
    throw Error("{}: there is no results.json; it is no --out of a run that has ended", printable(folder.native()));
  }
  return eval::read_report(folder / "results.json");
}

std::string comparison_text(const eval::Comparison& c) {
  std::string text = fmt::format("{:<14}{:<14}{:>8.1f} %{:>8.1f} %{:>+9.1f}   {:+.1f} to {:+.1f}", c.task, c.measure,
                                 100 * c.a, 100 * c.b, 100 * c.difference, 100 * c.low, 100 * c.high);
  if (c.binary) text += fmt::format("   {} / {} / {} / {}   {:.3g}", c.both, c.only_a, c.only_b, c.neither, c.p);
  return text + fmt::format("   n {}\n", c.n);
}

void compare(const CompareOptions& o, const CommonOptions& common) {
  const fs::path folders[] = {o.a, o.b};
  const eval::Report a = report_in(folders[0]), b = report_in(folders[1]);
  int64_t n_compared = 0;
  if (!common.json) {
    write_stdout(fmt::format("{:<14}{:<14}{:>10}{:>10}{:>9}   {}\n", "task", "measure", "A", "B", "B - A",
                             "95 % interval   both / A alone / B alone / neither   McNemar's p"));
  }
  for (const eval::TaskResult& r : a.results) {
    const auto at = std::find_if(b.results.begin(), b.results.end(), [&](const auto& x) { return x.task == r.task; });
    if (at == b.results.end() || r.task == "ppl") continue;
    const auto data = [](const eval::TaskResult& result) { return result.settings.value("data", std::string()); };
    if (data(r) != data(*at))
      log("{}: prompts or items of the two differ; those with the same id are compared", r.task);
    const std::string file = r.task + ".jsonl";
    for (const eval::Comparison& c :
         eval::compare_records(r.task, eval::read_records(folders[0] / file), eval::read_records(folders[1] / file))) {
      write_stdout(common.json ? eval::comparison_json(c).dump() + "\n" : comparison_text(c));
      ++n_compared;
    }
  }
  if (n_compared == 0) throw Error("{} and {} have no task in common", printable(o.a), printable(o.b));
}

void add_compare(CLI::App& eval_command, CommonOptions& common) {
  const auto o = std::make_shared<CompareOptions>();
  CLI::App* command = eval_command.add_subcommand("compare", "The difference of two runs over the same items");
  command->add_option("A", o->a, "--out of the first run")->required()->type_name("DIR");
  command->add_option("B", o->b, "--out of the second")->required()->type_name("DIR");
  command->callback([o, &common] { compare(*o, common); });
}

std::string task_names() {
  std::vector<std::string_view> names;
  for (const eval::Task& task : eval::all_tasks()) names.push_back(task.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

void add_eval(CLI::App& app, CommonOptions& common) {
  const auto o = std::make_shared<EvalCommandOptions>();
  CLI::App* command = app.add_subcommand("eval", "Benchmark scores of a model or a server");
  command->option_defaults()->always_capture_default();
  command->add_option("--task", o->run.tasks, "What to ask, one or several with commas: " + task_names())
      ->delimiter(',')
      ->allow_extra_args(false)
      ->default_str("")
      ->type_name("NAME,...");
  command->add_option("--data", o->data, "The benchmark's file, or the folder that has it (docs/evaluation.md)")
      ->type_name("PATH");
  command->add_option("--out", o->out, "Folder for every prompt, answer and score; goes on where it was stopped")
      ->type_name("DIR");
  command->add_flag("--resume", o->resume, "Refuse to begin anew: --out must have a run of these settings");
  add_model_under_test_options(*command, o->model);
  constexpr const char* kAsking = "How is asked";
  const auto unless_given = [&](const char* name, auto& value, const char* help) {
    return command->add_option(name, value, help)->default_str("")->group(kAsking);
  };
  CLI::Option* limit = unless_given("--limit", o->limit, "Items at most (MMLU: of each subject; a text: windows)");
  limit->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  CLI::Option* shots = unless_given("--shots", o->shots, "Examples in front of a question (default: the task's)");
  shots->check(CLI::Range(0, 100));
  CLI::Option* chat =
      command->add_flag("--chat,!--no-chat", o->chat, "Ask in a conversation, or as a text (default: the task's)");
  chat->default_str("")->group(kAsking);
  command->add_option("--thinking", o->thinking, "Thoughts before answers in a conversation: on, off")
      ->check(CLI::IsMember({"on", "off"}))
      ->group(kAsking);
  command->add_option("--samples", o->run.samples, "Answers to each question")
      ->check(CLI::Range(1, 4096))
      ->group(kAsking);
  command->add_option("--k", o->run.ks, "Programs: pass@k of these")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 4096))
      ->default_str("1")
      ->type_name("N,...")
      ->group(kAsking);
  CLI::Option* temperature = unless_given("--temperature", o->temperature, "Default: 0, with several --samples 0.6");
  temperature->check(CLI::Range(0.0, 100.0));
  CLI::Option* top_p = unless_given("--top-p", o->top_p, "Default: 1, with several --samples 0.95");
  top_p->check(CLI::Range(0.0, 1.0));
  CLI::Option* max_tokens = unless_given("--max-tokens", o->max_tokens, "Of an answer, thoughts included");
  max_tokens->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->add_option("--window", o->run.window, "ppl: tokens in a window (default: 2048, or the model's context)")
      ->check(CLI::Range(2, 1 << 30))
      ->default_str("")
      ->group(kAsking);
  constexpr const char* kPrograms = "Of programs that are tried";
  command->add_flag("--unsandboxed", o->run.unsandboxed, "Run what the model writes with all of your rights")
      ->group(kPrograms);
  command->add_option("--time-limit", o->time_limit, "Seconds of CPU that one test may take, twice that on the clock")
      ->check(CLI::Range(0.1, 3600.0))
      ->group(kPrograms);
  add_compare(*command, common);
  command->callback([=, &common] {
    if (!command->get_subcommands().empty()) return;
    if (chat->count() > 1) throw UsageError("eval: give --chat or --no-chat, and once");
    if (top_p->count() > 0 && o->top_p == 0) {
      throw UsageError(
          "eval: --top-p 0: leaves no token to draw; give more than 0, or --temperature 0 for the likeliest");
    }
    if (limit->count() > 0) o->run.limit = o->limit;
    if (shots->count() > 0) o->run.shots = o->shots;
    if (chat->count() > 0) o->run.chat = o->chat;
    if (temperature->count() > 0) o->run.temperature = o->temperature;
    if (top_p->count() > 0) o->run.top_p = o->top_p;
    if (max_tokens->count() > 0) o->run.max_tokens = o->max_tokens;
    run(*o, common);
  });
}

}  // namespace fathom::cli
