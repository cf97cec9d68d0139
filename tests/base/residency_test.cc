#include "base/residency.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "refusal.h"
#include "temporary_directory.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A root directory as the kernel shows it: 1000 MiB available, and what a test adds.
struct FakeRoot {
  test::TemporaryDirectory folder;
  FakeRoot() {
    file("proc/meminfo", "MemTotal: 4096000 kB\nMemFree: 5 kB\nMemAvailable:  1024000 kB\nBuffers: 1 kB\n");
  }
  void file(const fs::path& path, const std::string& content) const {
    fs::create_directories((folder.path() / path).parent_path());
    (void)folder.write(path.string(), content);
  }
  uint64_t available() const { return available_memory_bytes(folder.path()); }
};

TEST(AvailableMemory, IsWhatTheMachineHasWithoutALimit) {
  const FakeRoot root;
  EXPECT_EQ(root.available(), 1000 * kMiB);
  root.file("proc/self/cgroup", "0::/\n");
  EXPECT_EQ(root.available(), 1000 * kMiB);
  root.file("proc/self/cgroup", "garbage\n\n7:\n");
  EXPECT_EQ(root.available(), 1000 * kMiB);
  EXPECT_EQ(available_memory_bytes(root.folder.path() / "nowhere"), UINT64_MAX);
}

TEST(AvailableMemory, IsWhatACgroupOfVersion2LeavesAndItsCachedFilesCountAsFree) {
  const FakeRoot root;
  root.file("proc/self/cgroup", "0::/a/b\n");
  const std::string group = "sys/fs/cgroup/a/b/";
  root.file(group + "memory.max", std::to_string(300 * kMiB));
  root.file(group + "memory.current", std::to_string(250 * kMiB));
  root.file(group + "memory.stat", "anon 5\nfile " + std::to_string(200 * kMiB) + "\nslab 7\n");
  EXPECT_EQ(root.available(), 250 * kMiB);
  EXPECT_EQ(memory_limit_bytes(root.folder.path()), 300 * kMiB) << "whatever is used of it";
  root.file("sys/fs/cgroup/a/memory.max", std::to_string(200 * kMiB));
  EXPECT_EQ(memory_limit_bytes(root.folder.path()), 200 * kMiB) << "the least of all groups around it";
  root.file("sys/fs/cgroup/a/memory.max", "max\n");
  root.file(group + "memory.max", "max\n");
  EXPECT_EQ(root.available(), 1000 * kMiB);
  // The group above counts too, and a group that is over its limit has nothing left.
  root.file("sys/fs/cgroup/a/memory.max", std::to_string(100 * kMiB));
  root.file("sys/fs/cgroup/a/memory.current", std::to_string(170 * kMiB));
  EXPECT_EQ(root.available(), 0);
}

TEST(AvailableMemory, IsWhatACgroupOfVersion1Leaves) {
  const FakeRoot root;
  root.file("proc/self/cgroup", "12:cpu:/x\n9:hugetlb,memory:/slice\n0::/\n");
  const std::string group = "sys/fs/cgroup/memory/slice/";
  root.file(group + "memory.limit_in_bytes", std::to_string(300 * kMiB));
  root.file(group + "memory.usage_in_bytes", std::to_string(90 * kMiB));
  root.file(group + "memory.stat", "cache 1\ntotal_cache " + std::to_string(50 * kMiB) + "\n");
  EXPECT_EQ(root.available(), 260 * kMiB);
}

TEST(AvailableMemory, OfAContainerWhosePathIsTheHostsIsThatOfItsTopmostGroup) {
  const FakeRoot root;
  root.file("proc/self/cgroup", "3:memory:/docker/0123\n");
  root.file("sys/fs/cgroup/memory/memory.limit_in_bytes", std::to_string(64 * kMiB));
  root.file("sys/fs/cgroup/memory/memory.usage_in_bytes", "0");
  EXPECT_EQ(root.available(), 64 * kMiB);
}

TEST(HugePagePolicy, IsTheWordInBrackets) {
  const FakeRoot root;
  EXPECT_EQ(huge_page_policy(root.folder.path()), "");
  root.file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  EXPECT_EQ(huge_page_policy(root.folder.path()), "madvise");
}

// Writes a file that is not in memory, where the file system allows that.
fs::path dropped_file(const test::TemporaryDirectory& folder, size_t bytes) {
  fs::path path = folder.write("data", std::string(bytes, 'x'));
  const int fd = open(path.c_str(), O_RDWR);
  EXPECT_GE(fd, 0);
  fsync(fd);
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  close(fd);
  return path;
}

TEST(Residency, GrowsWithWhatIsReadAndWithWhatIsReadAhead) {
  const test::TemporaryDirectory folder;
  constexpr size_t kBytes = size_t{6} << 20;  // more pages than are all looked at
  const MappedFile file(dropped_file(folder, kBytes));
  ASSERT_TRUE(shows_residency(file.path()));
  const auto bytes = file.bytes();
  if (resident_bytes(bytes) != 0) GTEST_SKIP() << "the file system keeps its files in memory";
  EXPECT_EQ(resident_bytes(bytes.subspan(0, 0)), 0);
  const auto part = bytes.subspan(3'000'001, 500'000);
  read_ahead(part);
  for (int i = 0; i < 5000 && resident_bytes(part) < 500'000; ++i) usleep(1000);
  EXPECT_EQ(resident_bytes(part), 500'000);
  EXPECT_LT(resident_bytes(bytes), static_cast<int64_t>(kBytes));
  unsigned sum = 0;
  for (const std::byte b : bytes) sum += static_cast<unsigned>(b);
  EXPECT_EQ(sum, kBytes * 'x');
  EXPECT_EQ(resident_bytes(bytes), static_cast<int64_t>(kBytes));
}

TEST(Residency, OfAFileThatIsNotThereIsNotShown) { EXPECT_FALSE(shows_residency("/nonexistent/file")); }

TEST(LockInMemory, TakesWhatTheLimitAllows) {
  const test::TemporaryDirectory folder;
  const MappedFile file(folder.write("data", std::string(10'000, 'x')));
  const std::span<const std::byte> ranges[] = {file.bytes().subspan(17, 100), {}, file.bytes()};
  lock_in_memory(ranges);
  EXPECT_EQ(resident_bytes(file.bytes()), 10'000);
  // Of memory that is not there the system's reason is given.
  void* const hole = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap(hole, 4096);
  const std::span<const std::byte> gone[] = {{static_cast<const std::byte*>(hole), 4096}};
  EXPECT_THAT(refusal([&] { lock_in_memory(gone); }), HasSubstr("--mlock: cannot lock 4.0 KiB of weights in memory"));
}

}  // namespace
}  // namespace fathom
