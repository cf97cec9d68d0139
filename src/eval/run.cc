#include "eval/run.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <utility>

#include "base/checksum.h"
#include "base/file.h"
#include "base/json.h"
#include "base/terminal.h"
#include "eval/code_judges.h"
#include "infer/score.h"

namespace fathom::eval {
namespace {

using nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr int64_t kWindow = 2048;
constexpr size_t kMaxSettings = size_t{16} << 20;
constexpr double kSamplingTemperature = 0.6, kSamplingTopP = 0.95;  // as the R1 report has it

// Of all that items ask and expect.
std::string hash_of(std::span<const Item> items) {
  Xxh3 hash;
  const auto add = [&](std::string_view text) {
    const uint64_t n = text.size();
    hash.update(&n, sizeof n);
    hash.update(text.data(), text.size());
  };
  for (const Item& item : items) {
    add(item.id);
    add(item.prompt);
    add(item.chat_prompt);
    for (const std::string& choice : item.choices) add(choice);
    add(item.expected);
    hash.update(&item.gold, sizeof item.gold);
    if (item.problem == nullptr) continue;
    add(item.problem->test_code);
    for (const CodeCase& one : item.problem->cases) {
      add(one.input);
      add(one.output);
    }
  }
  return hex_of(hash.value());
}

TaskPlan plan_task(const RunOptions& o, const Task& task, bool is_local) {
  const bool generates = task.kind == TaskKind::answers || task.kind == TaskKind::code;
  TaskPlan plan{.task = &task};
  plan.chats = o.chat.value_or(task.chats && o.can_chat);
  if (plan.chats && !o.can_chat) {
    throw UsageError("{}: --chat: the model has no chat template; --template FILE gives one", task.name);
  }
  if (plan.chats && task.kind == TaskKind::perplexity) throw UsageError("{}: is asked in no conversation", task.name);
  if (plan.chats && task.kind == TaskKind::choices && !is_local) {
    throw UsageError("{}: a server tells no probabilities of answers in a conversation; leave --chat out", task.name);
  }
  if (o.samples > 1 && !generates) throw UsageError("{}: --samples: nothing is generated here", task.name);
  for (const int64_t k : o.ks) {
    if (k > o.samples) throw UsageError("--k {}: needs as many --samples, there are {}", k, o.samples);
  }
  const int64_t shots = o.shots.value_or(plan.chats ? task.chat_shots : task.shots);
  plan.samples = o.samples;
  plan.items = task.read({.data = o.data, .shots = shots, .chats = plan.chats, .limit = o.limit});
  if (plan.items.empty()) throw Error("{}: {}: there is no item in it", printable(o.data.native()), task.name);
  plan.settings = {{"task", task.name}, {"items", plan.items.size()}, {"data", hash_of(plan.items)},
                   {"shots", shots},    {"chat", plan.chats},         {"limit", nullptr}};
  if (o.limit) plan.settings["limit"] = *o.limit;
  if (task.kind == TaskKind::perplexity)
    plan.settings["window"] = o.window > 0 ? ordered_json(o.window) : ordered_json("auto");
  if (!generates) return plan;
  plan.max_tokens = o.max_tokens.value_or(plan.chats ? task.chat_max_tokens : task.max_tokens);
  plan.temperature = o.temperature.value_or(o.samples > 1 ? kSamplingTemperature : 0);
  plan.top_p = o.top_p.value_or(o.samples > 1 ? kSamplingTopP : 1);
  if (o.samples > 1 && plan.temperature == 0) {
    throw UsageError("{}: --samples {} at --temperature 0 are all the same", task.name, o.samples);
  }
  plan.settings["samples"] = plan.samples;
  plan.settings["max_tokens"] = plan.max_tokens;
  plan.settings["temperature"] = plan.temperature;
  plan.settings["top_p"] = plan.top_p;
  plan.settings["stop"] = plan.chats ? std::vector<std::string>() : task.stop;
  plan.settings["thinking"] = o.thinking && plan.chats ? ordered_json(*o.thinking) : ordered_json("default");
  plan.settings["seed"] = o.seed;
  if (task.kind == TaskKind::code) {
    plan.settings["sandboxed"] = !o.unsandboxed;
    plan.settings["cpu_s"] = o.limits.cpu_s;
    plan.settings["wall_s"] = o.limits.wall_s;
    plan.settings["memory_bytes"] = o.limits.memory_bytes;
  }
  return plan;
}

// --thinking is for conversations that generate. UsageError where no task is one; told where some are none.
void check_thinking(const RunOptions& o, std::span<const TaskPlan> plans) {
  if (!o.thinking) return;
  std::vector<std::string_view> without;
  for (const TaskPlan& plan : plans) {
    if (!plan.chats || plan.task->kind == TaskKind::choices) without.push_back(plan.task->name);
  }
  if (without.size() == plans.size()) {
    throw UsageError(
        "--thinking: is for answers in conversations, and {} asks for none; --chat does for tasks that generate",
        fmt::join(without, ", "));
  }
  if (!without.empty())
    log("--thinking: does nothing for {}: asked as plain text, or scored", fmt::join(without, ", "));
}

fs::path records_path(const RunOptions& o, const Task& task) {
  return o.out.empty() ? fs::path() : o.out / (std::string(task.name) + ".jsonl");
}

// The records that belong to this plan's items. Error where one does not.
std::vector<Record> records_of(const fs::path& path, const TaskPlan& plan) {
  std::vector<Record> records = path.empty() ? std::vector<Record>() : read_records(path);
  if (plan.task->kind == TaskKind::perplexity) return records;
  for (const Record& record : records) {
    if (record.item < std::ssize(plan.items) && plan.items[static_cast<size_t>(record.item)].id == record.id) continue;
    throw Error("{}: has an answer to {}, which this run does not ask; give another --out", printable(path.native()),
                printable(record.id, 80));
  }
  return records;
}

// Records so far, and what is done with a new one.
struct Ledger {
  const TaskPlan& plan;
  const OnProgress& progress;
  RecordFile file;
  std::vector<Record> records;
  int64_t total;
  std::mutex mutex{};
  double lead_sum = 0;

  void add(Record record, const ordered_json& more) {
    file.append(record_json(record, more));
    const std::lock_guard lock(mutex);
    if (!record.scores.empty()) lead_sum += record.scores[0].second;
    records.push_back(std::move(record));
    tell();
  }
  void tell() const {
    const auto done = std::ssize(records);
    std::string note;
    if (done > 0 && plan.task->kind != TaskKind::perplexity) {
      note = fmt::format("{} {:.1f} %", records[0].scores.empty() ? "" : records[0].scores[0].first,
                         100 * lead_sum / static_cast<double>(done));
    }
    progress(done, total, note);
  }
};

std::string asked_text(const TaskPlan& plan, const Item& item) {
  const bool thinks = plan.chats && plan.task->kind != TaskKind::choices;
  return thinks && !item.chat_prompt.empty() ? item.chat_prompt : item.prompt;
}

ordered_json messages_of(const TaskPlan& plan, const Item& item) {
  if (!plan.chats) return nullptr;
  return ordered_json::array({{{"role", "user"}, {"content", asked_text(plan, item)}}});
}

Record record_of(const Item& item, int64_t number) { return {.item = number, .id = item.id, .subject = item.subject}; }

void run_choices(Answerer& answerer, const TaskPlan& plan, Ledger& ledger, const Interrupted& interrupted) {
  std::vector<bool> done(plan.items.size());
  for (const Record& record : ledger.records) done[static_cast<size_t>(record.item)] = true;
  std::vector<ChoiceQuestion> questions;
  std::vector<size_t> whose;
  for (size_t i = 0; i < plan.items.size(); ++i) {
    if (done[i]) continue;
    const Item& item = plan.items[i];
    questions.push_back({item.id, asked_text(plan, item), item.choices, messages_of(plan, item)});
    whose.push_back(i);
  }
  const bool with_norm = has_norm(*plan.task);
  double told_s = monotonic_s();  // many are scored together: the time since the last one was told
  score_choices(
      answerer, questions,
      [&](size_t q, ChoiceAnswer answer) {
        const Item& item = plan.items[whose[q]];
        Record record = record_of(item, static_cast<int64_t>(whose[q]));
        ordered_json more{{"prompt", asked_text(plan, item)}, {"choices", item.choices}, {"gold", item.gold}};
        record.error = answer.error;
        record.truncated = answer.truncated;
        record.prompt_tokens = answer.context_tokens;
        record.seconds = monotonic_s() - std::exchange(told_s, monotonic_s());
        if (answer.error.empty()) {
          std::vector<double> logprobs;
          ordered_json greedy = ordered_json::array(), tokens = ordered_json::array();
          for (const ChoiceScore& score : answer.scores) {
            logprobs.push_back(score.logprob);
            greedy.push_back(score.greedy);
            tokens.push_back(score.tokens);
            record.tokens += score.tokens;
          }
          Judgement judgement = judge_choices(item, logprobs, with_norm);
          record.scores = std::move(judgement.scores);
          record.extracted = std::move(judgement.extracted);
          more["logprobs"] = logprobs;
          more["greedy"] = greedy;
          more["choice_tokens"] = tokens;
        } else {
          record.scores = {{"acc", 0}};
          if (with_norm) record.scores.emplace_back("acc_norm", 0);
        }
        ledger.add(std::move(record), more);
      },
      interrupted);
}

void run_generated(Answerer& answerer, const RunOptions& o, const TaskPlan& plan, Ledger& ledger,
                   const Interrupted& interrupted) {
  const Task& task = *plan.task;
  std::vector<std::vector<bool>> done(plan.items.size(), std::vector<bool>(static_cast<size_t>(plan.samples)));
  for (const Record& record : ledger.records) {
    if (record.sample < plan.samples) done[static_cast<size_t>(record.item)][static_cast<size_t>(record.sample)] = true;
  }
  std::vector<Question> questions;
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const Item& item = plan.items[i];
    Question question{.id = item.id, .messages = messages_of(plan, item), .prompt = asked_text(plan, item)};
    if (plan.chats) question.thinking = o.thinking;
    question.temperature = plan.temperature;
    question.top_p = plan.top_p;
    question.max_tokens = plan.max_tokens;
    if (!plan.chats) question.stop = task.stop;
    question.samples = plan.samples;
    question.seed = o.seed + i * static_cast<uint64_t>(plan.samples);
    questions.push_back(std::move(question));
  }
  // False where the program was stopped.
  const auto judge = [&](const Answer& answer, size_t i, int64_t sample, const std::atomic<bool>* stopped) {
    const Item& item = plan.items[i];
    Record record = record_of(item, static_cast<int64_t>(i));
    record.sample = sample;
    record.error = answer.error;
    record.finish = answer.finish;
    record.prompt_tokens = answer.prompt_tokens;
    record.tokens = answer.tokens;
    record.seconds = answer.seconds;
    ordered_json more = ordered_json::object();
    if (plan.chats) {
      more["messages"] = messages_of(plan, item);
    } else {
      more["prompt"] = item.prompt;
    }
    more["answer"] = answer.text;
    if (!answer.reasoning.empty()) more["reasoning"] = answer.reasoning;
    if (!item.expected.empty()) more["expected"] = item.expected;
    if (task.kind == TaskKind::answers) {
      Judgement judgement = task.judge(item, answer.text, plan.chats);
      record.scores = std::move(judgement.scores);
      record.extracted = std::move(judgement.extracted);
      if (!answer.error.empty()) {
        for (auto& [name, value] : record.scores) value = 0;
      }
    } else if (!answer.error.empty()) {
      record.scores = {{"passed", 0}};
    } else {
      const std::string program = task.program(item, answer.text, plan.chats);
      SandboxLimits limits = o.limits;
      limits.stopped = stopped;
      const CodeVerdict verdict =
          judge_code(*item.problem, program, limits, o.unsandboxed ? Containment::none : Containment::sandbox);
      if (stopped != nullptr && *stopped) return false;
      record.scores = {{"passed", verdict.passed ? 1 : 0}};
      more["program"] = program;
      more["verdict"] = verdict.why;
    }
    ledger.add(std::move(record), more);
    return true;
  };
  const auto skip = [&](size_t i, int64_t sample) { return bool{done[i][static_cast<size_t>(sample)]}; };
  if (task.kind == TaskKind::answers) {
    answer_questions(
        answerer, questions, [&](size_t i, int64_t sample, Answer answer) { judge(answer, i, sample, nullptr); },
        interrupted, skip);
    return;
  }
  const fs::path untried_path = o.out.empty() ? fs::path() : o.out / (std::string(task.name) + ".untried.jsonl");
  CodeJudges judges(o.judges, [&](const UntriedAnswer& one, const std::atomic<bool>& stopped) {
    return judge(one.answer, one.item, one.sample, &stopped);
  });
  std::vector<UntriedAnswer> untried = read_untried(untried_path, plan.items.size(), plan.samples);
  std::erase_if(untried, [&](const UntriedAnswer& one) {
    std::vector<bool>::reference is_done = done[one.item][static_cast<size_t>(one.sample)];
    const bool was_done = is_done;
    is_done = true;
    return was_done;
  });
  std::exception_ptr failure;
  try {
    for (; !untried.empty(); untried.pop_back()) judges.add(untried.back(), interrupted);
    answer_questions(
        answerer, questions,
        [&](size_t i, int64_t sample, Answer answer) {
          judges.add({std::move(answer), i, sample}, interrupted);
        },
        interrupted, skip);
    judges.finish(interrupted);
  } catch (...) {
    failure = std::current_exception();
  }
  std::vector<UntriedAnswer> left = judges.stop();
  left.insert(left.end(), std::make_move_iterator(untried.begin()), std::make_move_iterator(untried.end()));
  write_untried(untried_path, left);
  if (failure) std::rethrow_exception(failure);
}

// Returns the windows.
void run_text(Answerer& answerer, const RunOptions& o, const TaskPlan& plan, Ledger& ledger,
              const Interrupted& interrupted) {
  const Item& item = plan.items[0];
  int64_t window = o.window > 0 ? o.window : kWindow;
  if (const auto* local = std::get_if<LocalModel>(&answerer)) {
    const int64_t most = local->model.config.max_position_embeddings;
    if (o.window > most) throw UsageError("--window is {}, more than the model's context of {}", o.window, most);
    window = std::min(window, most);
  }
  const std::vector<int32_t> ids = tokens_of(answerer, item.prompt, /*add_begin=*/false, interrupted);
  if (interrupted && interrupted()) return;
  if (ids.size() < 2) throw Error("{}: has fewer than two tokens, nothing to predict", printable(item.id));
  std::vector<std::vector<int32_t>> windows = cut_windows(ids, std::max<int64_t>(2, window));
  if (o.limit && std::ssize(windows) > *o.limit) windows.resize(static_cast<size_t>(*o.limit));
  ledger.total = std::ssize(windows);
  std::vector<bool> done(windows.size());
  for (const Record& record : ledger.records) {
    if (record.item < std::ssize(windows)) done[static_cast<size_t>(record.item)] = true;
  }
  std::vector<std::vector<int32_t>> wanted;
  std::vector<size_t> whose;
  for (size_t i = 0; i < windows.size(); ++i) {
    if (done[i]) continue;
    wanted.push_back(windows[i]);
    whose.push_back(i);
  }
  double told_s = monotonic_s();
  score_windows(
      answerer, wanted,
      [&](size_t w, double logprob) {
        Record record{.item = static_cast<int64_t>(whose[w]), .id = fmt::format("window/{}", whose[w])};
        record.scores = {{"logprob", logprob}};
        record.tokens = std::ssize(wanted[w]) - 1;
        record.seconds = monotonic_s() - std::exchange(told_s, monotonic_s());
        ledger.add(std::move(record), ordered_json::object());
      },
      interrupted);
}

}  // namespace

std::vector<TaskPlan> plan_run(const RunOptions& options, bool is_local) {
  std::vector<TaskPlan> plans;
  for (const std::string& name : options.tasks) {
    const Task& task = find_task(name);
    const auto same = [&](const TaskPlan& plan) { return plan.task == &task; };
    if (std::any_of(plans.begin(), plans.end(), same)) throw UsageError("--task {}: is named twice", name);
    plans.push_back(plan_task(options, task, is_local));
  }
  check_thinking(options, plans);
  return plans;
}

bool check_out(const RunOptions& options, const std::vector<TaskPlan>& plans) {
  if (options.out.empty()) return false;
  const fs::path path = options.out / "settings.json";
  ordered_json settings{{"model", options.model}, {"tasks", ordered_json::object()}};
  bool has_run = false;
  if (path_exists(path)) {
    const std::string text = read_file(path, kMaxSettings), where = printable(path.native());
    const JsonDocument checked = JsonDocument::parse(text, where);
    const ordered_json before = ordered_json::parse(text);
    if (!before.is_object() || !before.contains("model") || !before.contains("tasks") || !before["tasks"].is_object()) {
      throw Error("{}: is no settings of a run; give another --out", where);
    }
    if (before["model"] != options.model) {
      throw UsageError("--out {}: has a run of {}, not of {}; give the same model and options, or another folder",
                       printable(options.out.native()), printable(before["model"].dump(), 1000), options.model.dump());
    }
    for (const TaskPlan& plan : plans) {
      const auto at = before["tasks"].find(std::string(plan.task->name));
      if (at == before["tasks"].end()) continue;
      for (const auto& [key, value] : plan.settings.items()) {
        const auto old = at->find(key);
        if (old != at->end() && *old == value) continue;
        throw UsageError("--out {}: has {} with {} {}, not {}; give the same options, or another folder",
                         printable(options.out.native()), plan.task->name, key == "data" ? "other items: hash" : key,
                         old == at->end() ? "nothing" : printable(old->dump()), value.dump());
      }
      has_run = true;
    }
    settings = before;
  }
  for (const TaskPlan& plan : plans) settings["tasks"][std::string(plan.task->name)] = plan.settings;
  make_directory(options.out);
  write_file_atomically(path, settings.dump(1) + "\n");
  return has_run;
}

TaskResult run_task(Answerer& answerer, const RunOptions& o, const TaskPlan& plan, const OnProgress& progress,
                    const Interrupted& interrupted) {
  const fs::path path = records_path(o, *plan.task);
  Ledger ledger{plan, progress, RecordFile(path), records_of(path, plan), std::ssize(plan.items) * plan.samples};
  for (const Record& record : ledger.records) {
    if (!record.scores.empty()) ledger.lead_sum += record.scores[0].second;
  }
  ledger.tell();
  int64_t n_items = std::ssize(plan.items), bytes = 0;
  switch (plan.task->kind) {
    case TaskKind::choices:
      run_choices(answerer, plan, ledger, interrupted);
      break;
    case TaskKind::answers:
    case TaskKind::code:
      run_generated(answerer, o, plan, ledger, interrupted);
      break;
    case TaskKind::perplexity:
      run_text(answerer, o, plan, ledger, interrupted);
      n_items = ledger.total;
      if (!o.limit) bytes = std::ssize(plan.items[0].prompt);
      break;
  }
  ledger.file.sync();
  return task_result(*plan.task, ledger.records, n_items, plan.samples, o.ks, bytes, plan.settings);
}

}  // namespace fathom::eval
