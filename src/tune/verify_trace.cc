// Whether a teacher's answer is right.
#include "base/error.h"
#include "eval/answers.h"
#include "eval/code_tests.h"
#include "tune/traces.h"

namespace fathom::tune {
namespace {

// The benchmarks' forms, told apart by the keys that only they have.
eval::CodeProblem problem_of(const TraceQuestion& question) {
  const nlohmann::ordered_json tests = nlohmann::ordered_json::parse(question.tests);
  if (tests.contains("entry_point")) return eval::parse_humaneval(question.tests, question.id);
  if (tests.contains("test_list")) return eval::parse_mbpp(question.tests, question.id);
  return eval::parse_livecodebench(question.tests, question.id);
}

}  // namespace

TraceVerdict verify_trace(const TraceQuestion& question, const eval::Answer& answer) {
  if (!question.tests.empty()) {
    const eval::CodeVerdict verdict = eval::judge_code(problem_of(question), eval::extract_code(answer.text));
    return {verdict.passed, verdict.passed ? "" : verdict.why};
  }
  if (!question.answer) return {};
  const std::optional<std::string> said = eval::final_answer(answer.text);
  if (!said) return {false, "has no final answer"};
  if (eval::same_answer(*said, *question.answer)) return {true, ""};
  return {false, "the final answer is " + *said};
}

}  // namespace fathom::tune
