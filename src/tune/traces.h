// Traces: what a teacher answered to questions, kept where it is right, for a student to learn from (R1 section 2.4,
// "distillation"; rejection sampling as in section 2.3.3).
//
// All that a teacher said is appended to a journal beside the traces, OUT.answers, an object a line, as it comes: its
// first line says what was asked of whom, the others are answers and what came of their verification, in any order. An
// interrupted run goes on from there, and other ways to keep answers ask nothing again. The traces are made of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/answerer.h"
#include "eval/sandbox.h"
#include "tune/questions.h"

namespace fathom::tune {

enum class KeepTraces {
  all,             // every whole answer
  verified,        // every right one
  first_verified,  // of each question the first right one; no more is asked then
  shortest         // of each question the right one of the fewest tokens
};
KeepTraces keep_traces_named(const std::string& name);

// Whether an answer is right; nothing where a question says nothing to verify by.
struct TraceVerdict {
  std::optional<bool> right;
  std::string why{};  // not
};
using VerifyTrace = std::function<TraceVerdict(const AskedQuestion& question, const eval::Answer& answer,
                                               const eval::SandboxLimits& limits)>;
// By the question's tests of code (eval/code_tests.h) where it has some, else by its answer (eval/answers.h). Safe to
// call from many threads at a time. Error where code cannot be run.
TraceVerdict verify_trace(const AskedQuestion& question, const eval::Answer& answer, const eval::SandboxLimits& limits);

struct TraceOptions {
  std::filesystem::path out;  // .jsonl
  int64_t samples = 1;        // of each question
  double temperature = 0.6, top_p = 0.95;
  int64_t top_k = 0, max_tokens = 4096;
  std::optional<bool> thinking;  // nothing: as the teacher's template has it
  std::string system;            // said to the teacher in front of every question
  bool keeps_system = false;     // in the traces, too
  uint64_t seed = 0;
  std::string teacher;  // its name: of other answers nothing is gone on from
  KeepTraces keep = KeepTraces::verified;
  int64_t max_per_question = 0;  // the first ones; 0: all
  int at_a_time = 1;             // that are verified
  eval::SandboxLimits limits{};  // of a test of code
};

struct TraceCounts {
  int64_t questions = 0, asked = 0;           // asked: answers, those of earlier runs among them
  int64_t refused = 0;                        // of them: too long a prompt, or the server would not
  int64_t cut = 0;                            // did not come to an end
  int64_t answered = 0;                       // came to one
  int64_t right = 0, wrong = 0, unknown = 0;  // of these
  int64_t twice = 0;                          // said the same as another one
  int64_t kept = 0, kept_questions = 0;
  int64_t prompt_tokens = 0, tokens = 0, kept_tokens = 0;
  nlohmann::ordered_json json() const;
};

// Asks, verifies, and writes the traces, each a line as parse_conversation() reads it (tune/conversation.h), in the
// order of questions and samples; nothing when interrupted, the journal is kept. UsageError where `out` or its journal
// are of something else; Error where no trace is left to keep. The same journal, the same bytes.
std::optional<TraceCounts> make_traces(std::span<const AskedQuestion> questions, eval::Answerer& teacher,
                                       const TraceOptions& options, const VerifyTrace& verify,
                                       const eval::Interrupted& interrupted);

}  // namespace fathom::tune
