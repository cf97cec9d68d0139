// Untrusted JSON, bounded: size, depth, UTF-8 and duplicate keys are checked before anyone looks at a value.
// Read with simdjson's DOM; written with nlohmann-json where a file is made.
#pragma once

#include <simdjson.h>

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

inline constexpr size_t kMaxJsonDepth = 64;

// A parsed document and the memory that its values point into.
class JsonDocument {
 public:
  // `where` (a file name, "line 3 of x.jsonl", "request body") begins every error message. Objects with the same key
  // twice are refused.
  static JsonDocument parse(std::string_view text, std::string where, size_t max_depth = kMaxJsonDepth);
  static JsonDocument read(const std::filesystem::path& path, size_t max_bytes, size_t max_depth = kMaxJsonDepth);

  simdjson::dom::element root() const { return root_; }
  const std::string& where() const { return where_; }

 private:
  std::unique_ptr<simdjson::dom::parser> parser_;
  simdjson::dom::element root_;
  std::string where_;
};

}  // namespace fathom
