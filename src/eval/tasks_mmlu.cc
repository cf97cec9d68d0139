// MMLU (Hendrycks et al. 2021): four choices in 57 subjects.
#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "base/file.h"
#include "eval/task_files.h"
#include "eval/tasks.h"

namespace fathom::eval {
namespace {

namespace fs = std::filesystem;

constexpr char kLetters[] = "ABCD";

struct Row {
  std::string question;
  std::vector<std::string> choices;  // [4]
  int64_t answer = 0;
};

// The original files have letters and no header, later copies a header and indices.
std::vector<Row> read_rows(const fs::path& path) {
  const std::string name = printable(path.native());
  std::vector<Row> rows;
  size_t number = 0;
  for (std::vector<std::string>& fields : parse_csv(read_task_text(path), name)) {
    ++number;
    if (number == 1 && fields.size() == 6 && fields[0] == "question" && fields[5] == "answer") continue;
    const auto wrong = [&](std::string_view what) {
      return Error("{}: row {}: {}; a row is question, four choices, and the answer as A to D or 0 to 3", name, number,
                   what);
    };
    if (fields.size() != 6) throw wrong(fmt::format("has {} fields", fields.size()));
    Row row{std::move(fields[0]), {fields.begin() + 1, fields.begin() + 5}};
    const std::string_view answer = stripped(fields[5]);
    if (answer.size() != 1) throw wrong("has no answer");
    row.answer = answer[0] >= 'A' && answer[0] <= 'D' ? answer[0] - 'A' : answer[0] - '0';
    if (row.answer < 0 || row.answer > 3) throw wrong("has no answer");
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string question_text(const Row& row) {
  return fmt::format("{}\nA. {}\nB. {}\nC. {}\nD. {}\nAnswer:", stripped(row.question), row.choices[0], row.choices[1],
                     row.choices[2], row.choices[3]);
}

// OpenAI's simple-evals, which the reports' chat models are asked with.
std::string chat_text(const Row& row) {
  return fmt::format(
      "Answer the following multiple choice question. The last line of your response should be of the following "
      "format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before "
      "answering.\n\n{}\n\nA) {}\nB) {}\nC) {}\nD) {}",
      stripped(row.question), row.choices[0], row.choices[1], row.choices[2], row.choices[3]);
}

std::vector<std::pair<std::string, fs::path>> find_subjects(const fs::path& data) {
  constexpr std::string_view kEnd = "_test.csv";
  std::vector<std::pair<std::string, fs::path>> subjects;
  const auto add = [&](const fs::path& path) {
    const std::string name = path.filename().string();
    if (name.ends_with(kEnd)) subjects.emplace_back(name.substr(0, name.size() - kEnd.size()), path);
  };
  if (!path_is_directory(data)) {
    add(data);
  } else {
    for (const fs::path& folder : {data / "test", data / "mmlu/test", data}) {
      if (!subjects.empty() || !path_exists(folder)) continue;
      for (const fs::path& path : list_directory(folder)) add(path);
    }
  }
  if (subjects.empty()) {
    throw Error(
        "{}: there is no SUBJECT_test.csv, here or in test/ or mmlu/test/; --data names the folder of MMLU's "
        "dev and test, or one such file",
        printable(data.native()));
  }
  return subjects;
}

std::string with_spaces(std::string name) {
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

}  // namespace

std::vector<Item> read_mmlu(const TaskFiles& files) {
  std::vector<Item> items;
  for (const auto& [subject, path] : find_subjects(files.data)) {
    std::string head =
        fmt::format("The following are multiple choice questions (with answers) about {}.\n\n", with_spaces(subject));
    if (files.shots > 0) {
      const fs::path beside = path.parent_path() / (subject + "_dev.csv");
      const fs::path dev = path_exists(beside) ? beside : path.parent_path().parent_path() / "dev" / beside.filename();
      const std::vector<Row> examples = read_rows(dev);
      if (std::ssize(examples) < files.shots) {
        throw UsageError("{}: has {} examples, fewer than --shots {}", printable(dev.native()), examples.size(),
                         files.shots);
      }
      for (int64_t i = 0; i < files.shots; ++i) {
        const Row& row = examples[static_cast<size_t>(i)];
        head += question_text(row) + " " + kLetters[row.answer] + "\n\n";
      }
    }
    // --limit counts for each subject, as the harness has it.
    int64_t n = 0;
    for (const Row& row : read_rows(path)) {
      if (files.limit && n == *files.limit) break;
      Item item{.id = fmt::format("{}/{}", subject, n++), .subject = subject, .prompt = head + question_text(row)};
      if (files.shots == 0) item.chat_prompt = chat_text(row);
      item.choices = {" A", " B", " C", " D"};
      item.gold = row.answer;
      item.expected = std::string(1, kLetters[row.answer]);
      items.push_back(std::move(item));
    }
  }
  return items;
}

namespace {

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

// The letter behind the last of these words, between marks that models put around it.
std::string letter_behind(std::string_view text, std::string_view words) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  for (size_t at = lower.rfind(words); at != std::string::npos;
       at = at == 0 ? std::string::npos : lower.rfind(words, at - 1)) {
    size_t i = at + words.size();
    while (i < text.size() && std::string_view(" *:$({[\\\"'`").find(text[i]) != std::string_view::npos) {
      for (const std::string_view macro : {"\\boxed{", "\\text{", "\\textbf{", "\\mathrm{"}) {
        if (text.substr(i).starts_with(macro)) i += macro.size() - 1;
      }
      ++i;
    }
    if (i < text.size() && text[i] >= 'A' && text[i] <= 'D' && (i + 1 == text.size() || !is_word(text[i + 1]))) {
      return std::string(1, text[i]);
    }
  }
  return "";
}

}  // namespace

Judgement judge_letter(const Item& item, std::string_view answer, bool chats) {
  // The harness compares the first line, without punctuation and case.
  const std::string_view line = stripped(answer.substr(0, answer.find('\n')));
  std::string plain;
  for (const char c : line) {
    if (std::ispunct(static_cast<unsigned char>(c)) == 0) {
      plain += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
  }
  std::string letter = letter_behind(answer, "answer:");
  for (const std::string_view words : {"answer is", "\\boxed{"}) {
    if (letter.empty()) letter = letter_behind(answer, words);
  }
  const std::string_view text = stripped(answer);
  if (letter.empty() && !text.empty() && text[0] >= 'A' && text[0] <= 'D' && (text.size() == 1 || !is_word(text[1]))) {
    letter = std::string(1, text[0]);
  }
  const std::pair<std::string, double> exact{"exact_match", plain == item.expected},
      found{"letter", letter == item.expected};
  return {chats ? std::vector{found, exact} : std::vector{exact, found}, letter};
}

}  // namespace fathom::eval
