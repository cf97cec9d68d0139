#include "base/utf8.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

TEST(Stripped, OfAsciisWhiteSpaceAtTheEndsAlone) {
  EXPECT_EQ(stripped(""), "");
  EXPECT_EQ(stripped(" \t\r\n\v\f\x1c\x1f"), "");
  EXPECT_EQ(stripped("\n a b \x1d"), "a b");
  EXPECT_EQ(stripped("\xc2\xa0x"), "\xc2\xa0x");  // U+00A0 is white space to Python's strip(), but not ASCII
  EXPECT_EQ(stripped(std::string_view("\0 ", 2)), std::string_view("\0", 1));
}

}  // namespace
}  // namespace fathom
