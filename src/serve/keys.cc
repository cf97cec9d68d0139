#include "serve/keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>

#include "base/checksum.h"
#include "base/error.h"
#include "base/file.h"

namespace fathom::serve {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;
constexpr size_t kMaxKeyBytes = 512;

std::string sha256(std::string_view text) {
  std::string digest(32, '\0');
  unsigned int n = 0;
  const int ok =
      EVP_Digest(text.data(), text.size(), reinterpret_cast<unsigned char*>(digest.data()), &n, EVP_sha256(), nullptr);
  FATHOM_CHECK(ok == 1 && n == digest.size());
  return digest;
}

// systemd keeps who else may read these by other means than their mode, which newer versions have at 0440.
bool is_credential(const std::filesystem::path& file) {
  const char* const directory = std::getenv("CREDENTIALS_DIRECTORY");
  std::error_code failed;
  return directory != nullptr && std::filesystem::equivalent(file.parent_path(), directory, failed) && !failed;
}

}  // namespace

bool is_api_key(std::string_view text) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  return plain && !text.empty() && text.size() <= kMaxKeyBytes;
}

std::vector<std::string> read_api_keys(const std::filesystem::path& file) {
  const std::string where = printable(file.string());
  struct stat info {};
  const mode_t others = is_credential(file) ? S_IRWXO : S_IRWXG | S_IRWXO;
  if (stat(file.c_str(), &info) == 0 && (info.st_mode & others) != 0) {
    throw Error("{}: others may read these keys; chmod 600 it", where);
  }
  std::string text = read_file(file, kMaxFileBytes);
  std::vector<std::string> keys;
  int64_t n = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++n;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with('#')) continue;
    if (!is_api_key(line)) {
      throw Error("{}: line {}: a key has 1 to {} characters of ASCII, without spaces", where, n, kMaxKeyBytes);
    }
    keys.emplace_back(line);
  }
  if (keys.empty()) throw Error("{}: there is no key in it, one a line", where);
  return keys;
}

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) digests_.push_back(sha256(key));
}

ApiKeys ApiKeys::read(const std::filesystem::path& file) { return ApiKeys(read_api_keys(file)); }

std::string ApiKeys::name(size_t i) const { return hex_of({reinterpret_cast<const uint8_t*>(digests_[i].data()), 16}); }

std::optional<size_t> ApiKeys::find(std::string_view key) const {
  const std::string digest = sha256(key);
  std::optional<size_t> found;
  for (size_t i = 0; i < digests_.size(); ++i) {
    if (CRYPTO_memcmp(digest.data(), digests_[i].data(), digest.size()) == 0) found = i;
  }
  return found;
}

}  // namespace fathom::serve
