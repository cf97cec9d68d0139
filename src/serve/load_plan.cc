#include "serve/load_plan.h"

#include <simdjson.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"

namespace fathom::serve {
namespace {

constexpr uint64_t kArrivals = uint64_t{1} << 62;  // a stream of randomness of its own
constexpr size_t kMaxFileBytes = size_t{1} << 30;

// Gamma distributed, mean `shape` (Marsaglia & Tsang 2000).
double gamma(Rng& rng, double shape) {
  if (shape < 1) return gamma(rng, shape + 1) * std::pow(1 - rng.uniform(), 1 / shape);
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = rng.normal(), root = 1 + c * x;
    if (root <= 0) continue;
    const double v = root * root * root;
    if (std::log(1 - rng.uniform()) < x * x / 2 + d - d * v + d * std::log(v)) return d * v;
  }
}

}  // namespace

std::vector<double> arrival_times(int64_t n, double rate, double burstiness, uint64_t seed) {
  FATHOM_CHECK(rate > 0 && burstiness > 0);
  Rng rng(seed, kArrivals);
  std::vector<double> times(static_cast<size_t>(n));
  double now_s = 0;
  for (size_t i = 1; i < times.size(); ++i) {
    now_s += (burstiness == 1 ? -std::log(1 - rng.uniform()) : gamma(rng, burstiness) / burstiness) / rate;
    times[i] = now_s;
  }
  return times;
}

std::string random_words(int64_t n, uint64_t seed, uint64_t stream) {
  constexpr std::string_view kConsonants = "bcdfghjklmnpqrstvwxz", kVowels = "aeiou";
  Rng rng(seed, stream);
  std::string words(static_cast<size_t>(5 * n), ' ');
  for (size_t at = 0; at < words.size(); at += 5) {
    uint64_t x = rng.next();
    for (size_t letter = 0; letter < 4; ++letter) {
      const std::string_view letters = letter % 2 == 0 ? kConsonants : kVowels;
      words[at + letter] = letters[(x & 0xFFFF) % letters.size()];
      x >>= 16;
    }
  }
  if (!words.empty()) words.pop_back();
  return words;
}

int64_t WordTokens::words_for(int64_t tokens) const {
  return std::max<int64_t>(1, std::llround((static_cast<double>(tokens) - around) / per_word));
}

WordTokens word_tokens(int64_t words_a, int64_t tokens_a, int64_t words_b, int64_t tokens_b) {
  const double per_word = static_cast<double>(tokens_b - tokens_a) / static_cast<double>(words_b - words_a);
  if (tokens_a < 0 || tokens_b < 0 || !(per_word > 0.05)) return {};
  return {.around = static_cast<double>(tokens_a) - per_word * static_cast<double>(words_a), .per_word = per_word};
}

std::string_view path_of(Endpoint endpoint) {
  return endpoint == Endpoint::chat ? "/v1/chat/completions" : "/v1/completions";
}

RequestBodies::RequestBodies(const RequestFields& fields) : endpoint_(fields.endpoint) {
  nlohmann::ordered_json json{{"model", fields.model},
                              {"stream", true},
                              {"stream_options", {{"include_usage", true}}},
                              {"temperature", fields.temperature}};
  if (fields.ignore_eos) json["ignore_eos"] = true;
  if (!fields.extra.empty()) {
    const std::string text = simdjson::minify(JsonDocument::parse(fields.extra, "--extra-body").root());
    const auto extra = nlohmann::ordered_json::parse(text);
    if (!extra.is_object()) throw Error("--extra-body: must be a JSON object, {{\"name\": value, ...}}");
    for (const auto& [name, value] : extra.items()) json[name] = value;
  }
  // Where the endpoint has a newer name for it, that is said alone.
  sets_max_tokens_ = !json.contains("max_tokens") && !json.contains("max_completion_tokens");
  fields_ = json.dump();
  fields_.back() = ',';
}

std::string RequestBodies::body(std::string_view prompt_json, int64_t max_tokens) const {
  return fmt::format("{}{}\"{}\":{}}}", fields_,
                     sets_max_tokens_ ? fmt::format("\"max_tokens\":{},", max_tokens) : std::string(),
                     endpoint_ == Endpoint::chat ? "messages" : "prompt", prompt_json);
}

std::string RequestBodies::body_of_words(std::string_view words, int64_t max_tokens) const {
  if (endpoint_ == Endpoint::completions) return body(fmt::format("\"{}\"", words), max_tokens);
  return body(fmt::format(R"([{{"role":"user","content":"{}"}}])", words), max_tokens);
}

std::vector<FilePrompt> read_prompts(const std::filesystem::path& file, Endpoint endpoint) {
  const std::string text = read_file(file, kMaxFileBytes);
  std::vector<FilePrompt> prompts;
  int64_t n = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    ++n;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}: line {}", printable(file.string()), n);
    const JsonDocument document = JsonDocument::parse(line, where);
    simdjson::dom::object object;
    simdjson::dom::array messages;
    std::string_view prompt;
    if (document.root().get(object)) throw Error("{}: must be an object", where);
    FilePrompt read;
    if (object["messages"].get(messages) == simdjson::SUCCESS) {
      if (endpoint != Endpoint::chat) throw Error("{}: messages are for --endpoint chat", where);
      read.json = simdjson::minify(messages);
    } else if (object["prompt"].get(prompt) == simdjson::SUCCESS) {
      read.json = nlohmann::json(prompt).dump();
      if (endpoint == Endpoint::chat) read.json = fmt::format(R"([{{"role":"user","content":{}}}])", read.json);
    } else {
      throw Error("{}: must have \"prompt\", a string, or \"messages\", a list", where);
    }
    int64_t max_tokens = 0;
    simdjson::dom::element element;
    if (object["max_tokens"].get(element) == simdjson::SUCCESS) {
      if (element.get(max_tokens) || max_tokens < 1) throw Error("{}: max_tokens must be a number from 1", where);
      read.max_tokens = max_tokens;
    }
    prompts.push_back(std::move(read));
  }
  if (prompts.empty()) throw Error("{}: there is no prompt in it, one a line", printable(file.string()));
  return prompts;
}

}  // namespace fathom::serve
