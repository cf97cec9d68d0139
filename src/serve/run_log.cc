#include "serve/run_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <set>
#include <string_view>

#include "base/checksum.h"
#include "base/error.h"
#include "base/file.h"

namespace fathom::serve {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMarkBytes = 1024;  // a step's line is shorter, and has times in it that no other run has
constexpr const char* kLogName = "train.jsonl";

struct Descriptor {
  int fd;
  explicit Descriptor(int opened) : fd(opened) {}
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
};

[[noreturn]] void cannot_read(const fs::path& log) {
  throw Error("{}: cannot be read: {}", printable(log.native()), std::strerror(errno));
}

bool is_absent() { return errno == ENOENT || errno == ENOTDIR; }

void require_regular(const struct stat& info, const fs::path& log) {
  if (!S_ISREG(info.st_mode)) throw Error("{}: is no regular file", printable(log.native()));
}

// Bytes [begin, end), fewer where the file ends before.
std::string read_bytes(int fd, uint64_t begin, uint64_t end, const fs::path& log) {
  std::string bytes(end - begin, '\0');
  size_t n = 0;
  while (n < bytes.size()) {
    const ssize_t got = pread(fd, bytes.data() + n, bytes.size() - n, static_cast<off_t>(begin + n));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) cannot_read(log);
    if (got == 0) break;
    n += static_cast<size_t>(got);
  }
  bytes.resize(n);
  return bytes;
}

uint64_t mark_of(std::string_view bytes) {
  Xxh3 sum;
  sum.update(bytes.data(), bytes.size());
  return sum.value();
}

// The parts of a path that tell a run from others, the last one first: a log called train.jsonl is its directory's.
std::vector<std::string> name_parts(const std::string& path) {
  fs::path whole = fs::absolute(path).lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();
  if (whole.filename() == kLogName) whole = whole.parent_path();
  if (whole.extension() == ".jsonl") whole.replace_extension();
  std::vector<std::string> parts;
  for (const fs::path& part : whole.relative_path()) parts.push_back(part.string());
  std::reverse(parts.begin(), parts.end());
  if (parts.empty()) parts.emplace_back("/");
  return parts;
}

// As many parts of each as it takes for no two to be the same.
std::vector<std::string> short_names(const std::vector<std::string>& paths) {
  std::vector<std::vector<std::string>> parts;
  size_t most = 1;
  for (const std::string& path : paths) {
    parts.push_back(name_parts(path));
    most = std::max(most, parts.back().size());
  }
  std::vector<std::string> names;
  for (size_t n = 1; n <= most; ++n) {
    names.clear();
    for (const auto& each : parts) {
      std::string name;
      for (size_t i = std::min(n, each.size()); i-- > 0;) name += (name.empty() ? "" : "/") + each[i];
      names.push_back(name);
    }
    if (std::set<std::string>(names.begin(), names.end()).size() == names.size()) break;
  }
  return names;
}

}  // namespace

std::vector<WatchedRun> watched_runs(const std::vector<std::string>& paths) {
  std::vector<WatchedRun> runs;
  const std::vector<std::string> names = short_names(paths);
  for (size_t i = 0; i < paths.size(); ++i) {
    const fs::path path = paths[i];
    if (!path_exists(path)) {
      throw Error(
          "{}: there is no such directory or file: give what fathom train --out names, or a log; a directory may be "
          "empty still (mkdir it to wait for a run)",
          printable(paths[i]));
    }
    WatchedRun run{names[i], paths[i], path_is_directory(path) ? path / kLogName : path};
    log_state(run.log);
    for (const WatchedRun& other : runs) {
      if (same_path(other.log, run.log)) throw UsageError("watch: {} is given twice", printable(run.log.native()));
    }
    runs.push_back(std::move(run));
  }
  return runs;
}

std::optional<LogState> log_state(const fs::path& log) {
  struct stat info {};
  if (stat(log.c_str(), &info) != 0) {
    if (is_absent()) return std::nullopt;
    cannot_read(log);
  }
  require_regular(info, log);
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  const double age_s = static_cast<double>(now.tv_sec - info.st_mtim.tv_sec) +
                       1e-9 * static_cast<double>(now.tv_nsec - info.st_mtim.tv_nsec);
  return LogState{static_cast<uint64_t>(info.st_size), std::max(age_s, 0.0),
                  fmt::format("{}:{}:{}.{:09}", info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec)};
}

std::optional<LogPiece> read_log(const fs::path& log, uint64_t from, std::optional<uint64_t> mark, size_t max_bytes) {
  // What is no regular file, such as a pipe that nobody writes to, must not be waited for.
  const Descriptor file(open(log.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (file.fd < 0) {
    if (is_absent()) return std::nullopt;
    cannot_read(log);
  }
  struct stat info {};
  if (fstat(file.fd, &info) != 0) cannot_read(log);
  require_regular(info, log);

  LogPiece piece;
  piece.bytes = static_cast<uint64_t>(info.st_size);
  if (from <= piece.bytes) piece.from = from;
  uint64_t before = std::min(piece.from, kMarkBytes);  // bytes that the mark is of
  std::string bytes = read_bytes(file.fd, piece.from - before, std::min(piece.from + max_bytes, piece.bytes), log);
  const std::string_view marked = std::string_view(bytes).substr(0, before);
  if (marked.size() < before || (mark && mark_of(marked) != *mark)) {
    piece.from = before = 0;
    bytes = read_bytes(file.fd, 0, std::min<uint64_t>(max_bytes, piece.bytes), log);
  }
  const std::string_view behind = std::string_view(bytes).substr(before);
  const bool whole_begin = before == 0 || bytes[before - 1] == '\n';
  const size_t begin = whole_begin ? 0 : behind.find('\n') + 1;  // 0 where the rest of that line is longer still
  const size_t end = behind.rfind('\n') + 1;
  const bool endless = end == 0 && (behind.size() == max_bytes || !whole_begin);
  const size_t taken = endless ? behind.size() : end;
  piece.next = piece.from + taken;
  if (end > begin) piece.lines = behind.substr(begin, end - begin);
  const size_t marked_bytes = std::min(piece.next, kMarkBytes);
  piece.mark = mark_of(std::string_view(bytes).substr(before + taken - marked_bytes, marked_bytes));
  return piece;
}

}  // namespace fathom::serve
