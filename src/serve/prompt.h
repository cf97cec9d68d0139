// Requests -> the tokens that the model is to continue.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "infer/constraint.h"
#include "infer/thinking_budget.h"
#include "serve/request.h"
#include "text/answer_parser.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace fathom::serve {

// What prompts are made with.
struct PromptSource {
  const Tokenizer& tokenizer;
  std::shared_ptr<const TokenTrie> trie;  // of the tokenizer
  std::string chat_template;              // never empty
  ChatOptions chat;  // of every conversation: begin and end token, kwargs that hold unless a request has others
  std::shared_ptr<const TokenTrie> call_trie = nullptr;  // see call_trie(); null: the other
};

// For calls whose function the model chooses: with the mark between a name and its arguments, where the template's
// format has one. Within a string that one ends nothing. Null where the other serves.
std::shared_ptr<const TokenTrie> call_trie(const Tokenizer& tokenizer, std::string_view chat_template);

// For a model that has no template: that of its family where its tokenizer has the marks, else the messages as they
// stand, an answer behind what it answers.
std::string default_template(const Tokenizer& tokenizer, std::string_view model_type);

struct ChatInput {
  std::vector<int32_t> ids;
  std::string text;
  AnswerFormat format;
  std::shared_ptr<const Constraint> constraint;  // of the answer, or null
  std::optional<ThinkingBudget> thinking_budget{};
  std::string begun;  // of the answer: what of it stands in the prompt and is to be parsed with it (a tool call's head)
  std::string call_end;  // where one call is all there may be: what ends it
};

// Throw ApiError.
ChatInput chat_input(const PromptSource& source, const ChatRequest& request);
// One for each prompt.
std::vector<std::vector<int32_t>> completion_inputs(const PromptSource& source, const CompletionRequest& request);

// Which of the prompts, as completion_inputs() gives them, begin with a begin token that their text does not have.
std::vector<bool> unsaid_begins(const Tokenizer& tokenizer, const CompletionRequest& request);

// What a completion must be, of which `begun` stands in the prompt; null: anything.
std::shared_ptr<const Constraint> constraint_of(const PromptSource& source, const GrammarRequest& request,
                                                std::string behind, const std::string& begun = {});

// The ids of a text, behind the begin token where it belongs there and is asked for.
std::vector<int32_t> text_ids(const Tokenizer& tokenizer, std::string_view text, bool add_special_tokens,
                              bool parse_special);

}  // namespace fathom::serve
