// The calls that change files, of this very program: its own write, rename, fsync and so on stand before those of the
// C library (also for the C++ library's std::filesystem), and note each call below one folder, or make one fail.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fathom::test {

enum class Call { open, write, pwrite, fsync, close, rename, unlink, mkdir, rmdir };
inline constexpr int kCalls = 9;
const char* name_of(Call call);

struct FileCall {
  Call call;
  std::string path;      // of open, rename, unlink, mkdir, rmdir
  std::string to;        // of rename
  int fd = -1;           // that open returned; of write, fsync, close
  bool created = false;  // by open; else it may have emptied the file
  bool emptied = false;
  int64_t offset = 0;  // of write
  std::string data{};
};

// All calls that succeed while it exists, in order. One at a time.
class Recording {
 public:
  explicit Recording(const std::filesystem::path& root);
  ~Recording();
  const std::vector<FileCall>& calls() const;
  int tried(Call call) const;  // those that failed by themselves too
};

// While it exists the n-th (from 1) `call` below root fails with `error`; or, where that is 0, writes half.
class Fault {
 public:
  Fault(const std::filesystem::path& root, Call call, int n, int error);
  ~Fault();
  bool happened() const;
};

}  // namespace fathom::test
