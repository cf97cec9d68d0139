#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/error.h"
#include "temporary_directory.h"

namespace fathom {
namespace {

TEST(PathExists, ABrokenLinkIsNoAbsentFile) {
  const test::TemporaryDirectory directory;
  const auto at = [&](const char* name) { return directory.path() / name; };
  directory.write("file", "x");
  std::filesystem::create_symlink("file", at("link"));
  std::filesystem::create_symlink(".", at("folder"));
  std::filesystem::create_symlink("nowhere", at("dangling"));
  std::filesystem::create_symlink("loop", at("loop"));
  EXPECT_TRUE(path_exists(at("file")));
  EXPECT_TRUE(path_exists(at("link")));
  EXPECT_FALSE(path_is_directory(at("link")));
  EXPECT_TRUE(path_is_directory(at("folder")));
  EXPECT_FALSE(path_exists(at("nothing")));
  EXPECT_FALSE(path_exists(at("file/below")));
  EXPECT_FALSE(path_exists(""));
  for (const char* broken : {"dangling", "loop", "loop/below"}) EXPECT_THROW(path_exists(at(broken)), Error) << broken;
}

TEST(SamePath, LooksBehindTheSpelling) {
  const test::TemporaryDirectory directory;
  const auto at = [&](const char* name) { return directory.path() / name; };
  directory.write("file", "x");
  std::filesystem::create_symlink("file", at("link"));
  std::filesystem::create_hard_link(at("file"), at("other"));
  for (const char* name : {"file", "./file", "link", "other"}) EXPECT_TRUE(same_path(at(name), at("file"))) << name;
  EXPECT_TRUE(same_path(at("..") / directory.path().filename() / "file", at("file")));
  EXPECT_TRUE(same_path(at("new"), at("./new")));
  EXPECT_FALSE(same_path(at("new"), at("newer")));
  EXPECT_FALSE(same_path(at("new"), at("file")));
}

TEST(DirectoryLock, IsHeldOnce) {
  const test::TemporaryDirectory directory;
  {
    const DirectoryLock lock(directory.path());
    EXPECT_THROW(DirectoryLock{directory.path()}, Error);
  }
  const DirectoryLock again(directory.path());
  EXPECT_THROW(DirectoryLock{directory.path() / "nothing"}, Error);
}

TEST(AtomicFile, WritesBehindALinkAndReplacesFilesOnly) {
  const test::TemporaryDirectory directory;
  const auto at = [&](const char* name) { return directory.path() / name; };
  directory.write("file", "old");
  std::filesystem::create_symlink("file", at("link"));
  std::filesystem::create_symlink("new", at("dangling"));
  std::filesystem::create_symlink("loop", at("loop"));
  ASSERT_EQ(mkfifo(at("pipe").c_str(), 0600), 0);
  write_file_atomically(at("link"), "a");
  write_file_atomically(at("dangling"), "b");
  EXPECT_EQ(read_file(at("file"), 10), "a");
  EXPECT_EQ(read_file(at("new"), 10), "b");
  EXPECT_TRUE(std::filesystem::is_symlink(at("link")) && std::filesystem::is_symlink(at("dangling")));
  for (const char* name : {"loop", "pipe", "."}) EXPECT_THROW(AtomicFile{at(name)}, Error) << name;
  EXPECT_THROW(AtomicFile{"/dev/null"}, Error);
  EXPECT_TRUE(std::filesystem::is_fifo(at("pipe")));
}

TEST(NewDirectory, LeavesNothingWhereNothingWasWritten) {
  const test::TemporaryDirectory directory;
  const auto at = [&](const char* name) { return directory.path() / name; };
  std::filesystem::create_directory(at("old"));
  {
    const NewDirectory deep(at("a/b/c/")), old(at("old"));
    EXPECT_TRUE(path_is_directory(at("a/b/c")));
  }
  EXPECT_FALSE(path_exists(at("a")));
  EXPECT_TRUE(path_exists(at("old")));
  {
    const NewDirectory deep(at("a/b/c"));
    directory.write("a/b/file", "x");
  }
  EXPECT_TRUE(path_exists(at("a/b/file")));
  EXPECT_FALSE(path_exists(at("a/b/c")));
  EXPECT_THROW(NewDirectory(at("a/b/file/below")), Error);
}

TEST(AtomicFile, IsWrittenOver) {
  const test::TemporaryDirectory directory;
  AtomicFile file(directory.path() / "file");
  file.write("0123456789");
  file.write_at(3, "abc", 3);
  file.write("!");
  file.commit();
  EXPECT_EQ(read_file(directory.path() / "file", 100), "012abc6789!");
}

}  // namespace
}  // namespace fathom
