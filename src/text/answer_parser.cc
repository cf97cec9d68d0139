#include "text/answer_parser.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "text/begun.h"
#include "text/chat.h"

namespace fathom {
namespace {

using Kind = AnswerPart::Kind;

constexpr std::string_view kCalls = "<｜tool▁calls▁begin｜>", kEndCalls = "<｜tool▁calls▁end｜>";
constexpr std::string_view kCall = "<｜tool▁call▁begin｜>", kEndCall = "<｜tool▁call▁end｜>";
constexpr std::string_view kSeparator = "<｜tool▁sep｜>", kFence = "\n```json\n";
// Behind the arguments; those with a fence first, which is theirs.
constexpr std::string_view kEndsOfArguments[] = {"\n```<｜tool▁call▁end｜>", "```<｜tool▁call▁end｜>",
                                                 "<｜tool▁call▁end｜>",      "\n```<｜tool▁calls▁end｜>",
                                                 "```<｜tool▁calls▁end｜>",  "<｜tool▁calls▁end｜>"};
constexpr std::string_view kInvokes = "<｜DSML｜function_calls>", kEndInvokes = "</｜DSML｜function_calls>";
constexpr std::string_view kInvoke = "<｜DSML｜invoke name=\"", kEndInvoke = "</｜DSML｜invoke>";
constexpr std::string_view kParameter = "<｜DSML｜parameter name=\"", kEndParameter = "</｜DSML｜parameter>";
constexpr std::string_view kEndHead = "\">";

constexpr size_t kNone = std::string_view::npos;

std::string_view without_spaces(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \n\r\t");
  if (begin == kNone) return {};
  return text.substr(begin, text.find_last_not_of(" \n\r\t") - begin + 1);
}

// What stands for `text` in a JSON string. Looks at ASCII alone, so that a character may be cut.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) {
      out += c;
    } else {
      const std::string quoted = nlohmann::json(std::string(1, c)).dump();
      out += std::string_view(quoted).substr(1, quoted.size() - 2);
    }
  }
  return out;
}

}  // namespace

std::optional<std::string_view> behind_thoughts(std::string_view answer, bool begun_thoughts) {
  if (const size_t end = answer.rfind(kEndThink); end != std::string_view::npos) {
    answer.remove_prefix(end + kEndThink.size());
    begun_thoughts = false;
  }
  const size_t begin = std::min(answer.find_first_not_of(" \t\r\n"), answer.size());
  if (begun_thoughts || answer.substr(begin).starts_with(kThink)) return std::nullopt;
  return answer;
}

std::string_view calls_mark(CallFormat format) {
  if (format == CallFormat::none) return {};
  return format == CallFormat::deepseek_v3_2 ? kInvokes : kCalls;
}

AnswerFormat answer_format_of(std::string_view chat_template, std::string_view prompt) {
  AnswerFormat format;
  const auto writes = [&](std::string_view text) { return chat_template.find(text) != std::string_view::npos; };
  if (chat_template == kDeepseekV32Encoding || writes("DSML")) {
    format = {.calls = CallFormat::deepseek_v3_2, .trims_newlines = false};
  } else if (writes(kSeparator)) {
    format.calls = writes("```json") ? CallFormat::v3 : CallFormat::v3_1;
  }
  const std::string_view end = prompt.substr(0, prompt.find_last_not_of(" \n") + 1);
  format.begins_in_reasoning = end.ends_with(kThink);
  format.behind_thoughts = end.ends_with(kEndThink);
  return format;
}

AnswerParser::AnswerParser(const AnswerFormat& format) : format_(format) {}

std::vector<AnswerPart> AnswerParser::push(std::string_view text) {
  held_ += text;
  while (step(/*last=*/false)) {
  }
  return std::exchange(parts_, {});
}

std::vector<AnswerPart> AnswerParser::finish() {
  while (step(/*last=*/true)) {
  }
  held_.clear();
  return std::exchange(parts_, {});
}

bool AnswerParser::step(bool last) {
  switch (state_) {
    case State::begin:
      return read_begin(last);
    case State::reasoning:
    case State::content:
    case State::calls:
      return read_text(last);
    case State::call_head:
      return read_head();
    case State::arguments:
      return read_arguments();
    case State::elements:
      return read_elements();
    case State::parameter_head:
      return read_parameter_head();
    case State::parameter:
      return read_parameter();
  }
  return false;
}

template <typename Emit>
size_t AnswerParser::read_until(std::span<const std::string_view> marks, bool last, Emit&& emit) {
  size_t first = kNone, which = kNone, may_be_one = 0;
  for (size_t i = 0; i < marks.size(); ++i) {
    const size_t at = held_.find(marks[i]);
    if (at < first) std::tie(first, which) = std::pair(at, i);
    if (!last) may_be_one = std::max(may_be_one, begun(held_, marks[i]));
  }
  const size_t n = which == kNone ? held_.size() - may_be_one : first;
  if (n > 0) emit(std::string_view(held_).substr(0, n));
  held_.erase(0, which == kNone ? n : n + marks[which].size());
  return which;
}

void AnswerParser::enter(State state) {
  state_ = state;
  newlines_.clear();
  at_start_ = true;
}

void AnswerParser::emit(Kind kind, std::string_view text) {
  if (text.empty()) return;
  const int64_t call = kind == Kind::call_arguments ? n_calls_ - 1 : -1;
  if (!parts_.empty() && parts_.back().kind == kind && parts_.back().call == call) {
    parts_.back().text += text;
  } else {
    parts_.push_back({kind, call, std::string(text)});
  }
}

// Newlines at the end wait for what follows.
void AnswerParser::emit_trimmed(Kind kind, std::string_view text, bool trims) {
  if (at_start_ && trims) {
    const size_t begin = text.find_first_not_of('\n');
    if (begin == kNone) return;
    text.remove_prefix(begin);
  }
  at_start_ = false;
  const size_t end = text.find_last_not_of('\n') + 1;  // 0 where there is nothing else
  if (end > 0) {
    emit(kind, std::exchange(newlines_, {}));
    emit(kind, text.substr(0, end));
  }
  newlines_ += text.substr(end);
}

void AnswerParser::begin_call(std::string_view name) {
  parts_.push_back({Kind::call_name, n_calls_++, std::string(without_spaces(name))});
}

bool AnswerParser::read_begin(bool last) {
  if (held_.starts_with(kThink)) {
    held_.erase(0, kThink.size());
    enter(State::reasoning);
    return true;
  }
  if (!last && kThink.starts_with(held_)) return false;
  enter(format_.begins_in_reasoning ? State::reasoning : State::content);
  at_start_ = format_.begins_in_reasoning || format_.behind_thoughts;
  return true;
}

bool AnswerParser::read_text(bool last) {
  const bool dsml = format_.calls == CallFormat::deepseek_v3_2;
  const Kind kind = state_ == State::reasoning ? Kind::reasoning : Kind::content;
  const bool trims = format_.trims_newlines || state_ == State::calls;
  std::vector<std::string_view> marks;
  if (state_ == State::calls) {
    marks = dsml ? std::vector{kInvoke, kEndInvokes} : std::vector{kCall, kEndCalls};
  } else {
    if (format_.calls != CallFormat::none) marks.push_back(calls_mark(format_.calls));
    if (state_ == State::reasoning) marks.push_back(kEndThink);
  }
  const size_t which = read_until(marks, last, [&](std::string_view text) { emit_trimmed(kind, text, trims); });
  if (which == kNone) {
    if (last && state_ != State::calls) emit(kind, std::exchange(newlines_, {}));
    return false;
  }
  const std::string_view mark = marks[which];
  if (mark == kCall || mark == kInvoke) {
    enter(State::call_head);
    return true;
  }
  if (!trims) {
    // V3.2 puts two newlines in front of its calls, and none around </think>.
    if (mark == kInvokes) newlines_.resize(newlines_.size() - std::min<size_t>(newlines_.size(), 2));
    emit(kind, newlines_);
  }
  enter(mark == kCalls || mark == kInvokes ? State::calls : State::content);
  return true;
}

// Behind the mark that begins a call, until what its arguments begin with.
bool AnswerParser::read_head() {
  std::vector<std::string_view> marks = {kEndHead};
  if (format_.calls == CallFormat::v3) marks = {kFence, kEndCall};
  if (format_.calls == CallFormat::v3_1) marks = {kSeparator, kEndCall};
  if (std::none_of(marks.begin(), marks.end(), [&](auto mark) { return held_.find(mark) != kNone; })) return false;
  std::string head;
  const size_t which = read_until(marks, true, [&](std::string_view text) { head = text; });
  std::string_view name = head;
  if (const size_t at = name.find(kSeparator); at != kNone) name.remove_prefix(at + kSeparator.size());
  std::string_view behind;  // where the arguments have no mark in front, or are missing
  if (const size_t line = without_spaces(name).find('\n'); marks[which] == kEndCall && line != kNone) {
    name = without_spaces(name);
    behind = without_spaces(name.substr(line));
    name = name.substr(0, line);
  }
  begin_call(name);
  emit_arguments(behind);
  n_parameters_ = 0;
  is_json_ = false;
  if (format_.calls == CallFormat::deepseek_v3_2) {
    enter(State::elements);
  } else {
    enter(marks[which] == kEndCall ? State::calls : State::arguments);
  }
  return true;
}

bool AnswerParser::read_arguments() {
  // V3.1 has no fences: one would be the arguments' own.
  const auto marks = format_.calls == CallFormat::v3
                         ? std::vector<std::string_view>(std::begin(kEndsOfArguments), std::end(kEndsOfArguments))
                         : std::vector{kEndCall, kEndCalls};
  const size_t which = read_until(marks, false, [&](std::string_view text) { emit_arguments(text); });
  if (which == kNone) return false;
  enter(marks[which].ends_with(kEndCall) ? State::calls : State::content);
  return true;
}

// In a V3.2 call: its parameters, or a JSON object.
bool AnswerParser::read_elements() {
  constexpr std::string_view marks[] = {kParameter, kEndInvoke, kEndInvokes};
  const size_t which = read_until(marks, false, [&](std::string_view text) {
    if (n_parameters_ > 0) return;
    emit_trimmed(Kind::call_arguments, text, true);
    is_json_ = !at_start_;
  });
  if (which == kNone) return false;
  if (marks[which] == kParameter) {
    enter(State::parameter_head);
    return true;
  }
  if (!is_json_) emit_arguments(n_parameters_ > 0 ? "}" : "{}");
  enter(marks[which] == kEndInvoke ? State::calls : State::content);
  return true;
}

// NAME" string="true or NAME" string="false
bool AnswerParser::read_parameter_head() {
  if (held_.find(kEndHead) == kNone) return false;
  std::string head;
  read_until(std::array{kEndHead}, true, [&](std::string_view text) { head = text; });
  is_string_ = !head.ends_with("string=\"false");
  const std::string name = head.substr(0, head.find('"'));
  emit_arguments(n_parameters_++ > 0 ? ", " : "{");
  emit_arguments('"' + escaped(name) + "\": ");
  if (is_string_) emit_arguments("\"");
  enter(State::parameter);
  return true;
}

bool AnswerParser::read_parameter() {
  const size_t which = read_until(std::array{kEndParameter}, false, [&](std::string_view text) {
    emit_arguments(is_string_ ? escaped(text) : std::string(text));
  });
  if (which == kNone) return false;
  if (is_string_) emit_arguments("\"");
  enter(State::elements);
  return true;
}

}  // namespace fathom
