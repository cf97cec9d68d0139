// Problems whose answers are programs in Python, and whether a program solves one: HumanEval (Chen et al. 2021), MBPP
// (Austin et al. 2021) and LiveCodeBench (Jain et al. 2024). Programs run in the sandbox (eval/sandbox.h).
#pragma once

#include <array>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/sandbox.h"

namespace fathom::eval {

struct CodeCase {
  // Kind function: the arguments as JSON, one a line, and the value as JSON. Kind standard_input: stdin and stdout.
  std::string input, output;
};

struct CodeProblem {
  std::string id;
  enum Kind { function, standard_input } kind = function;
  std::string text;            // what is asked for, in words; HumanEval: empty, program_prefix is all
  std::string program_prefix;  // what the program may take for given: HumanEval's prompt, LiveCodeBench's imports
  std::string starter_code;    // LiveCodeBench's functions: how the answer begins
  std::string
      entry_point;        // the function that is tested; LiveCodeBench: a method of the class Solution if there is one
  std::string test_code;  // Python, HumanEval's check(entry_point) or MBPP's assertions; empty where there are cases
  std::vector<std::string> shown_tests;  // MBPP's assertions, which its prompts tell
  std::vector<CodeCase> cases;
  bool continues_prefix =
      false;             // HumanEval: a program that does not define entry_point itself goes on from the prefix
  std::string solution;  // the reference, where there is one
};

struct CodeVerdict {
  bool passed = false;
  // "passed", or one line: "wrong answer: assert f(2) == 3", "wrong answer in case 3: ...", "timed out", "crashed:
  // ...".
  std::string why;
};

// Whether programs may run without a sandbox, which users must ask for by name.
enum class Containment { sandbox, none };

// Whether the program, as extract_code gives it, passes all tests of the problem; cases in their order, up to the first
// that it fails. Limits are those of each case, or of test_code as a whole; the sandbox, too, is new for each. What the
// program does cannot make it pass: tests and comparisons are in other processes, which get plain data from it alone
// (docs/sandbox.md). Safe to call from many threads at a time. Error where nothing can be run.
CodeVerdict judge_code(const CodeProblem& problem, std::string_view program, const SandboxLimits& limits = {},
                       Containment containment = Containment::sandbox);

struct CodeAnswer {
  const CodeProblem* problem;
  std::string_view program;
};
// The verdicts of all, at_a_time (>= 1) of them at a time, in threads of their own, which ask `interrupted` too: once
// it is true, no more are tried, and the verdicts mean nothing. The first Error ends it.
std::vector<CodeVerdict> judge_many(std::span<const CodeAnswer> answers, int at_a_time,
                                    const SandboxLimits& limits = {}, Containment containment = Containment::sandbox,
                                    const std::function<bool()>& interrupted = {});

// The program in what a model wrote: the last fenced block that is Python's, or else that says no language, up to its
// end where it is cut off; without fences the whole. What stands before a last </think> is left out; empty where the
// answer was cut within its thoughts.
std::string extract_code(std::string_view completion);

// Where a continuation of HumanEval's prompts ends, if not before (Chen et al. 2021, section 2.1).
inline constexpr std::array<std::string_view, 5> kContinuationStops = {"\nclass", "\ndef", "\n#", "\nif", "\nprint"};

// Whether two outputs are the same as LiveCodeBench has it: as many lines, and each the same but for space at its ends,
// or the same row of decimal numbers.
bool same_output(std::string_view got, std::string_view expected);

// One line of a published file; Errors begin with `where` ("mbpp.jsonl: line 3").
CodeProblem parse_humaneval(std::string_view line, const std::string& where);
// Both forms: `text` and `prompt`, `test_setup_code` and `test_imports`.
CodeProblem parse_mbpp(std::string_view line, const std::string& where);
// Public tests and private ones behind them; these may be packed (base64, zlib, a pickled string, of which nothing is
// executed).
CodeProblem parse_livecodebench(std::string_view line, const std::string& where);

// All of a file of lines, which may be compressed (.gz, .zst).
std::vector<CodeProblem> read_code_problems(const std::filesystem::path& path,
                                            CodeProblem (*parse)(std::string_view line, const std::string& where));

}  // namespace fathom::eval
