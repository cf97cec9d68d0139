// A run goes on behind a kill, and what it has answered is counted as it should be.
#include "eval/results.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "eval/report.h"
#include "refusal.h"
#include "temporary_directory.h"

namespace fathom::eval {
namespace {

using nlohmann::ordered_json;
using test::TemporaryDirectory;

Record record(int64_t item, int64_t sample, double score, std::string extracted = "") {
  return {.item = item,
          .sample = sample,
          .id = fmt::format("t/{}", item),
          .subject = item % 2 == 0 ? "even" : "odd",
          .scores = {{"correct", score}},
          .extracted = std::move(extracted),
          .prompt_tokens = 10,
          .tokens = 3,
          .seconds = 0.5};
}

std::string content(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST(Records, ATornLastLineIsDroppedAndTheNextTakesItsPlace) {
  const TemporaryDirectory folder;
  const auto path = folder.path() / "t.jsonl";
  {
    RecordFile file(path);
    for (int64_t i = 0; i < 3; ++i) file.append(record_json(record(i, 0, 1), {{"answer", "a\nb"}}));
  }
  const std::string whole = content(path);
  const size_t second = whole.find('\n', whole.find('\n') + 1) + 1;
  for (const size_t length : {second, second + 1, second + 40, whole.size() - 1}) {
    folder.write("t.jsonl", whole.substr(0, length));
    EXPECT_EQ(read_records(path).size(), 2U) << length;
    RecordFile(path).append(record_json(record(2, 0, 1), {{"answer", "a\nb"}}));
    EXPECT_EQ(content(path), whole) << length;
  }
  EXPECT_EQ(read_records(path).size(), 3U);
  EXPECT_TRUE(read_records(folder.path() / "none.jsonl").empty());
}

TEST(Records, ComeBackAsTheyWere) {
  const TemporaryDirectory folder;
  const auto path = folder.path() / "t.jsonl";
  Record r = record(3, 1, 0.25, "\\frac{1}{2}");
  r.error = "too long";
  r.finish = "length";
  r.truncated = true;
  RecordFile(path).append(record_json(r, ordered_json::object()));
  const std::vector<Record> read = read_records(path);
  ASSERT_EQ(read.size(), 1U);
  EXPECT_EQ(record_json(read[0], {}).dump(), record_json(r, {}).dump());
}

TEST(Records, ADamagedLineIsRefusedByNumber) {
  const TemporaryDirectory folder;
  const auto path = folder.path() / "t.jsonl";
  const std::string good = record_json(record(0, 0, 1), {}).dump() + "\n";
  for (const std::string& bad : {std::string("{\"item\":\n"), std::string("3\n"),
                                 std::string("{\"item\":-1,\"sample\":0,\"id\":\"x\",\"scores\":{}}\n"),
                                 std::string("{\"item\":0,\"sample\":0,\"id\":\"x\"}\n"),
                                 std::string("{\"item\":0,\"sample\":0,\"id\":\"x\",\"scores\":{\"a\":\"b\"}}\n")}) {
    folder.write("t.jsonl", good + bad + good);
    EXPECT_NE(refusal([&] { read_records(path); }).find("t.jsonl: line 2"), std::string::npos) << bad;
  }
}

TEST(Results, ItemsThatAllScoreTheSameHaveWilsonsInterval) {
  for (const double score : {0.0, 1.0}) {
    std::vector<Record> records;
    for (int64_t i = 0; i < 60; ++i) {
      for (int64_t sample = 0; sample < 4; ++sample) records.push_back(record(i, sample, score, "5"));
    }
    const TaskResult r = task_result(find_task("math"), records, 60, 4, {}, 0, {});
    EXPECT_EQ(r.measures[0].value, score);
    EXPECT_NEAR(r.measures[0].high - r.measures[0].low, 0.0602, 1e-4);  // z^2 / (n + z^2)
  }
}

TEST(Results, OneAnswerEachIsAShareWithWilsonsInterval) {
  std::vector<Record> records;
  for (int64_t i = 0; i < 20; ++i) records.push_back(record(i, 0, i < 5 ? 1 : 0));
  records.push_back(record(3, 0, 0));  // an item counts once, by its first record
  const TaskResult r = task_result(find_task("math"), records, 25, 1, {}, 0, {});
  ASSERT_EQ(r.measures.size(), 1U);
  EXPECT_EQ(r.measures[0].value, 0.25);
  EXPECT_NEAR(r.measures[0].low, 0.1119, 1e-4);
  EXPECT_NEAR(r.measures[0].high, 0.4687, 1e-4);
  EXPECT_EQ(r.answered, 20);
  EXPECT_EQ(r.items, 25);
  ASSERT_EQ(r.subjects.size(), 2U);
  EXPECT_EQ(r.subjects[0].name, "even");
  EXPECT_EQ(r.subjects[0].value, 0.3);
  EXPECT_EQ(r.tokens, 60);
}

TEST(Results, SeveralSamplesGiveMeansAndTheMajority) {
  // Item 0: two of three right, and most say so. Item 1: one of three right, most are wrong. Item 2 has not all yet.
  const std::vector<Record> records{record(0, 0, 1, "1/2"), record(0, 1, 0, "3"), record(0, 2, 1, "0.5"),
                                    record(1, 0, 0, "7"),   record(1, 1, 1, "8"), record(1, 2, 0, "7"),
                                    record(2, 0, 1, "1")};
  const TaskResult r = task_result(find_task("math"), records, 3, 3, {}, 0, {});
  ASSERT_EQ(r.measures.size(), 2U);
  EXPECT_DOUBLE_EQ(r.measures[0].value, 0.5);
  EXPECT_EQ(r.measures[1].name, "maj@3");
  EXPECT_DOUBLE_EQ(r.measures[1].value, 0.5);
  EXPECT_EQ(r.answered, 2);
}

TEST(Results, ProgramsArePassAtK) {
  const std::vector<Record> records{record(0, 0, 1), record(0, 1, 0), record(0, 2, 0), record(0, 3, 0),
                                    record(1, 0, 0), record(1, 1, 0), record(1, 2, 0), record(1, 3, 0)};
  const int64_t ks[] = {1, 2, 4};
  const TaskResult r = task_result(find_task("humaneval"), records, 2, 4, ks, 0, {});
  ASSERT_EQ(r.measures.size(), 3U);
  EXPECT_EQ(r.measures[1].name, "pass@2");
  EXPECT_DOUBLE_EQ(r.measures[0].value, 0.125);
  EXPECT_DOUBLE_EQ(r.measures[1].value, 0.25);
  EXPECT_DOUBLE_EQ(r.measures[2].value, 0.5);
}

TEST(Results, ATextHasThePerplexityOfAllItsTokens) {
  std::vector<Record> records;
  for (int64_t i = 0; i < 2; ++i) {
    Record window = record(i, 0, 0);
    window.tokens = i == 0 ? 30 : 10;
    window.scores = {{"logprob", i == 0 ? -60.0 : -10.0}};
    records.push_back(window);
  }
  const TaskResult r = task_result(find_task("ppl"), records, 2, 1, {}, 80, {});
  EXPECT_NEAR(r.measures[0].value, std::exp(1.75), 1e-12);
  EXPECT_NEAR(r.measures[1].value, 70 / std::log(2) / 80, 1e-12);
}

TEST(Results, ComeBackFromTheirFile) {
  std::vector<Record> records;
  for (int64_t i = 0; i < 6; ++i) records.push_back(record(i, 0, i % 3 == 0 ? 1 : 0));
  Report report{
      {{"model", "a<b>|c"}}, "fathom 0", {task_result(find_task("math"), records, 6, 1, {}, 0, {{"shots", 4}})}};
  const TemporaryDirectory folder;
  const auto path = folder.write("results.json", report_json(report).dump());
  const Report again = read_report(path);
  EXPECT_EQ(report_json(again).dump(), report_json(report).dump());
  // Both pages have the figure, its interval and what was published, and names stay text.
  const std::string html = html_report(report), markdown = markdown_report(report);
  for (const std::string& page : {html, markdown}) {
    EXPECT_NE(page.find("33.3 %"), std::string::npos);
    EXPECT_NE(page.find("9.7 to 70.0 %"), std::string::npos);
    EXPECT_NE(page.find("DeepSeek-V3-Base"), std::string::npos);
    EXPECT_NE(page.find("61.6 %"), std::string::npos);
    EXPECT_EQ(page.find("a<b>"), std::string::npos);
  }
  folder.write("results.json", R"({"model":{},"version":"x","results":[{"task":"math"}]})");
  EXPECT_NE(refusal([&] { read_report(path); }).find("results.json"), std::string::npos);
}

TEST(Compare, OnlyItemsOfBothCountAndWhatDiffersIsJudged) {
  std::vector<Record> a, b;
  for (int64_t i = 0; i < 12; ++i) {
    a.push_back(record(i, 0, i < 6 ? 1 : 0));
    if (i > 0) b.push_back(record(i, 0, i < 11 ? 1 : 0));
  }
  b.push_back(record(50, 0, 1));
  const auto all = compare_records("math", a, b);
  ASSERT_EQ(all.size(), 1U);
  const Comparison& c = all[0];
  EXPECT_EQ(c.n, 11);
  EXPECT_EQ(c.both, 5);
  EXPECT_EQ(c.only_a, 0);
  EXPECT_EQ(c.only_b, 5);
  EXPECT_EQ(c.neither, 1);
  EXPECT_NEAR(c.p, 2 * std::pow(0.5, 5), 1e-12);  // McNemar's exact test of 0 against 5
  EXPECT_NEAR(c.difference, 5.0 / 11, 1e-12);
  EXPECT_LT(c.low, c.difference);
  EXPECT_GT(c.high, c.difference);
  EXPECT_NEAR(compare_records("math", a, a)[0].p, 1, 1e-12);
  EXPECT_EQ(compare_records("math", a, a)[0].difference, 0);
}

}  // namespace
}  // namespace fathom::eval
