#include "serve/keys.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/error.h"
#include "temporary_directory.h"

namespace fathom::serve {
namespace {

TEST(ApiKeys, AreFoundAndNamedByThemselvesAlone) {
  const ApiKeys keys({"alice-key", "bob-key"}), turned({"bob-key", "alice-key"}), other({"mallory-key"});
  EXPECT_TRUE(keys.required() && !ApiKeys().required());
  EXPECT_EQ(keys.find("alice-key"), 0u);
  EXPECT_EQ(keys.find("bob-key"), 1u);
  EXPECT_FALSE(keys.find("alice-ke") || keys.find("") || keys.find("alice-key "));
  EXPECT_EQ(keys.name(0), turned.name(1)) << "whatever its line";
  EXPECT_NE(keys.name(0), keys.name(1));
  EXPECT_NE(keys.name(0), other.name(0)) << "whoever had the line before";
  EXPECT_EQ(keys.name(0).size(), 32u);
  EXPECT_EQ(keys.name(0).find("alice"), std::string::npos);
}

TEST(ApiKeys, AreReadFromTheirOwnersFileAlone) {
  const test::TemporaryDirectory folder;
  const std::filesystem::path file = folder.write("keys", "a-key\n");
  const auto with_mode = [&](mode_t mode) {
    chmod(file.c_str(), mode);
    return read_api_keys(file).size();
  };
  EXPECT_EQ(with_mode(0600), 1u);
  EXPECT_THROW(with_mode(0640), Error);
  EXPECT_THROW(with_mode(0604), Error);
  // What systemd hands to a service may be its group's too.
  setenv("CREDENTIALS_DIRECTORY", folder.path().c_str(), 1);
  EXPECT_EQ(with_mode(0440), 1u);
  EXPECT_THROW(with_mode(0444), Error);
  setenv("CREDENTIALS_DIRECTORY", (folder.path() / "..").c_str(), 1);
  EXPECT_THROW(with_mode(0440), Error);
  unsetenv("CREDENTIALS_DIRECTORY");
}

}  // namespace
}  // namespace fathom::serve
