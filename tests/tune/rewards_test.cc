#include "tune/rewards.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "base/error.h"
#include "temporary_directory.h"

namespace fathom::tune {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

Question question(const std::string& answer, bool begun_thoughts = false) {
  Question q;
  q.id = "q";
  q.text = "what?";
  q.answer = answer;
  q.prompt = {1};
  q.begun_thoughts = begun_thoughts;
  return q;
}

TEST(Format, IsThoughtsAndThenAnAnswerOnce) {
  EXPECT_TRUE(has_format("<think>why</think>so", false));
  EXPECT_TRUE(has_format("\n<think>\nwhy\n</think>\n\nso\n", false));
  EXPECT_TRUE(has_format("why</think>so", true));
  for (const char* text :
       {"so", "<think>why", "<think>why</think>", "<think>why</think> \n", "<think> </think>so", "why</think>so",
        "x<think>why</think>so", "<think>a</think>b</think>c", "<think>a<think>b</think>c",
        "<think>a</think>b<think>c</think>d", "</think>a<think>b", ""}) {
    EXPECT_FALSE(has_format(text, false)) << text;
  }
  for (const char* text : {"<think>why</think>so", "why</think>", "so", "</think>so", "a</think>b</think>c"}) {
    EXPECT_FALSE(has_format(text, true)) << text;
  }
}

TEST(Exact, IsOfWhatIsSaidBehindTheThoughts) {
  EXPECT_TRUE(is_exact("<think>3? 5?</think>The answer is \\boxed{4}.", false, "4"));
  EXPECT_FALSE(is_exact("<think>\\boxed{4}</think>\\boxed{5}", false, "4"));
  EXPECT_FALSE(is_exact("<think>\\boxed{4}</think>", false, "4"));
  EXPECT_TRUE(is_exact("#### 4", false, "4"));
  EXPECT_TRUE(is_exact("4", false, "1 and 2 more\n#### 4"));  // as GSM8K has it
  EXPECT_TRUE(is_exact("<think>2 2</think>4", false, "It is $\\boxed{4}$."));
  EXPECT_FALSE(is_exact("1", false, "1 and 2 more\n#### 4"));
  EXPECT_FALSE(is_exact("4", true, "4"));  // cut within the thoughts
  EXPECT_TRUE(is_exact("2+2</think>4", true, "4"));
  EXPECT_FALSE(is_exact("", false, "4"));
}

TEST(Weights, AreReadByName) {
  const RewardWeights w = parse_reward_weights("exact, format=0.1");
  EXPECT_EQ(w[RewardKind::exact], 1);
  EXPECT_EQ(w[RewardKind::format], 0.1);
  EXPECT_EQ(w[RewardKind::code], 0);
  EXPECT_EQ(to_string(w), "exact=1,format=0.1");
  for (const char* text : {"exakt", "exact=x", "exact=", "exact=nan", "exact=1,exact=2", "exact=1,,format"}) {
    EXPECT_THAT(error_of([&] { parse_reward_weights(text); }), HasSubstr("--reward")) << text;
  }
}

class RewardsTest : public testing::Test {
 protected:
  std::vector<Reward> judge(const RewardOptions& options, std::span<const Completion> completions) {
    ThreadPool pool(2);
    std::vector<Question> questions;
    for (const Completion& c : completions) questions.push_back(*c.question);
    Rewards rewards(options, questions);
    return rewards.judge(pool, completions).value();
  }
  const Question q = question("4");
};

TEST_F(RewardsTest, AddUpByTheirWeights) {
  RewardOptions options;
  options.weights = parse_reward_weights("exact=1,format=0.25");
  const auto r = judge(
      options, std::vector<Completion>{{&q, "<think>a</think>4"}, {&q, "4"}, {&q, "<think>a</think>5"}, {&q, "5"}});
  EXPECT_EQ(r[0].total, 1.25);
  EXPECT_EQ(r[1].total, 1);
  EXPECT_EQ(r[2].total, 0.25);
  EXPECT_EQ(r[3].total, 0);
  EXPECT_EQ(r[2].parts[0], 0);
  EXPECT_EQ(r[2].parts[1], 1);
  EXPECT_EQ(r[2].parts[2], std::nullopt);
}

TEST_F(RewardsTest, LengthIsTakenOffBeyondWhatIsFree) {
  RewardOptions options;
  options.weights = parse_reward_weights("exact");
  options.length_penalty = 0.5;
  options.length_free = 10;
  options.max_tokens = 20;
  const auto r =
      judge(options, std::vector<Completion>{{&q, "4", 10}, {&q, "4", 15}, {&q, "4", 20}, {&q, "4", 3, true}});
  EXPECT_EQ(r[0].total, 1);
  EXPECT_EQ(r[1].total, 0.75);
  EXPECT_EQ(r[2].total, 0.5);
  EXPECT_EQ(r[3].total, 0.5);
  EXPECT_EQ(r[1].length, 0.25);
}

TEST_F(RewardsTest, WhatIsMissingIsToldBeforeAnythingIsJudged) {
  const auto told = [&](const std::string& weights, const Question& of) {
    RewardOptions options;
    options.weights = parse_reward_weights(weights);
    return error_of([&] { Rewards(options, std::span(&of, 1)); });
  };
  Question bare = question("4");
  bare.answer.reset();
  EXPECT_THAT(told("", q), HasSubstr("--reward"));
  EXPECT_THAT(told("command", q), HasSubstr("--reward-command"));
  EXPECT_THAT(told("exact", bare), HasSubstr("\"answer\""));
  EXPECT_EQ(told("format", bare), "");
}

TEST_F(RewardsTest, CodeIsWorthSomethingWhereItPassesItsTests) {
  if (const std::string why = eval::why_no_sandbox(); !why.empty()) GTEST_SKIP() << why;
  Question twice = question("");
  twice.answer.reset();
  twice.tests = std::make_shared<const eval::CodeProblem>(eval::parse_mbpp(
      R"({"task_id": 1, "text": "t", "code": "", "test_list": ["assert f(2) == 4"], "test_setup_code": ""})", "here"));
  Question begun = twice;
  begun.begun_thoughts = true;
  RewardOptions options;
  options.weights = parse_reward_weights("code=2");
  const auto r = judge(
      options,
      std::vector<Completion>{{&twice, "<think>```python\nno\n```</think>\n```python\ndef f(x): return 2 * x\n```"},
                              {&twice, "```python\ndef f(x): return x\n```"},
                              {&twice, ""},
                              {&twice, "<think>```python\ndef f(x): return 2 * x\n```"},
                              {&begun, "```python\ndef f(x): return 2 * x\n```"},
                              {&begun, "so</think>```python\ndef f(x): return 2 * x\n```"}});
  EXPECT_EQ(r[0].total, 2);
  EXPECT_EQ(r[0].why, "passed");
  EXPECT_EQ(r[1].total, 0);
  EXPECT_THAT(r[1].why, HasSubstr("wrong answer"));
  for (const size_t nothing : {2, 3, 4}) {
    EXPECT_EQ(r[nothing].total, 0);
    EXPECT_EQ(r[nothing].why, "wrong answer: no program");
  }
  EXPECT_EQ(r[5].total, 2);
}

RewardRequest request(const std::string& id, const std::string& completion) { return {id, "what?", "4", completion}; }

TEST(Command, IsAskedALineAndAnswersALine) {
  RewardCommand command(
      "python3 -uc '\nimport json, sys\nfor line in sys.stdin:\n  r = json.loads(line)\n"
      "  print(json.dumps({\"reward\": len(r[\"completion\"]) + (r[\"answer\"] == \"4\") + (r[\"question\"] == "
      "\"what?\")}))'",
      10);
  // More than pipes hold, both ways.
  std::vector<RewardRequest> requests;
  std::vector<double> want;
  for (int i = 0; i < 300; ++i) {
    requests.push_back(request(std::to_string(i), std::string(static_cast<size_t>(i * 7), 'x')));
    want.push_back(i * 7 + 2);
  }
  EXPECT_EQ(command.ask(requests), want);
  EXPECT_THAT(command.ask(std::vector{request("again", "é\n\"")}).value(), ElementsAre(5));
  EXPECT_THAT(command.ask({}).value(), ElementsAre());
}

TEST(Command, WhatItDoesWrongIsTold) {
  std::signal(SIGPIPE, SIG_IGN);  // as the program does
  const auto told = [](const std::string& script, double timeout_s = 10) {
    return error_of([&] {
      RewardCommand command(script, timeout_s);
      command.ask(std::vector{request("first", "x"), request("second", "y")});
    });
  };
  const std::string one = "read a; echo '{\"reward\": 1}'; ";
  EXPECT_THAT(told(one + "exit 3"), HasSubstr("exit code 3"));
  EXPECT_THAT(told(one + "kill -9 $$"), HasSubstr("signal 9"));
  EXPECT_THAT(told("exit 0"), HasSubstr("exit code 0"));
  EXPECT_THAT(told("no-such-program-here"), HasSubstr("exit code 127"));
  EXPECT_THAT(told(one + "read b; echo hello"), HasSubstr("replied to second with hello"));
  EXPECT_THAT(told("read a; echo '{\"reward\": 1e999}'; cat >/dev/null"), HasSubstr("replied to first"));
  EXPECT_THAT(told("read a; echo '{\"reward\": \"1\"}'; cat >/dev/null"), HasSubstr("NUMBER"));
  EXPECT_THAT(told("yes '{\"reward\": 1}'"), HasSubstr("more lines than it was asked"));
  EXPECT_THAT(told("read a; head -c 3000000 /dev/zero; cat >/dev/null"), HasSubstr("more than 1 MiB"));
  EXPECT_THAT(told(one + "cat >/dev/null", 0.2), HasSubstr("said nothing about second for 0.2 s"));
}

TEST(Command, ALineThatNothingAskedForIsRefused) {
  std::signal(SIGPIPE, SIG_IGN);
  const std::string one = "echo '{\"reward\": 1}'; ";
  const std::string refusal = "has said more lines than it was asked: {\"reward\": 1}";
  {
    RewardCommand command("read a; printf '{\"reward\": 2}\\n{\"reward\": 1}\\n'; cat >/dev/null",
                          10);  // in one breath
    EXPECT_THAT(error_of([&] { command.ask(std::vector{request("a", "x")}); }), HasSubstr(refusal));
  }
  {
    const test::TemporaryDirectory folder;
    const std::filesystem::path said = folder.path() / "said";
    RewardCommand command("read a; " + one + "sleep 0.05; " + one + ": >'" + said.string() + "'; read b; " + one, 10);
    EXPECT_THAT(command.ask(std::vector{request("a", "x")}).value(), ElementsAre(1));
    while (!std::filesystem::exists(said)) usleep(1000);
    EXPECT_THAT(error_of([&] { command.ask(std::vector{request("b", "x")}); }), HasSubstr(refusal));
  }
  {
    RewardCommand command("read a; " + one + one + "sleep 10", 10);  // the second is not half written by then
    const std::string more_than_a_pipe(1 << 20, 'y');
    EXPECT_THAT(error_of([&] {
                  command.ask(std::vector{request("a", "x"), request("b", more_than_a_pipe)});
                }),
                HasSubstr(refusal));
  }
}

TEST(Command, MayEndOnceAllIsAnswered) {
  RewardCommand command("read a; echo '{\"reward\": 1}'", 10);
  EXPECT_THAT(command.ask(std::vector{request("a", "x")}).value(), ElementsAre(1));
}

TEST(Command, IsNotAskedAgainOnceItHasFailed) {
  RewardCommand command("read a; echo nonsense; cat", 10);
  const std::vector<RewardRequest> one = {request("a", "x")};
  EXPECT_THAT(error_of([&] { command.ask(one); }), HasSubstr("nonsense"));
  EXPECT_THAT(error_of([&] { command.ask(one); }), HasSubstr("failed before"));
}

TEST(Command, CanBeLeft) {
  RewardCommand command("cat >/dev/null", 1000);
  int asked = 0;
  EXPECT_EQ(command.ask(std::vector{request("a", "x")}, [&] { return ++asked == 3; }), std::nullopt);
}

}  // namespace
}  // namespace fathom::tune
