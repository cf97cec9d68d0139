// Tasks whose answers are programs: HumanEval, MBPP, LiveCodeBench (eval/code_tests.h).
#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "eval/code_tests.h"
#include "eval/task_files.h"
#include "eval/tasks.h"

namespace fathom::eval {
namespace {

using Parse = CodeProblem (*)(std::string_view line, const std::string& where);

std::vector<Item> items_of(const TaskFiles& files, std::vector<CodeProblem> problems) {
  std::vector<Item> items;
  for (CodeProblem& problem : problems) {
    if (files.limit && std::ssize(items) == *files.limit) break;
    Item item{.id = problem.id};
    item.problem = std::make_shared<const CodeProblem>(std::move(problem));
    items.push_back(std::move(item));
  }
  return items;
}

void no_examples(const TaskFiles& files, std::string_view name) {
  if (files.shots > 0) throw UsageError("{}: has no examples for --shots", name);
}

// "mbpp/12" -> 12; -1: there is none.
int64_t number_of(std::string_view id) {
  int64_t n = -1, digit = 1;
  for (size_t i = id.size();
       i-- > 0 && std::isdigit(static_cast<unsigned char>(id[i])) != 0 && digit < 1'000'000'000;) {
    n = std::max<int64_t>(n, 0) + digit * (id[i] - '0');
    digit *= 10;
  }
  return n;
}

std::string mbpp_text(const CodeProblem& p) {
  std::string text = fmt::format(
      "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:\n\n", p.text);
  for (size_t i = 0; i < std::min<size_t>(p.shown_tests.size(), 3); ++i) text += p.shown_tests[i] + "\n";
  return text;
}

}  // namespace

std::vector<Item> read_humaneval(const TaskFiles& files) {
  no_examples(files, "humaneval");
  const auto path = find_task_file(files.data, "humaneval", {"HumanEval.jsonl.gz", "HumanEval.jsonl"});
  std::vector<Item> items = items_of(files, read_code_problems(path, parse_humaneval));
  for (Item& item : items) {
    item.prompt = item.problem->program_prefix;
    item.chat_prompt = fmt::format(
        "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{}\n```\n",
        item.prompt);
  }
  return items;
}

std::string humaneval_program(const Item&, std::string_view answer, bool chats) {
  return chats ? extract_code(answer) : std::string(answer);
}

std::vector<Item> read_mbpp(const TaskFiles& files) {
  constexpr int64_t kFirstTest = 11, kLastTest = 510, kFirstExample = 2, kMostExamples = 3;
  if (files.shots > kMostExamples)
    throw UsageError("mbpp: --shots {}: there are {} examples", files.shots, kMostExamples);
  std::vector<CodeProblem> problems =
      read_code_problems(find_task_file(files.data, "mbpp", {"mbpp.jsonl", "mbpp_test.jsonl"}), parse_mbpp);
  std::string head;
  for (int64_t i = 0; i < files.shots; ++i) {
    const auto at = std::find_if(problems.begin(), problems.end(),
                                 [&](const CodeProblem& p) { return number_of(p.id) == kFirstExample + i; });
    if (at == problems.end()) throw Error("mbpp: the task {}, an example of --shots, is missing", kFirstExample + i);
    head += mbpp_text(*at) + "[BEGIN]\n" + at->solution + "\n[DONE]\n\n";
  }
  std::erase_if(problems, [](const CodeProblem& p) {
    const int64_t n = number_of(p.id);
    return n < kFirstTest || n > kLastTest;  // the others are for training
  });
  std::vector<Item> items = items_of(files, std::move(problems));
  for (Item& item : items) {
    item.prompt = head + mbpp_text(*item.problem) + "[BEGIN]\n";
    if (files.shots == 0) item.chat_prompt = mbpp_text(*item.problem) + "\nAnswer with the code in a ```python block.";
  }
  return items;
}

std::string mbpp_program(const Item&, std::string_view answer, bool chats) {
  if (chats || answer.find("```") != std::string_view::npos) return extract_code(answer);
  return std::string(answer.substr(0, answer.find("[DONE]")));
}

std::vector<Item> read_livecodebench(const TaskFiles& files) {
  no_examples(files, "livecodebench");
  const auto path = find_task_file(files.data, "livecodebench",
                                   {"test.jsonl", "test6.jsonl", "livecodebench.jsonl", "code_generation_lite.jsonl"});
  std::vector<Item> items = items_of(files, read_code_problems(path, parse_livecodebench));
  for (Item& item : items) {
    // LiveCodeBench's own prompt.
    const CodeProblem& p = *item.problem;
    item.prompt =
        "You will be given a question (problem specification) and will generate a correct Python program that matches "
        "the specification and passes all tests.\n\n### Question:\n" +
        p.text + "\n\n### Format: ";
    if (!p.starter_code.empty()) {
      item.prompt += fmt::format(
          "You will use the following starter code to write the solution to the problem and enclose your code within "
          "delimiters.\n```python\n{}\n```\n\n",
          p.starter_code);
    } else {
      item.prompt +=
          "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the "
          "sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, "
          "it reads the inputs, runs the algorithm and writes output to STDOUT.\n```python\n# YOUR CODE "
          "HERE\n```\n\n";
    }
    item.prompt += "### Answer: (use the provided format with backticks)\n\n";
  }
  return items;
}

std::string livecodebench_program(const Item&, std::string_view answer, bool) { return extract_code(answer); }

}  // namespace fathom::eval
