// What a model of the family writes -> reasoning, content and tool calls, piece by piece as it is generated. Three ways
// to write a call (V3 and R1, V3.1, V3.2), the formats of their chat templates and of V3.2's encoding.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

inline constexpr std::string_view kThink = "<think>", kEndThink = "</think>";
// What an answer says behind the last </think>, or all of it where there is none. Nothing where it was cut within its
// thoughts: it begins with <think>, or by begun_thoughts (its prompt ends in <think>) in them, and does not end them.
std::optional<std::string_view> behind_thoughts(std::string_view answer, bool begun_thoughts = false);

enum class CallFormat {
  none,          // marks of calls are content
  v3,            // function<sep>NAME\n```json\nARGUMENTS\n```
  v3_1,          // NAME<sep>ARGUMENTS
  deepseek_v3_2  // <｜DSML｜invoke name="NAME">, an element for each argument, or one JSON object
};

// What stands in front of the calls of an answer; empty for none.
std::string_view calls_mark(CallFormat format);

struct AnswerFormat {
  CallFormat calls = CallFormat::none;
  // The answer begins within its reasoning, as a prompt that ends in <think> makes it, and R1 whatever its prompt. An
  // answer that begins with <think> does so in any case.
  bool begins_in_reasoning = false;
  // Newlines behind <think>, around </think> and in front of calls are the format's and not the text's. Not so in V3.2,
  // whose encoding puts the parts together as they are.
  bool trims_newlines = true;
  // The prompt ends in </think>. Elsewhere an answer's first newlines are its own: it may go on with a text that has
  // begun.
  bool behind_thoughts = false;
};

// Of answers to `prompt`, whose end chat_template has written.
AnswerFormat answer_format_of(std::string_view chat_template, std::string_view prompt);

struct AnswerPart {
  enum class Kind { reasoning, content, call_name, call_arguments };
  Kind kind;
  int64_t call = -1;  // of a call: which, from 0; its name comes first, in one part
  std::string text;

  bool operator==(const AnswerPart&) const = default;
};

// The parts put together are the same however the text was cut. A model may break its format anywhere, and may stop
// anywhere: text between calls is content, arguments are passed on as written and need not be JSON, and a call is told
// once its name is whole.
class AnswerParser {
 public:
  explicit AnswerParser(const AnswerFormat& format);

  // What is sure by now: all but an end that may turn out to be a mark.
  std::vector<AnswerPart> push(std::string_view text);
  // The rest, when no more text comes.
  std::vector<AnswerPart> finish();

  int64_t n_calls() const { return n_calls_; }  // begun so far
  bool in_reasoning() const { return state_ == State::reasoning; }

 private:
  enum class State {
    begin,
    reasoning,
    content,
    calls,      // between calls
    call_head,  // what comes in front of a call's arguments
    arguments,
    elements,  // of a V3.2 call, between them
    parameter_head,
    parameter
  };

  bool step(bool last);
  bool read_begin(bool last);
  bool read_text(bool last);
  bool read_head();
  bool read_arguments();
  bool read_elements();
  bool read_parameter_head();
  bool read_parameter();

  // Text up to the first of the marks goes to emit, with the mark it is dropped from held_; returns which it was. None:
  // all but what may be the beginning of one goes there, with `last` all.
  template <typename Emit>
  size_t read_until(std::span<const std::string_view> marks, bool last, Emit&& emit);
  void enter(State state);
  void begin_call(std::string_view name);
  void emit(AnswerPart::Kind kind, std::string_view text);
  void emit_trimmed(AnswerPart::Kind kind, std::string_view text, bool trims);
  void emit_arguments(std::string_view text) { emit(AnswerPart::Kind::call_arguments, text); }

  AnswerFormat format_;
  State state_ = State::begin;
  std::string held_;      // not yet understood
  std::string newlines_;  // behind what was understood: the text's own if more text follows
  bool at_start_ = true;  // of a part, where newlines are the format's
  int64_t n_calls_ = 0;
  int64_t n_parameters_ = 0;  // of the call
  bool is_string_ = false;    // the parameter
  bool is_json_ = false;      // the call's body is one JSON object
  std::vector<AnswerPart> parts_;
};

}  // namespace fathom
