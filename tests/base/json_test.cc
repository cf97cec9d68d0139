#include "base/json.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace fathom {
namespace {

std::string refusal(std::string_view text) {
  try {
    (void)JsonDocument::parse(text, "x.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "(accepted)";
}

TEST(Json, NamesThePlaceWhereATextStopsBeingJson) {
  const std::pair<std::string, const char*> cases[] = {
      {"[1, 2]", "(accepted)"},
      {"{\"a\": 1,\n \"b\": 2\n \"c\": 3}", "x.json: not valid JSON, at line 3, column 4: "},
      {"{\n\n\n", "x.json: not valid JSON, at line 4, column 1: "},
      {"[1, 2", "x.json: not valid JSON, at column 6: "},
      {"[1] 2", "x.json: not valid JSON, at column 5: "},
      {"[tru]", "x.json: not valid JSON, at column 5: "},
      {"[\"a\\q\"]", "x.json: not valid JSON, at column 5: "},
      {"", "x.json: is empty, expected JSON"},
  };
  for (const auto& [text, message] : cases)
    EXPECT_EQ(refusal(text).substr(0, std::string(message).size()), message) << text;
}

TEST(Json, DepthAndKeysAreBounded) {
  EXPECT_EQ(refusal(std::string(64, '[') + std::string(64, ']')), "(accepted)");
  EXPECT_EQ(refusal(std::string(65, '[') + std::string(65, ']')), "x.json: JSON nested deeper than 64 levels");
  EXPECT_EQ(refusal("[{\"a\": 1, \"b\": {\"a\": 2}}]"), "(accepted)");
  EXPECT_EQ(refusal("[{\"a\": 1, \"a\": 2}]"), "x.json: the key \"a\" stands twice in one object");
}

}  // namespace
}  // namespace fathom
