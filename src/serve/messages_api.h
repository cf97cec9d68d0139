// Anthropic's Messages API (/v1/messages) in terms of OpenAI's: a body becomes one of /v1/chat/completions, the deltas
// of a choice become events of content blocks, errors get the other envelope.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "serve/request.h"
#include "serve/response.h"

namespace fathom::serve {

// A body of /v1/messages, or of its count_tokens -> one of /v1/chat/completions that asks for the same. Throws
// ApiError.
std::string chat_body_of_messages(std::string_view body, bool counts_tokens);

// {"type": "error", "error": {"type", "message"}}
// What is wrong with that body, by the names of this API.
ApiError messages_error(const ApiError& error);
std::string messages_error_json(const ApiError& error);

// Why an answer ended: OpenAI's finish_reason, and the stop text if it was one.
struct MessageEnd {
  std::string finish, stopped_by;
};

// An answer that is whole. choice: OpenAI's message.
nlohmann::ordered_json message_json(const std::string& id, const std::string& model,
                                    const nlohmann::ordered_json& choice, const MessageEnd& end, const Usage& usage);

// One that streams: each function returns server-sent events.
class MessageStream {
 public:
  std::string begin(const std::string& id, const std::string& model, int64_t prompt_tokens);
  std::string push(const nlohmann::ordered_json& delta);  // of OpenAI's
  std::string finish(const MessageEnd& end, const Usage& usage);

 private:
  enum class Block { none, thinking, text, tool_use };
  std::string begin_block(Block block, const nlohmann::ordered_json& content);
  std::string end_block();

  Block block_ = Block::none;
  int64_t n_blocks_ = 0;  // ended
};

}  // namespace fathom::serve
