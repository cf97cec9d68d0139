// A conversation -> the prompt, as transformers' apply_chat_template makes it.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace fathom {

struct ChatOptions {
  nlohmann::ordered_json tools = nullptr;  // a list of OpenAI-style tools, or null
  bool add_generation_prompt = true;
  // Where the answer has begun: {content, reasoning_content}, either may be absent or null. For encode_chat().
  nlohmann::ordered_json begun_answer = nullptr;
  nlohmann::ordered_json kwargs = nlohmann::ordered_json::object();  // thinking, enable_thinking, ...
  std::string bos_token{};
  std::string eos_token{};
};

// Stands for V3.2's own encoder, which is released instead of a Jinja template.
inline constexpr std::string_view kDeepseekV32Encoding = "deepseek-v3.2-encoding";

// `chat_template`: Jinja source, or kDeepseekV32Encoding. `messages`: a list of {role, content, ...}. What a template
// would drop is told in words that it knows: a list of tools in the system text, developers as the system; results of
// tools come in the order of their calls.
std::string render_chat(std::string_view chat_template, const nlohmann::ordered_json& messages,
                        const ChatOptions& options);

struct ChatPrompt {
  std::string text;
  std::vector<int32_t> ids;
  // Ends as the template ends the prompt, whatever messages spell: what answer_format_of() is to judge. Empty behind
  // the content of an answer that has begun.
  std::string own_end{};
};
// The same as a model is to read it: the marks that the template writes are special tokens, those that messages, tools
// and kwargs spell are plain text (<think> and </think> in what an assistant said apart, which templates look for).
// Elsewhere the ids are those of `text`. A template that goes by a text's length may notice: where a mark is spelled
// it sees one character more.
ChatPrompt encode_chat(const Tokenizer& tokenizer, std::string_view chat_template,
                       const nlohmann::ordered_json& messages, const ChatOptions& options);

// What a model has to write to say the last of `messages`, an assistant's, where it is asked by the messages before
// it: prompt and text are apart, as they are when it generates.
struct ChatAnswer {
  ChatPrompt prompt;         // encode_chat() of the messages before
  std::string text;          // thoughts, content and calls as the template writes them, and the token that ends all
  std::vector<int32_t> ids;  // of the text
};
// reasoning_content that the template does not write (most drop it, of an answer that is over) stands where the model
// thinks: behind the <think> that ends the prompt, or in <think> and </think> of its own. It is left out where the
// prompt ends in </think>. `ends`: the tokens at which generation ends, of which the first is put behind an answer that
// the template leaves without. Error where the template writes nothing that could be generated.
ChatAnswer encode_answer(const Tokenizer& tokenizer, std::string_view chat_template,
                         const nlohmann::ordered_json& messages, const ChatOptions& options,
                         std::span<const std::string> ends);

}  // namespace fathom
