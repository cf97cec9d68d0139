// What becomes of a teacher's answers: which are kept, and what an interrupted run goes on from.
#include "tune/traces.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "refusal.h"
#include "temporary_directory.h"
#include "tune/conversation.h"
#include "tune/trace_journal.h"

namespace fathom::tune {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

eval::Answer answered(const std::string& text, int64_t tokens = 3, const std::string& reasoning = "") {
  return {.text = text, .reasoning = reasoning, .finish = "stop", .prompt_tokens = 2, .tokens = tokens};
}

class Traces : public testing::Test {
 protected:
  void SetUp() override {
    const fs::path file = folder_.write("questions.jsonl",
                                        "{\"id\": \"a\", \"question\": \"1+1?\", \"answer\": 2}\n"
                                        "{\"id\": \"b\", \"question\": \"2+2?\", \"answer\": \"#### 4\"}\n"
                                        "{\"id\": \"c\", \"question\": \"Who?\"}\n");
    questions_ = read_asked_questions(std::vector{file});
    options_.out = folder_.path() / "traces.jsonl";
    options_.samples = 4;
    options_.teacher = "t";
  }
  // A journal that has all answers, so that nobody is asked.
  void fill() {
    // Made by asking a server that is not there for nothing: only its first line.
    const fs::path journal = folder_.path() / "traces.jsonl.answers";
    (void)refusal([&] { make(); });
    const std::string content = read_file(journal, 1 << 20);
    TraceJournal filled(journal, content.substr(0, content.find('\n')), 3, 4);
    filled.add({0, 0}, answered("\\boxed{3}"));
    filled.add({0, 1}, answered("It is \\boxed{2}.", 9, "one and one"));
    filled.add({0, 2}, answered("\\boxed{2}", 4));
    filled.add({0, 3}, answered("\\boxed{2}", 4));
    filled.add({1, 0}, {.text = "\\boxed{4", .finish = "length", .tokens = 5});
    filled.add({1, 1}, {.text = "", .error = "too long"});
    filled.add({1, 2}, answered("The answer is 4.0", 7));
    filled.add({1, 3}, answered("five"));
    for (int64_t s = 0; s < 4; ++s) filled.add({2, s}, answered(std::string(1, static_cast<char>('a' + s))));
  }
  TraceCounts make() {
    eval::Answerer nobody =
        eval::RemoteModel{.url = serve::parse_http_url("http://127.0.0.1:9"), .name = "t", .retries = 0};
    return *make_traces(questions_, nobody, options_, verify_trace, {});
  }
  // What the traces say, a line each.
  std::vector<std::string> said(KeepTraces keep, int64_t most = 0) {
    options_.keep = keep;
    options_.max_per_question = most;
    counts_ = make();
    std::vector<std::string> lines;
    const std::string content = read_file(options_.out, 1 << 20);
    for (std::string_view left = content; !left.empty(); left.remove_prefix(left.find('\n') + 1)) {
      const TrainingConversation c = parse_conversation(left.substr(0, left.find('\n')), "line");
      const auto& last = c.messages.back();
      EXPECT_EQ(last["role"], "assistant");
      EXPECT_TRUE(c.trained.back());
      const bool thinks = last.contains("reasoning_content");
      EXPECT_EQ(c.thinking, thinks ? std::optional(true) : std::nullopt);
      lines.push_back(c.messages[0]["content"].get<std::string>() + " " +
                      (thinks ? last["reasoning_content"].get<std::string>() + " | " : "") +
                      last["content"].get<std::string>());
    }
    return lines;
  }

  test::TemporaryDirectory folder_;
  std::vector<AskedQuestion> questions_;
  TraceOptions options_;
  TraceCounts counts_;
};

TEST_F(Traces, WhatIsKeptFollowsFromTheAnswersAlone) {
  fill();
  EXPECT_THAT(said(KeepTraces::verified),
              ElementsAre("1+1? one and one | It is \\boxed{2}.", "1+1? \\boxed{2}", "2+2? The answer is 4.0"));
  EXPECT_EQ(counts_.questions, 3);
  EXPECT_EQ(counts_.asked, 12);
  EXPECT_EQ(counts_.refused, 1);
  EXPECT_EQ(counts_.cut, 1);
  EXPECT_EQ(counts_.answered, 10);
  EXPECT_EQ(counts_.right, 4);
  EXPECT_EQ(counts_.wrong, 2);
  EXPECT_EQ(counts_.unknown, 4);
  EXPECT_EQ(counts_.twice, 1);
  EXPECT_EQ(counts_.kept, 3);
  EXPECT_EQ(counts_.kept_questions, 2);
  EXPECT_EQ(counts_.kept_tokens, 9 + 4 + 7);
  EXPECT_THAT(said(KeepTraces::verified, 1),
              ElementsAre("1+1? one and one | It is \\boxed{2}.", "2+2? The answer is 4.0"));
  EXPECT_THAT(said(KeepTraces::shortest), ElementsAre("1+1? \\boxed{2}", "2+2? The answer is 4.0"));
  EXPECT_THAT(said(KeepTraces::first_verified),
              ElementsAre("1+1? one and one | It is \\boxed{2}.", "2+2? The answer is 4.0"));
  EXPECT_THAT(said(KeepTraces::all),
              ElementsAre("1+1? \\boxed{3}", "1+1? one and one | It is \\boxed{2}.", "1+1? \\boxed{2}",
                          "2+2? The answer is 4.0", "2+2? five", "Who? a", "Who? b", "Who? c", "Who? d"));
  EXPECT_THAT(said(KeepTraces::all, 1), ElementsAre("1+1? \\boxed{3}", "2+2? The answer is 4.0", "Who? a"));
}

TEST_F(Traces, AnAnswerThatEndsInItsThoughtsWasCut) {
  options_.samples = 1;
  const fs::path journal = folder_.path() / "traces.jsonl.answers";
  (void)refusal([&] { make(); });
  {
    const std::string content = read_file(journal, 1 << 20);
    TraceJournal filled(journal, content.substr(0, content.find('\n')), 3, 1);
    filled.add({0, 0}, answered("<think>It is \\boxed{2}, but wait"));
    filled.add({1, 0}, answered("\\boxed{4}"));
    filled.add({2, 0}, answered("\n<think>him"));
  }
  EXPECT_THAT(said(KeepTraces::all), ElementsAre("2+2? \\boxed{4}"));
  EXPECT_EQ(counts_.cut, 2);
}

TEST_F(Traces, VerdictsOfCodeAreThoseOfOneTimeLimit) {
  const fs::path file =
      folder_.write("code.jsonl", R"({"question": "f", "tests": {"task_id": 1, "text": "t", "code": "", )"
                                  R"("test_list": ["assert f(2) == 4"], "test_setup_code": ""}})"
                                  "\n");
  questions_ = read_asked_questions(std::vector{file});
  EXPECT_THAT(refusal([&] { make(); }), testing::Not(HasSubstr("holds answers")));
  options_.limits = eval::limits_of_time(60);
  EXPECT_THAT(refusal([&] { make(); }),
              HasSubstr("holds answers to other questions, of another teacher or with other"));
}

TEST_F(Traces, ALineThatWasCutOffIsAskedAgainAndOtherSettingsAreRefused) {
  fill();
  const fs::path journal = folder_.path() / "traces.jsonl.answers";
  const std::string whole = read_file(journal, 1 << 20);
  const std::string settings = whole.substr(0, whole.find('\n'));
  write_file_atomically(journal, whole.substr(0, whole.size() - 5));
  {
    TraceJournal again(journal, settings, 3, 4);
    EXPECT_EQ(again.answers().size(), 11u);
    EXPECT_FALSE(again.has({2, 3}));
    EXPECT_THAT(refusal([&] { TraceJournal(journal, settings, 3, 4); }), HasSubstr("another process"));
    again.add({2, 3}, answered("d"));
  }
  EXPECT_EQ(read_file(journal, 1 << 20), whole);
  options_.temperature = 1;
  EXPECT_THAT(refusal([&] { make(); }), HasSubstr("holds answers to other questions"));
  options_.temperature = 0.6;
  fs::remove(journal);
  folder_.write("traces.jsonl", "mine\n");
  EXPECT_THAT(refusal([&] { make(); }), HasSubstr("was not made here"));
}

TEST_F(Traces, AJournalThatSaysWhatItMayNotIsRefused) {
  fill();
  const fs::path journal = folder_.path() / "traces.jsonl.answers";
  const std::string whole = read_file(journal, 1 << 20);
  const auto with = [&](const std::string& line) {
    write_file_atomically(journal, whole + line + "\n");
    return refusal([&] { TraceJournal(journal, whole.substr(0, whole.find('\n')), 3, 4); });
  };
  EXPECT_THAT(with("{}"), HasSubstr("question is missing or wrong"));
  EXPECT_THAT(with("{\"question\": 3, \"sample\": 0}"), HasSubstr("question 3, sample 0, of 3 and 4"));
  EXPECT_THAT(with("{\"question\": -1, \"sample\": 0}"), HasSubstr("question is missing or wrong"));
  EXPECT_THAT(with("{\"question\": 0, \"sample\": 0, \"text\": 1}"), HasSubstr("text is missing or wrong"));
  EXPECT_THAT(with("not JSON"), HasSubstr("line 14"));
  EXPECT_EQ(with("{\"question\": 0, \"sample\": 0, \"right\": false, \"why\": \"\"}"), "(accepted)");
}

TEST_F(Traces, NothingIsRightWhereNothingSaysWhatIs) {
  questions_.erase(questions_.begin(), questions_.begin() + 2);
  EXPECT_THAT(refusal([&] { make(); }), HasSubstr("told from wrong ones"));
  questions_[0].messages.push_back({{"role", "assistant"}, {"content", "I"}});
  options_.keep = KeepTraces::all;
  EXPECT_THAT(refusal([&] { make(); }), HasSubstr("the last of \"messages\" must be the user's"));
}

TEST_F(Traces, WhereNoneIsRightTheAnswersStay) {
  fill();
  questions_[0].answer = questions_[1].answer = "17";
  const fs::path journal = folder_.path() / "traces.jsonl.answers";
  std::string content = read_file(journal, 1 << 20);
  fs::remove(journal);
  (void)refusal([&] { make(); });
  const std::string settings = read_file(journal, 1 << 20);
  write_file_atomically(journal, settings + content.substr(content.find('\n') + 1));
  EXPECT_THAT(refusal([&] { make(); }), HasSubstr("6 are wrong"));
  EXPECT_FALSE(fs::exists(options_.out));
  EXPECT_GT(fs::file_size(journal), content.size());  // the verdicts too
}

}  // namespace
}  // namespace fathom::tune
