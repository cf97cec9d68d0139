#include "eval/tasks.h"

#include <algorithm>

#include "base/error.h"
#include "eval/code_tests.h"
#include "eval/fewshot_sampler.h"
#include "eval/task_files.h"

namespace fathom::eval {
namespace {

constexpr int64_t kLong = 32768;  // thoughts included, as the R1 report has it

const std::vector<Task>& task_table() {
  using enum TaskKind;
  const std::vector<std::string> question{"Question:", "</s>", "<|im_end|>"};
  const std::vector<std::string> continuation(kContinuationStops.begin(), kContinuationStops.end());
  static const std::vector<Task> table{
      {"mmlu", "MMLU, 57 subjects: the likeliest of A to D", choices, 5, 5, false, 0, 0, {}, read_mmlu, nullptr},
      {"mmlu_gen", "MMLU, the letter written", answers, 5, 0, true, 32, kLong, {"\n", "</s>"}, read_mmlu, judge_letter},
      {"arc", "ARC challenge: the likeliest answer", choices, 0, 0, false, 0, 0, {}, read_arc, nullptr},
      {"hellaswag", "HellaSwag: the likeliest ending", choices, 0, 0, false, 0, 0, {}, read_hellaswag, nullptr},
      {"gsm8k", "GSM8K, word problems", answers, 5, 0, false, 512, kLong, question, read_gsm8k, judge_gsm8k},
      {"math",
       "MATH, 5000 competition problems",
       answers,
       4,
       0,
       false,
       1024,
       kLong,
       {"Problem:"},
       read_math,
       judge_math},
      {"math500", "MATH-500", answers, 4, 0, true, 1024, kLong, {"Problem:"}, read_math500, judge_math},
      {"aime24", "AIME 2024", answers, 0, 0, true, 4096, kLong, question, read_aime24, judge_math},
      {"aime25", "AIME 2025", answers, 0, 0, true, 4096, kLong, question, read_aime25, judge_math},
      {"humaneval", "HumanEval: functions in Python, tried", code, 0, 0, true, 1024, kLong, continuation,
       read_humaneval, nullptr, humaneval_program},
      {"mbpp",
       "MBPP: short programs in Python, tried",
       code,
       3,
       0,
       true,
       512,
       kLong,
       {"[DONE]"},
       read_mbpp,
       nullptr,
       mbpp_program},
      {"livecodebench",
       "LiveCodeBench: contest problems, tried",
       code,
       0,
       0,
       true,
       4096,
       kLong,
       {"###"},
       read_livecodebench,
       nullptr,
       livecodebench_program},
      {"questions", "Questions of your own", answers, 0, 0, true, 1024, kLong, {}, read_questions, judge_math},
      {"ppl", "Perplexity of a text", perplexity, 0, 0, false, 0, 0, {}, read_text_items, nullptr},
  };
  return table;
}

}  // namespace

std::span<const Task> all_tasks() { return task_table(); }

const Task& find_task(std::string_view name) {
  const auto& table = task_table();
  const auto at = std::find_if(table.begin(), table.end(), [&](const Task& task) { return task.name == name; });
  if (at != table.end()) return *at;
  std::string names;
  for (const Task& task : table) names += (names.empty() ? "" : ", ") + std::string(task.name);
  throw UsageError("--task {}: there is no such task; there are {}", printable(name, 40), names);
}

void add_examples(std::vector<Item>& items, std::span<const Item> examples, int64_t shots,
                  const std::filesystem::path& from) {
  if (std::ssize(examples) < shots) {
    throw UsageError("{}: has {} examples, fewer than --shots {}", printable(from.native()), examples.size(), shots);
  }
  FewshotSampler sampler;
  for (Item& item : items) {
    std::string head;
    for (const size_t i : sampler.sample(examples.size(), static_cast<size_t>(shots))) {
      head += examples[i].prompt + examples[i].choices[static_cast<size_t>(examples[i].gold)] + "\n\n";
    }
    item.prompt = head + item.prompt;
  }
}

bool has_norm(const Task& task) { return task.name == "arc" || task.name == "hellaswag"; }

Judgement judge_choices(const Item& item, std::span<const double> logprobs, bool with_norm) {
  FATHOM_CHECK(logprobs.size() == item.choices.size() && !logprobs.empty());
  const auto best = [&](bool by_length) {
    size_t likeliest = 0;
    const auto value = [&](size_t c) {
      if (!by_length) return logprobs[c];
      return logprobs[c] / static_cast<double>(std::max<int64_t>(n_characters(item.choices[c]) - 1, 1));
    };
    for (size_t c = 1; c < logprobs.size(); ++c) {
      if (value(c) > value(likeliest)) likeliest = c;
    }
    return static_cast<int64_t>(likeliest);
  };
  const int64_t picked = best(false);
  Judgement judgement{{{"acc", picked == item.gold}}, item.choices[static_cast<size_t>(picked)].substr(1)};
  if (with_norm) judgement.scores.emplace_back("acc_norm", best(true) == item.gold);
  return judgement;
}

std::vector<Item> read_text_items(const TaskFiles& files) {
  if (files.shots > 0) throw UsageError("ppl: has no examples for --shots");
  const auto path = find_task_file(files.data, "ppl", {"text.txt", "wikitext2-test.txt", "wiki.test.tokens"});
  return {{.id = path.filename().string(), .prompt = read_task_text(path)}};
}

std::span<const PublishedScore> published_scores() {
  constexpr std::string_view kV3 = "DeepSeek-V3 report, table 3", kChat = "DeepSeek-V3 report, chat models",
                             kR1 = "DeepSeek-R1 report";
  constexpr std::string_view kThinks = "T 0.6, top-p 0.95, mean of 4 to 64 samples";
  static constexpr PublishedScore kTable[] = {
      {"mmlu", "DeepSeek-V2-Base", 78.4, "5-shot", kV3},
      {"mmlu", "DeepSeek-V3-Base", 87.1, "5-shot", kV3},
      {"mmlu_gen", "DeepSeek-V3", 88.5, "0-shot, generated", kChat},
      {"mmlu_gen", "DeepSeek-R1", 90.8, "0-shot, generated", kR1},
      {"arc", "DeepSeek-V3-Base", 95.3, "25-shot", kV3},
      {"hellaswag", "DeepSeek-V3-Base", 88.9, "10-shot", kV3},
      {"gsm8k", "DeepSeek-V2-Base", 81.6, "8-shot", kV3},
      {"gsm8k", "DeepSeek-V3-Base", 89.3, "8-shot", kV3},
      {"math", "DeepSeek-V2-Base", 43.4, "4-shot", kV3},
      {"math", "DeepSeek-V3-Base", 61.6, "4-shot", kV3},
      {"math500", "DeepSeek-V3", 90.2, "greedy", kChat},
      {"math500", "DeepSeek-R1", 97.3, kThinks, kR1},
      {"aime24", "DeepSeek-V3", 39.2, "T 0.7, mean of 16 samples", kChat},
      {"aime24", "DeepSeek-R1", 79.8, kThinks, kR1},
      {"aime25", "DeepSeek-V3.1-Terminus", 88.4, "thinking", "DeepSeek-V3.2-Exp model card"},
      {"aime25", "DeepSeek-V3.2-Exp", 89.3, "thinking", "DeepSeek-V3.2-Exp model card"},
      {"aime25", "DeepSeek-V3.2", 93.1, "thinking, T 1.0", "DeepSeek-V3.2 report"},
      {"humaneval", "DeepSeek-V2-Base", 43.3, "0-shot, pass@1", kV3},
      {"humaneval", "DeepSeek-V3-Base", 65.2, "0-shot, pass@1", kV3},
      {"mbpp", "DeepSeek-V2-Base", 65.0, "3-shot, pass@1", kV3},
      {"mbpp", "DeepSeek-V3-Base", 75.4, "3-shot, pass@1", kV3},
      {"livecodebench", "DeepSeek-V3-Base", 19.4, "3-shot, pass@1", kV3},
      {"livecodebench", "DeepSeek-V3", 40.5, "pass@1 with thoughts, questions of 08-11/2024", kChat},
      {"livecodebench", "DeepSeek-R1", 65.9, "pass@1 with thoughts, questions of 08/2024-01/2025", kR1},
      {"livecodebench", "DeepSeek-V3.2-Exp", 74.1, "thinking", "DeepSeek-V3.2-Exp model card"},
      {"livecodebench", "DeepSeek-V3.2", 83.3, "thinking, T 1.0", "DeepSeek-V3.2 report"},
  };
  return kTable;
}

}  // namespace fathom::eval
