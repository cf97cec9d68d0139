#include "base/checksum.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <new>
#include <vector>

#include "base/file.h"

namespace fathom {

void Xxh3::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH3_64bits_reset(state_.get());
}
Xxh3::~Xxh3() = default;
Xxh3::Xxh3(Xxh3&&) noexcept = default;
Xxh3& Xxh3::operator=(Xxh3&&) noexcept = default;

void Xxh3::update(const void* data, size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
uint64_t Xxh3::value() const { return XXH3_64bits_digest(state_.get()); }

FileChecksum checksum_of_file(const std::filesystem::path& path) {
  constexpr size_t kPieceBytes = size_t{1} << 20;
  InputFile file(path);
  std::vector<std::byte> piece(kPieceBytes);
  Xxh3 sum;
  uint64_t bytes = 0;
  for (size_t n = 0; (n = file.read(piece.data(), piece.size())) > 0; bytes += n) sum.update(piece.data(), n);
  return {bytes, sum.value()};
}

std::string xxh3_of(std::string_view text) { return hex_of(XXH3_64bits(text.data(), text.size())); }

std::string hex_of(uint64_t checksum) { return fmt::format("{:016x}", checksum); }

std::string hex_of(std::span<const uint8_t> bytes) {
  std::string hex;
  for (const uint8_t byte : bytes) hex += fmt::format("{:02x}", byte);
  return hex;
}

}  // namespace fathom
