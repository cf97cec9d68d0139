// MATH (Hendrycks et al. 2021), the 500 of its questions that Lightman et al. 2023 held out, and AIME.
#include "base/error.h"
#include "eval/answers.h"
#include "eval/task_files.h"
#include "eval/tasks.h"

namespace fathom::eval {
namespace {

struct Problem {
  std::string_view problem, solution;
};

// Minerva's four examples (Lewkowycz et al. 2022), as the harness has them.
constexpr Problem kExamples[] = {
    {R"(Find the domain of the expression  $\frac{\sqrt{x-2}}{\sqrt{5-x}}$.)",
     "The expressions inside each square root must be non-negative. Therefore, $x-2 \\ge 0$, so $x\\ge2$, and $5 - x "
     "\\ge 0$, so $x \\le 5$. Also, the denominator cannot be equal to zero, so $5-x>0$, which gives $x<5$. Therefore, "
     "the domain of the expression is $\\boxed{[2,5)}$.\nFinal Answer: The final answer is $[2,5)$. I hope it is "
     "correct."},
    {R"(If $\det \mathbf{A} = 2$ and $\det \mathbf{B} = 12,$ then find $\det (\mathbf{A} \mathbf{B}).$)",
     "We have that $\\det (\\mathbf{A} \\mathbf{B}) = (\\det \\mathbf{A})(\\det \\mathbf{B}) = (2)(12) = "
     "\\boxed{24}.$\nFinal Answer: The final answer is $24$. I hope it is correct."},
    {"Terrell usually lifts two 20-pound weights 12 times. If he uses two 15-pound weights instead, how many times "
     "must "
     "Terrell lift them in order to lift the same total weight?",
     "If Terrell lifts two 20-pound weights 12 times, he lifts a total of $2\\cdot 12\\cdot20=480$ pounds of weight.  "
     "If he lifts two 15-pound weights instead for $n$ times, he will lift a total of $2\\cdot15\\cdot n=30n$ pounds "
     "of weight.  Equating this to 480 pounds, we can solve for "
     "$n$:\n\\begin{align*}\n30n&=480\\\\\n\\Rightarrow\\qquad n&=480/30=\\boxed{16}\n\\end{align*}\nFinal Answer: "
     "The final answer is $16$. I hope it is correct."},
    {"If the system of equations\n\n\\begin{align*}\n6x-4y&=a,\\\\\n6y-9x &=b.\n\\end{align*}has a solution $(x, y)$ "
     "where $x$ and $y$ are both nonzero,\nfind $\\frac{a}{b},$ assuming $b$ is nonzero.",
     "If we multiply the first equation by $-\\frac{3}{2}$, we obtain\n\n$$6y-9x=-\\frac{3}{2}a.$$Since we also know "
     "that $6y-9x=b$, we have\n\n$$-\\frac{3}{2}a=b\\Rightarrow\\frac{a}{b}=\\boxed{-\\frac{2}{3}}.$$\nFinal Answer: "
     "The final answer is $-\\frac{2}{3}$. I hope it is correct."}};

std::string problem_text(std::string_view problem) { return fmt::format("Problem:\n{}\n\nSolution:", problem); }

std::vector<Item> read_problems(const TaskFiles& files, const std::filesystem::path& path) {
  if (files.shots > std::ssize(kExamples)) {
    throw UsageError("math: --shots {}: there are {} examples, those of Minerva", files.shots, std::size(kExamples));
  }
  std::string head;
  for (int64_t i = 0; i < files.shots; ++i) {
    head += fmt::format("{} {}\n\n", problem_text(kExamples[i].problem), kExamples[i].solution);
  }
  std::vector<Item> items;
  for_each_object(path, [&](simdjson::dom::element object, const std::string& where) {
    if (files.limit && std::ssize(items) == *files.limit) return;
    Item item{.id = find_text(object, "unique_id").value_or(fmt::format("math/{}", items.size()))};
    item.subject = find_text(object, "subject").value_or(find_text(object, "type").value_or(""));
    const std::string problem = text_field(object, "problem", where);
    item.prompt = head + problem_text(problem);
    if (files.shots == 0) item.chat_prompt = problem + std::string(kBoxedInstruction);
    const auto told = find_text(object, "answer");
    const auto answer = told ? told : final_answer(text_field(object, "solution", where));
    if (!answer) throw Error("{}: the solution has no answer in \\boxed{{}}", where);
    item.expected = *answer;
    items.push_back(std::move(item));
  });
  return items;
}

std::vector<Item> read_aime(const TaskFiles& files, std::string_view name,
                            std::initializer_list<std::string_view> names) {
  if (files.shots > 0) throw UsageError("{}: has no examples for --shots", name);
  std::vector<Item> items;
  for_each_object(find_task_file(files.data, "aime", names),
                  [&](simdjson::dom::element object, const std::string& where) {
                    if (files.limit && std::ssize(items) == *files.limit) return;
                    std::string problem;
                    for (const char* const key : {"problem", "Problem", "question"}) {
                      if (problem.empty()) problem = find_text(object, key).value_or("");
                    }
                    if (problem.empty()) problem = text_field(object, "prompt", where);
                    if (problem.ends_with(kBoxedInstruction)) {  // some copies have it in the question
                      problem.resize(problem.size() - kBoxedInstruction.size());
                    }
                    const auto answer = find_text(object, object["answer"].error() ? "Answer" : "answer");
                    if (!answer) throw Error("{}: there is no answer", where);
                    items.push_back({.id = fmt::format("{}/{}", name, items.size()),
                                     .prompt = fmt::format("Question: {}\nAnswer:", problem),
                                     .chat_prompt = problem + std::string(kBoxedInstruction),
                                     .expected = *answer});
                  });
  return items;
}

}  // namespace

std::vector<Item> read_math(const TaskFiles& files) {
  return read_problems(
      files, find_task_file(files.data, "math", {"math_test_5000.json", "math_test.jsonl", "test.json", "test.jsonl"}));
}

std::vector<Item> read_math500(const TaskFiles& files) {
  return read_problems(files,
                       find_task_file(files.data, "math", {"math500_test.jsonl", "math500.jsonl", "test.jsonl"}));
}

std::vector<Item> read_aime24(const TaskFiles& files) {
  return read_aime(files, "aime24", {"aime24.jsonl", "aime_2024.jsonl"});
}

std::vector<Item> read_aime25(const TaskFiles& files) {
  return read_aime(files, "aime25", {"aime25.jsonl", "aime_2025.jsonl"});
}

Judgement judge_math(const Item& item, std::string_view answer, bool) {
  const std::optional<std::string> given = final_answer(answer);
  const bool right = given && same_answer(*given, item.expected);
  return {{{"correct", right ? 1.0 : 0.0}}, given.value_or("")};
}

}  // namespace fathom::eval
