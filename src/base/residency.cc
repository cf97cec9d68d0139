#include "base/residency.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>

#include "base/buffer.h"
#include "base/error.h"
#include "base/terminal.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// The kernel reads no more for one call than the device's read-ahead, which is seldom less than this.
constexpr size_t kReadAheadPiece = size_t{128} << 10;

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

// The pages that hold any of the bytes.
std::span<std::byte> pages_of(std::span<const std::byte> bytes) {
  const size_t page = page_bytes(), skew = reinterpret_cast<uintptr_t>(bytes.data()) % page;
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast): the kernel's functions take no pointers to const
  return {const_cast<std::byte*>(bytes.data()) - skew, (bytes.size() + skew + page - 1) / page * page};
}

// The number that a file holds alone; nothing for "max" or where there is no such file.
std::optional<uint64_t> number_in(const fs::path& file) {
  std::ifstream in(file);
  uint64_t n = 0;
  if (in >> n) return n;
  return std::nullopt;
}

// The number behind `key` in a file of lines "key number" or "key: number kB".
std::optional<uint64_t> number_behind(const fs::path& file, std::string_view key) {
  std::ifstream in(file);
  std::string word;
  uint64_t n = 0;
  while (in >> word) {
    if (word == key && in >> n) return n;
    in.clear();
    in.ignore(1 << 12, '\n');
  }
  return std::nullopt;
}

struct CgroupFiles {
  const char *limit, *used, *cached;
};
constexpr CgroupFiles kVersion1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"};
constexpr CgroupFiles kVersion2 = {"memory.max", "memory.current", "file"};

// This group's limit, or what it leaves. A missing file sets none: the topmost group has none, and in a container paths
// of the host lead nowhere.
uint64_t limit_in(const fs::path& group, const CgroupFiles& files) {
  return number_in(group / files.limit).value_or(UINT64_MAX);
}
uint64_t left_in(const fs::path& group, const CgroupFiles& files) {
  const auto limit = number_in(group / files.limit), used = number_in(group / files.used);
  if (!limit || !used) return UINT64_MAX;
  const uint64_t held = *used - std::min(*used, number_behind(group / "memory.stat", files.cached).value_or(0));
  return *limit - std::min(*limit, held);
}

// The least of all groups that this process is in.
template <class In>
uint64_t least_in_cgroups(const fs::path& root, const In& in) {
  uint64_t left = UINT64_MAX;
  std::ifstream groups(root / "proc/self/cgroup");  // lines "4:memory:/path" (v1), "0::/path" (v2)
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool v1 = controllers.find(",memory,") != std::string::npos, v2 = controllers == ",,";
    if (!v1 && !v2) continue;
    const fs::path mount = root / (v1 ? "sys/fs/cgroup/memory" : "sys/fs/cgroup");
    fs::path path = fs::path(line.substr(second + 1)).relative_path();
    for (;; path = path.parent_path()) {
      left = std::min(left, in(mount / path, v1 ? kVersion1 : kVersion2));
      if (path.empty()) break;
    }
  }
  return left;
}

}  // namespace

uint64_t available_memory_bytes(const fs::path& root) {
  const auto available = number_behind(root / "proc/meminfo", "MemAvailable:");
  return std::min(available ? *available * 1024 : UINT64_MAX, least_in_cgroups(root, left_in));
}

uint64_t memory_limit_bytes(const fs::path& root) {
  return std::min(machine_memory_bytes(), least_in_cgroups(root, limit_in));
}

uint64_t free_swap_bytes(const fs::path& root) {
  return number_behind(root / "proc/meminfo", "SwapFree:").value_or(0) * 1024;
}

bool shows_residency(const fs::path& file) {
  struct stat info;
  if (stat(file.c_str(), &info) != 0) return false;
  return info.st_uid == geteuid() || access(file.c_str(), W_OK) == 0;
}

void give_back(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const auto pages = pages_of(bytes);
  madvise(pages.data(), pages.size(), MADV_DONTNEED);
}

int64_t resident_bytes(std::span<const std::byte> bytes) {
  if (bytes.empty()) return 0;
  const auto pages = pages_of(bytes);
  const size_t n_pages = pages.size() / page_bytes();
  // Pages come and go in runs: of a long range some of each part are looked at.
  constexpr size_t kParts = 64, kPagesOfPart = 8;
  const bool all = n_pages <= kParts * kPagesOfPart;
  const size_t step = all ? n_pages : n_pages / kParts, n = all ? n_pages : kPagesOfPart;
  unsigned char state[kParts * kPagesOfPart];
  size_t looked_at = 0, resident = 0;
  for (size_t page = 0; page + n <= n_pages; page += step) {
    if (mincore(pages.data() + page * page_bytes(), n * page_bytes(), state) != 0) return 0;
    resident += static_cast<size_t>(std::count_if(state, state + n, [](unsigned char s) { return (s & 1) != 0; }));
    looked_at += n;
  }
  return static_cast<int64_t>(static_cast<double>(bytes.size()) * static_cast<double>(resident) /
                              static_cast<double>(looked_at));
}

void read_ahead(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const auto pages = pages_of(bytes);
  for (size_t done = 0; done < pages.size(); done += kReadAheadPiece) {
    madvise(pages.data() + done, std::min(kReadAheadPiece, pages.size() - done), MADV_WILLNEED);
  }
}

void expect_scattered_reads(std::span<const std::byte> bytes) {
  const auto pages = pages_of(bytes);
  if (!bytes.empty()) madvise(pages.data(), pages.size(), MADV_RANDOM);
}

void read_into_huge_pages(std::span<const std::byte> bytes) {
  const auto pages = pages_of(bytes);
  if (!bytes.empty()) madvise(pages.data(), pages.size(), MADV_HUGEPAGE);
}

void lock_in_memory(std::span<const std::span<const std::byte>> ranges) {
  size_t total = 0;
  for (const auto& range : ranges) total += range.size();
  for (const auto& range : ranges) {
    const auto pages = pages_of(range);
    // The system call itself: sanitizers make mlock() do nothing.
    if (range.empty() || syscall(SYS_mlock, pages.data(), pages.size()) == 0) continue;
    const int error = errno;
    const std::string size = human_bytes(static_cast<double>(total));
    rlimit limit{};
    if (error != EAGAIN && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur < total) {
      throw Error(
          "--mlock: cannot lock {} of weights in memory: this process may lock {} (RLIMIT_MEMLOCK); raise that with "
          "ulimit -l or LimitMEMLOCK=, or leave --mlock out",
          size, human_bytes(static_cast<double>(limit.rlim_cur)));
    }
    throw Error("--mlock: cannot lock {} of weights in memory: {}; leave --mlock out", size, std::strerror(error));
  }
}

uint64_t huge_page_bytes() { return number_behind("/proc/self/smaps_rollup", "AnonHugePages:").value_or(0) * 1024; }

std::string huge_page_policy(const fs::path& root) {
  std::ifstream in(root / "sys/kernel/mm/transparent_hugepage/enabled");  // "always [madvise] never"
  for (std::string word; in >> word;) {
    if (word.size() > 2 && word.front() == '[' && word.back() == ']') return word.substr(1, word.size() - 2);
  }
  return "";
}

}  // namespace fathom
