#include "text/answer_parser.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/rng.h"
#include "text/chat.h"

namespace fathom {
namespace {

using nlohmann::ordered_json;
using Kind = AnswerPart::Kind;

std::vector<AnswerPart> parse(const AnswerFormat& format, const std::vector<std::string>& pieces) {
  AnswerParser parser(format);
  std::vector<AnswerPart> joined;
  const auto add = [&](const std::vector<AnswerPart>& parts) {
    for (const AnswerPart& part : parts) {
      const bool goes_on = !joined.empty() && joined.back().kind == part.kind && joined.back().call == part.call;
      if (!goes_on) {
        joined.push_back(part);
      } else {
        EXPECT_NE(part.kind, Kind::call_name) << "a name comes in one part";
        joined.back().text += part.text;
      }
      EXPECT_FALSE(part.text.empty() && part.kind != Kind::call_name);
    }
  };
  for (const std::string& piece : pieces) add(parser.push(piece));
  add(parser.finish());
  return joined;
}

// One letter a part: r reasoning, c content, n name, a arguments.
std::string told(const std::vector<AnswerPart>& parts) {
  std::string text;
  for (const AnswerPart& part : parts) {
    text += "rcna"[static_cast<int>(part.kind)];
    if (part.call >= 0) text += std::to_string(part.call);
    text += "(" + part.text + ")";
  }
  return text;
}

constexpr AnswerFormat kPlain{};
constexpr AnswerFormat kBehindThoughts{CallFormat::none, false, true, true};
constexpr AnswerFormat kR1{CallFormat::v3, true};
constexpr AnswerFormat kV3{CallFormat::v3};
constexpr AnswerFormat kV31{CallFormat::v3_1};
constexpr AnswerFormat kV32{CallFormat::deepseek_v3_2, false, false};
constexpr AnswerFormat kV32Thinking{CallFormat::deepseek_v3_2, true, false};

struct Case {
  AnswerFormat format;
  std::string text, want;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {kPlain, "", ""},
      {kPlain, "Hello.\n", "c(Hello.\n)"},
      {kPlain, "\n\nHello.", "c(\n\nHello.)"},
      {kPlain, "\n", "c(\n)"},
      {kBehindThoughts, "\n\nHello.", "c(Hello.)"},
      {kV3, "\nI look.\n<｜tool▁calls▁begin｜>", "c(\nI look.)"},
      {kPlain, "<think>\nwell\n</think>\n\nHello.", "r(well)c(Hello.)"},
      {kPlain, "<thin", "c(<thin)"},
      {kPlain, "Say <think> and </think>.", "c(Say <think> and </think>.)"},
      {kPlain, "<think>no end\n", "r(no end\n)"},
      {kPlain, "<｜tool▁calls▁begin｜>x", "c(<｜tool▁calls▁begin｜>x)"},
      {kR1, "a < b\n\nso\n</think>\n\nYes.\n\nQuite.", "r(a < b\n\nso)c(Yes.\n\nQuite.)"},
      {kR1, "<think>\n\n</think>\n\nYes.", "c(Yes.)"},
      {kR1, "hm</think>", "r(hm)"},
      {kR1, "hm", "r(hm)"},
      {kV3,
       "I look.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"at\": "
       "\"`\"}\n```"
       "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜>"
       "<｜tool▁calls▁end｜>",
       "c(I look.)n0(weather)a0({\"at\": \"`\"})n1(time)a1({})"},
      // Ends that are missing, and arguments without their fence.
      {kV3,
       "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁calls▁end｜>"
       "Done.",
       "n0(time)a0({})c(Done.)"},
      {kV3,
       "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n{\"a\":1}<｜tool▁call▁end｜><"
       "｜tool▁calls▁end｜>",
       "n0(time)a0({\"a\":1})"},
      {kV3, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{\"a\": [1,",
       "n0(time)a0({\"a\": [1,)"},
      {kV3, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>ti", ""},
      {kV3, "<｜tool▁calls▁begin｜>\nwhat?\n<｜tool▁calls▁end｜>\n", "c(what?)"},
      {kR1,
       "I "
       "ask.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<"
       "｜tool▁call▁end｜>",
       "r(I ask.)n0(time)a0({})"},
      {kV31,
       "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"x\": "
       "\"\n```\"}<｜tool▁call▁end｜>"
       "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
       "c(Let me see.)n0(weather)a0({\"x\": \"\n```\"})n1(time)a1({})"},
      {kV31, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>time<｜tool▁call▁end｜>", "n0(time)"},
      {kV32,
       "A\n\nB\n\n\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"add\">\n<｜DSML｜parameter name=\"a\" "
       "string=\"false\">2"
       "</｜DSML｜parameter>\n<｜DSML｜parameter name=\"say\" string=\"true\">\"2\\\n<｜DSML</｜DSML｜parameter>\n"
       "</｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
       "c(A\n\nB\n\n)n0(add)a0({\"a\": 2, \"say\": \"\\\"2\\\\\\n<｜DSML\"})n1(now)a1({})"},
      {kV32,
       "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"add\">\n{\"a\": "
       "2}\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
       "n0(add)a0({\"a\": 2})"},
      {kV32,
       "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"add\">\n<｜DSML｜parameter name=\"a\" string=\"true\">li",
       "n0(add)a0({\"a\": \"li)"},
      {kV32Thinking, "\nhm\n</think>\n\nSo.\n", "r(\nhm\n)c(\n\nSo.\n)"},
      {kV32Thinking,
       "use it</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke "
       "name=\"f\">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
       "r(use it)n0(f)a0({})"},
  };
  return all;
}

TEST(AnswerFormat, FollowsFromTemplateAndPrompt) {
  const std::string folder = std::string(FATHOM_TEST_DATA) + "/chat/";
  const std::vector<std::pair<const char*, CallFormat>> templates = {{"deepseek-v2", CallFormat::none},
                                                                     {"deepseek-v3", CallFormat::v3},
                                                                     {"deepseek-r1", CallFormat::v3},
                                                                     {"deepseek-v3.1", CallFormat::v3_1},
                                                                     {"deepseek-v3.2", CallFormat::deepseek_v3_2},
                                                                     {"kimi-k2", CallFormat::none}};
  const ordered_json question = ordered_json::array({{{"role", "user"}, {"content", "?"}}});
  for (const auto& [name, calls] : templates) {
    const std::string source = read_file(folder + name + ".jinja", 1 << 20);
    ChatOptions options;
    options.kwargs["thinking"] = true;
    const std::string prompt = render_chat(source, question, options);
    const bool thinks = prompt.find("<think>") != std::string::npos;
    const AnswerFormat format = answer_format_of(source, prompt);
    EXPECT_EQ(format.calls, calls) << name;
    EXPECT_EQ(format.trims_newlines, calls != CallFormat::deepseek_v3_2) << name;
    EXPECT_EQ(format.begins_in_reasoning, thinks) << name;
    options.kwargs["thinking"] = false;
    EXPECT_FALSE(format.behind_thoughts && format.begins_in_reasoning) << name;
    const bool r1 = std::string_view(name) == "deepseek-r1";
    EXPECT_EQ(answer_format_of(source, render_chat(source, question, options)).begins_in_reasoning, r1) << name;
  }
  const auto is_behind = [](std::string_view prompt) { return answer_format_of("", prompt).behind_thoughts; };
  EXPECT_TRUE(is_behind("<｜Assistant｜></think>") && is_behind("</think>\n\n"));
  EXPECT_FALSE(is_behind("<｜Assistant｜>") || is_behind("</think>It") || is_behind(""));
  EXPECT_EQ(answer_format_of(kDeepseekV32Encoding, "").calls, CallFormat::deepseek_v3_2);
}

TEST(AnswerParser, TellsReasoningContentAndCalls) {
  for (const Case& c : cases()) EXPECT_EQ(told(parse(c.format, {c.text})), c.want) << c.text;
}

TEST(AnswerParser, PartsDoNotDependOnHowTheTextIsCut) {
  Rng rng(1);
  for (const Case& c : cases()) {
    std::vector<std::string> bytes;
    for (const char b : c.text) bytes.emplace_back(1, b);
    EXPECT_EQ(told(parse(c.format, bytes)), c.want) << c.text;
    for (size_t cut = 1; cut < c.text.size(); ++cut) {
      EXPECT_EQ(told(parse(c.format, {c.text.substr(0, cut), c.text.substr(cut)})), c.want) << c.text << " " << cut;
    }
  }
}

// Marks and pieces of marks in any order: cut anywhere it says the same, and nothing crashes.
TEST(AnswerParser, NonsenseIsReadTheSameHoweverItIsCut) {
  const std::vector<std::string> words = {"<think>",
                                          "</think>",
                                          "<｜tool▁calls▁begin｜>",
                                          "<｜tool▁calls▁end｜>",
                                          "<｜tool▁call▁begin｜>",
                                          "<｜tool▁call▁end｜>",
                                          "<｜tool▁sep｜>",
                                          "\n```json\n",
                                          "\n```",
                                          "```",
                                          "\n",
                                          "\n\n",
                                          "<｜DSML｜function_calls>",
                                          "</｜DSML｜function_calls>",
                                          "<｜DSML｜invoke name=\"",
                                          "\">",
                                          "</｜DSML｜invoke>",
                                          "<｜DSML｜parameter name=\"",
                                          "\" string=\"false",
                                          "</｜DSML｜parameter>",
                                          "<",
                                          "｜",
                                          "</",
                                          "x",
                                          "{\"a\": 1}",
                                          "\"",
                                          "\\",
                                          " ",
                                          "ü"};
  Rng rng(2);
  for (int round = 0; round < 20000; ++round) {
    AnswerFormat format{static_cast<CallFormat>(rng.below(4)), rng.below(2) == 0, rng.below(2) == 0};
    std::string text;
    for (uint64_t n = rng.below(14); n > 0; --n) {
      std::string word = words[rng.below(words.size())];
      if (rng.below(6) == 0) word.resize(rng.below(word.size() + 1));
      text += word;
    }
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + rng.below(rng.below(2) == 0 ? 3 : 20);
      pieces.push_back(text.substr(at, n));
      at += n;
    }
    ASSERT_EQ(told(parse(format, pieces)), told(parse(format, {text}))) << text;
  }
}

// What the family's prompts hold of an answer is read back from it.
TEST(AnswerParser, ReadsWhatTheTemplatesWrite) {
  const std::string folder = std::string(FATHOM_TEST_DATA) + "/chat/";
  const auto source = [&](const char* name) { return read_file(folder + name + ".jinja", 1 << 20); };
  struct Family {
    std::string name, chat_template;
    AnswerFormat format;
    uint64_t most_calls;  // V3's template ends the answer behind the second
  };
  const std::vector<Family> families = {{"v3.1", source("deepseek-v3.1"), kV31, 4},
                                        {"v3.2", std::string(kDeepseekV32Encoding), kV32, 4},
                                        {"v3", source("deepseek-v3"), kV3, 2},
                                        {"r1", source("deepseek-r1"), kV3, 2}};
  const std::vector<std::string> texts = {"",     "plain",          "two\nlines", "\"quoted\" \\ back",
                                          "ü▁｜", "{\"a\": \"b\"}", "<b>"};
  for (const auto& [name, chat_template, format, most_calls] : families) {
    Rng rng(3);
    for (int round = 0; round < 50; ++round) {
      ordered_json message{{"role", "assistant"}, {"content", rng.below(2) == 0 ? "I look it up." : ""}};
      std::vector<ordered_json> arguments;
      const uint64_t n_calls = rng.below(most_calls + 1);
      message["tool_calls"] = ordered_json::array();
      for (uint64_t call = 0; call < n_calls; ++call) {
        ordered_json object = ordered_json::object();
        for (uint64_t p = rng.below(4); p > 0; --p) {
          const std::string key = "key " + std::to_string(p);
          if (rng.below(2) == 0) {
            object[key] = texts[rng.below(texts.size())];
          } else {
            object[key] = ordered_json::array({1.5, nullptr, {{"x", texts[rng.below(texts.size())]}}});
          }
        }
        arguments.push_back(object);
        message["tool_calls"].push_back(
            {{"type", "function"}, {"function", {{"name", "f" + std::to_string(call)}, {"arguments", object.dump()}}}});
      }
      if (n_calls == 0) {
        message.erase("tool_calls");
        if (message["content"] == "") continue;
      } else if (name == "v3" || name == "r1") {
        message["content"] = nullptr;  // with content these forget the marks
      }
      const ordered_json question{{"role", "user"}, {"content", "?"}};
      ChatOptions options;
      options.add_generation_prompt = false;
      std::string answer = render_chat(chat_template, ordered_json::array({question, message}), options);
      const std::string assistant = "<｜Assistant｜>", end_think = "</think>";
      if (const size_t at = answer.rfind(assistant); at != std::string::npos) answer.erase(0, at + assistant.size());
      if (const size_t at = answer.find(end_think); at != std::string::npos) answer.erase(0, at + end_think.size());
      if (const size_t end = answer.rfind("<｜end▁of▁sentence｜>"); end != std::string::npos) answer.resize(end);

      std::vector<ordered_json> got(n_calls);
      std::vector<std::string> texts_of_calls(n_calls), names(n_calls);
      std::string content;
      for (const AnswerPart& part : parse(format, {answer})) {
        ASSERT_NE(part.kind, Kind::reasoning) << name << " " << answer;
        if (part.kind == Kind::content) content += part.text;
        ASSERT_LT(part.call, static_cast<int64_t>(n_calls)) << name << " " << answer;
        if (part.kind == Kind::call_name) names[static_cast<size_t>(part.call)] = part.text;
        if (part.kind == Kind::call_arguments) texts_of_calls[static_cast<size_t>(part.call)] += part.text;
      }
      EXPECT_EQ(content, message["content"].is_string() ? message["content"].get<std::string>() : "")
          << name << " " << answer;
      for (size_t call = 0; call < n_calls; ++call) {
        EXPECT_EQ(names[call], "f" + std::to_string(call)) << name << " " << answer;
        EXPECT_EQ(ordered_json::parse(texts_of_calls[call], nullptr, false), arguments[call]) << name << " " << answer;
      }
    }
  }
}

}  // namespace
}  // namespace fathom
