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

}  // namespace
}  // namespace fathom
