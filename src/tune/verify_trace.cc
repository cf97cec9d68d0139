// Whether a teacher's answer is right.
#include "eval/answers.h"
#include "eval/code_tests.h"
#include "tune/traces.h"

namespace fathom::tune {

TraceVerdict verify_trace(const AskedQuestion& question, const eval::Answer& answer,
                          const eval::SandboxLimits& limits) {
  if (question.tests) {
    const eval::CodeVerdict verdict = eval::judge_code(*question.tests, eval::extract_code(answer.text), limits);
    return {verdict.passed, verdict.passed ? "" : verdict.why};
  }
  if (!question.answer) return {};
  const std::optional<std::string> said = eval::final_answer(answer.text);
  if (!said) return {false, "has no final answer"};
  if (eval::same_answer(*said, eval::expected_answer(*question.answer))) return {true, ""};
  return {false, "the final answer is " + *said};
}

}  // namespace fathom::tune
