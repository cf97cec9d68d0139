#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

std::string reason() { return std::strerror(errno); }

// What `call` returns once no signal interrupts it, which on network file systems happens to more than writes.
template <class Call>
int uninterrupted(const Call& call) {
  int result;
  do result = call();
  while (result < 0 && errno == EINTR);
  return result;
}

int open_file(const fs::path& path, int flags) {
  return uninterrupted([&] { return open(path.c_str(), flags | O_CLOEXEC, 0644); });
}

int sync_to_disk(int fd) {
  return uninterrupted([&] { return fsync(fd); });
}

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : fd(open_file(path, flags)) {
    if (fd < 0) throw Error("{}: cannot open: {}", printable(path.native()), reason());
  }
  ~Descriptor() { close(fd); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  const int fd;
};

// Bytes of an open regular file.
size_t regular_file_size(int fd, const fs::path& path) {
  struct stat info;
  if (fstat(fd, &info) != 0) throw Error("{}: cannot read: {}", printable(path.native()), reason());
  if (!S_ISREG(info.st_mode)) throw Error("{}: is not a regular file", printable(path.native()));
  return static_cast<size_t>(info.st_size);
}

// What stands at `path`, behind symbolic links.
fs::file_type type_of(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  if (type == fs::file_type::none || type == fs::file_type::unknown) {
    throw Error("{}: cannot look at it: {}", printable(path.native()), error.message());
  }
  if (type == fs::file_type::not_found && fs::is_symlink(fs::symlink_status(path, error))) {
    throw Error("{}: is a symbolic link to nothing", printable(path.native()));
  }
  return type;
}

// What a symbolic link names, be it there or not; one that leads in a circle stays a link.
fs::path behind_links(fs::path path) {
  std::error_code ignored;
  for (int links = 0; links < 40 && fs::is_symlink(path, ignored); ++links) {
    path = path.parent_path() / fs::read_symlink(path, ignored);
  }
  return path;
}

}  // namespace

bool path_exists(const fs::path& path) { return type_of(path) != fs::file_type::not_found; }
bool path_is_directory(const fs::path& path) { return type_of(path) == fs::file_type::directory; }

bool same_path(const fs::path& a, const fs::path& b) {
  std::error_code error;
  if (fs::equivalent(a, b, error)) return true;
  const fs::path whole_a = fs::weakly_canonical(behind_links(a), error);
  const fs::path whole_b = fs::weakly_canonical(behind_links(b), error);
  return whole_a == whole_b && !whole_a.empty();
}

// Not by fs::directory_iterator, which ends the process when memory is short.
std::vector<fs::path> list_directory(const fs::path& directory) {
  std::vector<fs::path> paths;
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(opendir(directory.c_str()), closedir);
  if (stream == nullptr && errno == ENOENT) return paths;
  const auto fail = [&] { throw Error("{}: cannot read: {}", printable(directory.native()), reason()); };
  if (stream == nullptr) fail();
  errno = 0;  // which alone tells the end from an error
  while (const dirent* const entry = readdir(stream.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") paths.push_back(directory / name);
    errno = 0;
  }
  if (errno != 0) fail();
  std::sort(paths.begin(), paths.end());
  return paths;
}

// O_NONBLOCK: opening a named pipe must fail below, not wait for a writer.
MappedFile::MappedFile(const fs::path& path) : path_(path) {
  const Descriptor file(path, O_RDONLY | O_NONBLOCK);
  size_ = regular_file_size(file.fd, path);
  if (size_ == 0) return;
  data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    throw Error("{}: cannot map: {}", printable(path.native()), reason());
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

// O_NONBLOCK: as for a mapped file.
InputFile::InputFile(const fs::path& path) : path_(path), fd_(open_file(path, O_RDONLY | O_NONBLOCK)) {
  if (fd_ < 0) throw Error("{}: cannot open: {}", printable(path.native()), reason());
  try {
    size_ = regular_file_size(fd_, path);
  } catch (...) {
    close(fd_);
    throw;
  }
}

InputFile::~InputFile() { close(fd_); }

size_t InputFile::read(void* out, size_t max_bytes) {
  for (;;) {
    const ssize_t n = ::read(fd_, out, max_bytes);
    if (n >= 0) return static_cast<size_t>(n);
    if (errno != EINTR) throw Error("{}: cannot read: {}", printable(path_.native()), reason());
  }
}

std::string read_file(const fs::path& path, size_t max_bytes) {
  InputFile file(path);
  const size_t size = file.size();
  if (size > max_bytes) {
    throw Error("{}: has {} bytes, more than the {} that such a file may have", printable(path.native()), size,
                max_bytes);
  }
  std::string content(size, '\0');
  for (size_t done = 0; done < size;) {
    const size_t n = file.read(content.data() + done, size - done);
    if (n == 0) throw Error("{}: shrank while it was read", printable(path.native()));
    done += n;
  }
  return content;
}

DirectoryLock::DirectoryLock(const fs::path& directory) : fd_(open_file(directory, O_RDONLY | O_DIRECTORY)) {
  if (fd_ < 0) throw Error("{}: cannot open: {}", printable(directory.native()), reason());
  // A file system without locks gives none, and another reason.
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    close(fd_);
    throw Error("{}: another process is at work there; wait for its end or give another directory",
                printable(directory.native()));
  }
}

DirectoryLock::~DirectoryLock() { close(fd_); }

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
  std::error_code ignored;  // what else is wrong with the path, opening tells
  path_ = behind_links(path_);
  if (fs::is_symlink(path_, ignored)) throw Error("{}: cannot write: a loop of links", printable(path_.native()));
  const fs::file_status there = fs::status(path_, ignored);
  if (fs::is_directory(there)) throw Error("{}: cannot write: is a directory", printable(path_.native()));
  // A device or pipe must not be replaced by a file.
  if (fs::exists(there) && !fs::is_regular_file(there)) {
    throw Error("{}: cannot write: is not a regular file", printable(path_.native()));
  }
  partial_ = path_;
  partial_ += ".partial";
  fd_ = open_file(partial_, O_WRONLY | O_CREAT | O_TRUNC);
  if (fd_ < 0) throw Error("{}: cannot create: {}", printable(partial_.native()), reason());
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(partial_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  constexpr size_t kMaxWrite = size_t{1} << 30;  // the system call's own limit is just under 2 GiB
  const auto* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, p, std::min(bytes, kMaxWrite));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("{}: cannot write: {}", printable(partial_.native()), reason());
    p += n;
    bytes -= static_cast<size_t>(n);
  }
}

void AtomicFile::write_at(uint64_t offset, const void* data, size_t bytes) {
  const auto* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pwrite(fd_, p, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error("{}: cannot write: {}", printable(partial_.native()), reason());
    p += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
}

void AtomicFile::commit() {
  if (sync_to_disk(fd_) != 0) throw Error("{}: cannot write to disk: {}", printable(partial_.native()), reason());
  const bool closed = close(fd_) == 0 || errno == EINTR;  // Linux closes it then, too
  fd_ = -1;
  if (!closed || std::rename(partial_.c_str(), path_.c_str()) != 0) {
    const std::string why = reason();
    unlink(partial_.c_str());
    throw Error("{}: cannot write: {}", printable(path_.native()), why);
  }
  sync_directory(parent_of(path_));
}

void write_file_atomically(const fs::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void sync_directory(const fs::path& directory) {
  const Descriptor folder(directory, O_RDONLY | O_DIRECTORY);
  // Some file systems cannot sync a directory and say EINVAL; there is nothing more to do on those.
  if (sync_to_disk(folder.fd) != 0 && errno != EINVAL) {
    throw Error("{}: cannot write to disk: {}", printable(directory.native()), reason());
  }
}

std::vector<fs::path> make_directory(const fs::path& directory) {
  std::vector<fs::path> created;
  // Without a slash at the end, which would make an empty last part.
  fs::path path = directory.has_filename() ? directory : directory.parent_path();
  std::error_code error;  // what is wrong with the path, making it tells
  for (; !path.empty() && fs::symlink_status(path, error).type() == fs::file_type::not_found;
       path = path.parent_path()) {
    created.push_back(path);
  }
  error.clear();
  fs::create_directories(directory, error);
  if (error || !fs::is_directory(directory)) {
    throw Error("{}: cannot create the directory: {}", printable(directory.native()),
                error ? error.message() : "a file of that name is in the way");
  }
  for (const fs::path& made : created) sync_directory(parent_of(made));
  return created;
}

NewDirectory::NewDirectory(const fs::path& directory) {
  if (!directory.empty()) created_ = make_directory(directory);  // else where the process works
}

NewDirectory::~NewDirectory() {
  std::error_code ignored;
  for (const fs::path& path : created_) fs::remove(path, ignored);  // nothing that holds a file
}

}  // namespace fathom
