#include "text/unpacking.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "refusal.h"
#include "temporary_directory.h"
#include "text/compressed.h"

namespace fathom {
namespace {

using test::gzipped, test::zstded;

// In pieces of `step` bytes.
std::string unpacked(const std::filesystem::path& path, size_t step = 1000) {
  UnpackedFile file(path);
  std::string all, piece(step, '\0');
  for (size_t n = step; n == step;) {
    n = file.read(piece.data(), step);
    all.append(piece, 0, n);
  }
  EXPECT_EQ(file.read(piece.data(), step), 0U);
  EXPECT_EQ(file.stored_read(), std::filesystem::file_size(path));
  return all;
}

std::string some_text(size_t lines) {
  Rng rng(lines);
  std::string text;
  for (size_t i = 0; i < lines; ++i) text += fmt::format("line {} has {}\n", i, rng.below(1'000'000'000));
  return text;
}

TEST(UnpackedFile, GivesWhatWasCompressedInPiecesOfAnySize) {
  const test::TemporaryDirectory directory;
  const std::string text = some_text(30'000);
  for (const auto& [name, content] :
       {std::pair{"a.txt", text}, {"a.txt.gz", gzipped(text)}, {"a.txt.zst", zstded(text)}}) {
    const auto path = directory.write(name, content);
    for (const size_t step : {size_t{1}, size_t{7}, size_t{4096}, text.size(), text.size() + 1}) {
      ASSERT_TRUE(unpacked(path, step) == text) << name << " by " << step;
    }
  }
}

TEST(UnpackedFile, AllMembersAndFramesAreRead) {
  const test::TemporaryDirectory directory;
  std::string members, frames, text;
  for (size_t lines : {3, 0, 5000, 1}) {
    text += some_text(lines);
    members += gzipped(some_text(lines));
    frames += zstded(some_text(lines));
  }
  const std::string skipped("\x50\x2A\x4D\x18\x03\0\0\0abc", 11);  // a frame of other data
  EXPECT_TRUE(unpacked(directory.write("a.gz", members)) == text);
  EXPECT_TRUE(unpacked(directory.write("a.zst", frames)) == text);
  EXPECT_TRUE(unpacked(directory.write("b.zst", skipped + frames + skipped)) == text);
  EXPECT_EQ(unpacked(directory.write("empty.gz", gzipped(""))), "");
  EXPECT_EQ(unpacked(directory.write("empty.zst", zstded(""))), "");
}

TEST(UnpackedFile, AFileThatIsCutAnywhereIsRefused) {
  const test::TemporaryDirectory directory;
  for (const auto& [name, content] : {std::pair{"a.gz", gzipped(some_text(20))}, {"a.zst", zstded(some_text(20))}}) {
    for (size_t size = 0; size < content.size(); ++size) {
      const auto path = directory.write(name, content.substr(0, size));
      const std::string why = refusal([&] { unpacked(path); });
      EXPECT_NE(why.find(fmt::format("{}: ends after {} bytes", name, size)), std::string::npos) << why;
    }
    // Behind a whole one as well.
    const auto path = directory.write(name, content + content.substr(0, 9));
    EXPECT_NE(refusal([&] { unpacked(path); }).find("ends after"), std::string::npos);
  }
}

TEST(UnpackedFile, NoChangedBitPasses) {
  const test::TemporaryDirectory directory;
  const std::string text = some_text(20);
  for (const auto& [name, content] : {std::pair{"a.gz", gzipped(text)}, {"a.zst", zstded(text)}}) {
    int refused = 0;
    for (size_t bit = 0; bit < 8 * content.size(); ++bit) {
      std::string changed = content;
      changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ 1 << bit % 8);
      const auto path = directory.write(name, changed);
      std::string found;
      const std::string why = refusal([&] { found = unpacked(path); });
      refused += why != "(accepted)";
      EXPECT_TRUE(why != "(accepted)" ? why.find(name) != std::string::npos : found == text) << bit << ": " << why;
    }
    // What may be another: time and system in the header of gzip.
    EXPECT_GT(refused, static_cast<int>(8 * (content.size() - 8))) << name;
  }
}

TEST(UnpackedFile, WhatIsNotCompressedAsItsNameSaysIsRefused) {
  const test::TemporaryDirectory directory;
  const std::string text = some_text(20);
  for (const char* name : {"a.gz", "a.zst"}) {
    EXPECT_NE(refusal([&] { unpacked(directory.write(name, text)); }).find("damaged at byte"), std::string::npos);
  }
  EXPECT_NE(refusal([&] { unpacked(directory.write("a.gz", gzipped(text) + "no gzip")); }).find("a.gz: damaged"),
            std::string::npos);
  EXPECT_NE(refusal([&] { unpacked(directory.write("a.zst", zstded(text) + "no zstd")); }).find("a.zst: damaged"),
            std::string::npos);
  EXPECT_NE(refusal([&] { unpacked(directory.path() / "none.gz"); }).find("none.gz: cannot open"), std::string::npos);
}

}  // namespace
}  // namespace fathom
