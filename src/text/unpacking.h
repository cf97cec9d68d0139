// Files as they were before they were compressed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

namespace fathom {

enum class Compression { none, gzip, zstd };
// By the end of its name: .gz, .zst, or anything else.
Compression compression_of(const std::filesystem::path& path);

// A file read once from its beginning, unpacked where its name says that it is compressed: all members of a gzip file,
// all frames of a zstd file. Memory does not grow with the file. Error, with file and byte, where it is damaged, or cut
// off in the middle.
class UnpackedFile {
 public:
  explicit UnpackedFile(const std::filesystem::path& path);
  ~UnpackedFile();
  UnpackedFile(UnpackedFile&&) noexcept;
  UnpackedFile& operator=(UnpackedFile&&) noexcept;

  size_t read(char* out, size_t bytes);  // fewer than asked for at the end alone
  uint64_t stored_read() const;          // bytes of the file as it is stored that have been read

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fathom
