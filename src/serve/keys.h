// API keys: who may ask, and whose requests share caches.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::serve {

// What a header can carry: 1 to 512 characters of ASCII, without spaces.
bool is_api_key(std::string_view text);
// The keys in a file, one a line; empty lines and those that begin with '#' aside. Error for a file without one, for
// one that others than its owner may read, and for keys that no header can carry.
std::vector<std::string> read_api_keys(const std::filesystem::path& file);

class ApiKeys {
 public:
  // Nobody has to have a key.
  ApiKeys() = default;
  // See read_api_keys().
  static ApiKeys read(const std::filesystem::path& file);
  explicit ApiKeys(const std::vector<std::string>& keys);

  bool required() const { return !digests_.empty(); }
  // Which of the keys this is. Takes as long for every text of a length.
  std::optional<size_t> find(std::string_view key) const;
  // What names one of them wherever it stands in the file: hexadecimal digits of its digest.
  std::string name(size_t i) const;

 private:
  std::vector<std::string> digests_;  // SHA-256; the keys themselves are not kept
};

}  // namespace fathom::serve
