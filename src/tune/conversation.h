// Chat data: a line of .jsonl -> a conversation -> ids, and which of them the loss is on.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat.h"
#include "text/tokenizer.h"

namespace fathom::tune {

// One to learn from, its messages as a request of the server has them.
struct TrainingConversation {
  // {role, content, reasoning_content, tool_calls, tool_call_id, name}; thoughts that content spells in <think> and
  // </think> are in reasoning_content.
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  std::vector<bool> trained;  // [messages]: answers to learn
  nlohmann::ordered_json tools = nullptr;
  std::optional<bool> thinking;                                      // nothing: the line does not say
  nlohmann::ordered_json kwargs = nlohmann::ordered_json::object();  // more variables of the template
  // Instead of messages: a text to go on from, without a template, and what to go on with.
  std::optional<std::string> prompt;
  std::string completion;
};

// A line: {"messages": [{"role", "content", "reasoning_content"?, "tool_calls"?, "tool_call_id"?, "name"?, "weight"?:
// 0 | 1}], "tools"?: [...], "thinking"?: true | false | "on" | "off", "chat_template_kwargs"?: {...}}, or {"prompt",
// "completion"}, both texts or both lists of messages. Other names are passed over, content may be a list of texts. The
// line is foreign: Error, beginning with `where`, says what of it is wrong.
TrainingConversation parse_conversation(std::string_view line, const std::string& where);

// What conversations are told with.
struct ConversationTemplate {
  std::string chat_template;      // as render_chat() takes it
  ChatOptions chat;               // begin and end token
  std::vector<int32_t> end_ids;   // at which the trained model will end its answers
  std::optional<bool> thinking;   // for lines that do not say; nothing: on for those with thoughts
  bool only_last_answer = false;  // of each conversation, not every one
};

// Why conversations cannot be told with this template: whatever the user asks, its prompt is the same. Empty where they
// can, and where it refuses a question that stands alone.
std::string why_deaf(const std::string& chat_template, const ChatOptions& chat);

// Ids, of which spans [begin, end) are learned: in order, apart, the last one up to the end.
struct TrainingSequence {
  struct Span {
    int64_t begin, end;
    bool operator==(const Span&) const = default;
  };
  std::vector<int32_t> ids;
  std::vector<Span> spans;
};

// For each answer to learn: the prompt as the server makes it of the messages before, and behind it what the model has
// to generate, its end token last, which alone is learned. Answers share a sequence where the prompt of the later one
// begins with the earlier one, id by id; where it does not (thoughts that a template drops from what is over), it has
// a sequence of its own. Nothing where there is no answer to learn. Error for thoughts that the server would not read
// from the answer: those with </think> in them.
std::vector<TrainingSequence> encode_conversation(const Tokenizer& tokenizer, const ConversationTemplate& told_with,
                                                  const TrainingConversation& conversation);

}  // namespace fathom::tune
