// The prompt format of V3.2, which its release gives as an encoder and not as a template.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "text/chat.h"

namespace fathom {

// Options read: tools (join the first system message, or make one), and of kwargs thinking_mode ("chat" or "thinking";
// or thinking / enable_thinking as a boolean) and drop_thinking (default true). The format itself opens the answer.
std::string encode_deepseek_v32(const nlohmann::ordered_json& messages, const ChatOptions& options);

}  // namespace fathom
