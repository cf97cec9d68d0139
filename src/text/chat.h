// A conversation -> the prompt, as transformers' apply_chat_template makes it.
#pragma once

#include <nlohmann/json.hpp>
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

}  // namespace fathom
