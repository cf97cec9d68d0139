// Answers to questions that have one right answer: found in a solution, and compared (docs/evaluation_answers.md).
// Solutions come from models: any text is taken, nothing is thrown but std::bad_alloc, and the time is bounded.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace fathom::eval {

enum class AnswerStyle {
  free,    // \boxed{x}, else "#### x", else "the answer is x" or "Answer: x", else the last number
  boxed,   // MATH: the last \boxed{x} or \fbox{x} alone
  number,  // GSM8K: a number without commas and currency, behind "####", in a box, behind "the answer is", or the last
           // one
  choice   // a letter A to J: in a box, behind "the answer is" or "Answer:", or the last one that stands alone
};

// The final answer in a solution, without spaces at its ends. Of a solution with thoughts what is behind the last
// "</think>" alone is looked at; one that begins with "<think>" and does not end them has no answer. Nothing where
// there is none.
std::optional<std::string> final_answer(std::string_view solution, AnswerStyle style = AnswerStyle::free);

// What data has for the answer of a question: the answer itself, or the final one of a whole solution, which has it in
// a box or behind "####" (GSM8K, MATH).
std::string expected_answer(std::string_view text);

// Whether two answers mean the same. LaTeX, plain text or both. What is not understood as mathematics is compared as
// text, and so is an answer of more than 10,000 bytes. An empty answer is none. Symmetric but where the expected answer
// says itself that it is rounded ("\approx 3.14"), or leaves out its base.
bool same_answer(std::string_view given, std::string_view expected);

}  // namespace fathom::eval
