// Answers to questions that have one right answer: found in a solution, and compared (docs/evaluation_answers.md).
// Solutions come from models: any text is taken, nothing is thrown but std::bad_alloc, and the time is bounded.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace fathom::eval {

// The final answer in a solution, without spaces at its ends: in \boxed{x} or \fbox{x}, else behind "####", else behind
// "the answer is" or "Answer:", else the last number. Of a solution with thoughts what is behind the last
// "</think>" alone is looked at; one that begins with "<think>" and does not end them has no answer. Nothing where
// there is none.
std::optional<std::string> final_answer(std::string_view solution);

// What data has for the answer of a question: the answer itself, or the final one of a whole solution, which has it in
// a box or behind "####" (GSM8K, MATH).
std::string expected_answer(std::string_view text);

// Whether two answers mean the same. LaTeX, plain text or both. What is not understood as mathematics is compared as
// text, and so is an answer of more than 10,000 bytes. An empty answer is none. Symmetric but where the expected answer
// says itself that it is rounded ("\approx 3.14"), or leaves out its base.
bool same_answer(std::string_view given, std::string_view expected);

}  // namespace fathom::eval
