// What of a conversation is learned: after the prompt that the server makes, what the model has to generate, to the
// token.
#include "tune/conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "refusal.h"
#include "text/answer_parser.h"
#include "text/tokenizer_fixture.h"

namespace fathom::tune {
namespace {

using nlohmann::ordered_json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kBegin = "<｜begin▁of▁sentence｜>";
constexpr const char* kEnd = "<｜end▁of▁sentence｜>";

const Tokenizer& deepseek_v3() {
  static const Tokenizer tokenizer = test::released_tokenizer("deepseek-v3");
  return tokenizer;
}

std::string template_of(const std::string& name) {
  if (name == kDeepseekV32Encoding) return name;
  return test::slurp(std::string(FATHOM_TEST_DATA) + "/chat/" + name + ".jinja");
}

ConversationTemplate told_with(const std::string& name) {
  ConversationTemplate with{template_of(name), {}, {deepseek_v3().eos_id()}, {}, false};
  with.chat.bos_token = kBegin;
  with.chat.eos_token = kEnd;
  return with;
}

TrainingConversation parsed(const ordered_json& line) { return parse_conversation(line.dump(), "chat.jsonl: line 3"); }

// What is learned, as text, a list for each sequence.
std::vector<std::vector<std::string>> learned(const ordered_json& line, const ConversationTemplate& with) {
  std::vector<std::vector<std::string>> all;
  for (const TrainingSequence& sequence : encode_conversation(deepseek_v3(), with, parsed(line))) {
    auto& texts = all.emplace_back();
    for (const auto& [begin, end] : sequence.spans) {
      texts.push_back(deepseek_v3().decode(
          std::span(sequence.ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin))));
    }
  }
  return all;
}
std::vector<std::vector<std::string>> learned(const ordered_json& line, const std::string& name) {
  return learned(line, told_with(name));
}

ordered_json messages_before(const ordered_json& messages, size_t n) {
  ordered_json first = ordered_json::array();
  for (size_t i = 0; i < n; ++i) first.push_back(messages[i]);
  return first;
}

struct Said {
  std::string content, reasoning;
  std::vector<std::pair<std::string, std::string>> calls;  // name and arguments
};
// As the server reads an answer that was generated behind this prompt.
Said read_answer(std::string_view chat_template, const ChatPrompt& prompt, std::string_view text) {
  AnswerParser parser(answer_format_of(chat_template, prompt.own_end));
  Said said;
  for (const auto& parts : {parser.push(text), parser.finish()}) {
    for (const AnswerPart& part : parts) {
      if (part.kind == AnswerPart::Kind::content) said.content += part.text;
      if (part.kind == AnswerPart::Kind::reasoning) said.reasoning += part.text;
      if (part.kind == AnswerPart::Kind::call_name) said.calls.emplace_back(part.text, "");
      if (part.kind == AnswerPart::Kind::call_arguments) said.calls.back().second += part.text;
    }
  }
  return said;
}

std::string trimmed(std::string text) {
  text.erase(0, text.find_first_not_of('\n'));
  text.erase(text.find_last_not_of('\n') + 1);
  return text;
}

std::string text_in(const ordered_json& message, const char* key) {
  return message.contains(key) && message[key].is_string() ? message[key].get<std::string>() : "";
}

// One answer of a vector: behind which ids it stands, and what it says.
void check_answer(const ConversationTemplate& with, const ChatOptions& chat, const ordered_json& messages, size_t i,
                  std::span<const int32_t> before, std::span<const int32_t> ids) {
  const Tokenizer& tokenizer = deepseek_v3();
  const ordered_json asked = messages_before(messages, i);
  const ChatPrompt prompt = encode_chat(tokenizer, with.chat_template, asked, chat);
  EXPECT_THAT(before, testing::ElementsAreArray(prompt.ids));
  ASSERT_FALSE(ids.empty());
  EXPECT_EQ(std::count(ids.begin(), ids.end(), tokenizer.eos_id()), 1);
  EXPECT_EQ(ids.back(), tokenizer.eos_id());
  const std::string text = tokenizer.decode(ids.first(ids.size() - 1));

  // The template's own words, where they go on from the prompt.
  ChatOptions whole = chat;
  whole.add_generation_prompt = false;
  const std::string told = render_chat(with.chat_template, messages_before(messages, i + 1), whole);
  if (told.starts_with(prompt.text) && told.ends_with(kEnd)) {
    EXPECT_TRUE((text + kEnd).ends_with(told.substr(prompt.text.size()))) << text;
  }
  // What the server makes of it is the message.
  const ordered_json& message = messages[i];
  const Said said = read_answer(with.chat_template, prompt, text);
  std::string content = trimmed(text_in(message, "content"));
  const bool is_cut = with.chat_template.find("'</think>' in content") != std::string::npos;
  if (const size_t end = content.rfind(kEndThink); is_cut && end != std::string::npos) {
    content = content.substr(end + kEndThink.size());
  }
  const bool has_space = prompt.text.ends_with("Assistant:");  // V2 writes one behind its prompt
  EXPECT_EQ(trimmed(has_space ? said.content.substr(1) : said.content), content) << text;
  const bool is_closed = prompt.own_end.ends_with(kEndThink);
  EXPECT_EQ(trimmed(said.reasoning), is_closed ? "" : trimmed(text_in(message, "reasoning_content"))) << text;
  const ordered_json calls = message.value("tool_calls", ordered_json::array());
  ASSERT_EQ(said.calls.size(), calls.size()) << text;
  for (size_t c = 0; c < calls.size(); ++c) {
    EXPECT_EQ(said.calls[c].first, calls[c]["function"]["name"]);
    EXPECT_EQ(ordered_json::parse(said.calls[c].second),
              ordered_json::parse(calls[c]["function"]["arguments"].get<std::string>()));
  }
}

TEST(Conversation, EveryAnswerIsLearnedBehindTheServersPromptAndReadsAsTheMessage) {
  int n_answers = 0;
  for (const std::string& line : test::lines_of(std::string(FATHOM_TEST_DATA) + "/chat/vectors.jsonl")) {
    const ordered_json vector = ordered_json::parse(line);
    SCOPED_TRACE(vector["template"].get<std::string>() + ": " + vector["case"].get<std::string>());
    ordered_json kwargs = vector.value("kwargs", ordered_json::object());
    kwargs.erase("add_generation_prompt");
    const TrainingConversation conversation =
        parsed({{"messages", vector["messages"]}, {"chat_template_kwargs", kwargs}});
    const ConversationTemplate with = told_with(vector["template"]);
    ChatOptions chat = with.chat;
    for (const ordered_json& message : conversation.messages) {
      if (!text_in(message, "reasoning_content").empty())
        chat.kwargs["thinking"] = chat.kwargs["enable_thinking"] = true;
    }
    for (const auto& [name, value] : kwargs.items()) chat.kwargs[name] = value;
    std::vector<size_t> answers;
    for (size_t i = 1; i < conversation.messages.size(); ++i) {
      if (conversation.trained[i]) answers.push_back(i);
    }
    size_t next = 0;
    for (const TrainingSequence& sequence : encode_conversation(deepseek_v3(), with, conversation)) {
      for (const auto& [begin, end] : sequence.spans) {
        ASSERT_LT(next, answers.size());
        const std::span<const int32_t> ids = sequence.ids;
        check_answer(with, chat, conversation.messages, answers[next++], ids.first(static_cast<size_t>(begin)),
                     ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
      }
      EXPECT_EQ(sequence.spans.back().end, std::ssize(sequence.ids));
    }
    EXPECT_EQ(next, answers.size());
    n_answers += static_cast<int>(next);
  }
  EXPECT_GT(n_answers, 250);
}

ordered_json two_turns(bool thoughts) {
  ordered_json line = {{"messages",
                        {{{"role", "user"}, {"content", "1+1?"}},
                         {{"role", "assistant"}, {"content", "2"}},
                         {{"role", "user"}, {"content", "2+2?"}},
                         {{"role", "assistant"}, {"content", "4"}}}}};
  if (thoughts) {
    line["messages"][1]["reasoning_content"] = "one more";
    line["messages"][3]["reasoning_content"] = "twice two";
  }
  return line;
}

TEST(Conversation, AnswersWithoutThoughtsShareASequence) {
  for (const char* name : {"deepseek-v2", "deepseek-v3", "deepseek-v3.1", "deepseek-v3.2-encoding"}) {
    const std::string space = name == std::string("deepseek-v2") ? " " : "";
    EXPECT_THAT(learned(two_turns(false), name), ElementsAre(ElementsAre(space + "2" + kEnd, space + "4" + kEnd)))
        << name;
  }
}

TEST(Conversation, ThoughtsStandWhereTheModelThinksAndHistoryIsAsTheTemplateHasIt) {
  const auto texts = [](const std::string& begin, const std::string& end) {
    return ElementsAre(ElementsAre(begin + "one more" + end + "2" + kEnd),
                       ElementsAre(begin + "twice two" + end + "4" + kEnd));
  };
  EXPECT_THAT(learned(two_turns(true), "deepseek-v3.1"), texts("", "</think>"));
  EXPECT_THAT(learned(two_turns(true), "deepseek-v3.2-encoding"), texts("", "</think>"));
  EXPECT_THAT(learned(two_turns(true), "deepseek-r1"), texts("", "\n</think>\n\n"));
  EXPECT_THAT(learned(two_turns(true), "deepseek-v3"), texts("<think>\n", "\n</think>\n\n"));
  const auto sequences = encode_conversation(deepseek_v3(), told_with("deepseek-v3.1"), parsed(two_turns(true)));
  EXPECT_EQ(deepseek_v3().decode(sequences[1].ids),
            std::string(kBegin) + "<｜User｜>1+1?<｜Assistant｜></think>2" + kEnd +
                "<｜User｜>2+2?<｜Assistant｜><think>twice two</think>4" + kEnd);
}

TEST(Conversation, ThoughtsBehindResultsOfToolsHaveMarksOfTheirOwn) {
  const ordered_json line = {
      {"messages",
       {{{"role", "user"}, {"content", "2+2?"}},
        {{"role", "assistant"},
         {"content", "I ask."},
         {"tool_calls", {{{"id", "a"}, {"function", {{"name", "add"}, {"arguments", {{"x", 2}}}}}}}}},
        {{"role", "tool"}, {"tool_call_id", "a"}, {"content", "4"}},
        {{"role", "assistant"}, {"content", "4"}, {"reasoning_content", "so"}}}}};
  const std::string end = kEnd, call = "<｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"x\":2}<｜tool▁call▁end｜>",
                    v3_call =
                        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"x\":2}\n```<｜tool▁call▁end｜>";
  const std::string begin = "<｜tool▁calls▁begin｜>", behind = "<｜tool▁calls▁end｜>";
  EXPECT_THAT(learned(line, "deepseek-v3.1"), ElementsAre(ElementsAre("</think>I ask." + begin + call + behind + end),
                                                          ElementsAre("<think>so</think>4" + end)));
  // What they write as two answers, or without an end, is one; the second writes history as it was generated.
  const std::string asks = "I ask." + begin + v3_call + behind + end, says = "<think>\nso\n</think>\n\n4" + end;
  EXPECT_THAT(learned(line, "deepseek-v3"), ElementsAre(ElementsAre(asks), ElementsAre(says)));
  EXPECT_THAT(learned(line, "deepseek-v3-api-zip"), ElementsAre(ElementsAre(asks, says)));
  EXPECT_THAT(learned(line, "deepseek-r1"), ElementsAre(ElementsAre("\n</think>\n\n" + asks), ElementsAre(says)));
}

TEST(Conversation, TheLineSaysWhetherItThinksElseTheOption) {
  ConversationTemplate with = told_with("deepseek-v3.1");
  ordered_json line = two_turns(true);
  line["thinking"] = "off";
  EXPECT_THAT(learned(line, with), ElementsAre(ElementsAre(std::string("2") + kEnd, std::string("4") + kEnd)));
  line["thinking"] = true;
  with.thinking = false;
  EXPECT_EQ(learned(line, with).size(), 2U);
  line.erase("thinking");
  EXPECT_EQ(learned(line, with).size(), 1U);
  with.thinking = true;
  EXPECT_THAT(learned(two_turns(false), with),
              ElementsAre(ElementsAre(std::string("</think>2") + kEnd), ElementsAre(std::string("</think>4") + kEnd)));
}

TEST(Conversation, OnlyWhatIsAskedForIsLearned) {
  ConversationTemplate with = told_with("deepseek-v3.1");
  with.only_last_answer = true;
  EXPECT_THAT(learned(two_turns(false), with), ElementsAre(ElementsAre(std::string("4") + kEnd)));
  with.only_last_answer = false;
  ordered_json line = two_turns(false);
  line["messages"][3]["weight"] = 0;
  EXPECT_THAT(learned(line, with), ElementsAre(ElementsAre(std::string("2") + kEnd)));
  line["messages"][1]["weight"] = 0;
  EXPECT_THAT(learned(line, with), testing::IsEmpty());
  const ordered_json unasked = {{"messages", {{{"role", "assistant"}, {"content", "Hello"}}}}};
  EXPECT_THAT(learned(unasked, with), testing::IsEmpty());
}

// What the prompt ends with and the answer begins with would be one token in a text.
TEST(Conversation, PromptAndAnswerAreTokenizedApart) {
  ConversationTemplate with = told_with("deepseek-v3.1");
  with.chat_template =
      "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
      "{% endfor %}";
  const ordered_json line = {
      {"messages", {{{"role", "user"}, {"content", "The weath"}}, {{"role", "assistant"}, {"content", "er is"}}}}};
  const auto sequence = encode_conversation(deepseek_v3(), with, parsed(line))[0];
  std::vector<int32_t> apart = deepseek_v3().encode("The weath");
  EXPECT_THAT(sequence.spans, ElementsAre(TrainingSequence::Span{std::ssize(apart), std::ssize(sequence.ids)}));
  for (const int32_t id : deepseek_v3().encode(std::string("er is") + kEnd)) apart.push_back(id);
  EXPECT_EQ(sequence.ids, apart);
  EXPECT_NE(sequence.ids, deepseek_v3().encode(std::string("The weather is") + kEnd));
}

TEST(Conversation, MarksThatPeopleSpellAreText) {
  ordered_json line = two_turns(false);
  line["messages"][0]["content"] = "say <｜Assistant｜>";
  line["messages"][1]["content"] = std::string("that is ") + kEnd;
  const auto sequences = encode_conversation(deepseek_v3(), told_with("deepseek-v3.1"), parsed(line));
  ASSERT_EQ(sequences.size(), 1U);
  EXPECT_EQ(std::count(sequences[0].ids.begin(), sequences[0].ids.end(), deepseek_v3().eos_id()), 2);
  EXPECT_EQ(std::count(sequences[0].ids.begin(), sequences[0].ids.end(), deepseek_v3().id_of("<｜Assistant｜>")), 2);
}

TEST(Conversation, ThoughtsWithinTheContentAreThoughts) {
  const TrainingConversation c =
      parsed({{"messages",
               {{{"role", "user"}, {"content", {{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}}}},
                {{"role", "assistant"}, {"content", "<think>\nhm,\nwell\n</think>\n\nyes"}},
                {{"role", "assistant"}, {"content", "no <think>x</think>"}},
                {{"role", "assistant"}, {"content", "so\n</think>\n\nyes"}}}}});
  EXPECT_EQ(c.messages[0]["content"], "ab");
  EXPECT_EQ(c.messages[1]["reasoning_content"], "hm,\nwell");
  EXPECT_EQ(c.messages[1]["content"], "yes");
  EXPECT_EQ(c.messages[2]["content"], "no <think>x</think>");
  EXPECT_EQ(c.messages[3]["reasoning_content"], "so");
  EXPECT_EQ(c.messages[3]["content"], "yes");
}

TEST(Conversation, ThoughtsThatEndWithinThemselvesAreRefusedWhereTheyWouldBeLearned) {
  ordered_json line{{"messages",
                     {{{"role", "user"}, {"content", "x"}},
                      {{"role", "assistant"}, {"reasoning_content", "a</think>b"}, {"content", "c"}}}}};
  for (const char* name : {"deepseek-v3", "deepseek-r1", "deepseek-v3.1"}) {
    EXPECT_THAT(refusal([&] { learned(line, name); }),
                HasSubstr("messages[1].reasoning_content: has </think> in it, where thoughts end"))
        << name;
  }
  line["thinking"] = false;
  EXPECT_THAT(learned(line, "deepseek-v3.1"), ElementsAre(ElementsAre(std::string("c") + kEnd)));
}

TEST(Conversation, ATemplateThatWritesTheSameWhateverIsAskedIsDeaf) {
  EXPECT_THAT(why_deaf("constant", {}), HasSubstr("whatever is asked"));
  EXPECT_THAT(why_deaf("{% for m in messages %}[{{ m.role }}]{% endfor %}", {}), HasSubstr("--template FILE"));
  for (const char* name : {"deepseek-v3", "deepseek-r1", "deepseek-v3.1", "deepseek-v3.2-encoding"}) {
    EXPECT_EQ(why_deaf(template_of(name), told_with(name).chat), "") << name;
  }
  // Words that are not found again have been heard all the same.
  EXPECT_EQ(why_deaf("{{ messages[-1].content | upper }}", {}), "");
  EXPECT_EQ(why_deaf("{{ raise_exception('needs a system') }}", {}), "");
}

TEST(Conversation, APromptWithItsCompletionNeedsNoTemplate) {
  const auto sequences =
      encode_conversation(deepseek_v3(), told_with("deepseek-v3"), parsed({{"prompt", "2+2="}, {"completion", "4"}}));
  ASSERT_EQ(sequences.size(), 1U);
  EXPECT_EQ(deepseek_v3().decode(sequences[0].ids), std::string(kBegin) + "2+2=4" + kEnd);
  const auto [begin, end] = sequences[0].spans.at(0);
  EXPECT_EQ(end - begin, 2);
  const TrainingConversation lists = parsed({{"prompt", {{{"role", "assistant"}, {"content", "a"}}}},
                                             {"completion", {{{"role", "assistant"}, {"content", "b"}}}}});
  EXPECT_EQ(lists.trained, (std::vector<bool>{false, true}));
}

TEST(Conversation, WhatIsWrongIsSaidWithItsPlace) {
  const auto said = [](const std::string& line) {
    return refusal([&] { parse_conversation(line, "chat.jsonl: line 3"); });
  };
  const auto message = [&](const std::string& text) { return said(R"({"messages":[)" + text + "]}"); };
  std::string many;
  for (int i = 0; i < 4097; ++i) many += std::string(i > 0 ? "," : "") + R"({"role":"user","content":"a"})";
  const std::pair<std::string, const char*> cases[] = {
      {said("[1]"), "is no object"},
      {said("{"), "chat.jsonl: line 3"},
      {said(R"({"text":"a"})"), "neither messages nor prompt and completion"},
      {said(R"({"messages":3})"), "messages must be a list"},
      {said(R"({"messages":[]})"), "messages is an empty list"},
      {message(many), "messages has more than 4096 messages"},
      {message("3"), "messages[0] must be an object"},
      {message(R"({"content":"a"})"), "messages[0].role is missing"},
      {message(R"({"role":"bot","content":"a"})"), "messages[0].role is bot"},
      {message(R"({"role":"user"})"), "messages[0].content is missing"},
      {message(R"({"role":"user","content":3})"), "messages[0].content must be a text"},
      {message(R"({"role":"user","content":[{"type":"image_url"}]})"), "messages[0].content[0].type is image_url"},
      {message(R"({"role":"assistant","content":"a","weight":0.5})"), "messages[0].weight must be 0 or 1"},
      {message(R"({"role":"assistant","content":"a","tool_calls":{}})"), "messages[0].tool_calls must be a list"},
      {message(R"({"role":"assistant","tool_calls":[{"function":{}}]})"), "tool_calls[0].function.name is missing"},
      {message(R"({"role":"assistant","content":"a","reasoning_content":1})"), "reasoning_content must be a text"},
      {said(R"({"messages":[{"role":"user","content":"a"}],"thinking":"maybe"})"), "thinking must be"},
      {said(R"({"messages":[{"role":"user","content":"a"}],"tools":{}})"), "tools must be a list"},
      {said(R"({"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"messages":[]}})"),
       "chat_template_kwargs.messages is not the line's to set"},
      {said(R"({"prompt":"a","completion":[]})"), "must be both texts or both lists"},
      {said(R"({"prompt":"a","completion":""})"), "completion is empty"},
  };
  for (const auto& [text, part] : cases) {
    EXPECT_THAT(text, testing::StartsWith("chat.jsonl: line 3"));
    EXPECT_THAT(text, HasSubstr(part));
  }
}

}  // namespace
}  // namespace fathom::tune
