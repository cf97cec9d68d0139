#include "tune/conversation.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "base/json.h"
#include "base/terminal.h"
#include "text/answer_parser.h"

namespace fathom::tune {
namespace {

using nlohmann::ordered_json;
using simdjson::dom::element;

constexpr size_t kMaxMessages = 4096;  // each answer's prompt is made of all before it

// A field, or nothing where it is absent or null.
std::optional<element> field(element object, const char* name) {
  element value;
  if (object[name].get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  return value;
}

[[noreturn]] void refuse(const std::string& name, std::string_view what) { throw Error("{} {}", name, what); }

std::optional<std::string> text_field(element object, const char* name, const std::string& of) {
  const std::optional<element> value = field(object, name);
  if (!value) return std::nullopt;
  std::string_view text;
  if (value->get(text) != simdjson::SUCCESS) refuse(fmt::format("{}{}", of, name), "must be a text");
  return std::string(text);
}

ordered_json json_of(element value) { return ordered_json::parse(simdjson::minify(value)); }

// A text, null, or a list of parts, of which texts alone can be learned.
ordered_json read_content(element message, const std::string& of) {
  const std::optional<element> value = field(message, "content");
  if (!value) return nullptr;
  const std::string name = of + "content";
  std::string_view text;
  if (value->get(text) == simdjson::SUCCESS) return std::string(text);
  simdjson::dom::array parts;
  if (value->get(parts) != simdjson::SUCCESS) refuse(name, "must be a text or a list of parts");
  std::string joined;
  for (size_t i = 0; const element part : parts) {
    const std::string part_name = fmt::format("{}[{}]", name, i++);
    if (part.get(text) == simdjson::SUCCESS) {
      joined += text;
      continue;
    }
    if (!part.is_object()) refuse(part_name, "must be {\"type\": \"text\", \"text\": ...}");
    const std::string type = text_field(part, "type", part_name + ".").value_or("text");
    if (type != "text") refuse(part_name + ".type", fmt::format("is {}: the model reads text", printable(type, 40)));
    const auto part_text = text_field(part, "text", part_name + ".");
    if (!part_text) refuse(part_name + ".text", "is missing");
    joined += *part_text;
  }
  return joined;
}

ordered_json read_tool_calls(element list, const std::string& name) {
  simdjson::dom::array calls;
  if (list.get(calls) != simdjson::SUCCESS) refuse(name, "must be a list");
  ordered_json read = ordered_json::array();
  for (size_t i = 0; const element call : calls) {
    const std::string of = fmt::format("{}[{}]", name, i++);
    if (!call.is_object()) refuse(of, "must be an object");
    if (text_field(call, "type", of + ".").value_or("function") != "function") refuse(of + ".type", "must be function");
    const std::optional<element> function = field(call, "function");
    if (!function || !function->is_object()) refuse(of + ".function", "must be an object with name and arguments");
    const auto called = text_field(*function, "name", of + ".function.");
    if (!called || called->empty()) refuse(of + ".function.name", "is missing");
    std::string arguments = "{}";
    if (const auto given = field(*function, "arguments")) {
      std::string_view text;
      if (given->get(text) == simdjson::SUCCESS) {
        arguments = text;
      } else if (given->is_object()) {
        arguments = json_of(*given).dump();
      } else {
        refuse(of + ".function.arguments", "must be a text or an object");
      }
    }
    read.push_back({{"id", text_field(call, "id", of + ".").value_or("")},
                    {"type", "function"},
                    {"function", {{"name", *called}, {"arguments", arguments}}}});
  }
  return read;
}

std::string_view without_newlines_in_front(std::string_view text) {
  while (text.starts_with('\n')) text.remove_prefix(1);
  return text;
}

std::string_view without_newlines(std::string_view text) {
  text = without_newlines_in_front(text);
  while (text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

// Data of reasoning models often has thoughts and content in one text, as they were generated: behind a prompt that
// ends in <think> without that.
void split_thoughts(ordered_json& message) {
  if (!message["content"].is_string() || message.contains("reasoning_content")) return;
  const std::string content = message["content"];
  const size_t end = content.find(kEndThink);
  if (end == std::string::npos) return;
  std::string_view thoughts = std::string_view(content).substr(0, end);
  if (const size_t begin = thoughts.find(kThink); begin != std::string_view::npos) {
    if (thoughts.find_first_not_of(" \t\r\n") != begin) return;
    thoughts.remove_prefix(begin + kThink.size());
  }
  message["reasoning_content"] = without_newlines(thoughts);
  message["content"] = without_newlines_in_front(std::string_view(content).substr(end + kEndThink.size()));
}

// `weight`: as OpenAI's fine-tuning has it, 0 for an answer that is not to be learned.
bool read_weight(element message, const std::string& of) {
  const std::optional<element> value = field(message, "weight");
  if (!value) return true;
  double weight = 0;
  if (value->get(weight) != simdjson::SUCCESS || (weight != 0 && weight != 1)) refuse(of + "weight", "must be 0 or 1");
  return weight == 1;
}

void read_message(element message, const std::string& name, TrainingConversation& conversation) {
  if (!message.is_object()) refuse(name, "must be an object with role and content");
  const std::string of = name + ".";
  constexpr std::array roles = {"system", "developer", "user", "assistant", "tool"};
  const auto role = text_field(message, "role", of);
  if (!role) refuse(of + "role", "is missing");
  if (std::ranges::find(roles, *role) == roles.end()) {
    refuse(of + "role", fmt::format("is {}, must be system, developer, user, assistant or tool", printable(*role, 40)));
  }
  ordered_json read{{"role", *role}, {"content", read_content(message, of)}};
  if (const auto who = text_field(message, "name", of)) read["name"] = *who;
  const bool is_answer = *role == "assistant";
  if (is_answer) {
    auto thoughts = text_field(message, "reasoning_content", of);
    if (!thoughts) thoughts = text_field(message, "reasoning", of);
    if (thoughts) read["reasoning_content"] = *thoughts;
    if (const auto list = field(message, "tool_calls")) {
      // No calls are as good as none given: templates ask whether there is a list.
      if (ordered_json calls = read_tool_calls(*list, of + "tool_calls"); !calls.empty()) {
        read["tool_calls"] = std::move(calls);
      }
    }
    split_thoughts(read);
  }
  if (*role == "tool") read["tool_call_id"] = text_field(message, "tool_call_id", of).value_or("");
  if (read["content"].is_null() && !read.contains("tool_calls") && !read.contains("reasoning_content")) {
    refuse(of + "content", "is missing");
  }
  conversation.messages.push_back(std::move(read));
  conversation.trained.push_back(is_answer && read_weight(message, of));
}

void read_messages(element list, const std::string& name, TrainingConversation& conversation) {
  simdjson::dom::array messages;
  if (list.get(messages) != simdjson::SUCCESS) refuse(name, "must be a list of messages");
  for (size_t i = 0; const element message : messages) {
    if (i == kMaxMessages) refuse(name, fmt::format("has more than {} messages", kMaxMessages));
    read_message(message, fmt::format("{}[{}]", name, i++), conversation);
  }
  if (conversation.messages.empty()) refuse(name, "is an empty list");
}

void read_switches(element root, TrainingConversation& conversation) {
  if (const auto tools = field(root, "tools")) {
    simdjson::dom::array list;
    if (tools->get(list) != simdjson::SUCCESS) refuse("tools", "must be a list");
    for (size_t i = 0; const element tool : list) {
      if (!tool.is_object()) refuse(fmt::format("tools[{}]", i), "must be an object");
      ++i;
    }
    if (list.size() > 0) conversation.tools = json_of(*tools);
  }
  if (const auto thinking = field(root, "thinking")) {
    bool on = false;
    std::string_view word;
    if (thinking->get(on) != simdjson::SUCCESS) {
      if (thinking->get(word) != simdjson::SUCCESS || (word != "on" && word != "off")) {
        refuse("thinking", "must be true, false, \"on\" or \"off\"");
      }
      on = word == "on";
    }
    conversation.thinking = on;
  }
  if (const auto kwargs = field(root, "chat_template_kwargs")) {
    if (!kwargs->is_object()) refuse("chat_template_kwargs", "must be an object");
    for (const char* name : {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}) {
      if (field(*kwargs, name)) refuse(fmt::format("chat_template_kwargs.{}", name), "is not the line's to set");
    }
    conversation.kwargs = json_of(*kwargs);
  }
}

void read_pair(element prompt, element completion, TrainingConversation& conversation) {
  std::string_view asked, answer;
  if (prompt.get(asked) == simdjson::SUCCESS && completion.get(answer) == simdjson::SUCCESS) {
    if (answer.empty()) refuse("completion", "is empty");
    conversation.prompt = std::string(asked);
    conversation.completion = std::string(answer);
    return;
  }
  if (!prompt.is_array() || !completion.is_array()) {
    refuse("prompt", "and completion must be both texts or both lists of messages");
  }
  read_messages(prompt, "prompt", conversation);
  std::fill(conversation.trained.begin(), conversation.trained.end(), false);
  const size_t n_before = conversation.messages.size();
  read_messages(completion, "completion", conversation);
  if (conversation.messages.size() == n_before) refuse("completion", "is an empty list");
}

}  // namespace

TrainingConversation parse_conversation(std::string_view line, const std::string& where) {
  const JsonDocument json = JsonDocument::parse(line, where);
  try {
    const element root = json.root();
    if (!root.is_object()) throw Error("is no object with messages, or with prompt and completion");
    TrainingConversation conversation;
    if (const auto messages = field(root, "messages")) {
      read_messages(*messages, "messages", conversation);
    } else {
      const auto prompt = field(root, "prompt"), completion = field(root, "completion");
      if (!prompt || !completion) throw Error("has neither messages nor prompt and completion");
      read_pair(*prompt, *completion, conversation);
    }
    read_switches(root, conversation);
    return conversation;
  } catch (const Error& error) {
    throw Error("{}: {}", where, error.what());
  }
}

namespace {

TrainingSequence plain_sequence(const Tokenizer& tokenizer, const TrainingConversation& conversation) {
  TrainingSequence sequence;
  sequence.ids = tokenizer.encode(*conversation.prompt);
  const int32_t bos = tokenizer.bos_id();
  if (tokenizer.adds_bos() && (sequence.ids.empty() || sequence.ids.front() != bos)) {
    sequence.ids.insert(sequence.ids.begin(), bos);
  }
  const auto begin = std::ssize(sequence.ids);
  const std::vector<int32_t> completion = tokenizer.encode(conversation.completion, /*parse_special=*/false);
  sequence.ids.insert(sequence.ids.end(), completion.begin(), completion.end());
  if (tokenizer.eos_id() >= 0) sequence.ids.push_back(tokenizer.eos_id());
  sequence.spans = {{std::max<int64_t>(begin, 1), std::ssize(sequence.ids)}};
  if (sequence.spans[0].begin >= sequence.spans[0].end) sequence.spans.clear();
  return sequence;
}

bool has_thoughts(const TrainingConversation& c) {
  for (size_t i = 0; i < c.trained.size(); ++i) {
    if (c.trained[i] && c.messages[i].value("reasoning_content", "") != "") return true;
  }
  return false;
}

}  // namespace

std::string why_deaf(const std::string& chat_template, const ChatOptions& chat) {
  const auto prompt_for = [&](const char* question) {
    return render_chat(chat_template, ordered_json::array({{{"role", "user"}, {"content", question}}}), chat);
  };
  try {
    if (prompt_for("Alpha-1") != prompt_for("Beta-2")) return {};
  } catch (const Error&) {  // if it is of conversations too, these will tell
    return {};
  }
  return "the chat template writes the same prompt whatever is asked; give another with --template FILE";
}

std::vector<TrainingSequence> encode_conversation(const Tokenizer& tokenizer, const ConversationTemplate& told_with,
                                                  const TrainingConversation& conversation) {
  std::vector<TrainingSequence> sequences;
  if (conversation.prompt) {
    if (TrainingSequence plain = plain_sequence(tokenizer, conversation); !plain.spans.empty()) {
      sequences.push_back(std::move(plain));
    }
    return sequences;
  }
  ChatOptions chat = told_with.chat;
  chat.tools = conversation.tools;
  std::optional<bool> thinking = conversation.thinking ? conversation.thinking : told_with.thinking;
  if (!thinking && has_thoughts(conversation)) thinking = true;
  // Templates know the switch by either name.
  if (thinking) chat.kwargs["thinking"] = chat.kwargs["enable_thinking"] = *thinking;
  for (const auto& [name, value] : conversation.kwargs.items()) chat.kwargs[name] = value;
  std::vector<std::string> ends;
  for (const int32_t id : told_with.end_ids) ends.push_back(tokenizer.token_bytes(id));

  std::vector<bool> trained = conversation.trained;
  if (told_with.only_last_answer) {
    const auto last = std::find(trained.rbegin(), trained.rend(), true);
    if (last != trained.rend()) std::fill(last + 1, trained.rend(), false);
  }
  ordered_json messages = ordered_json::array();
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    messages.push_back(conversation.messages[i]);
    if (thinking == false) messages.back().erase("reasoning_content");
    if (!trained[i] || i == 0) continue;  // nobody asks for an answer that begins the conversation
    if (messages.back().value("reasoning_content", "").find(kEndThink) != std::string::npos) {
      throw Error("messages[{}].reasoning_content: has {} in it, where thoughts end: what is behind it is content", i,
                  kEndThink);
    }
    ChatAnswer answer = encode_answer(tokenizer, told_with.chat_template, messages, chat, ends);
    std::vector<int32_t>& ids = answer.prompt.ids;
    const bool goes_on = !sequences.empty() && ids.size() >= sequences.back().ids.size() &&
                         std::equal(sequences.back().ids.begin(), sequences.back().ids.end(), ids.begin());
    if (!goes_on) sequences.emplace_back();
    const auto begin = std::ssize(ids);
    ids.insert(ids.end(), answer.ids.begin(), answer.ids.end());
    sequences.back().ids = std::move(ids);
    sequences.back().spans.push_back({begin, std::ssize(sequences.back().ids)});
  }
  return sequences;
}

}  // namespace fathom::tune
