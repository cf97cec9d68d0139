// Questions whose answers can be verified, from .jsonl: an object a line with
//   "question" or "prompt": a text, or "messages": a list of {role, content}
//   "answer" (a text or a number; optional), "tests" (a line of HumanEval, MBPP or LiveCodeBench, told apart by its
//   keys; optional), "id" (a text or a number; optional)
// Other keys say nothing.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/code_tests.h"
#include "text/tokenizer.h"

namespace fathom::tune {

// As it stands in the file.
struct AskedQuestion {
  std::string where, id;                             // "FILE:LINE"; without an id the same
  nlohmann::ordered_json messages;                   // a question by itself is one of the user
  bool has_messages = false;                         // they stand there
  std::string text;                                  // the question, or the last message of the user
  std::optional<std::string> answer{};               // that is expected
  std::shared_ptr<const eval::CodeProblem> tests{};  // null without
  uint64_t tests_xxh3 = 0;                           // of their JSON
};
// All questions of the files, in their order; .gz and .zst are unpacked. Error that names file and line for what is no
// such object, and where there is no question.
std::vector<AskedQuestion> read_asked_questions(std::span<const std::filesystem::path> files);

struct Question {
  std::string id;                                    // without one, "FILE:LINE"
  std::string text;                                  // the question, or the last message of the user
  std::optional<std::string> answer;                 // that is expected
  std::shared_ptr<const eval::CodeProblem> tests{};  // null without
  uint64_t tests_xxh3 = 0;                           // of their JSON
  std::vector<int32_t> prompt;
  bool begun_thoughts = false;  // the prompt ends in <think>
};

// Whether one of them is judged by tests of code.
bool have_tests(std::span<const AskedQuestion> questions);

struct QuestionOptions {
  std::string chat_template;  // Jinja source or kDeepseekV32Encoding; empty: a question is the prompt as it stands
  std::string system;         // a message of the system in front of those that have none; not without a template
  nlohmann::ordered_json kwargs = nlohmann::ordered_json::object();  // for the template: thinking, ...
};

// The same as a model is to read them. Error for text that is too long for `longest_prompt` tokens, too.
std::vector<Question> read_questions(std::span<const std::filesystem::path> files, const Tokenizer& tokenizer,
                                     const QuestionOptions& options, int64_t longest_prompt);

// Of what a run reads of them: a resumed run must have the same.
uint64_t checksum_of(std::span<const Question> questions);

}  // namespace fathom::tune
