// GSM8K (Cobbe et al. 2021): word problems with worked solutions that end in "#### 42".
#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "base/file.h"
#include "eval/answers.h"
#include "eval/fewshot_sampler.h"
#include "eval/task_files.h"
#include "eval/tasks.h"

namespace fathom::eval {
namespace {

struct Problem {
  std::string question, answer;
};

std::vector<Problem> read_problems(const std::filesystem::path& path) {
  std::vector<Problem> problems;
  for_each_object(path, [&](simdjson::dom::element object, const std::string& where) {
    problems.push_back({text_field(object, "question", where), text_field(object, "answer", where)});
  });
  return problems;
}

std::string question_text(const Problem& p) { return fmt::format("Question: {}\nAnswer:", p.question); }

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// #### (\-?[0-9\.\,]+), the first
std::string strict_answer(std::string_view text) {
  constexpr std::string_view kMark = "#### ";
  for (size_t at = text.find(kMark); at != std::string_view::npos; at = text.find(kMark, at + 1)) {
    const size_t begin = at + kMark.size();
    size_t end = begin + (begin < text.size() && text[begin] == '-' ? 1 : 0);
    const size_t digits = end;
    while (end < text.size() && (is_digit(text[end]) || text[end] == '.' || text[end] == ',')) ++end;
    if (end > digits) return std::string(text.substr(begin, end - begin));
  }
  return "[invalid]";
}

// (-?[$0-9.,]{2,})|(-?[0-9]+), the last
std::string flexible_answer(std::string_view text) {
  std::string found = "[invalid]";
  const auto belongs = [](char c) { return is_digit(c) || c == '$' || c == '.' || c == ','; };
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    size_t end = i + (text[i] == '-' ? 1 : 0);
    const size_t first = end;
    while (end < text.size() && belongs(text[end])) ++end;
    if (end - first >= 2 || (end - first == 1 && is_digit(text[first]))) {
      found = std::string(text.substr(begin, end - begin));
      i = end;
    } else {
      ++i;
    }
  }
  return found;
}

// What the harness leaves out before it compares: ",", "$", all up to the last "#### ", a dot at the end.
std::string compared(std::string text) {
  std::erase_if(text, [](char c) { return c == ',' || c == '$'; });
  if (const size_t at = text.rfind("#### "); at != std::string::npos) text.erase(0, at + 5);
  if (text.ends_with('.')) text.pop_back();
  return lowered(text);
}

}  // namespace

std::vector<Item> read_gsm8k(const TaskFiles& files) {
  const auto path = find_task_file(files.data, "gsm8k", {"test.jsonl", "grade_school_math/data/test.jsonl"});
  std::vector<Problem> examples;
  if (files.shots > 0) {
    const auto train = path.parent_path() / "train.jsonl";
    examples = read_problems(train);
    if (std::ssize(examples) < files.shots) {
      throw UsageError("{}: has {} examples, fewer than --shots {}", printable(train.native()), examples.size(),
                       files.shots);
    }
  }
  FewshotSampler sampler;
  std::vector<Item> items;
  for (const Problem& p : read_problems(path)) {
    if (files.limit && std::ssize(items) == *files.limit) break;
    Item item{.id = fmt::format("gsm8k/{}", items.size())};
    if (files.shots > 0) {
      for (const size_t i : sampler.sample(examples.size(), static_cast<size_t>(files.shots))) {
        item.prompt += question_text(examples[i]) + " " + examples[i].answer + "\n\n";
      }
    } else {
      item.chat_prompt = p.question + std::string(kBoxedInstruction);
    }
    item.prompt += question_text(p);
    item.expected = p.answer;
    items.push_back(std::move(item));
  }
  return items;
}

Judgement judge_gsm8k(const Item& item, std::string_view answer, bool chats) {
  const std::string expected = compared(item.expected);
  const std::string strict = strict_answer(answer), flexible = flexible_answer(answer);
  const std::pair<std::string, double> by_mark{"strict", compared(strict) == expected},
      by_last{"flexible", compared(flexible) == expected};
  if (!chats) return {{by_mark, by_last}, strict};
  // A conversation is asked for a box, and ends in words of its own.
  const std::optional<std::string> given = final_answer(answer);
  const bool right = given && same_answer(*given, expected_answer(item.expected));
  return {{{"correct", right ? 1.0 : 0.0}, by_last, by_mark}, given.value_or("")};
}

}  // namespace fathom::eval
