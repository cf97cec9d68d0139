#include "faults/file_calls.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <set>

#include "base/error.h"

namespace fathom::test {
namespace {

namespace fs = std::filesystem;

// What the calls below look at, one thread at a time.
struct Watch {
  std::string root;  // with a slash at the end; empty: nothing is watched
  std::set<int> open;
  std::vector<FileCall> calls;
  int tried[kCalls] = {};
  bool armed = false, happened = false;
  Call call{};
  int left = 0, error = 0;
};
Watch& watch() {
  static Watch& state = *new Watch;  // for calls after the end of main, too
  return state;
}

std::unique_lock<std::recursive_mutex> alone() {
  static auto& mutex = *new std::recursive_mutex;
  return std::unique_lock(mutex);
}

void begin(const fs::path& root) {
  const auto lock = alone();
  FATHOM_CHECK(watch().root.empty());
  watch() = Watch{};
  watch().root = root.native() + "/";
}

bool watched(const std::string& path) { return !watch().root.empty() && (path + "/").starts_with(watch().root); }
bool watched(int fd) { return !watch().root.empty() && watch().open.contains(fd); }

// Whether this call is the one that fails.
bool fails(Call call) {
  Watch& w = watch();
  ++w.tried[static_cast<int>(call)];
  if (!w.armed || w.happened || w.call != call || --w.left > 0) return false;
  w.happened = true;
  errno = w.error;
  return true;
}

std::string path_at(int directory, const char* path) {
  if (directory == AT_FDCWD || path[0] == '/') return path;
  return fs::read_symlink("/proc/self/fd/" + std::to_string(directory)) / path;
}

template <class Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

int open_at(int directory, const char* name, int flags, mode_t mode) {
  const auto lock = alone();
  static auto* const call = real<int(int, const char*, int, mode_t)>("openat");
  const std::string path = watch().root.empty() ? "" : path_at(directory, name);
  if (!watched(path)) return call(directory, name, flags, mode);
  if (fails(Call::open)) return -1;
  struct stat info {};
  const bool there = stat(path.c_str(), &info) == 0;
  const int fd = call(directory, name, flags, mode);
  if (fd < 0) return fd;
  watch().open.insert(fd);
  watch().calls.push_back({Call::open, path, "", fd, !there, there && (flags & O_TRUNC) != 0});
  return fd;
}

int remove_at(int directory, const char* name, bool is_directory) {
  const auto lock = alone();
  static auto* const call = real<int(int, const char*, int)>("unlinkat");
  const std::string path = watch().root.empty() ? "" : path_at(directory, name);
  const Call kind = is_directory ? Call::rmdir : Call::unlink;
  if (watched(path) && fails(kind)) return -1;
  const int result = call(directory, name, is_directory ? AT_REMOVEDIR : 0);
  if (result == 0 && watched(path)) watch().calls.push_back({kind, path});
  return result;
}

// `write` does the work, for so many bytes.
template <class Write>
ssize_t written(Call kind, int fd, const void* data, size_t bytes, int64_t offset, const Write& write) {
  if (!watched(fd)) return write(bytes);
  if (fails(kind)) {
    if (errno != 0) return -1;
    bytes = (bytes + 1) / 2;
  }
  const ssize_t n = write(bytes);
  if (n > 0) {
    const std::string content(static_cast<const char*>(data), static_cast<size_t>(n));
    watch().calls.push_back({kind, "", "", fd, false, false, offset, content});
  }
  return n;
}

}  // namespace

const char* name_of(Call call) {
  const char* const names[] = {"open", "write", "pwrite", "fsync", "close", "rename", "unlink", "mkdir", "rmdir"};
  return names[static_cast<int>(call)];
}

Recording::Recording(const fs::path& root) { begin(root); }
Recording::~Recording() { watch().root.clear(); }
const std::vector<FileCall>& Recording::calls() const { return watch().calls; }
int Recording::tried(Call call) const { return watch().tried[static_cast<int>(call)]; }

Fault::Fault(const fs::path& root, Call call, int n, int error) {
  const auto lock = alone();
  begin(root);
  watch().armed = true;
  watch().call = call;
  watch().left = n;
  watch().error = error;
}
Fault::~Fault() {
  const auto lock = alone();
  watch().root.clear();
}
bool Fault::happened() const {
  const auto lock = alone();
  return watch().happened;
}

}  // namespace fathom::test

using namespace fathom::test;

extern "C" {

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return open_at(AT_FDCWD, path, flags, mode);
}

int openat(int directory, const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return open_at(directory, path, flags, mode);
}

ssize_t write(int fd, const void* data, size_t bytes) {
  const auto lock = alone();
  static auto* const call = real<ssize_t(int, const void*, size_t)>("write");
  const int64_t offset = watched(fd) ? lseek(fd, 0, SEEK_CUR) : 0;
  return written(Call::write, fd, data, bytes, offset, [&](size_t n) { return call(fd, data, n); });
}

ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  const auto lock = alone();
  static auto* const call = real<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  return written(Call::pwrite, fd, data, bytes, offset, [&](size_t n) { return call(fd, data, n, offset); });
}

int fsync(int fd) {
  const auto lock = alone();
  static auto* const call = real<int(int)>("fsync");
  if (watched(fd) && fails(Call::fsync)) return -1;
  const int result = call(fd);
  if (result == 0 && watched(fd)) watch().calls.push_back({Call::fsync, "", "", fd});
  return result;
}

int close(int fd) {
  const auto lock = alone();
  static auto* const call = real<int(int)>("close");
  const bool ours = watched(fd), failed = ours && fails(Call::close);
  const int error = errno, result = call(fd);  // closed in any case, as Linux does it
  if (!ours) return result;
  watch().open.erase(fd);
  watch().calls.push_back({Call::close, "", "", fd});
  if (failed) errno = error;
  return failed ? -1 : result;
}

int rename(const char* from, const char* to) noexcept {
  const auto lock = alone();
  static auto* const call = real<int(const char*, const char*)>("rename");
  if (watched(std::string(from)) && fails(Call::rename)) return -1;
  const int result = call(from, to);
  if (result == 0 && watched(std::string(from))) watch().calls.push_back({Call::rename, from, to});
  return result;
}

int mkdir(const char* path, mode_t mode) noexcept {
  const auto lock = alone();
  static auto* const call = real<int(const char*, mode_t)>("mkdir");
  if (watched(std::string(path)) && fails(Call::mkdir)) return -1;
  const int result = call(path, mode);
  if (result == 0 && watched(std::string(path))) watch().calls.push_back({Call::mkdir, path});
  return result;
}

int unlink(const char* path) noexcept { return remove_at(AT_FDCWD, path, false); }
int rmdir(const char* path) noexcept { return remove_at(AT_FDCWD, path, true); }
int unlinkat(int directory, const char* path, int flags) noexcept {
  return remove_at(directory, path, (flags & AT_REMOVEDIR) != 0);
}
int remove(const char* path) noexcept {
  struct stat info {};
  const bool is_directory = lstat(path, &info) == 0 && S_ISDIR(info.st_mode);
  return remove_at(AT_FDCWD, path, is_directory);
}

}  // extern "C"
