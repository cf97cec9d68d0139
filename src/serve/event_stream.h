// A streamed answer of OpenAI's API as a client gets it: bytes -> server-sent events -> what each says.
#pragma once

#include <simdjson.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fathom::serve {

// Server-sent events (WHATWG HTML, 9.2): the data of each, as soon as the empty line behind it has come. Comments and
// other fields are passed over.
class EventReader {
 public:
  explicit EventReader(size_t max_event_bytes) : max_event_bytes_(max_event_bytes) {}

  void put(std::string_view bytes);
  // The data of the next event that is whole, until the next call; nothing: more bytes are needed. Error for an event
  // or line of more than max_event_bytes.
  std::optional<std::string_view> next();

 private:
  std::optional<std::string_view> next_line();

  size_t max_event_bytes_;
  std::string held_, data_;
  size_t begin_ = 0, searched_ = 0;  // of the line in held_; how far no end of it was found
  bool first_ = true, has_data_ = false, told_ = false, skips_line_feed_ = false;
};

// Tokens as a server counts them; -1 where it does not say.
struct ToldUsage {
  int64_t prompt_tokens = -1, completion_tokens = -1;
  int64_t cached_tokens = -1;  // of the prompt, found in the server's cache
};

// What the data of one event says.
struct StreamPiece {
  bool done = false;      // [DONE]
  bool has_text = false;  // of the answer: content, thoughts or a call
  bool finished = false;  // it has a finish reason
  ToldUsage usage;
  std::optional<std::string> error;  // the server's message
};
// Error for data that is neither a JSON object nor [DONE]. The parser is kept for the sake of its memory.
StreamPiece read_stream_piece(simdjson::dom::parser& parser, std::string_view data);

// The message in a body {"error": {"message": ...}} or {"error": "..."}, or {"message": ...}; otherwise the body's
// beginning. One line.
std::string error_message_of(std::string_view body);

}  // namespace fathom::serve
