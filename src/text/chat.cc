#include "text/chat.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/utf8.h"
#include "text/chat_messages.h"
#include "text/chat_template.h"
#include "text/deepseek_v32_encoding.h"

namespace fathom {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kThinkMarks[] = {"<think>", "</think>"};
constexpr int kMaxDepth = 64;  // of JSON within JSON

// A character of private use that stands in none of the texts.
std::string guard_for(std::initializer_list<std::string_view> texts) {
  for (char32_t c = 0xE000; c < 0xF8FF; ++c) {
    std::string guard;
    append_utf8(guard, c);
    const auto has = [&](std::string_view text) { return text.find(guard) != std::string_view::npos; };
    if (std::none_of(texts.begin(), texts.end(), has)) return guard;
  }
  throw Error("the conversation has every character of private use");
}

ordered_json guarded(const Tokenizer& tokenizer, const ordered_json& json, std::string_view guard,
                     std::span<const std::string_view> kept) {
  if (json.is_string()) return tokenizer.guarded(json.get_ref<const std::string&>(), guard, kept);
  if (json.is_array()) {
    ordered_json list = ordered_json::array();
    for (const ordered_json& item : json) list.push_back(guarded(tokenizer, item, guard, kept));
    return list;
  }
  if (!json.is_object()) return json;
  ordered_json object = ordered_json::object();
  for (const auto& [name, value] : json.items()) {
    object[tokenizer.guarded(name, guard, kept)] = guarded(tokenizer, value, guard, kept);
  }
  return object;
}

// Arguments are JSON, in which a mark may be spelled with escapes that a template undoes.
std::string guarded_arguments(const Tokenizer& tokenizer, const std::string& text, std::string_view guard) {
  std::string plain = tokenizer.guarded(text, guard);
  if (text.find("\\u") == std::string::npos && text.find("\\/") == std::string::npos) return plain;
  const auto within = [](int depth, ordered_json::parse_event_t, const ordered_json&) {
    if (depth > kMaxDepth) throw Error("a tool call's arguments are nested deeper than {}", kMaxDepth);
    return true;
  };
  const ordered_json json = ordered_json::parse(text, within, /*allow_exceptions=*/false);
  if (json.is_discarded()) return plain;
  const ordered_json marked = guarded(tokenizer, json, guard, {});
  return marked == json ? plain : marked.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

ordered_json guarded_messages(const Tokenizer& tokenizer, const ordered_json& messages, std::string_view guard) {
  if (!messages.is_array()) return messages;
  ordered_json list = guarded(tokenizer, messages, guard, {});
  for (size_t i = 0; i < messages.size(); ++i) {
    const ordered_json& message = messages[i];
    if (!message.is_object() || !message.contains("role") || message["role"] != "assistant") continue;
    if (message.contains("content")) list[i]["content"] = guarded(tokenizer, message["content"], guard, kThinkMarks);
    if (!message.contains("tool_calls") || !message["tool_calls"].is_array()) continue;
    for (size_t j = 0; j < message["tool_calls"].size(); ++j) {
      const ordered_json& call = message["tool_calls"][j];
      if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
      const auto arguments = call["function"].find("arguments");
      if (arguments == call["function"].end() || !arguments->is_string()) continue;
      list[i]["tool_calls"][j]["function"]["arguments"] =
          guarded_arguments(tokenizer, arguments->get_ref<const std::string&>(), guard);
    }
  }
  return list;
}

std::string render_jinja(std::string_view chat_template, const ordered_json& messages, const ChatOptions& options) {
  ordered_json variables = {{"messages", messages},
                            {"tools", options.tools},
                            {"documents", nullptr},
                            {"add_generation_prompt", options.add_generation_prompt}};
  if (!options.bos_token.empty()) variables["bos_token"] = options.bos_token;
  if (!options.eos_token.empty()) variables["eos_token"] = options.eos_token;
  for (const auto& [name, value] : options.kwargs.items()) variables[name] = value;
  return render_template(chat_template, variables);
}

constexpr const char* kFirstWord = "Alpha-1";
// Does anything come of what these roles say first, one after the other?
bool speaks_for(std::string_view chat_template, std::initializer_list<const char*> roles, const ChatOptions& options) {
  ordered_json messages = ordered_json::array();
  for (const char* role : roles) {
    messages.push_back({{"role", role}, {"content", messages.empty() ? kFirstWord : "Beta-2"}});
  }
  messages.push_back({{"role", "user"}, {"content", "Gamma-3"}});
  try {
    return render_jinja(chat_template, messages, options).find(kFirstWord) != std::string::npos;
  } catch (const Error&) {
    return false;
  }
}

// A call as no conversation has it, with `said` in front of it or, for null, nothing.
ordered_json call_probe(const ordered_json& said) {
  return {{"role", "assistant"},
          {"content", said},
          {"tool_calls",
           ordered_json::array({{{"id", "call-4"},
                                 {"type", "function"},
                                 {"function", {{"name", "Delta-4"}, {"arguments", R"({"Epsilon-5":6})"}}}}})}};
}

// What comes of these messages behind a question; empty where the words do not all stand in it, one behind the other.
std::string told_in_order(std::string_view chat_template, const ordered_json& answer, const ChatOptions& options,
                          std::initializer_list<std::string_view> words) {
  ordered_json messages = ordered_json::array({{{"role", "user"}, {"content", "Gamma-3"}}});
  messages.insert(messages.end(), answer.begin(), answer.end());
  try {
    std::string text = render_jinja(chat_template, messages, options);
    size_t at = 0;
    for (const std::string_view word : words) {
      at = text.find(word, at);
      if (at == std::string::npos) return {};
    }
    return text;
  } catch (const Error&) {
    return {};
  }
}

bool has_calls(const ordered_json& messages) {
  return std::any_of(messages.begin(), messages.end(), [](const ordered_json& m) { return m.contains("tool_calls"); });
}

// Clients send back calls beside an empty text, or beside what was said before them. Templates made for calls that
// stand alone (V3's, R1's) lose them then, or put the text behind them as another answer.
ordered_json with_calls_told(std::string_view chat_template, ordered_json messages, const ChatOptions& options) {
  const auto told = [&](const ordered_json& answer, std::initializer_list<std::string_view> words) {
    return told_in_order(chat_template, answer, options, words);
  };
  if (has_calls(messages)) {
    // Arguments are text. Some templates make JSON of it once more, others (V3.2's) take an object alone.
    const ordered_json probe = ordered_json::array({call_probe(nullptr)});
    const bool is_coded_twice = !told(probe, {"Delta-4", R"(\"Epsilon-5\")"}).empty();
    if (is_coded_twice ||
        (told(probe, {"Delta-4"}).empty() && !told(with_decoded_arguments(probe), {"Delta-4"}).empty()))
      messages = with_decoded_arguments(std::move(messages));
  }
  if (has_calls_beside(messages, /*text=*/false)) {
    const std::string alone = told(ordered_json::array({call_probe(nullptr)}), {"Delta-4", "Epsilon-5"});
    const std::string beside_nothing = told(ordered_json::array({call_probe("")}), {"Delta-4", "Epsilon-5"});
    if (!alone.empty() && (beside_nothing.empty() || alone.size() < beside_nothing.size()))
      messages = with_calls_alone(std::move(messages));
  }
  if (has_calls_beside(messages, /*text=*/true)) {
    const std::initializer_list<std::string_view> words = {kFirstWord, "Delta-4", "Epsilon-5"};
    const ordered_json two = with_calls_behind_text(ordered_json::array({call_probe(kFirstWord)}));
    if (told(ordered_json::array({call_probe(kFirstWord)}), words).empty() && !told(two, words).empty())
      messages = with_calls_behind_text(messages);
  }
  return messages;
}

// Templates drop without a word what they do not know.
ordered_json fitted(std::string_view chat_template, ordered_json messages, const ChatOptions& options) {
  const auto is_developer = [](const ordered_json& message) {
    return message.contains("role") && message["role"] == "developer";
  };
  const bool has_developer = std::any_of(messages.begin(), messages.end(), is_developer);
  const bool knows_developer = chat_template.find("developer") != std::string_view::npos;
  if (has_developer && !(knows_developer && speaks_for(chat_template, {"developer"}, options))) {
    messages = with_developers_as_system(std::move(messages));
    if (!speaks_for(chat_template, {"system", "system"}, options)) messages = with_one_system_message(messages);
  }
  if (!options.tools.empty() && !reads_tools(chat_template)) {
    const std::string text = tools_text(chat_template, options.tools);
    if (!text.empty()) messages = with_system_text(std::move(messages), text);
  }
  return with_calls_told(chat_template, std::move(messages), options);
}

bool ends_in(std::string_view text, std::string_view mark) {
  return text.substr(0, text.find_last_not_of(" \n") + 1).ends_with(mark);
}

// `text`, or where its end may be what somebody said, another that ends as the template ends it.
std::string own_end_of(const std::string& text, std::string_view chat_template, const ordered_json& messages,
                       const ChatOptions& options) {
  const auto spells_mark = [](const ordered_json& message) {
    return message.contains("content") && message["content"].is_string() &&
           message["content"].get_ref<const std::string&>().find("think>") != std::string::npos;
  };
  const bool has_mark = ends_in(text, kThinkMarks[0]) || ends_in(text, kThinkMarks[1]);
  if (!has_mark || std::none_of(messages.begin(), messages.end(), spells_mark)) return text;
  ordered_json harmless = messages;
  for (ordered_json& message : harmless) {
    if (spells_mark(message)) message["content"] = kFirstWord;
  }
  return render_chat(chat_template, harmless, options);
}

std::string part_of(const ordered_json& answer, const char* name) {
  return answer.contains(name) && answer[name].is_string() ? answer[name].get<std::string>() : std::string();
}

// What an answer that has begun says behind a prompt that ends so. With reasoning and no content it is still in its
// reasoning.
std::string beginning_of(const ordered_json& answer, std::string_view own_end) {
  const std::string content = part_of(answer, "content"), reasoning = part_of(answer, "reasoning_content");
  const bool is_open = ends_in(own_end, kThinkMarks[0]);
  std::string text;
  if (!reasoning.empty()) text = (is_open ? "" : std::string(kThinkMarks[0])) + reasoning;
  if (!content.empty() && (is_open || !reasoning.empty())) text += kThinkMarks[1];
  return text + content;
}

// A conversation whose template writes marks that nobody else spells.
class GuardedChat {
 public:
  GuardedChat(const Tokenizer& tokenizer, std::string_view chat_template, const ordered_json& messages,
              const ChatOptions& options)
      : tokenizer_(tokenizer), chat_template_(chat_template), options_(options) {
    const auto dumped = [](const ordered_json& json) {
      return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
    };
    guard_ = guard_for({chat_template, dumped(messages), dumped(options.tools), dumped(options.kwargs),
                        dumped(options.begun_answer), options.bos_token, options.eos_token});
    options_.tools = guarded(tokenizer, options.tools, guard_, {});
    options_.kwargs = guarded(tokenizer, options.kwargs, guard_, {});
  }

  const std::string& guard() const { return guard_; }
  std::string told(const ordered_json& messages, bool asks_for_answer) const {
    ChatOptions options = options_;
    options.add_generation_prompt = asks_for_answer;
    return render_chat(chat_template_, guarded_messages(tokenizer_, messages, guard_), options);
  }

 private:
  const Tokenizer& tokenizer_;
  std::string_view chat_template_;
  ChatOptions options_;
  std::string guard_;
};

// What a template writes of an answer behind the prompt that asks for it, with all that it puts behind.
struct Written {
  std::string text;
  bool has_thoughts;  // and, where the prompt has begun them, their end; else they are still to be put in front
};

// Behind these messages; own_end is of the prompt that they make. Nothing where what the template writes does not go on
// from there.
std::optional<Written> written(const GuardedChat& chat, const ordered_json& before, const ordered_json& answer,
                               std::string_view own_end) {
  ordered_json all = before, thoughtless = before;
  all.push_back(answer);
  thoughtless.push_back(answer);
  thoughtless.back().erase("reasoning_content");
  const std::string prompt = chat.told(before, true), full = chat.told(all, false);
  const bool thinks = !part_of(answer, "reasoning_content").empty();
  const bool is_dropped = thinks && full == chat.told(thoughtless, false);
  const bool is_open = ends_in(own_end, kThinkMarks[0]);
  if (full.starts_with(prompt) && !(is_dropped && is_open)) {
    return Written{full.substr(prompt.size()), is_open || (thinks && !is_dropped)};
  }
  const size_t at = is_open ? prompt.rfind(kThinkMarks[0]) : std::string::npos;
  if (at == std::string::npos || !full.starts_with(std::string_view(prompt).substr(0, at))) return std::nullopt;
  std::string_view rest = std::string_view(full).substr(at);
  for (const std::string_view mark : kThinkMarks) {
    if (rest.starts_with(mark)) rest.remove_prefix(mark.size());
  }
  return Written{std::string(rest), false};
}

// The same behind another question, without thoughts: for templates that tell an answer by what came long before it
// (V3's and R1's second round of calls).
std::optional<Written> written_alone(const GuardedChat& chat, const ordered_json& answer) {
  const ordered_json before = ordered_json::array({{{"role", "user"}, {"content", "Gamma-3"}}});
  std::optional<Written> alone = written(chat, before, answer, chat.told(before, true));
  if (!alone || !alone->has_thoughts) return alone;
  const size_t at = alone->text.find(kThinkMarks[1]);
  if (at == std::string::npos) return std::nullopt;
  alone->text.erase(0, at + kThinkMarks[1].size());
  alone->text.erase(0, alone->text.find_first_not_of('\n'));
  alone->has_thoughts = false;
  return alone;
}

// Whether the template knows thoughts, and begins them without a line of their own, as V3.1's.
bool begins_thoughts_in_line(std::string_view chat_template) {
  const auto has = [&](std::string_view text) { return chat_template.find(text) != std::string_view::npos; };
  return has("<think>") && !has("<think>\n") && !has("<think>\\n");
}

// Puts thoughts where a model thinks behind this prompt.
std::string with_thoughts(const std::string& reasoning, const std::string& answer, std::string_view own_end,
                          std::string_view chat_template) {
  const auto put = [&](std::string_view begin, std::string_view end, std::string_view behind) {
    return fmt::format("{}{}{}{}{}{}", begin, reasoning, end, kThinkMarks[1], behind, answer);
  };
  if (ends_in(own_end, kThinkMarks[0])) {
    // R1's prompt ends its line, and so do its thoughts; V3.1's does not.
    return own_end.ends_with(kThinkMarks[0]) ? put("", "", "") : put("", "\n", "\n\n");
  }
  if (reasoning.empty() || ends_in(own_end, kThinkMarks[1])) return answer;
  if (begins_thoughts_in_line(chat_template)) return put(kThinkMarks[0], "", "");
  return put(fmt::format("{}\n", kThinkMarks[0]), "\n", "\n\n");  // as R1 was taught, whose first prompt ends in a mark
}

// Up to the token that ends it.
std::string ended(std::string answer, std::span<const std::string> ends) {
  const std::string_view trimmed = std::string_view(answer).substr(0, answer.find_last_not_of(" \t\r\n") + 1);
  for (const std::string& end : ends) {
    if (trimmed.ends_with(end)) return std::string(trimmed);
  }
  // V3's first template forgets the end of a single call.
  constexpr std::string_view kBegin = "<｜tool▁calls▁begin｜>", kEnd = "<｜tool▁calls▁end｜>";
  if (answer.find(kBegin) != std::string::npos && answer.find(kEnd) == std::string::npos) answer += kEnd;
  return ends.empty() ? answer : answer + ends[0];
}

bool ends_within(std::string_view answer, std::span<const std::string> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](const std::string& end) {
    const size_t at = end.empty() ? std::string_view::npos : answer.find(end);
    return at != std::string_view::npos && at + end.size() < answer.size();
  });
}

}  // namespace

ChatPrompt encode_chat(const Tokenizer& tokenizer, std::string_view chat_template, const ordered_json& messages,
                       const ChatOptions& options) {
  const GuardedChat chat(tokenizer, chat_template, messages, options);
  const std::string& guard = chat.guard();
  std::string text = chat.told(messages, options.add_generation_prompt);
  std::string own_end = own_end_of(without_guards(text, guard), chat_template, messages, options);
  if (options.begun_answer.is_object()) {
    text += beginning_of(guarded(tokenizer, options.begun_answer, guard, {}), own_end);
    const auto content = options.begun_answer.find("content");
    if (content != options.begun_answer.end() && content->is_string() && *content != "") own_end.clear();
  }
  return {without_guards(text, guard), tokenizer.encode_guarded(text, guard), std::move(own_end)};
}

ChatAnswer encode_answer(const Tokenizer& tokenizer, std::string_view chat_template, const ordered_json& messages,
                         const ChatOptions& options, std::span<const std::string> ends) {
  FATHOM_CHECK(messages.is_array() && messages.size() > 1);
  ordered_json before = messages;
  before.erase(before.size() - 1);
  ChatAnswer answer{encode_chat(tokenizer, chat_template, before, options), {}, {}};
  const std::string& own_end = answer.prompt.own_end;
  const GuardedChat chat(tokenizer, chat_template, messages, options);
  const std::string reasoning = tokenizer.guarded(part_of(messages.back(), "reasoning_content"), chat.guard());
  // Up to the end, thoughts in front.
  const auto write = [&](const ordered_json& message) -> std::optional<std::string> {
    std::optional<Written> w = written(chat, before, message, own_end);
    if (!w) w = written_alone(chat, message);
    if (!w) return std::nullopt;
    return ended(w->has_thoughts ? w->text : with_thoughts(reasoning, w->text, own_end, chat_template), ends);
  };
  std::optional<std::string> text = write(messages.back());
  if (text && ends_within(*text, ends) && has_calls_beside(ordered_json::array({messages.back()}), /*text=*/true)) {
    // Two messages of the template's are one answer, which ends once.
    ordered_json says = messages.back(), calls = messages.back();
    says.erase("tool_calls");
    calls.erase("reasoning_content");
    calls["content"] = nullptr;
    const std::optional<std::string> said = write(says);
    const std::optional<Written> called = written_alone(chat, calls);
    text.reset();
    for (const std::string& end : ends) {
      if (said && called && said->ends_with(end)) text = said->substr(0, said->size() - end.size()) + called->text;
    }
    if (text) text = ended(*text, ends);
  }
  if (!text || ends_within(*text, ends)) {
    throw Error(
        "messages[{}]: the chat template writes this answer in a way that no model can go on to from its prompt",
        messages.size() - 1);
  }
  answer.text = without_guards(*text, chat.guard());
  answer.ids = tokenizer.encode_guarded(*text, chat.guard());
  return answer;
}

std::string render_chat(std::string_view chat_template, const nlohmann::ordered_json& messages,
                        const ChatOptions& options) {
  if (!messages.is_array()) throw Error("messages must be a list of objects with role and content");
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) throw Error("messages[{}] is not an object with role and content", i);
  }
  if (!options.tools.is_null() && !options.tools.is_array()) throw Error("tools must be a list");
  if (!options.kwargs.is_object()) throw Error("kwargs, the template's variables, must be an object");
  if (chat_template == kDeepseekV32Encoding) return encode_deepseek_v32(in_call_order(messages), options);
  if (chat_template.empty()) {
    throw Error("the model has no chat template; give one as a file or use plain text instead of messages");
  }
  return render_jinja(chat_template, fitted(chat_template, in_call_order(messages), options), options);
}

}  // namespace fathom
