// Prompts are those that benchmarks are asked with, answers are found where models put them, and files that are damaged
// are refused by name and line.
#include "eval/tasks.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "eval/fewshot_sampler.h"
#include "eval/task_files.h"
#include "refusal.h"
#include "temporary_directory.h"

namespace fathom::eval {
namespace {

using test::TemporaryDirectory;

TEST(FewshotSampler, DrawsWhatPythonDraws) {
  // random.Random(1234).sample(range(n), k), one behind the other
  FewshotSampler sampler(1234);
  EXPECT_EQ(sampler.sample(7473, 5), (std::vector<size_t>{6374, 3610, 957, 61, 742}));
  EXPECT_EQ(sampler.sample(7473, 5), (std::vector<size_t>{7462, 6610, 4769, 286, 5501}));
  EXPECT_EQ(sampler.sample(10, 3), (std::vector<size_t>{1, 9, 5}));
  EXPECT_EQ(sampler.sample(294, 25), (std::vector<size_t>{121, 8,  15,  177, 247, 237, 76,  46, 93,  58,  7,  257, 249,
                                                          127, 33, 277, 238, 35,  45,  263, 23, 138, 284, 32, 154}));
}

TEST(Csv, QuotedFieldsHoldCommasQuotesAndLineEnds) {
  const auto rows = parse_csv("a,\"b, \"\"c\"\"\",\"d\ne\"\r\n\n,,\nlast,1,", "x");
  const std::vector<std::vector<std::string>> wanted{{"a", "b, \"c\"", "d\ne"}, {"", "", ""}, {"last", "1", ""}};
  EXPECT_EQ(rows, wanted);
}

TEST(Csv, BrokenQuotesAreRefusedByLine) {
  EXPECT_EQ(refusal([] { parse_csv("a\n\"b\nc", "x.csv"); }), "x.csv: line 2: a quote does not close");
  EXPECT_EQ(refusal([] { parse_csv("\"a\"b", "x.csv"); }), "x.csv: line 1: there is text behind a closing quote");
}

struct Files {
  TemporaryDirectory folder;
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((folder.path() / name).parent_path());
    return folder.write(name, text);
  }
  std::vector<Item> read(const char* task, int64_t shots, std::optional<int64_t> limit = {}) const {
    return find_task(task).read({.data = folder.path(), .shots = shots, .limit = limit});
  }
};

TEST(Mmlu, BothFormsOfItsFilesGiveTheSamePrompts) {
  const Files with_header, without;
  with_header.write("dev/high_school_physics_dev.csv",
                    "question,choice0,choice1,choice2,choice3,answer\nQ1 ,a,b,c,d,1\n");
  with_header.write("test/high_school_physics_test.csv",
                    "question,choice0,choice1,choice2,choice3,answer\nQ2?,1,2,3,4,3\n");
  without.write("mmlu/dev/high_school_physics_dev.csv", "Q1 ,a,b,c,d,B\n");
  without.write("mmlu/test/high_school_physics_test.csv", "Q2?,1,2,3,4,D\n");
  const auto a = with_header.read("mmlu", 1), b = without.read("mmlu", 1);
  ASSERT_EQ(a.size(), 1U);
  ASSERT_EQ(b.size(), 1U);
  EXPECT_EQ(a[0].prompt,
            "The following are multiple choice questions (with answers) about high school physics.\n\n"
            "Q1\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\nQ2?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:");
  EXPECT_EQ(a[0].prompt, b[0].prompt);
  EXPECT_EQ(a[0].gold, 3);
  EXPECT_EQ(a[0].choices, (std::vector<std::string>{" A", " B", " C", " D"}));
}

TEST(Mmlu, RowsThatAreNoQuestionAreRefused) {
  const Files files;
  files.write("a_test.csv", "question,choice0,choice1,choice2,choice3,answer\nq,1,2,3,4,7\n");
  EXPECT_NE(refusal([&] { files.read("mmlu", 0); }).find("row 2: has no answer"), std::string::npos);
  files.write("a_test.csv", "q,1,2,3\n");
  EXPECT_NE(refusal([&] { files.read("mmlu", 0); }).find("row 1: has 4 fields"), std::string::npos);
  files.write("a_test.csv", "q,1,2,3,4,A\n");
  files.write("a_dev.csv", "q,1,2,3,4,A\n");
  EXPECT_NE(refusal([&] { files.read("mmlu", 2); }).find("fewer than --shots 2"), std::string::npos);
  files.write("a_test.csv", "q\xff,1,2,3,4,A\n");
  EXPECT_NE(refusal([&] { files.read("mmlu", 0); }).find("byte 1 is no UTF-8"), std::string::npos);
}

TEST(Mmlu, TheLetterIsFoundWhereModelsWriteIt) {
  Item item;
  item.expected = "C";
  const auto letter = [&](const char* answer) { return judge_letter(item, answer, true).extracted; };
  for (const char* right : {" C",
                            "C",
                            "C.",
                            "C) because",
                            "Let me think. A is wrong.\n\nAnswer: C",
                            "**Answer:** C",
                            "The answer is (C).",
                            "so \\boxed{C}",
                            "$\\boxed{\\text{C}}$",
                            "Answer: $C$",
                            "answer: **C**",
                            "**Answer**: C",
                            "Answer : C",
                            "ANSWER: c",
                            "Answer:\nC",
                            "(C)",
                            "**C**",
                            "**(C)** It is.",
                            "Answer：C",
                            "Answer: Option C",
                            "Answer: (c)",
                            "The correct option is C",
                            "A is wrong.\nThe correct answer is **C**."}) {
    EXPECT_EQ(letter(right), "C") << right;
  }
  for (const char* none : {"", "Cats are animals", "I do not know", "answer: Canada", "A cat is no option",
                           "Answer: a cat", "the answer is a number"})
    EXPECT_EQ(letter(none), "") << none;
  EXPECT_EQ(letter("Answer: A\nNo, wait.\nAnswer: B"), "B");
}

TEST(Arc, ThreeToFiveChoicesAndTheRightOneByItsLabel) {
  const Files files;
  const auto line = [](const char* key) {
    return std::string(
               R"({"id":"x","question":{"stem":"Which?","choices":[{"text":"one","label":"1"},{"text":"two",)") +
           R"("label":"2"},{"text":"three","label":"3"}]},"answerKey":")" + key + "\"}\n";
  };
  files.write("ARC-Challenge-Test.jsonl", line("2"));
  const auto items = files.read("arc", 0);
  EXPECT_EQ(items[0].prompt, "Question: Which?\nAnswer:");
  EXPECT_EQ(items[0].choices, (std::vector<std::string>{" one", " two", " three"}));
  EXPECT_EQ(items[0].gold, 1);
  EXPECT_NE(refusal([&] { files.read("arc", 1); }).find("there must be an ARC-Challenge-Train.jsonl"),
            std::string::npos);
  files.write("ARC-Challenge-Dev.jsonl", line("3"));
  EXPECT_EQ(files.read("arc", 1)[0].prompt, "Question: Which?\nAnswer: three\n\nQuestion: Which?\nAnswer:");
  files.write("ARC-Challenge-Test.jsonl", line("2") + line("4"));
  EXPECT_NE(refusal([&] { files.read("arc", 0); }).find("line 2: none of the choices is the answer 4"),
            std::string::npos);
}

TEST(Hellaswag, MarksOfItsSourceAreTakenOut) {
  const Files files;
  files.write("hellaswag_val.jsonl",
              R"({"ind":4,"activity_label":"Tea","ctx_a":"A pot. [header] Tea [title] Boil.","ctx_b":"the WATER",)"
              R"("endings":[" is  hot [substeps] now","no"],"label":1})"
              "\n");
  const auto items = files.read("hellaswag", 0);
  EXPECT_EQ(items[0].prompt, "Tea: A pot. Tea. Boil. The water");
  EXPECT_EQ(items[0].choices, (std::vector<std::string>{" is hot now", " no"}));
  EXPECT_EQ(items[0].gold, 1);
  files.write("hellaswag_val.jsonl", R"({"activity_label":"T","ctx_a":"a","ctx_b":"b","endings":["x"],"label":""})");
  EXPECT_NE(refusal([&] { files.read("hellaswag", 0); }).find("line 1: the label must be"), std::string::npos);
}

TEST(Choices, LikeliestAndLikeliestPerCharacter) {
  Item item;
  item.choices = {" no", " certainly not"};
  item.gold = 1;
  const double logprobs[] = {-4, -9};
  const Judgement j = judge_choices(item, logprobs, true);
  EXPECT_EQ(j.scores, (std::vector<std::pair<std::string, double>>{{"acc", 0}, {"acc_norm", 1}}));
  EXPECT_EQ(j.extracted, "no");
  item.choices = {" \xC3\xA9\xC3\xA9", " abc"};  // two characters, four bytes
  const double close[] = {-2.2, -3};
  EXPECT_EQ(judge_choices(item, close, true).scores[1].second, 1);
}

TEST(Gsm8k, AnswersAreTakenAsTheHarnessTakesThem) {
  Item item;
  item.expected = "She has 1,200 - 2 = <<1200-2=1198>>1198 left.\n#### 1,198";
  const auto scores = [&](const char* answer) {
    const Judgement j = judge_gsm8k(item, answer, false);
    return std::pair(j.scores[0].second, j.scores[1].second);  // strict, flexible
  };
  using Pair = std::pair<double, double>;
  EXPECT_EQ(scores(" so\n#### 1198"), Pair(1, 1));
  EXPECT_EQ(scores("#### 1,198."), Pair(1, 1));
  EXPECT_EQ(scores("The answer is $1,198"), Pair(0, 1));
  EXPECT_EQ(scores("#### 5\n\nand 1198"), Pair(0, 1));
  EXPECT_EQ(scores("####1198"), Pair(0, 1));  // the harness wants the space
  EXPECT_EQ(scores("#### 1198 then 7"), Pair(1, 0));
  EXPECT_EQ(scores("none"), Pair(0, 0));
  EXPECT_EQ(scores("-1198"), Pair(0, 0));
}

TEST(Questions, AnswersMayBeWholeSolutions) {
  const Files files;
  files.write(
      "questions.jsonl",
      "{\"question\": \"1+1\", \"answer\": 2}\n{\"prompt\": \"half\", \"answer\": \"So $\\\\boxed{\\\\frac12}$ it "
      "is.\", \"id\": \"b\", \"subject\": \"s\"}\n{\"question\": \"where\", \"answer\": \"Chapter 3\"}\n");
  const std::vector<Item> items = read_questions({.data = files.folder.path()});
  ASSERT_EQ(items.size(), 3);
  EXPECT_EQ(items[0].expected, "2");
  EXPECT_EQ(items[1].expected, "\\frac12");
  EXPECT_EQ(items[1].id + items[1].subject + items[1].prompt, "bshalf");
  EXPECT_EQ(items[2].expected, "Chapter 3");
  EXPECT_EQ(judge_math(items[1], "thus 0.5", true).scores[0].second, 1);
  EXPECT_EQ(judge_math(items[2], "Chapter 4", true).scores[0].second, 0);
  const auto path = files.write("other.jsonl", "{\"question\": \"1+1\"}");
  EXPECT_NE(refusal([&] { read_questions({.data = path}); }).find("line 1: there is no answer"), std::string::npos);
  const auto twice = files.write("twice.jsonl", R"({"id": "a", "question": "1+1", "answer": "2"}
{"id": "b", "question": "1+2", "answer": "3"}
{"id": "a", "question": "1+3", "answer": "4"}
)");
  EXPECT_NE(refusal([&] { read_questions({.data = twice}); }).find("line 3: the id a is that of line 1 too"),
            std::string::npos);
}

TEST(Gsm8k, AConversationsAnswerIsTheOneThatItNames) {
  Item item;
  item.expected = "She has <<40+2=42>>42 left.\n#### 42";
  for (const char* right : {"\\boxed{42}. Hope that helps with all 3 parts!", "#### 42\n\nNote: 7 days",
                            "\\boxed{\\frac{84}{2}}", "It is 42.0", "So $42.00.", "\\boxed{42\\text{ apples}}"}) {
    const Judgement j = judge_gsm8k(item, right, true);
    EXPECT_EQ(j.scores[0], (std::pair<std::string, double>{"correct", 1})) << right;
  }
  EXPECT_EQ(judge_gsm8k(item, "42 and then \\boxed{43}", true).scores[0].second, 0);
  // Outside a conversation the harness's two measures alone.
  const Judgement plain = judge_gsm8k(item, "\\boxed{42} of 3", false);
  EXPECT_EQ(plain.scores, (std::vector<std::pair<std::string, double>>{{"strict", 0}, {"flexible", 0}}));
}

TEST(Judges, AnyTextIsTaken) {
  // Pieces that judges look for, and bytes, in any order.
  constexpr std::string_view kPieces[] = {"Answer:", "answer is", "\\boxed{", "\\text{", "}",    "####",    "#### ",
                                          "-",       "$",         "12",       ".",       ",",    "A",       "B",
                                          "(",       "\"",        " ",        "\n",      "\xff", "\xe2\x82"};
  Rng rng(3);
  Item item;
  item.expected = "#### 12";
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (uint64_t n = rng.below(12); n > 0; --n) text += kPieces[rng.below(std::size(kPieces))];
    for (const bool chats : {false, true}) {
      const Judgement letter = judge_letter(item, text, chats), number = judge_gsm8k(item, text, chats);
      EXPECT_LE(letter.extracted.size(), 1U) << text;
      EXPECT_EQ(letter.scores.size() + number.scores.size(), chats ? 5U : 4U);
    }
    const std::string said = refusal([&] { parse_csv(text, "x"); });
    EXPECT_TRUE(said == "(accepted)" || said.starts_with("x: line ")) << said;
  }
}

TEST(Tasks, NamesAreToldWhereOneIsWrong) {
  const std::string said = refusal([] { find_task("mmmlu"); });
  for (const Task& task : all_tasks()) EXPECT_NE(said.find(task.name), std::string::npos) << task.name;
}

TEST(Tasks, AFileThatIsMissingIsNamed) {
  const Files files;
  for (const Task& task : all_tasks()) {
    const std::string said = refusal([&] { task.read({.data = files.folder.path()}); });
    EXPECT_NE(said.find("there is n"), std::string::npos) << task.name << ": " << said;
    EXPECT_NE(said.find("--data"), std::string::npos) << task.name << ": " << said;
  }
}

TEST(TaskFiles, LinesThatAreNoObjectsAreRefused) {
  const Files files;
  const auto said = [&](const std::string& text) {
    const auto path = files.write("x.jsonl", text);
    return refusal([&] { for_each_object(path, [](simdjson::dom::element, const std::string&) {}); });
  };
  EXPECT_EQ(said("{}\n\n{\"a\": [1]}\n"), "(accepted)");
  EXPECT_EQ(said("[{}, {}]"), "(accepted)");
  EXPECT_NE(said("{}\n3\n").find("x.jsonl: line 2: is no object"), std::string::npos);
  EXPECT_NE(said("{}\n{\"a\": \n").find("x.jsonl: line 2"), std::string::npos);
  EXPECT_NE(said("[{}, 4]").find("element 1: is no object"), std::string::npos);
  EXPECT_NE(said("{\"a\":" + std::string(5000, '[')).find("x.jsonl: line 1"), std::string::npos);
}

}  // namespace
}  // namespace fathom::eval
