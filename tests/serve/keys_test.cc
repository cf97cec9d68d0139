#include "serve/keys.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace fathom::serve
