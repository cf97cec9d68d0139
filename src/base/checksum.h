// XXH3 checksums of what is longer than memory should hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct XXH3_state_s;

namespace fathom {

// Of bytes that come one after the other.
class Xxh3 {
 public:
  Xxh3();
  ~Xxh3();
  Xxh3(Xxh3&&) noexcept;
  Xxh3& operator=(Xxh3&&) noexcept;

  void update(const void* data, size_t bytes);
  uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

// Of a whole regular file, of which little is in memory at a time. Error when it cannot be read.
struct FileChecksum {
  uint64_t bytes, xxh3;
};
FileChecksum checksum_of_file(const std::filesystem::path& path);

// Of a text, as 16 digits of 0 to 9 and a to f; and a checksum as such.
std::string xxh3_of(std::string_view text);
std::string hex_of(uint64_t checksum);

// Two digits a byte, of 0 to 9 and a to f.
std::string hex_of(std::span<const uint8_t> bytes);

}  // namespace fathom
