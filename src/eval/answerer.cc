#include "eval/answerer.h"

#include "eval/answerer_kinds.h"
#include "text/answer_parser.h"

namespace fathom::eval {

void answer_questions(Answerer& answerer, std::span<const Question> questions, const OnAnswer& tell,
                      const Interrupted& interrupted, const Skip& skip) {
  std::visit([&](auto& kind) { answer_questions(kind, questions, tell, interrupted, skip); }, answerer);
}

void score_choices(Answerer& answerer, std::span<const ChoiceQuestion> questions, const OnChoices& tell,
                   const Interrupted& interrupted) {
  std::visit([&](auto& kind) { score_choices(kind, questions, tell, interrupted); }, answerer);
}

std::vector<int32_t> tokens_of(Answerer& answerer, const std::string& text, bool add_begin,
                               const Interrupted& interrupted) {
  return std::visit([&](auto& kind) { return tokens_of(kind, text, add_begin, interrupted); }, answerer);
}

void score_windows(Answerer& answerer, Windows windows, const OnWindow& tell, const Interrupted& interrupted) {
  std::visit([&](auto& kind) { score_windows(kind, windows, tell, interrupted); }, answerer);
}

ContextAndContinuation with_spaces_moved(const std::string& context, const std::string& continuation) {
  // What Python's rstrip() takes away, of ASCII.
  const size_t last = context.find_last_not_of(" \t\n\r\v\f\x1c\x1d\x1e\x1f");
  const size_t end = last == std::string::npos ? 0 : last + 1;
  return {context.substr(0, end), context.substr(end) + continuation};
}

void part_thoughts(Answer& answer) {
  const size_t end = answer.text.rfind(kEndThink);
  if (!answer.reasoning.empty() || end == std::string::npos) return;
  const auto trimmed = [](std::string_view text) {
    const size_t begin = std::min(text.find_first_not_of('\n'), text.size());
    return std::string(text.substr(begin, text.find_last_not_of('\n') + 1 - begin));
  };
  std::string_view thoughts = std::string_view(answer.text).substr(0, end);
  if (thoughts.starts_with(kThink)) thoughts.remove_prefix(kThink.size());
  answer.reasoning = trimmed(thoughts);
  answer.text = trimmed(std::string_view(answer.text).substr(end + kEndThink.size()));
}

}  // namespace fathom::eval
