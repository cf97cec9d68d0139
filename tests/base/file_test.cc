#include "base/file.h"

#include <gtest/gtest.h>

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
