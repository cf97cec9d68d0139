#include "tune/questions.h"

#include <algorithm>

#include "base/checksum.h"
#include "base/error.h"
#include "base/json.h"
#include "text/answer_parser.h"
#include "text/chat.h"
#include "text/unpacking.h"
#include "tune/conversation.h"

namespace fathom::tune {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kMaxFileBytes = size_t{4} << 30;
constexpr size_t kMaxLineBytes = size_t{64} << 20;

std::string unpacked(const fs::path& path) {
  UnpackedFile file(path);
  std::string content;
  char block[1 << 16];
  while (const size_t n = file.read(block, sizeof block)) {
    content.append(block, n);
    if (content.size() > kMaxFileBytes) throw Error("{}: longer than 4 GiB", printable(path.native()));
  }
  return content;
}

// A text or a number, as text; nothing where the key is absent or null.
std::optional<std::string> text_at(const JsonDocument& line, const char* key) {
  simdjson::dom::element value;
  if (line.root()[key].get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  std::string_view text;
  if (value.get_string().get(text) == simdjson::SUCCESS) return std::string(text);
  if (value.is_number()) return simdjson::minify(value);
  throw Error("{}: \"{}\" must be a text", line.where(), key);
}

Json messages_of(const JsonDocument& line, simdjson::dom::element list) {
  simdjson::dom::array messages;
  if (list.get_array().get(messages) != simdjson::SUCCESS || messages.size() == 0) {
    throw Error("{}: \"messages\" must be a list of {{\"role\": ..., \"content\": ...}}", line.where());
  }
  for (const simdjson::dom::element message : messages) {
    std::string_view role, content;
    if (message["role"].get_string().get(role) != simdjson::SUCCESS ||
        message["content"].get_string().get(content) != simdjson::SUCCESS) {
      throw Error("{}: each of \"messages\" needs a \"role\" and a \"content\" that are texts", line.where());
    }
  }
  return Json::parse(simdjson::minify(list));
}

std::string last_of_user(const Json& messages) {
  for (auto it = messages.rbegin(); it != messages.rend(); ++it) {
    if (it->at("role") == "user") return it->at("content").get<std::string>();
  }
  return {};
}

std::vector<int32_t> plain_prompt(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids = tokenizer.encode(text);
  const int32_t bos = tokenizer.bos_id();
  if (bos >= 0 && (ids.empty() || (ids.front() != bos && tokenizer.adds_bos()))) ids.insert(ids.begin(), bos);
  return ids;
}

bool ends_in_think(std::string_view prompt) {
  while (!prompt.empty() && (prompt.back() == '\n' || prompt.back() == ' ')) prompt.remove_suffix(1);
  return prompt.ends_with(kThink);
}

eval::CodeProblem read_tests(simdjson::dom::element tests, const std::string& json, const std::string& where) {
  const auto has = [&](const char* key) { return tests[key].error() == simdjson::SUCCESS; };
  const std::string inside = where + ": \"tests\"";
  if (has("public_test_cases")) return eval::parse_livecodebench(json, inside);
  if (has("test_list")) return eval::parse_mbpp(json, inside);
  if (has("test") && has("entry_point")) return eval::parse_humaneval(json, inside);
  throw Error(
      "{}: it is no line of HumanEval (\"test\", \"entry_point\"), MBPP (\"test_list\") or LiveCodeBench "
      "(\"public_test_cases\")",
      inside);
}

AskedQuestion read_question(const JsonDocument& line) {
  if (!line.root().is_object()) throw Error("{}: must be an object with \"question\"", line.where());
  AskedQuestion q{.where = line.where(), .id = "", .messages = Json::array(), .text = ""};
  int n_forms = 0;
  for (const char* key : {"question", "prompt"}) {
    const std::optional<std::string> text = text_at(line, key);
    if (!text) continue;
    q.text = *text;
    q.messages.push_back({{"role", "user"}, {"content", q.text}});
    ++n_forms;
  }
  if (simdjson::dom::element list; line.root()["messages"].get(list) == simdjson::SUCCESS) {
    q.messages = messages_of(line, list);
    q.has_messages = true;
    q.text = last_of_user(q.messages);
    ++n_forms;
  }
  if (n_forms != 1) {
    throw Error("{}: needs \"question\", \"prompt\" or \"messages\", and one of them alone", line.where());
  }
  if (q.text.empty()) throw Error("{}: the question is empty", line.where());
  q.id = text_at(line, "id").value_or(line.where());
  q.answer = text_at(line, "answer");
  if (simdjson::dom::element tests; line.root()["tests"].get(tests) == simdjson::SUCCESS && !tests.is_null()) {
    if (!tests.is_object()) throw Error("{}: \"tests\" must be an object, a problem with tests of code", line.where());
    const std::string json = simdjson::minify(tests);
    q.tests = std::make_shared<const eval::CodeProblem>(read_tests(tests, json, line.where()));
    Xxh3 sum;
    sum.update(json.data(), json.size());
    q.tests_xxh3 = sum.value();
  }
  return q;
}

ChatOptions chat_of(const Tokenizer& tokenizer, const QuestionOptions& options) {
  ChatOptions chat;
  chat.kwargs = options.kwargs;
  if (tokenizer.bos_id() >= 0) chat.bos_token = tokenizer.token_bytes(tokenizer.bos_id());
  if (tokenizer.eos_id() >= 0) chat.eos_token = tokenizer.token_bytes(tokenizer.eos_id());
  return chat;
}

Question with_prompt(AskedQuestion asked, const Tokenizer& tokenizer, const QuestionOptions& options) {
  Question q{.id = std::move(asked.id),
             .text = std::move(asked.text),
             .answer = std::move(asked.answer),
             .tests = std::move(asked.tests),
             .tests_xxh3 = asked.tests_xxh3,
             .prompt = {}};
  errors_at(asked.where, [&] {
    if (options.chat_template.empty()) {
      if (asked.has_messages) {
        throw Error("\"messages\" need a chat template, and the model has none; give --template FILE");
      }
      q.prompt = plain_prompt(tokenizer, q.text);
      q.begun_thoughts = ends_in_think(q.text);
      return;
    }
    Json& messages = asked.messages;
    if (!options.system.empty() && messages.front().at("role") != "system") {
      messages.insert(messages.begin(), Json{{"role", "system"}, {"content", options.system}});
    }
    ChatPrompt prompt = encode_chat(tokenizer, options.chat_template, messages, chat_of(tokenizer, options));
    q.prompt = std::move(prompt.ids);
    q.begun_thoughts = ends_in_think(prompt.own_end);
  });
  if (q.prompt.empty()) throw Error("{}: the question has no tokens", asked.where);
  return q;
}

}  // namespace

std::vector<AskedQuestion> read_asked_questions(std::span<const fs::path> files) {
  std::vector<AskedQuestion> questions;
  for (const fs::path& path : files) {
    const std::string content = unpacked(path);
    int64_t number = 0;
    for (std::string_view left = content; !left.empty();) {
      const size_t end = std::min(left.find('\n'), left.size());
      const std::string_view text = left.substr(0, end);
      left.remove_prefix(std::min(end + 1, left.size()));
      ++number;
      if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      const std::string where = fmt::format("{}:{}", printable(path.native()), number);
      if (text.size() > kMaxLineBytes) throw Error("{}: a line of more than 64 MiB", where);
      questions.push_back(read_question(JsonDocument::parse(text, where)));
    }
  }
  if (questions.empty()) {
    throw Error("{}: there is no question in it", files.empty() ? "no file" : printable(files.front().native()));
  }
  return questions;
}

bool have_tests(std::span<const AskedQuestion> questions) {
  return std::ranges::any_of(questions, [](const AskedQuestion& q) { return q.tests != nullptr; });
}

std::vector<Question> read_questions(std::span<const fs::path> files, const Tokenizer& tokenizer,
                                     const QuestionOptions& options, int64_t longest_prompt) {
  if (!options.chat_template.empty()) {
    if (const std::string why = why_deaf(options.chat_template, chat_of(tokenizer, options)); !why.empty()) {
      throw Error("{}", why);
    }
  }
  std::vector<Question> questions;
  for (AskedQuestion& asked : read_asked_questions(files)) {
    const std::string where = asked.where;
    Question q = with_prompt(std::move(asked), tokenizer, options);
    if (std::ssize(q.prompt) > longest_prompt) {
      throw Error(
          "{}: its prompt has {} tokens, and there is room for {} beside the answer; give a smaller "
          "--max-tokens or leave it out",
          where, q.prompt.size(), longest_prompt);
    }
    questions.push_back(std::move(q));
  }
  return questions;
}

uint64_t checksum_of(std::span<const Question> questions) {
  Xxh3 sum;
  const auto add = [&](std::string_view text) {
    sum.update(text.data(), text.size());
    sum.update("", 1);
  };
  for (const Question& q : questions) {
    add(q.id);
    add(q.answer.value_or(""));
    sum.update(&q.tests_xxh3, sizeof q.tests_xxh3);
    sum.update(q.prompt.data(), q.prompt.size() * sizeof(int32_t));
  }
  return sum.value();
}

}  // namespace fathom::tune
