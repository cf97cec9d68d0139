// MMLU (Hendrycks et al. 2021): four choices in 57 subjects.
#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
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

// Without what Markdown puts around words and without spaces before colons: "**Answer** : B" as "Answer: B".
std::string without_marks(std::string_view text) {
  std::string out;
  const auto colon = [&] {
    while (!out.empty() && out.back() == ' ') out.pop_back();
    out += ':';
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.substr(i).starts_with("\xEF\xBC\x9A")) {  // a full-width colon
      colon();
      i += 2;
    } else if (text[i] == ':') {
      colon();
    } else if (text[i] != '*' && text[i] != '`') {
      out += text[i];
    }
  }
  return out;
}

// The letter that a text begins with, between marks and behind "option"; nothing where it is the begin of a word. A
// small one must stand alone: "a" is a word too.
std::string first_letter(std::string_view text) {
  size_t i = 0;
  for (bool more = true; more;) {
    more = false;
    for (const std::string_view macro : {"\\boxed{", "\\text{", "\\textbf{", "\\mathrm{"}) {
      if (!text.substr(i).starts_with(macro)) continue;
      i += macro.size();
      more = true;
    }
    for (const std::string_view word : {"option ", "choice ", "letter "}) {
      if (!lowered(text.substr(i, word.size())).starts_with(word)) continue;
      i += word.size();
      more = true;
    }
    if (i < text.size() && std::string_view(" \n:$({[\\\"'").find(text[i]) != std::string_view::npos) {
      ++i;
      more = true;
    }
  }
  if (i == text.size()) return "";
  const std::string_view rest = text.substr(i + 1);
  if (text[i] >= 'A' && text[i] <= 'D' && (rest.empty() || !is_word(rest[0]))) return std::string(1, text[i]);
  const bool alone = rest.empty() || std::string_view(").,}$\n").find(rest[0]) != std::string_view::npos;
  if (text[i] >= 'a' && text[i] <= 'd' && alone) {
    return std::string(1, static_cast<char>(text[i] - 'a' + 'A'));
  }
  return "";
}

// Behind the last of these words that a letter follows.
std::string letter_behind(std::string_view text, std::string_view words) {
  const std::string lower = lowered(text);
  for (size_t at = lower.rfind(words); at != std::string::npos;
       at = at == 0 ? std::string::npos : lower.rfind(words, at - 1)) {
    if (std::string letter = first_letter(text.substr(at + words.size())); !letter.empty()) return letter;
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
  const std::string bare = without_marks(answer);
  std::string letter;
  for (const std::string_view words :
       {"answer:", "answer is", "correct option is", "correct choice is", "option is", "choice is", "\\boxed{"}) {
    if (letter.empty()) letter = letter_behind(bare, words);
  }
  const std::string_view text = stripped(bare);
  const bool is_sentence = text.size() > 2 && text[1] == ' ' && std::islower(static_cast<unsigned char>(text[2])) != 0;
  if (letter.empty() && !is_sentence) letter = first_letter(text);  // no "A cat is ..."
  const std::pair<std::string, double> exact{"exact_match", plain == item.expected},
      found{"letter", letter == item.expected};
  return {chats ? std::vector{found, exact} : std::vector{exact, found}, letter};
}

}  // namespace fathom::eval
