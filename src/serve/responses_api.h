// OpenAI's Responses API (/v1/responses) in terms of its chats: a body becomes one of /v1/chat/completions, the deltas
// of a choice become items of output. Nothing is stored here: a conversation comes with each request.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "serve/request.h"
#include "serve/response.h"

namespace fathom::serve {

struct ResponseInput {
  std::string chat;             // a body of /v1/chat/completions that asks for the same
  nlohmann::ordered_json echo;  // fields of the request that stand in the answer
};

// Throws ApiError.
ResponseInput response_input(std::string_view body);
// What is wrong with its chat, by the names of this API.
ApiError response_error(const ApiError& error);

// One answer, whole or as server-sent events.
class ResponseStream {
 public:
  // id: "resp_..."; finish reasons are OpenAI's of chats.
  ResponseStream(std::string id, std::string model, int64_t created, nlohmann::ordered_json echo);

  std::string begin();
  std::string push(const nlohmann::ordered_json& delta);  // of a chat
  std::string finish(const std::string& finish_reason, const Usage& usage);
  std::string fail(const std::string& message, const std::string& code);

  // The answer as it is; whole behind finish().
  nlohmann::ordered_json response() const;

 private:
  enum class Kind { none, reasoning, message, call };
  std::string event(nlohmann::ordered_json fields);  // numbered: the order of calls is that of the events
  std::string begin_item(Kind kind, nlohmann::ordered_json item);
  std::string end_item(const char* status);
  std::string add(Kind kind, const std::string& text);
  nlohmann::ordered_json place() const;

  std::string id_, model_;
  int64_t created_;
  nlohmann::ordered_json echo_;
  std::string status_ = "in_progress";
  nlohmann::ordered_json output_ = nlohmann::ordered_json::array();
  nlohmann::ordered_json usage_ = nullptr, error_ = nullptr, incomplete_ = nullptr;
  Kind open_ = Kind::none;  // the last item of output_
  int64_t n_events_ = 0;
};

}  // namespace fathom::serve
