#include "tune/questions.h"

#include <gmock/gmock.h>

#include "base/error.h"
#include "temporary_directory.h"

namespace fathom::tune {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Questions : public testing::Test {
 protected:
  std::vector<Question> read(const std::string& content, const QuestionOptions& options = {}, int64_t longest = 1000) {
    const std::vector<std::filesystem::path> files = {folder_.write("q.jsonl", content)};
    return read_questions(files, tokenizer_, options, longest);
  }
  std::string error(const std::string& content, const QuestionOptions& options = {}, int64_t longest = 1000) {
    try {
      read(content, options, longest);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  test::TemporaryDirectory folder_;
  Tokenizer tokenizer_ = Tokenizer::bytes();
};

TEST_F(Questions, HaveTextAnswerTestsAndId) {
  const auto q = read(
      "{\"question\": \"1+1=\", \"answer\": 2, \"id\": \"a\"}\n\n"
      "{\"prompt\": \"say x\", \"answer\": \"x\", \"more\": [1]}\n"
      "{\"question\": \"code\", \"tests\": {\"task_id\": 1, \"text\": \"t\", \"code\": \"\", \"test_list\": [\"assert "
      "f(1) == 2\"]}, \"id\": 7}\n");
  ASSERT_EQ(q.size(), 3u);
  EXPECT_EQ(q[0].id, "a");
  EXPECT_EQ(q[0].text, "1+1=");
  EXPECT_EQ(q[0].answer, "2");
  EXPECT_THAT(q[0].prompt, ElementsAre('1', '+', '1', '='));
  EXPECT_THAT(q[1].id, HasSubstr("q.jsonl:3"));
  EXPECT_EQ(q[2].answer, std::nullopt);
  EXPECT_EQ(q[2].id, "7");
  EXPECT_EQ(q[0].tests, nullptr);
  ASSERT_NE(q[2].tests, nullptr);
  EXPECT_THAT(q[2].tests->test_code, HasSubstr("assert f(1) == 2"));
}

TEST_F(Questions, GoThroughTheTemplate) {
  QuestionOptions options;
  options.chat_template =
      "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if thinking %}<think>\n{% endif %}";
  options.system = "be brief";
  options.kwargs = {{"thinking", true}};
  const auto q = read(
      "{\"question\": \"hi\"}\n"
      "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"u\"}]}\n",
      options);
  EXPECT_EQ(tokenizer_.decode(q[0].prompt), "[system]be brief[user]hi<think>\n");
  EXPECT_TRUE(q[0].begun_thoughts);
  EXPECT_EQ(tokenizer_.decode(q[1].prompt), "[system]s[user]u<think>\n");
  EXPECT_EQ(q[1].text, "u");
  options.kwargs = {{"thinking", false}};
  EXPECT_FALSE(read("{\"question\": \"hi\"}\n", options)[0].begun_thoughts);
  // The user's words are no mark of the template's.
  EXPECT_FALSE(read("{\"question\": \"<think>\"}\n", options)[0].begun_thoughts);
}

TEST_F(Questions, ErrorsNameFileAndLine) {
  for (const auto& [line, why] : std::vector<std::pair<std::string, std::string>>{
           {"{\"answer\": \"1\"}", "needs \"question\""},
           {"{\"question\": \"a\", \"prompt\": \"b\"}", "one of them alone"},
           {"{\"question\": [1]}", "\"question\" must be a text"},
           {"{\"question\": \"a\", \"answer\": {}}", "\"answer\" must be a text"},
           {"{\"question\": \"a\", \"tests\": [1]}", "\"tests\" must be an object"},
           {"{\"question\": \"a\", \"tests\": {}}", "no line of HumanEval"},
           {"{\"question\": \"a\", \"tests\": {\"test_list\": 3}}", "\"tests\""},
           {"{\"question\": \"\"}", "is empty"},
           {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", "chat template"},
           {"{\"messages\": []}", "must be a list"},
           {"{\"messages\": [{\"role\": \"user\"}]}", "\"content\""},
           {"[1]", "must be an object"},
           {"{\"question\": \"a\"", "q.jsonl:2"},
           {"{\"question\": \"\xff\"}", "q.jsonl:2"},
           {std::string(100, '['), "q.jsonl:2"}}) {
    const std::string said = error("{\"question\": \"fine\"}\n" + line + "\n");
    EXPECT_THAT(said, HasSubstr("q.jsonl:2")) << line;
    EXPECT_THAT(said, HasSubstr(why)) << line;
    EXPECT_THAT(said, testing::Not(HasSubstr("\n")));
  }
  EXPECT_THAT(error("\n\n"), HasSubstr("no question"));
  QuestionOptions deaf;
  deaf.chat_template = "constant";
  EXPECT_THAT(error("{\"question\": \"a\"}\n", deaf), HasSubstr("the same prompt whatever is asked"));
  EXPECT_THAT(error("{\"question\": \"four\"}\n", {}, 3), HasSubstr("4 tokens"));
}

TEST_F(Questions, ChecksumSeesEveryPart) {
  const auto of = [&](const std::string& line) { return checksum_of(read(line)); };
  const uint64_t sum = of(R"({"id": "a", "question": "b", "answer": "c"})");
  EXPECT_EQ(sum, of(R"({"answer": "c", "question": "b", "id": "a"})"));
  EXPECT_NE(sum, of(R"({"id": "x", "question": "b", "answer": "c"})"));
  EXPECT_NE(sum, of(R"({"id": "a", "question": "x", "answer": "c"})"));
  EXPECT_NE(sum, of(R"({"id": "a", "question": "b", "answer": "x"})"));
  const std::string tests = R"({"task_id": 1, "text": "t", "code": "", "test_list": ["assert f(1) == 2"]})";
  EXPECT_NE(sum, of(R"({"id": "a", "question": "b", "answer": "c", "tests": )" + tests + "}"));
}

}  // namespace
}  // namespace fathom::tune
