// The benchmarks that a model is asked: what each reads, how it asks, what an answer is worth. Prompts without a
// conversation are lm-evaluation-harness's (0.4.13), to the letter, where it has the task.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom::eval {

struct CodeProblem;

// One question.
struct Item {
  std::string id;                                // of the file, or where it stands there
  std::string subject{};                         // of the task's, where it has some
  std::string prompt{};                          // few-shot examples and question
  std::string chat_prompt{};                     // what a user says instead in a conversation; empty: the prompt
  std::vector<std::string> choices{};            // behind the prompt, with the space between
  int64_t gold = -1;                             // the right one of these
  std::string expected{};                        // the right answer, of what is generated
  std::shared_ptr<const CodeProblem> problem{};  // what a program is tried on
};

// What an answer is worth: a name and a number of 0 to 1 for each measure of its task, the leading one first.
struct Judgement {
  std::vector<std::pair<std::string, double>> scores;
  std::string extracted{};  // what was taken for the answer
  std::string why{};        // of a program that failed
};

enum class TaskKind {
  choices,    // the likeliest of given continuations
  answers,    // a text is generated, and its answer compared
  code,       // a program is generated, and tried
  perplexity  // nothing is asked: how well a text is predicted
};

struct TaskFiles {
  std::filesystem::path data;  // --data
  int64_t shots = 0;
  bool chats = false;
  std::optional<int64_t> limit{};  // of items
};

struct Task {
  std::string_view name, what;  // what: one line
  TaskKind kind;
  int64_t shots, chat_shots;  // few-shot examples unless asked otherwise, outside and within a conversation
  bool chats;                 // in a conversation, where the model has a chat template and nobody says otherwise
  int64_t max_tokens, chat_max_tokens;
  std::vector<std::string> stop;  // outside a conversation
  std::vector<Item> (*read)(const TaskFiles& files);
  // Of `answers`; null for others.
  Judgement (*judge)(const Item& item, std::string_view answer, bool chats);
  // Of `code`: the program in an answer.
  std::string (*program)(const Item& item, std::string_view answer, bool chats) = nullptr;
};
std::span<const Task> all_tasks();
// UsageError, with all names, for another.
const Task& find_task(std::string_view name);

// Of `choices`. logprobs: [choices]. "acc" by the largest, and "acc_norm" by the largest per character of the choice,
// the space in front of it aside; of equal ones the first.
Judgement judge_choices(const Item& item, std::span<const double> logprobs, bool with_norm);
bool has_norm(const Task& task);  // acc_norm too

// Puts `shots` of the examples, each with its right choice, in front of every item, drawn anew for each as the harness
// draws them. UsageError, naming the file that they are from, where there are fewer.
void add_examples(std::vector<Item>& items, std::span<const Item> examples, int64_t shots,
                  const std::filesystem::path& from);

// Published figures that stand beside what is measured.
struct PublishedScore {
  std::string_view task, model;
  double percent;
  std::string_view how, source;  // shots, sampling; report and table
};
std::span<const PublishedScore> published_scores();

// ---- One file each

std::vector<Item> read_mmlu(const TaskFiles& files);  // tasks_mmlu.cc
Judgement judge_letter(const Item& item, std::string_view answer, bool chats);

std::vector<Item> read_arc(const TaskFiles& files);        // tasks_arc.cc
std::vector<Item> read_hellaswag(const TaskFiles& files);  // tasks_hellaswag.cc

std::vector<Item> read_gsm8k(const TaskFiles& files);  // tasks_gsm8k.cc
Judgement judge_gsm8k(const Item& item, std::string_view answer, bool chats);

std::vector<Item> read_math(const TaskFiles& files);  // tasks_math.cc
std::vector<Item> read_math500(const TaskFiles& files);
std::vector<Item> read_aime24(const TaskFiles& files);
std::vector<Item> read_aime25(const TaskFiles& files);
Judgement judge_math(const Item& item, std::string_view answer, bool chats);

std::vector<Item> read_humaneval(const TaskFiles& files);  // tasks_code.cc
std::vector<Item> read_mbpp(const TaskFiles& files);
std::vector<Item> read_livecodebench(const TaskFiles& files);
std::string humaneval_program(const Item& item, std::string_view answer, bool chats);
std::string mbpp_program(const Item& item, std::string_view answer, bool chats);
std::string livecodebench_program(const Item& item, std::string_view answer, bool chats);

std::vector<Item> read_questions(const TaskFiles& files);  // tasks_questions.cc

std::vector<Item> read_text_items(const TaskFiles& files);  // tasks.cc: the text stands in `prompt`

// How DeepSeek's releases say to ask for mathematics.
inline constexpr std::string_view kBoxedInstruction =
    "\nPlease reason step by step, and put your final answer within \\boxed{}.";

}  // namespace fathom::eval
