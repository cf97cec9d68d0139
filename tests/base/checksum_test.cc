#include "base/checksum.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include "base/error.h"
#include "base/rng.h"
#include "temporary_directory.h"

namespace fathom {
namespace {

TEST(ChecksumOfFile, IsThatOfAllItsBytesAtOnce) {
  const test::TemporaryDirectory directory;
  std::string bytes((size_t{3} << 20) + 1, '\0');
  Rng rng(1);
  for (char& byte : bytes) byte = static_cast<char>(rng.below(256));
  for (const size_t n : {size_t{0}, size_t{1}, size_t{300}, (size_t{1} << 20) - 1, size_t{1} << 20, bytes.size()}) {
    const std::string content = bytes.substr(0, n);
    directory.write("file", content);
    const FileChecksum sum = checksum_of_file(directory.path() / "file");
    EXPECT_EQ(sum.bytes, n);
    EXPECT_EQ(sum.xxh3, XXH3_64bits(content.data(), n)) << n;
  }
  EXPECT_THROW(checksum_of_file(directory.path()), Error);
  EXPECT_THROW(checksum_of_file(directory.path() / "nothing"), Error);
}

TEST(Xxh3, BeginsAnewWhenAssigned) {
  Xxh3 sum;
  sum.update("ab", 2);
  sum.update("c", 1);
  EXPECT_EQ(sum.value(), XXH3_64bits("abc", 3));
  sum = {};
  EXPECT_EQ(sum.value(), XXH3_64bits("", 0));
}

}  // namespace
}  // namespace fathom
