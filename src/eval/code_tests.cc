#include "eval/code_tests.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "eval/embedded.h"
#include "eval/task_files.h"
#include "text/answer_parser.h"

namespace fathom::eval {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxWhyBytes = 300;

// Of the system: its folders are what the sandbox shows.
const std::string& python() {
  static const std::string found = [] {
    for (const char* file : {"/usr/bin/python3", "/usr/local/bin/python3"}) {
      if (access(file, X_OK) == 0) return std::string(file);
    }
    return std::string();
  }();
  if (found.empty())
    throw Error("programs are judged by /usr/bin/python3, which is not there: apt-get install python3");
  return found;
}

SandboxResult run_python(std::string_view script, std::vector<SandboxFile> files, std::string_view input,
                         const SandboxLimits& limits, Containment containment) {
  files.push_back({std::string(script), std::string(embedded_file(script))});
  const std::vector<std::string> command = {python(), "-B", std::string(script)};
  return containment == Containment::sandbox ? run_sandboxed(command, files, input, limits)
                                             : run_unsandboxed(command, files, input, limits);
}

// Why no verdict can come of this end.
std::optional<std::string> bad_end(const SandboxResult& result) {
  switch (result.end) {
    case SandboxResult::exited:
      return std::nullopt;
    case SandboxResult::signalled:
      if (result.code == SIGXCPU) return "timed out";
      return result.code == SIGKILL ? "crashed: killed, or out of CPU time"
                                    : fmt::format("crashed: signal {}", result.code);
    case SandboxResult::out_of_time:
      return "timed out";
    case SandboxResult::too_much_output:
      return "crashed: more output than allowed";
    case SandboxResult::out_of_memory:
      return "crashed: more memory than allowed";
    case SandboxResult::stopped:
      return "stopped";
  }
  return std::nullopt;
}

// The verdict that judge.py wrote, or why there is none.
std::string judged(const SandboxResult& result) {
  if (const auto why = bad_end(result)) return *why;
  try {
    const JsonDocument document = JsonDocument::parse(result.out, "the judge");
    std::string_view verdict;
    if (document.root()["verdict"].get_string().get(verdict) == simdjson::SUCCESS)
      return printable(verdict, kMaxWhyBytes);
  } catch (const Error&) {  // it was killed while it wrote
  }
  return "crashed: the judge was ended";
}

// Whether a line begins a function of this name, or gives it a value.
bool defines(std::string_view program, std::string_view name) {
  for (const std::string_view before : {"def ", "async def ", ""}) {
    const std::string text = std::string(before) + std::string(name);
    for (size_t at = program.find(text); at != std::string_view::npos; at = program.find(text, at + 1)) {
      const size_t behind = at + text.size();
      const bool begins_line = at == 0 || program[at - 1] == '\n';
      if (begins_line && behind < program.size() &&
          (program[behind] == (before.empty() ? '=' : '(') || program[behind] == ' ')) {
        return true;
      }
    }
  }
  return false;
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

// A byte order mark is no part of a program.
std::string_view without_mark(std::string_view text) {
  constexpr std::string_view kMark = "\xef\xbb\xbf";
  return text.starts_with(kMark) ? text.substr(kMark.size()) : text;
}

// Columns of spaces and tabs.
size_t width_of(std::string_view space) {
  size_t width = 0;
  for (const char c : space) width = c == '\t' ? (width / 4 + 1) * 4 : width + 1;
  return width;
}

// As CommonMark has it: a block's lines lose as much of their indentation as its fence has.
std::string without_indentation(std::string_view line, size_t width) {
  size_t column = 0, n = 0;
  while (n < line.size() && column < width && (line[n] == ' ' || line[n] == '\t'))
    column = width_of(line.substr(0, ++n));
  return std::string(column > width ? column - width : 0, ' ') + std::string(line.substr(n));
}

// python, py, Python3, python3.11, ...
bool is_python(std::string_view language) {
  std::string name = lowered(language);
  name = name.substr(0, name.find_first_of("0123456789"));
  return (name == "python" || name == "py") &&
         language.find_first_not_of("0123456789.", name.size()) == std::string::npos;
}

// sign * 0.digits * 10^exponent, digits without zeros at either end: equal numbers have equal parts.
struct Decimal {
  bool negative = false;
  std::string digits;
  int64_t exponent = 0;
  bool operator==(const Decimal&) const = default;
};

// As Python's Decimal reads it, without underscores and without NaN, which equals nothing.
std::optional<Decimal> parse_decimal(std::string_view text) {
  Decimal out;
  if (text.starts_with('-') || text.starts_with('+')) {
    out.negative = text[0] == '-';
    text.remove_prefix(1);
  }
  const std::string lower = lowered(text);
  if (lower == "inf" || lower == "infinity") {
    out.digits = "inf";
    return out;
  }
  const size_t e = lower.find('e');
  std::string_view mantissa = std::string_view(lower).substr(0, e);
  if (e != std::string::npos) {
    std::string_view power = std::string_view(lower).substr(e + 1);
    const bool negative = power.starts_with('-');
    if (negative || power.starts_with('+')) power.remove_prefix(1);
    if (power.empty() || power.size() > 17) return std::nullopt;
    for (const char c : power) {
      if (c < '0' || c > '9') return std::nullopt;
      out.exponent = out.exponent * 10 + (c - '0');
    }
    if (negative) out.exponent = -out.exponent;
  }
  const size_t point = mantissa.find('.');
  std::string digits(mantissa.substr(0, point));
  out.exponent += static_cast<int64_t>(digits.size());
  if (point != std::string_view::npos) digits += mantissa.substr(point + 1);
  if (digits.empty()) return std::nullopt;
  for (const char c : digits) {
    if (c < '0' || c > '9') return std::nullopt;
  }
  const size_t first = digits.find_first_not_of('0');
  if (first == std::string::npos) return Decimal{};  // 0 and -0 are equal
  out.exponent -= static_cast<int64_t>(first);
  out.digits = digits.substr(first, digits.find_last_not_of('0') - first + 1);
  return out;
}

std::optional<std::vector<Decimal>> parse_decimals(std::string_view line) {
  std::vector<Decimal> out;
  while (!(line = stripped(line)).empty()) {
    const size_t end = std::min(line.find_first_of(" \t\r\f\v\x1c\x1d\x1e\x1f"), line.size());
    const std::optional<Decimal> number = parse_decimal(line.substr(0, end));
    if (!number) return std::nullopt;
    out.push_back(*number);
    line.remove_prefix(end);
  }
  return out;
}

bool same_line(std::string_view got, std::string_view expected) {
  if (got == expected) return true;
  const auto a = parse_decimals(got);
  return a && a == parse_decimals(expected);
}

// The last line of a traceback says what went wrong.
std::string last_line(std::string_view text) {
  text = stripped(text);
  const size_t at = text.rfind('\n');
  return printable(at == std::string_view::npos ? text : text.substr(at + 1), kMaxWhyBytes);
}

CodeVerdict verdict_of(std::string why) { return {why == "passed", std::move(why)}; }

// The program's parts, run one after the other in the same names.
std::vector<std::string> parts_of(const CodeProblem& problem, std::string_view program) {
  // The lines of a continuation stand in the function.
  const size_t first = program.find_first_not_of("\r\n");
  const bool indented = first != std::string_view::npos && (program[first] == ' ' || program[first] == '\t');
  if (!problem.continues_prefix || (!indented && defines(program, problem.entry_point))) {
    return {problem.program_prefix, std::string(program)};
  }
  size_t end = program.size();
  for (const std::string_view stop : kContinuationStops) end = std::min(end, program.find(stop));
  return {problem.program_prefix + std::string(program.substr(0, end))};
}

std::string run_tests(const CodeProblem& problem, std::string_view program, const SandboxLimits& limits,
                      Containment containment) {
  const Json task = {{"program", parts_of(problem, program)},
                     {"given", problem.continues_prefix ? problem.program_prefix : ""},
                     {"entry_point", problem.entry_point},
                     {"tests", problem.test_code}};
  return judged(
      run_python("judge.py", {}, task.dump(-1, ' ', true, Json::error_handler_t::replace), limits, containment));
}

std::string run_function_case(const CodeProblem& problem, const CodeCase& test, std::string_view program,
                              const SandboxLimits& limits, Containment containment) {
  const Json task = {{"program", parts_of(problem, program)},
                     {"entry_point", problem.entry_point},
                     {"arguments", test.input},
                     {"expected", test.output}};
  return judged(
      run_python("judge.py", {}, task.dump(-1, ' ', true, Json::error_handler_t::replace), limits, containment));
}

std::string run_input_case(const CodeProblem& problem, const CodeCase& test, std::string_view program,
                           const SandboxLimits& limits, Containment containment) {
  const SandboxResult result =
      run_python("script.py", {{"given.py", problem.program_prefix}, {"solution.py", std::string(program)}}, test.input,
                 limits, containment);
  if (const auto why = bad_end(result)) return *why;
  if (result.code != 0) {
    const std::string said = last_line(result.err);
    return "crashed: " + (said.empty() ? fmt::format("exit code {}", result.code) : said);
  }
  if (same_output(result.out, test.output)) return "passed";
  return fmt::format("wrong answer: \"{}\" for \"{}\"", printable(stripped(result.out), 60),
                     printable(stripped(test.output), 60));
}

}  // namespace

CodeVerdict judge_code(const CodeProblem& problem, std::string_view program, const SandboxLimits& limits,
                       Containment containment) {
  if (stripped(program).empty()) return {false, "wrong answer: no program"};
  if (problem.cases.empty()) return verdict_of(run_tests(problem, program, limits, containment));
  for (size_t i = 0; i < problem.cases.size(); ++i) {
    const auto run = problem.kind == CodeProblem::function ? run_function_case : run_input_case;
    std::string why = run(problem, problem.cases[i], program, limits, containment);
    if (why == "passed") continue;
    const size_t kind = std::min(why.find(':'), why.size());
    return {false, fmt::format("{} in case {}{}", why.substr(0, kind), i + 1, why.substr(kind))};
  }
  return {true, "passed"};
}

std::vector<CodeVerdict> judge_many(std::span<const CodeAnswer> answers, int at_a_time, const SandboxLimits& limits,
                                    Containment containment, const std::function<bool()>& interrupted) {
  std::vector<CodeVerdict> verdicts(answers.size());
  std::atomic<size_t> next = 0;
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&] {
    for (size_t i; (i = next++) < answers.size() && !(interrupted && interrupted());) {
      try {
        verdicts[i] = judge_code(*answers[i].problem, answers[i].program, limits, containment);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        next = answers.size();
      }
    }
  };
  std::vector<std::thread> threads;
  const size_t n = std::min(answers.size(), static_cast<size_t>(std::max(at_a_time, 1)));
  for (size_t i = 0; i < n; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
  return verdicts;
}

std::string extract_code(std::string_view completion) {
  const std::optional<std::string_view> said = behind_thoughts(completion);
  if (!said) return {};
  completion = *said;
  std::optional<std::string> python, unnamed, current;
  size_t indentation = 0;  // of the open block's fence
  std::string fence;       // and its mark
  std::optional<std::string>* kind = nullptr;
  for (const std::string_view line : split(without_mark(completion), '\n')) {
    const std::string_view mark = line.substr(std::min(line.find_first_not_of(" \t"), line.size()));
    const size_t in_front = width_of(line.substr(0, line.size() - mark.size()));
    const char sign = mark.starts_with("```") ? '`' : mark.starts_with("~~~") ? '~' : '\0';
    const size_t length = sign == '\0' ? 0 : std::min(mark.find_first_not_of(sign), mark.size());
    const std::string_view label = stripped(mark.substr(length));
    if (!current) {
      if (length == 0 || label.find('`') != std::string_view::npos) continue;
      const std::string_view language = label.substr(0, label.find_first_of(" {:,"));
      kind = language.empty() ? &unnamed : is_python(language) ? &python : nullptr;
      fence = std::string(mark.substr(0, length));
      indentation = in_front;
      current.emplace();
    } else if (length >= fence.size() && sign == fence[0] && label.empty() && in_front < indentation + 4) {
      if (kind != nullptr) *kind = std::move(current);
      current.reset();
    } else {
      (*current += without_indentation(current->empty() ? without_mark(line) : line, indentation)) += '\n';
    }
  }
  if (current && kind != nullptr) {
    if (completion.ends_with('\n')) current->pop_back();  // no line is behind it
    *kind = std::move(current);
  }
  return python ? *python : unnamed ? *unnamed : std::string(completion);
}

bool same_output(std::string_view got, std::string_view expected) {
  const auto a = split(stripped(got), '\n'), b = split(stripped(expected), '\n');
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same_line(stripped(a[i]), stripped(b[i]))) return false;
  }
  return true;
}

}  // namespace fathom::eval
