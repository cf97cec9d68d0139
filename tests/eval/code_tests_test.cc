#include "eval/code_tests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "base/error.h"
#include "eval/code_judges.h"
#include "refusal.h"
#include "temporary_directory.h"

namespace fathom::eval {
namespace {

using fathom::test::TemporaryDirectory;
using testing::HasSubstr;
using testing::StartsWith;

const std::filesystem::path kData = std::filesystem::path(FATHOM_TEST_DATA) / "eval";

// Programs are judged in the sandbox or not at all.
class CodeTests : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_sandbox(); !why.empty()) GTEST_SKIP() << "no sandbox here: " << why;
  }
};

constexpr SandboxLimits kShort{.cpu_s = 5, .wall_s = 10, .memory_bytes = 512 << 20};

CodeProblem square() {
  return {.id = "square", .entry_point = "square", .test_code = "assert square(3) == 9\nassert square(-2) == 4\n"};
}

// Judged two at a time.
std::vector<CodeVerdict> verdicts(const CodeProblem& problem, const std::vector<std::string>& programs,
                                  const SandboxLimits& limits = kShort) {
  std::vector<CodeAnswer> answers;
  for (const std::string& program : programs) answers.push_back({&problem, program});
  return judge_many(answers, 2, limits);
}

TEST_F(CodeTests, ReferencesPassAndOthersFail) {
  std::vector<CodeProblem> problems = read_code_problems(kData / "humaneval_5.jsonl", parse_humaneval);
  for (CodeProblem& problem : read_code_problems(kData / "mbpp_5.jsonl", parse_mbpp))
    problems.push_back(std::move(problem));
  std::vector<CodeAnswer> answers;
  for (const CodeProblem& problem : problems) answers.push_back({&problem, problem.solution});
  for (const CodeProblem& problem : problems)
    answers.push_back({&problem, problem.continues_prefix ? "    return None\n" : ""});
  const std::vector<CodeVerdict> all = judge_many(answers, 2, kShort);
  ASSERT_EQ(problems.size(), 10U);
  for (size_t i = 0; i < answers.size(); ++i) {
    EXPECT_EQ(all[i].passed, i < problems.size()) << answers[i].problem->id << ": " << all[i].why;
    EXPECT_EQ(all[i].passed, all[i].why == "passed");
  }
}

// Of everything in a folder with HumanEval.jsonl.gz and mbpp.jsonl, by hand: docs/sandbox.md has what came of it.
TEST_F(CodeTests, AllReferencesPass) {
  const char* folder = getenv("FATHOM_CODE_DATA");
  if (folder == nullptr) GTEST_SKIP() << "FATHOM_CODE_DATA names no folder";
  const std::filesystem::path path(folder);
  size_t n = 0, n_passed = 0;
  const auto judge_all = [&](const std::vector<CodeProblem>& problems) {
    std::vector<CodeAnswer> answers;
    for (const CodeProblem& problem : problems) answers.push_back({&problem, problem.solution});
    for (const CodeProblem& problem : problems)
      answers.push_back({&problem, problem.continues_prefix ? "    pass\n" : "pass\n"});
    const std::vector<CodeVerdict> all = judge_many(answers, 2);
    for (size_t i = 0; i < problems.size(); ++i) {
      ++n;
      n_passed += all[i].passed;
      EXPECT_TRUE(all[i].passed) << problems[i].id << ": " << all[i].why;
      EXPECT_FALSE(all[i + problems.size()].passed) << problems[i].id;
    }
  };
  judge_all(read_code_problems(path / "humaneval/HumanEval.jsonl.gz", parse_humaneval));
  judge_all(read_code_problems(path / "mbpp/mbpp.jsonl", parse_mbpp));
  std::cout << n_passed << " of " << n << " pass\n";
}

TEST_F(CodeTests, LiveCodeBenchsProblemsAreJudgedCaseByCase) {
  const std::vector<CodeProblem> problems = read_code_problems(kData / "livecodebench_3.jsonl", parse_livecodebench);
  ASSERT_EQ(problems.size(), 3U);
  EXPECT_EQ(problems[0].kind, CodeProblem::function);
  EXPECT_EQ(problems[0].entry_point, "unequalTriplets");
  EXPECT_EQ(problems[0].cases.size(), 3U);
  EXPECT_EQ(problems[1].kind, CodeProblem::standard_input);
  EXPECT_EQ(problems[1].cases.size(), 2U);
  const std::string triplets = R"(
class Solution:
    def unequalTriplets(self, a: List[int]) -> int:
        return sum(len(set(t)) == 3 for t in combinations(a, 3)))";
  const std::string gifts = R"(
def main():
    for _ in range(int(input())):
        input()
        a, b = [list(map(int, input().split())) for _ in range(2)]
        print(sum(max(x - min(a), y - min(b)) for x, y in zip(a, b)))
if __name__ == "__main__":
    main()
    exit())";
  const std::vector<CodeAnswer> answers = {
      {&problems[0], triplets},
      {&problems[0], "def unequalTriplets(a): return 3\n"},
      {&problems[1], gifts},
      {&problems[1], "print(6)"},
      {&problems[1], "print(1 / 0)"},
      {&problems[2], "print(*[x / 2 for x in map(int, input().split())])\nsys.exit(1)"},
      {&problems[2], "print(*[x // 2 for x in map(int, input().split())])"},
  };
  const std::vector<CodeVerdict> all = judge_many(answers, 2, kShort);
  EXPECT_TRUE(all[0].passed) << all[0].why;
  EXPECT_EQ(all[1].why, "wrong answer in case 2: 3 for 0");
  EXPECT_TRUE(all[2].passed) << all[2].why;
  EXPECT_EQ(all[3].why, "wrong answer in case 2: \"6\" for \"0\\x0a3\"");
  EXPECT_EQ(all[4].why, "crashed in case 1: ZeroDivisionError: division by zero");
  EXPECT_TRUE(all[5].passed) << all[5].why;
  EXPECT_THAT(all[6].why, StartsWith("wrong answer in case 1"));
}

TEST_F(CodeTests, AVerdictSaysWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> programs = {
      {"def square(n): return n * n", "passed"},
      {"def square(n): return 9", "wrong answer: assert square(-2) == 4"},
      {"def square(n): return n / 0", "crashed: ZeroDivisionError: division by zero"},
      {"def square(n): return return", "crashed: SyntaxError: invalid syntax (solution.py, line 1)"},
      {"def cube(n): return n", "crashed: AttributeError: module 'solution' has no attribute 'square'"},
      {"import not_there", "crashed: ModuleNotFoundError: No module named 'not_there'"},
      {"import os\ndef square(n): os.abort()", "crashed: signal 6"},
      {"def square(n): return bytearray(1 << 30)", "crashed: MemoryError: "},
      {"def square(n): return square(n)", "crashed: RecursionError: maximum recursion depth exceeded"},
      {"def square(n):\n  while True: pass", "timed out"},
  };
  std::vector<std::string> texts;
  for (const auto& program : programs) texts.push_back(program.first);
  const std::vector<CodeVerdict> all = verdicts(square(), texts, {.cpu_s = 1, .memory_bytes = 512 << 20});
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i].why, programs[i].second) << programs[i].first;
  EXPECT_EQ(judge_code(square(), "import time\ndef square(n): time.sleep(100)", {.wall_s = 1}).why, "timed out");
}

TEST_F(CodeTests, NoProgramForgesItsVerdict) {
  const std::vector<std::string> programs = {
      // Ends that look like success.
      "import sys; sys.exit(0)",
      "import os; os._exit(0)",
      "import sys\ndef square(n): sys.exit(0)",
      "class Exit(SystemExit): pass\ndef square(n): raise Exit(0)",
      "class Passed(AssertionError): pass\ndef square(n): raise Passed('passed')",
      "class Refused(BaseException): pass\ndef square(n): raise Refused('passed')",
      "class Raised(Exception): pass\ndef square(n): raise Raised('passed')",
      "import os\ndef square(n): os._exit(0)",
      "import os, signal\ndef square(n): os.kill(os.getppid(), signal.SIGKILL)",
      "import os, signal\ndef square(n): os.kill(os.getppid(), signal.SIGTERM)",
      "import os\nfor pid in range(1, 10):\n  try: os.kill(pid, 9) if pid != os.getpid() else 0\n  except OSError: "
      "pass\ndef square(n): return 1",
      "def square(n): raise StopIteration",
      "def square(n): raise AssertionError('passed')",
      "def square(n): raise BaseException('passed')",
      // Values that equal everything.
      "class A:\n  def __eq__(self, other): return True\ndef square(n): return A()",
      "class A(int):\n  def __eq__(self, other): return True\n  __hash__ = None\ndef square(n): return A(1)",
      "class A(float):\n  def __eq__(self, other): return True\ndef square(n): return A(1)",
      "class A(list):\n  def __eq__(self, other): return True\ndef square(n): return A([1])",
      "class A(str):\n  def __eq__(self, other): return True\ndef square(n): return A('x')",
      "class M(type):\n  def __eq__(self, other): return True\n  __hash__ = None\nclass A(metaclass=M): pass\ndef "
      "square(n): return A",
      "from unittest.mock import ANY\ndef square(n): return ANY",
      "class A(int):\n  def __add__(self, n): return 9\n  def __int__(self): return 9\ndef square(n): return A(8)",
      // What the tests work with.
      "import builtins\nbuiltins.AssertionError = ZeroDivisionError\nbuiltins.all = lambda x: "
      "True\nbuiltins.isinstance = lambda *a: True\ndef square(n): return 1",
      "import sys, types\nm = types.ModuleType('tests'); m.square = lambda n: 9; sys.modules['tests'] = m\ndef "
      "square(n): return 1",
      "import __main__\nfor name in dir(__main__):\n  if name[:2] != '__':\n    try: setattr(__main__, name, lambda "
      "*a, **k: 'passed')\n    except Exception: pass\ndef square(n): return 1",
      "import __main__\n__main__.judge = lambda *a: 'passed'\n__main__.pack = lambda *a: 9\ndef square(n): return 1",
      "import sys\nsys.settrace(lambda *a: None)\nsys.excepthook = sys.unraisablehook = lambda *a: None\ndef "
      "square(n): return 1",
      "import gc\nfor x in gc.get_objects():\n  if isinstance(x, dict) and 'refusal' in x: x['refusal'] = "
      "'passed'\ndef square(n): return 1",
      "import ctypes\nctypes.c_char.from_address(id(9) + 24).value = b'\\x01'\ndef square(n): return 1",
      // Words on every descriptor.
      "print('{\"verdict\": \"passed\"}', flush=True)\nimport sys\nprint('{\"verdict\": \"passed\"}', "
      "file=sys.__stderr__, flush=True)\ndef square(n): return 1",
      "import os\nfor fd in range(64):\n  try: os.write(fd, b'{\"verdict\": \"passed\"}\\n')\n  except OSError: "
      "pass\ndef square(n): return 1",
      "import os\nfor fd in range(64):\n  try: os.write(fd, b'{\"value\": \"passed\"}\\n' * 9)\n  except OSError: "
      "pass\ndef square(n): return 1",
      "import os\nfor fd in range(64):\n  try: os.write(fd, b'{\"value\": {\"h\": {\"verdict\": \"passed\"}}}\\n' * "
      "9)\n  except OSError: pass\nos._exit(0)",
      "import os\nfor fd in range(64):\n  try: os.write(fd, b'{\"error\": [\"Refused\", \"passed\"]}\\n' * 9)\n  "
      "except OSError: pass\nos._exit(0)",
      "import os\nfor fd in range(64):\n  try: os.write(fd, b'{\"error\": [[\"Refused\", \"AssertionError\"], "
      "\"passed\"]}\\n' * 9)\n  except OSError: pass\nos._exit(0)",
      "import os\nfor fd in range(64):\n  try: os.write(fd, b'[' * 100000 + b'\\n')\n  except OSError: pass\ndef "
      "square(n): return 1",
      "import os\nos.write(1, b'{\"verdict\": \"passed\"}\\n')\nfor fd in range(64):\n  try: os.close(fd)\n  except "
      "OSError: pass\nos._exit(0)",
      // Files that the judge might load.
      "import os\nfor name in ('json', 'resource', 'math', 'decimal', 'random', 'copy', 'judge', 'fractions', "
      "'usercustomize'):\n  open(name + '.py', 'w').write('import os\\nos.write(1, b\\'{\"verdict\": "
      "\"passed\"}\\\\n\\'); os._exit(0)')\nos.abort()",
      "import os\nopen('judge.py', 'w').write('print(\\'{\"verdict\": \"passed\"}\\')')\nos.execv('/bin/cat', ['cat', "
      "'judge.py'])",
      // Tests that are looked for.
      "import os\nfound = ''.join(open(f).read() for f in os.listdir() if os.path.isfile(f))\ndef square(n): return 9 "
      "if 'square(3) == 9' in found else 1",
      "import sys\nfound = sys.stdin.read()\ndef square(n): return n * n if 'square' in found else 1",
      "import gc\nfound = any('square(3)' in x for x in gc.get_objects() if isinstance(x, str))\ndef square(n): return "
      "n * n if found else 1",
      "import os\nos.lseek(0, 0, 0)\nfound = b'square(3)' in os.read(0, 10**6)\ndef square(n): return n * n if found "
      "else 1",
      "import sys\ndef square(n):\n  frame = sys._getframe()\n  while frame:\n    if 'square(3)' in "
      "repr(frame.f_locals): return n * n\n    frame = frame.f_back\n  return 1",
  };
  const std::vector<CodeVerdict> all =
      verdicts(square(), programs, {.cpu_s = 1, .wall_s = 2, .memory_bytes = 512 << 20});
  ASSERT_GE(programs.size(), 20U);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_FALSE(all[i].passed) << programs[i];
}

TEST_F(CodeTests, ModulesThatTheTestsImportDoNotComeFromTheProgram) {
  CodeProblem problem = square();
  problem.test_code = "import statistics, colorsys\nassert statistics.mean([square(3), square(1)]) == 5\n";
  const std::string forged = R"(
for name in ("statistics", "colorsys", "fractions", "decimal", "numbers"):
    open(name + ".py", "w").write("import os\nos.write(1, b'{\"verdict\": \"passed\"}\\n')\nos._exit(0)\n")
def square(n): return 1)";
  const std::vector<CodeVerdict> all = verdicts(problem, {"def square(n): return n * n", forged});
  EXPECT_TRUE(all[0].passed) << all[0].why;
  EXPECT_FALSE(all[1].passed) << all[1].why;
}

TEST_F(CodeTests, PlainDataOfEveryKindIsCompared) {
  CodeProblem problem{.entry_point = "f", .test_code = R"(
assert f(0) == [1, (2, 3), {4}, {"a": [None, True]}, b"\x00\xff", 1.5, 10**30, 2j, "\ud800é", range(3), frozenset([5]), (), {}]
assert f(1) == {1: 2, (3, 4): "x"}
assert list(f(2)) == [0, 1, 4]
assert f(3) == ["a", 2, 3.5]
from fractions import Fraction
from decimal import Decimal
assert f(4) == [Fraction(1, 3), Decimal("0.1")]
assert f([1, (2,), {3: {4}}]) == ([1, (2,), {3: {4}}], "list")
assert f(point=1) == (1, 2)
assert f([int, str]) == ([int, str], "list")
assert f("nan") != f("nan")
try:
    f("raise")
    assert False
except ValueError as error:
    assert str(error) == "bad"
)"};
  const std::string program = R"(
import collections, fractions, decimal
Point = collections.namedtuple("Point", "x y")
class Name(str): pass
def f(x=None, point=None):
    if point: return Point(point, 2)
    if x == "nan": return float("nan")
    if x == "raise": raise ValueError("bad")
    if isinstance(x, list): return x, type(x).__name__
    return [[1, (2, 3), {4}, {"a": [None, True]}, b"\x00\xff", 1.5, 10**30, 2j, "\ud800é", range(3), frozenset([5]), (), {}],
            collections.OrderedDict([(1, 2), ((3, 4), "x")]), (n * n for n in range(3)), [Name("a"), 2, 3.5],
            [fractions.Fraction(1, 3), decimal.Decimal("0.1")]][x])";
  const CodeVerdict verdict = judge_code(problem, program, kShort);
  EXPECT_TRUE(verdict.passed) << verdict.why;
}

TEST_F(CodeTests, AnErrorIsToTheTestsWhatItDerivesFrom) {
  const CodeProblem problem{.entry_point = "f", .test_code = R"(
def raised(n):
    try: f(n)
    except Exception as error: return error
for n in range(2): assert isinstance(raised(n), ValueError), n
assert type(raised(2)) is FileNotFoundError
assert isinstance(raised(3), KeyError)
assert type(raised(4)) is Exception
assert type(raised(5)) is RuntimeError
assert str(raised(0)) == "bad"
)"};
  const std::string program = R"(
import json
class Bad(ValueError): pass
class Missing(KeyError): pass
class Odd(Exception): pass
def f(n):
    if n == 0: raise Bad("bad")
    if n == 1: json.loads("{")
    if n == 2: open("/not/there")
    if n == 3: raise Missing(3)
    if n == 4: raise Odd()
    raise RuntimeError())";
  const CodeVerdict verdict = judge_code(problem, program, kShort);
  EXPECT_TRUE(verdict.passed) << verdict.why;
  const CodeProblem other{.entry_point = "f", .test_code = "f(0)\n"};
  EXPECT_EQ(judge_code(other, program, kShort).why, "crashed: Bad: bad");
}

TEST_F(CodeTests, AnythingThatCanBeCalledIsAFunction) {
  const CodeProblem whole{.entry_point = "whole", .test_code = "assert whole('7') == 7\nassert whole(2.5) == 2\n"};
  for (const CodeVerdict& verdict :
       verdicts(whole, {"whole = int", "whole = lambda x: int(x)", "from builtins import int as whole",
                        "class A:\n  def __call__(self, x): return int(x)\nwhole = A()",
                        "import functools\nwhole = functools.partial(int)"})) {
    EXPECT_TRUE(verdict.passed) << verdict.why;
  }
  EXPECT_FALSE(verdicts(whole, {"whole = 7"})[0].passed);
}

TEST_F(CodeTests, HumanEvalsContinuationsEndAndWholeFunctionsReplaceThem) {
  const CodeProblem problem = read_code_problems(kData / "humaneval_5.jsonl", parse_humaneval)[1];  // truncate_number
  const std::vector<CodeVerdict> all =
      verdicts(problem, {"    return number % 1.0\n\ndef more():\n    return (\n",
                         "    return number % 1.0\nprint(truncate_number(2.5)",
                         "import math\n\ndef helper(x):\n    return math.floor(x)\n\ndef truncate_number(number: "
                         "float) -> float:\n    return number - helper(number)\n",
                         problem.program_prefix + "    return number % 1.0\n",
                         "    return number % 1.0\n\ndef truncate_number(x):\n    return 0\n", "    return 0.5\n"});
  for (size_t i = 0; i < 5; ++i) EXPECT_TRUE(all[i].passed) << i << ": " << all[i].why;
  EXPECT_THAT(all[5].why, StartsWith("wrong answer: assert"));
}

TEST_F(CodeTests, WithoutASandboxTheVerdictIsTheSame) {
  EXPECT_TRUE(judge_code(square(), "def square(n): return n * n", kShort, Containment::none).passed);
  EXPECT_EQ(judge_code(square(), "def square(n): return 9", kShort, Containment::none).why,
            "wrong answer: assert square(-2) == 4");
}

TEST(ExtractCode, TakesTheLastBlockThatMayBePython) {
  const std::pair<const char*, const char*> cases[] = {
      {"def f():\n  pass", "def f():\n  pass"},
      {"    return 1\n", "    return 1\n"},
      {"Here:\n```python\na = 1\n```\nDone.", "a = 1\n"},
      {"```\na\n```\nand\n```py\nb\n```\nprints\n```text\n7\n```", "b\n"},
      {"```python\na\n", "a\n"},
      {"````python\nx = '''\n```\n'''\n````\n", "x = '''\n```\n'''\n"},
      {"~~~Python3\na\n~~~", "a\n"},
      {"<think>```python\nno\n```</think>```python\nyes\n```", "yes\n"},
      {"<think>```python\nno\n```</think>\nno code", "\nno code"},
      {"  ```python title=\"x\"\n  a\n  ```", "a\n"},
      {"```bash\nls\n```", "```bash\nls\n```"},
      {"```python\r\na\r\n```\r\n", "a\r\n"},
      {"", ""},
  };
  for (const auto& [completion, code] : cases) EXPECT_EQ(extract_code(completion), code) << completion;
}

TEST(ExtractCode, AnAnswerThatIsCutInItsThoughtsHasNone) {
  EXPECT_EQ(extract_code("<think>It is\n```python\nno\n``` hmm wait"), "");
  EXPECT_EQ(extract_code("\n <think>\n```python\nno\n```"), "");
  EXPECT_EQ(extract_code("<think>a</think>\n<think>```python\nno\n```"), "");
  EXPECT_EQ(extract_code("```python\nprint('<think>')\n```"), "print('<think>')\n");
  EXPECT_EQ(judge_code({.kind = CodeProblem::standard_input, .cases = {{"", ""}}}, " \n").why,
            "wrong answer: no program");
}

TEST(ExtractCode, ABlockIsReadAsMarkdownHasIt) {
  const std::pair<const char*, const char*> cases[] = {
      // In a list; a line that stands further left keeps what it has.
      {"1. So:\n\n   ```python\n   def f():\n       return '''\n a'''\n   ```\n", "def f():\n    return '''\na'''\n"},
      {"\t```python\n\tdef f():\n\t\treturn 1\n\t```", "def f():\n\treturn 1\n"},
      {"  ```python\n\ta\n  ```", "  a\n"},
      // A fence in a text of the program.
      {"```python\ndef f():\n    \"\"\"\n    ```\n    \"\"\"\n```", "def f():\n    \"\"\"\n    ```\n    \"\"\"\n"},
      // Blocks without a language stand back behind Python's.
      {"```python\na\n```\nOutput:\n```\n7\n```", "a\n"},
      {"```\nb\n```\n```python\na\n```\n```\n7", "a\n"},
      {"```python3.11\na\n```", "a\n"},
      {"```Py3\na\n```", "a\n"},
      {"```python:main.py\na\n```", "a\n"},
      {"```python\na\n```\n```pycon\n>>> 7\n```", "a\n"},
      {"```python\na\n```\n```pythonic\n7\n```", "a\n"},
      {"```python\n\xef\xbb\xbf"
       "a\n```",
       "a\n"},
      {"\xef\xbb\xbf```python\na\n```", "a\n"},
  };
  for (const auto& [completion, code] : cases) EXPECT_EQ(extract_code(completion), code) << completion;
}

TEST(CodeJudges, WhatIsStoppedIsLeftAndReadAgain) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "untried.jsonl";
  std::vector<UntriedAnswer> left;
  {
    CodeJudges judges(2, [](const UntriedAnswer& one, const std::atomic<bool>& stopped) {
      if (one.item < 2) return true;
      while (!stopped) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return false;
    });
    for (size_t i = 0; i < 7; ++i) judges.add({{.text = fmt::format("\"{}\n", i), .tokens = 3}, i, 1}, {});
    judges.add({{.text = "", .error = "too long"}, 7, 1}, {});
    judges.finish([] { return true; });
    left = judges.stop();
  }
  EXPECT_THAT(left, testing::SizeIs(testing::Ge(6)));
  write_untried(path, left);
  std::vector<UntriedAnswer> again = read_untried(path, 8, 2);
  std::ranges::sort(again, {}, &UntriedAnswer::item);
  ASSERT_GE(again.size(), 5U);
  for (size_t i = 2; i < 7; ++i) {
    const UntriedAnswer& one = again[again.size() + i - 7];
    EXPECT_EQ(one.item, i);
    EXPECT_EQ(one.sample, 1);
    EXPECT_EQ(one.answer.text, fmt::format("\"{}\n", i));
    EXPECT_EQ(one.answer.tokens, 3);
  }
  EXPECT_THAT(refusal([&] { read_untried(path, 3, 2); }), HasSubstr("is an answer to nothing that this run asks"));
  write_untried(path, {});
  EXPECT_TRUE(read_untried(path, 8, 2).empty());
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(CodeJudges, AFailureEndsThemAndLosesNoAnswer) {
  CodeJudges judges(1, [](const UntriedAnswer&, const std::atomic<bool>&) -> bool { throw Error("no more"); });
  judges.add({{.text = "a"}, 0, 0}, {});
  EXPECT_EQ(refusal([&] { judges.finish({}); }), "no more");
  EXPECT_EQ(refusal([&] { judges.add({{.text = "b"}, 1, 0}, {}); }), "no more");
  EXPECT_EQ(judges.stop().size(), 2U);
}

TEST(SameOutput, IsThatOfLiveCodeBench) {
  for (const auto& [a, b] : std::vector<std::pair<const char*, const char*>>{{"1\n2\n", "1 \n 2"},
                                                                             {"1.0 2", "1 2.00"},
                                                                             {"1e3", "1000"},
                                                                             {"-0", "0"},
                                                                             {"+.5", "0.5"},
                                                                             {"1.e-2", ".01"},
                                                                             {"  yes\t\n\n", "yes"},
                                                                             {"", "\n"},
                                                                             {"inf", "Infinity"},
                                                                             {"007", "7"}}) {
    EXPECT_TRUE(same_output(a, b)) << a << " | " << b;
  }
  for (const auto& [a, b] : std::vector<std::pair<const char*, const char*>>{{"1\n2", "1 2"},
                                                                             {"1", "1.0000001"},
                                                                             {"50000000000000000", "50000000000000001"},
                                                                             {"Yes", "yes"},
                                                                             {"a  b", "a b"},
                                                                             {"nan", "NaN"},
                                                                             {"1\n\n2", "1\n2"},
                                                                             {"1 2", "1"},
                                                                             {"1e99999999999999999999", "1"},
                                                                             {".", "0"},
                                                                             {"-", "0"},
                                                                             {"", "0"}}) {
    EXPECT_FALSE(same_output(a, b)) << a << " | " << b;
  }
}

TEST(CodeProblems, WhatIsNoProblemIsRefused) {
  const auto humaneval = [](const char* line) { return refusal([&] { parse_humaneval(line, "x: line 1"); }); };
  EXPECT_EQ(humaneval("[]"), "x: line 1: must be an object");
  EXPECT_EQ(humaneval(R"({"task_id": "a"})"), "x: line 1: \"prompt\" is missing");
  EXPECT_EQ(humaneval(R"({"task_id": "a", "prompt": 1})"), "x: line 1: \"prompt\" must be a string");
  EXPECT_THAT(refusal([] { parse_mbpp(R"({"task_id": 1, "text": "t", "test_list": []})", "x"); }),
              HasSubstr("has no tests"));
  EXPECT_THAT(refusal([] { parse_mbpp(R"({"task_id": 1, "text": "t", "test_list": [1]})", "x"); }),
              HasSubstr("list of strings"));
  const auto livecodebench = [](const std::string& tests) {
    return refusal([&] {
      parse_livecodebench(
          R"({"question_id": "a", "question_content": "q", "metadata": "{}", "public_test_cases": "[]", "private_test_cases": ")" +
              tests + "\"}",
          "x");
    });
  };
  EXPECT_EQ(livecodebench("[]"), "x: no tests");
  EXPECT_THAT(livecodebench("!"), HasSubstr("neither JSON nor base64"));
  EXPECT_THAT(livecodebench("eJwLSAEA"), HasSubstr("damaged zlib data"));
  EXPECT_THAT(livecodebench(R"([{\"input\": \"\", \"output\": \"\", \"testtype\": \"else\"}])"),
              HasSubstr("unknown testtype"));
  // A list, two strings, os.system("id"), which must not run, something behind the end, no end, a length beyond it.
  for (const char* pickle : {"eJxrYJnKwQABsVN6GBOnJOoBACKxBCQ=", "eJxrYJnKzQABPYyJU3oYk6a0TdEDADDyBXI=",
                             "eJxrYJkqywABPawF+cWZFVN62Iori0tSc6dMntLDlJkypXVK0BQ9AOXmDZ0=",
                             "eJxrYJnKygABPYyJU/QqABkzA0c=", "eJxrYJnKygABPYyJUwATHQKh", "eJxrYIn4DwR6ABRUBQc="}) {
    EXPECT_THAT(livecodebench(pickle), HasSubstr("a pickle of something else than one string")) << pickle;
  }
  const TemporaryDirectory directory;
  EXPECT_THAT(refusal([&] { read_code_problems(directory.write("a.jsonl", "\n\n"), parse_mbpp); }),
              HasSubstr("no problems"));
  EXPECT_THAT(refusal([&] { read_code_problems(directory.write("a.jsonl", "\n{}\n"), parse_mbpp); }),
              HasSubstr("a.jsonl: line 2: \"task_id\" is missing"));
}

TEST(CodeProblems, MbppsFunctionIsTheOneThatItsTestsCall) {
  const std::vector<CodeProblem> problems = read_code_problems(kData / "mbpp_5.jsonl", parse_mbpp);
  std::vector<std::string> names;
  for (const CodeProblem& problem : problems) names.push_back(problem.entry_point);
  EXPECT_THAT(names,
              testing::ElementsAre("similar_elements", "sum", "is_tree_balanced", "tuple_size", "max_chain_length"));
}

}  // namespace
}  // namespace fathom::eval
