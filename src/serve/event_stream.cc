#include "serve/event_stream.h"

#include <algorithm>

#include "base/error.h"

namespace fathom::serve {
namespace {

namespace dom = simdjson::dom;

constexpr int64_t kMostTokens = int64_t{1} << 40;  // more is no count

bool has_letters(const dom::object& object, const char* key) {
  std::string_view text;
  return object[key].get(text) == simdjson::SUCCESS && !text.empty();
}

bool says_something(const dom::object& choice) {
  if (has_letters(choice, "text")) return true;  // of a completion
  dom::object delta;
  if (choice["delta"].get(delta) != simdjson::SUCCESS) return false;
  for (const char* key : {"content", "reasoning_content", "reasoning"}) {
    if (has_letters(delta, key)) return true;
  }
  dom::array calls;
  return delta["tool_calls"].get(calls) == simdjson::SUCCESS && calls.size() > 0;
}

void read_count(const dom::object& object, const char* key, int64_t& count) {
  int64_t n = 0;
  if (object[key].get(n) == simdjson::SUCCESS && n >= 0 && n <= kMostTokens) count = n;
}

ToldUsage read_usage(const dom::object& event) {
  ToldUsage usage;
  dom::object told, details;
  if (event["timings"].get(told) == simdjson::SUCCESS) read_count(told, "cache_n", usage.cached_tokens);  // llama.cpp
  if (event["usage"].get(told) != simdjson::SUCCESS) return usage;
  read_count(told, "prompt_tokens", usage.prompt_tokens);
  read_count(told, "completion_tokens", usage.completion_tokens);
  read_count(told, "prompt_cache_hit_tokens", usage.cached_tokens);  // DeepSeek
  if (told["prompt_tokens_details"].get(details) == simdjson::SUCCESS) {
    read_count(details, "cached_tokens", usage.cached_tokens);
  }
  return usage;
}

// Nothing where the object tells of no error.
std::optional<std::string> error_in(const dom::object& object) {
  dom::element error;
  if (object["error"].get(error) != simdjson::SUCCESS || error.is_null()) return std::nullopt;
  std::string_view text;
  if (error.get(text) == simdjson::SUCCESS || error["message"].get(text) == simdjson::SUCCESS) return printable(text);
  return printable(simdjson::minify(error));
}

}  // namespace

void EventReader::put(std::string_view bytes) {
  held_.erase(0, begin_);
  searched_ -= begin_;
  begin_ = 0;
  held_ += bytes;
}

// A line ends in \r\n, \n or \r.
std::optional<std::string_view> EventReader::next_line() {
  if (skips_line_feed_ && begin_ < held_.size()) {
    skips_line_feed_ = false;
    if (held_[begin_] == '\n') searched_ = ++begin_;
  }
  const size_t end = held_.find_first_of("\r\n", searched_);
  const size_t length = std::min(end, held_.size()) - begin_;
  if (length + data_.size() > max_event_bytes_) throw Error("an event has more than {} bytes", max_event_bytes_);
  if (end == std::string::npos) {
    searched_ = held_.size();
    return std::nullopt;
  }
  skips_line_feed_ = held_[end] == '\r';
  const std::string_view line(held_.data() + begin_, length);
  begin_ = searched_ = end + 1;
  return line;
}

std::optional<std::string_view> EventReader::next() {
  if (told_) {
    data_.clear();
    told_ = has_data_ = false;
  }
  while (auto line = next_line()) {
    if (std::exchange(first_, false) && line->starts_with("\xEF\xBB\xBF")) line->remove_prefix(3);
    if (line->empty()) {
      if (!has_data_) continue;
      told_ = true;
      return data_;
    }
    const size_t colon = line->find(':');
    if (line->substr(0, colon) != "data") continue;
    std::string_view value = colon == std::string_view::npos ? "" : line->substr(colon + 1);
    if (value.starts_with(' ')) value.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_ += value;
    has_data_ = true;
  }
  return std::nullopt;
}

StreamPiece read_stream_piece(dom::parser& parser, std::string_view data) {
  StreamPiece piece;
  if (data == "[DONE]") {
    piece.done = true;
    return piece;
  }
  dom::object event;
  if (parser.parse(data.data(), data.size()).get(event) != simdjson::SUCCESS) {
    throw Error("an event holds no JSON object: {}", printable(data, 80));
  }
  piece.error = error_in(event);
  piece.usage = read_usage(event);
  dom::array choices;
  if (event["choices"].get(choices) == simdjson::SUCCESS) {
    for (const dom::element element : choices) {
      dom::object choice;
      if (element.get(choice) != simdjson::SUCCESS) continue;
      piece.has_text |= says_something(choice);
      piece.finished |= has_letters(choice, "finish_reason");
    }
  }
  return piece;
}

std::string error_message_of(std::string_view body) {
  dom::parser parser;
  dom::object object;
  if (!body.empty() && parser.parse(body.data(), body.size()).get(object) == simdjson::SUCCESS) {
    if (const auto error = error_in(object)) return *error;
    std::string_view text;
    if (object["message"].get(text) == simdjson::SUCCESS) return printable(text);
  }
  return printable(body);
}

}  // namespace fathom::serve
