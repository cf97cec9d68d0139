#include "text/chat.h"

#include "base/error.h"
#include "text/chat_template.h"
#include "text/deepseek_v32_encoding.h"

namespace fathom {

std::string render_chat(std::string_view chat_template, const nlohmann::ordered_json& messages,
                        const ChatOptions& options) {
  if (!messages.is_array()) throw Error("messages must be a list of objects with role and content");
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) throw Error("messages[{}] is not an object with role and content", i);
  }
  if (!options.tools.is_null() && !options.tools.is_array()) throw Error("tools must be a list");
  if (!options.kwargs.is_object()) throw Error("kwargs, the template's variables, must be an object");
  if (chat_template == kDeepseekV32Encoding) return encode_deepseek_v32(messages, options);
  if (chat_template.empty()) {
    throw Error("the model has no chat template; give one as a file or use plain text instead of messages");
  }
  nlohmann::ordered_json variables = {{"messages", messages},
                                      {"tools", options.tools},
                                      {"documents", nullptr},
                                      {"add_generation_prompt", options.add_generation_prompt}};
  if (!options.bos_token.empty()) variables["bos_token"] = options.bos_token;
  if (!options.eos_token.empty()) variables["eos_token"] = options.eos_token;
  for (const auto& [name, value] : options.kwargs.items()) variables[name] = value;
  return render_template(chat_template, variables);
}

}  // namespace fathom
