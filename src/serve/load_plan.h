// What a load asks of a server, and when: prompts and times of arrival, all by the seed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::serve {

// Seconds from the first to each of n arrivals, ascending, `rate` a second on average. The gaps are gamma distributed:
// burstiness 1 is a Poisson process, less comes in bursts, more evenly.
std::vector<double> arrival_times(int64_t n, double rate, double burstiness, uint64_t seed);

// n made-up words of four letters, a space between two; other ones for each stream.
std::string random_words(int64_t n, uint64_t seed, uint64_t stream);

// Tokens that a server counts for a prompt of made-up words: around + per_word * words.
struct WordTokens {
  double around = 0, per_word = 1;

  int64_t words_for(int64_t tokens) const;  // at least one
};
// From two prompts of different length; one token a word where the counts say nothing of use.
WordTokens word_tokens(int64_t words_a, int64_t tokens_a, int64_t words_b, int64_t tokens_b);

enum class Endpoint { chat, completions };
// Behind the server's base.
std::string_view path_of(Endpoint endpoint);

// What all requests have in common.
struct RequestFields {
  Endpoint endpoint = Endpoint::chat;
  std::string model;
  double temperature = 0;
  bool ignore_eos = true;
  std::string extra;  // a JSON object whose fields are added, or take the place of these; empty: none
};

// Bodies of streamed requests that differ in prompt and length alone: JSON texts that are put together when they are
// needed, so that the client has little to do between two events.
class RequestBodies {
 public:
  // Error where `extra` is no JSON object.
  explicit RequestBodies(const RequestFields& fields);
  // prompt_json: what stands for "messages" or "prompt".
  std::string body(std::string_view prompt_json, int64_t max_tokens) const;
  // A text of which every character may stand in a JSON string as it is.
  std::string body_of_words(std::string_view words, int64_t max_tokens) const;

 private:
  Endpoint endpoint_;
  std::string fields_;  // "{...," of what is the same
  bool sets_max_tokens_ = true;
};

struct FilePrompt {
  std::string json;  // what stands for "messages" or "prompt"
  std::optional<int64_t> max_tokens;
};
// A file with an object a line: {"prompt": text} or {"messages": [...]}, with "max_tokens" where it has its own. Error,
// with the line, for anything else, and for messages where completions are asked for.
std::vector<FilePrompt> read_prompts(const std::filesystem::path& file, Endpoint endpoint);

}  // namespace fathom::serve
