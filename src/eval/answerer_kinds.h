// The two kinds of answerer (eval/answerer.h), each with the same functions.
#pragma once

#include "eval/answerer.h"

namespace fathom::eval {

using Skip = std::function<bool(size_t question, int64_t sample)>;
using OnChoices = std::function<void(size_t question, ChoiceAnswer answer)>;
using OnWindow = std::function<void(size_t window, double logprob)>;
using Windows = std::span<const std::vector<int32_t>>;

void answer_questions(LocalModel& local, std::span<const Question> questions, const OnAnswer& tell,
                      const Interrupted& interrupted, const Skip& skip);
void answer_questions(RemoteModel& remote, std::span<const Question> questions, const OnAnswer& tell,
                      const Interrupted& interrupted, const Skip& skip);

void score_choices(LocalModel& local, std::span<const ChoiceQuestion> questions, const OnChoices& tell,
                   const Interrupted& interrupted);
void score_choices(RemoteModel& remote, std::span<const ChoiceQuestion> questions, const OnChoices& tell,
                   const Interrupted& interrupted);

std::vector<int32_t> tokens_of(LocalModel& local, const std::string& text, bool add_begin,
                               const Interrupted& interrupted);
std::vector<int32_t> tokens_of(RemoteModel& remote, const std::string& text, bool add_begin,
                               const Interrupted& interrupted);

void score_windows(LocalModel& local, Windows windows, const OnWindow& tell, const Interrupted& interrupted);
void score_windows(RemoteModel& remote, Windows windows, const OnWindow& tell, const Interrupted& interrupted);

// Context and continuation with the spaces that end the context moved to the continuation.
struct ContextAndContinuation {
  std::string context, continuation;
};
ContextAndContinuation with_spaces_moved(const std::string& context, const std::string& continuation);

// Thoughts that stand in a text between marks, apart.
void part_thoughts(Answer& answer);

}  // namespace fathom::eval
