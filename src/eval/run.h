// A run of benchmarks: every item is asked, every answer judged and saved as it comes, and a run that was stopped goes
// on where it was.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "eval/answerer.h"
#include "eval/code_tests.h"
#include "eval/results.h"
#include "eval/tasks.h"

namespace fathom::eval {

struct RunOptions {
  std::vector<std::string> tasks;  // one at least, each once
  std::filesystem::path data;
  std::filesystem::path out{};  // empty: nothing is kept
  std::optional<int64_t> limit{}, shots{}, max_tokens{};
  std::optional<bool> chat{}, thinking{};
  std::optional<double> temperature{}, top_p{};
  int64_t samples = 1;
  std::vector<int64_t> ks{1};  // of pass@k
  uint64_t seed = 0;
  int64_t window = 0;  // of texts, in tokens; 0: 2048, or the model's context
  bool unsandboxed = false;
  int judges = 2;  // programs tried at a time
  SandboxLimits limits{};
  // Of the model, as settings name it: {"model": ...} or {"url": ..., "model": ...}.
  nlohmann::ordered_json model{};
  bool can_chat = true;
};

// A task as it is going to be asked.
struct TaskPlan {
  const Task* task = nullptr;
  std::vector<Item> items{};
  bool chats = false;
  int64_t samples = 1, max_tokens = 0;
  double temperature = 0, top_p = 1;
  nlohmann::ordered_json settings{};  // all that its answers depend on, but for the model
};
// Reads all files. UsageError for what cannot be asked of this model or with these options.
std::vector<TaskPlan> plan_run(const RunOptions& options, bool is_local);

// Whether OUT has a run to go on with. UsageError, naming what differs, where that was of another model, or of a task
// with other settings.
bool check_out(const RunOptions& options, const std::vector<TaskPlan>& plans);

// What a task is doing, for people.
using OnProgress = std::function<void(int64_t done, int64_t total, const std::string& note)>;

// One task, from where its records end. After an interruption what was answered is saved, and the result says so
// (answered < items). `bytes` of a text are counted for bits per byte.
TaskResult run_task(Answerer& answerer, const RunOptions& options, const TaskPlan& plan, const OnProgress& progress,
                    const Interrupted& interrupted);

}  // namespace fathom::eval
