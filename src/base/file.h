// Files: read-only mappings, bounded reads, and writes that are either whole or not there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// Whether something, or a directory, stands at `path`. Error when that cannot be known (no permission, a loop of
// symbolic links) and for a symbolic link to nothing: a broken file must not pass for an absent one.
bool path_exists(const std::filesystem::path& path);
bool path_is_directory(const std::filesystem::path& path);
// Whether two spellings name one file, be it there or not yet.
bool same_path(const std::filesystem::path& a, const std::filesystem::path& b);

// What is in a directory, sorted by name. None where nothing stands at `directory`; Error when it cannot be read.
std::vector<std::filesystem::path> list_directory(const std::filesystem::path& directory);

// A file mapped read-only. Throws Error when it cannot be opened or is not a regular file. An empty file is valid.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

// A regular file that is read once, from its beginning. Errors name it.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  size_t size() const { return size_; }      // when it was opened
  size_t read(void* out, size_t max_bytes);  // how many bytes came; 0 at the end

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  size_t size_ = 0;
};

// The whole of a regular file of at most max_bytes; Error otherwise.
std::string read_file(const std::filesystem::path& path, size_t max_bytes);

// A directory that this process alone works in: Error when another holds its lock. Gone with the process, whatever ends
// it.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::filesystem::path& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int fd_ = -1;
};

// A file that appears under its name only when commit() is called: written beside it as NAME.partial, synced, renamed.
// Without commit() the partial file is removed. Every failed write throws Error with the system's reason. What is there
// already must be a regular file; a symbolic link is followed.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void write_at(uint64_t offset, const void* data, size_t bytes);  // over what has been written
  void commit();

 private:
  std::filesystem::path path_, partial_;
  int fd_ = -1;
};

void write_file_atomically(const std::filesystem::path& path, std::string_view content);

// Makes names created or renamed in `directory` survive a power loss.
void sync_directory(const std::filesystem::path& directory);

// Creates `directory` and its parents, to stay after a power loss too; Error with the system's reason when that fails.
// Returns those that were not there, the deepest first.
std::vector<std::filesystem::path> make_directory(const std::filesystem::path& directory);

// The same for work that may fail: at the end of the scope those that it created and that are still empty are gone.
class NewDirectory {
 public:
  explicit NewDirectory(const std::filesystem::path& directory);
  ~NewDirectory();
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;

 private:
  std::vector<std::filesystem::path> created_;  // the deepest first
};

}  // namespace fathom
