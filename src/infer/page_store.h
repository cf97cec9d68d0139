// Pages of prompts (infer/page_pool.h) in files, so that who begins alike finds them after the program has ended, or
// after there was no room for them in memory. A page's file is named by all that its content depends on: what holds for
// the whole folder (the model, the program), the salt, and every token up to its end; nothing of these can be read from
// the name. A file that is not whole, or not what was written, is removed and counts as absent.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/file.h"

namespace fathom {

struct PageStoreState {
  int64_t pages = 0, bytes = 0;               // in files
  int64_t read = 0, written = 0, failed = 0;  // pages since the beginning; failed: to be written or read
  int64_t dropped = 0;                        // not written: too many waited
  PageStoreState& operator+=(const PageStoreState& other);
};

class PageStore {
 public:
  using Name = std::array<uint8_t, 32>;  // SHA-256

  // Makes the directory, for this user alone, and locks it. Error where others may read it, or another process uses it.
  // identity: what pages depend on beside their tokens. max_bytes: of files; what was used least lately goes first.
  PageStore(const std::filesystem::path& directory, std::string_view identity, int64_t page_bytes, int64_t max_bytes);
  ~PageStore();  // when what waits is written
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;

  // Of the page behind `before`, or of a first one.
  Name name(const Name* before, std::string_view salt, std::span<const int32_t> ids) const;
  bool has(const Name& name) const;
  std::vector<Name> names() const;  // of all pages that are there
  // False where it is not there any more. Waits for the disk.
  bool read(const Name& name, std::span<char> page);
  // Copies the page; another thread writes it. Does nothing where it is there, or too many wait.
  void write(const Name& name, std::span<const char> page);
  void flush();  // returns when nothing waits
  PageStoreState state() const;

 private:
  struct Waiting {
    Name name;
    std::vector<char> page;
  };
  std::filesystem::path path_of(const Name& name) const;
  int64_t file_bytes() const;
  void find_files();
  void use(const Name& name);
  void forget(Name name);  // a copy: what it erases may hold the original
  void remove_oldest();
  void fail(const std::string& why);
  void run();

  const std::filesystem::path directory_;
  const DirectoryLock lock_;
  const std::string identity_;
  const int64_t page_bytes_, max_bytes_;

  mutable std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::map<Name, int64_t> last_used_;  // of each file
  std::map<int64_t, Name> by_use_;     // the reverse
  std::deque<Waiting> waiting_;
  std::optional<Name> writing_;  // now
  bool stops_ = false, told_ = false;
  int64_t clock_ = 0;
  PageStoreState state_;
  std::thread thread_;
};

// What tells a model directory or file from another: names, sizes and times of its files, as rsync does.
std::string identity_of_model(const std::filesystem::path& model);

}  // namespace fathom
