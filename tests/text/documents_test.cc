#include "text/documents.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "refusal.h"
#include "temporary_directory.h"
#include "text/compressed.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre, testing::HasSubstr;

std::vector<std::string> texts(const std::vector<fs::path>& data, const DocumentLimits& limits = {}) {
  DocumentReader reader(find_text_files(data), limits);
  std::vector<std::string> all;
  for (Document document; reader.next(document);) all.push_back(document.text);
  EXPECT_EQ(reader.bytes_read(), reader.bytes_total());
  return all;
}

std::string why_not(const std::vector<fs::path>& data, const DocumentLimits& limits = {}) {
  return refusal([&] { texts(data, limits); });
}

TEST(Documents, AFileIsOneAndALineOfJsonlIsOne) {
  const test::TemporaryDirectory directory;
  const auto text = directory.write("a.txt", "ab\n\ncd\n");
  const auto other = directory.write("README", "no extension");
  const auto empty = directory.write("empty.txt", "");
  const auto lines =
      directory.write("b.jsonl", "{\"text\": \"c\"}\r\n\n  \n{\"id\": 7, \"text\": \"\\u00e9\\n\"}\n{\"text\": \"\"}");
  EXPECT_THAT(texts({text, empty, lines, other}), ElementsAre("ab\n\ncd\n", "c", "é\n", "", "no extension"));
  EXPECT_THAT(texts({directory.write("c.jsonl", "\n\n")}), ElementsAre());
}

TEST(Documents, CompressedFilesHoldTheSame) {
  const test::TemporaryDirectory directory;
  std::string lines, text;
  for (int i = 0; i < 40'000; ++i) {  // more than any buffer
    lines += fmt::format("{{\"text\": \"document {} é\", \"more\": [1, 2]}}\n", i);
    text += fmt::format("line {} é\n", i);
  }
  for (const auto& [name, content] : {std::pair{"a.jsonl", lines}, {"b.txt", text}}) {
    const std::string file = name;
    const auto plain = texts({directory.write(file, content)});
    EXPECT_EQ(plain.size(), file == "a.jsonl" ? 40'000U : 1U);
    EXPECT_TRUE(texts({directory.write(file + ".gz", test::gzipped(content))}) == plain);
    EXPECT_TRUE(texts({directory.write(file + ".zst", test::zstded(content))}) == plain);
    const size_t half = content.size() / 2;
    const auto split = directory.write("2-" + file + ".zst",
                                       test::zstded(content.substr(0, half)) + test::zstded(content.substr(half)));
    EXPECT_TRUE(texts({split}) == plain);
  }
}

TEST(Documents, DirectoriesAreReadWholeAndSorted) {
  const test::TemporaryDirectory directory;
  fs::create_directories(directory.path() / "b/deep");
  fs::create_directories(directory.path() / ".git");
  directory.write("c.txt", "3");
  directory.write("b/z.jsonl.gz", test::gzipped("{\"text\": \"2\"}"));
  directory.write("b/deep/x.py", "1");
  directory.write("a.md", "0");
  directory.write(".hidden", "\xff");
  directory.write(".git/config", "\xff");
  fs::create_directory_symlink(directory.path(), directory.path() / "b/circle");
  EXPECT_THAT(texts({directory.path()}), ElementsAre("0", "1", "2", "3"));
  fs::create_symlink(directory.path() / "c.txt", directory.path() / "link.txt");
  EXPECT_THAT(texts({directory.path() / "b", directory.path() / "link.txt"}),
              ElementsAre("0", "3", "3", "1", "2", "3"));
}

TEST(Documents, WhatIsNoTextIsRefusedByNameBeforeTheWork) {
  const test::TemporaryDirectory directory;
  directory.write("a.txt", "text");
  const auto refused = [&](const std::string& name, const std::string& content) {
    const auto path = directory.write(name, content);
    const std::vector<fs::path> all = {directory.path()};
    const std::string why = refusal([&] { find_text_files(all); });
    fs::remove(path);
    return why;
  };
  EXPECT_THAT(refused("picture.png", "\x89PNG\r\n"),
              HasSubstr("picture.png: not UTF-8 at byte 0; training data must be"));
  EXPECT_THAT(refused("a.tar", std::string("name\0\0", 6)),
              HasSubstr("a.tar: byte 4 is zero, so that this is no text"));
  EXPECT_THAT(refused("a.tar.gz", test::gzipped(std::string("name\0\0", 6))),
              HasSubstr("a.tar.gz: byte 4 of what it unpacks to"));
  EXPECT_THAT(refused("a.txt.gz", "plain"), HasSubstr("a.txt.gz: damaged at byte"));
  EXPECT_EQ(refused("b.txt", std::string(4095, 'x') + "é"), "(accepted)") << "a character cut by the end of the head";
  fs::create_symlink("nothing", directory.path() / "dangling");
  EXPECT_THAT(why_not({directory.path()}), HasSubstr("dangling: is a symbolic link to nothing"));
  fs::remove(directory.path() / "dangling");
  ASSERT_EQ(mkfifo((directory.path() / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(why_not({directory.path()}), HasSubstr("pipe: is not a regular file"));
  fs::create_directories(directory.path() / "empty/.hidden");
  EXPECT_THAT(why_not({directory.path() / "empty"}), HasSubstr("empty: there are no files in this directory"));
  fs::create_directories(directory.path() / "tokens");
  directory.write("tokens/dataset.json", "{}");
  EXPECT_THAT(why_not({directory.path() / "tokens"}), HasSubstr("tokens: is a dataset of tokens, not text"));
}

TEST(Documents, RefusalsNameTheFileAndThePlace) {
  const test::TemporaryDirectory directory;
  const auto with = [&](const std::string& name, const std::string& content) {
    return why_not({directory.write(name, content)});
  };
  EXPECT_THAT(why_not({directory.path() / "none.txt"}), HasSubstr("none.txt: cannot open"));
  EXPECT_THAT(with("bad.txt", "ab\xff"), HasSubstr("bad.txt: not UTF-8 at byte 2"));
  EXPECT_THAT(with("late.txt", std::string(5000, 'x') + "\xff"), HasSubstr("late.txt: not UTF-8 at byte 5000"));
  EXPECT_THAT(with("late.txt.zst", test::zstded(std::string(5000, 'x') + "\xff")),
              HasSubstr("not UTF-8 at byte 5000 of what it unpacks to"));
  const std::string good = "{\"text\": \"a\"}\n";
  EXPECT_THAT(with("c.jsonl", good + "{\"txt\": 1}\n"), HasSubstr("c.jsonl: line 2: no \"text\""));
  EXPECT_THAT(with("d.jsonl.gz", test::gzipped(good + "\n{\"text\": 3}")),
              HasSubstr("d.jsonl.gz: line 3: no \"text\""));
  EXPECT_THAT(with("e.jsonl.zst", test::zstded(good + "[")), HasSubstr("e.jsonl.zst: line 2: not valid JSON"));
  EXPECT_THAT(with("f.jsonl", good + good + "{\"text\": \"\xff\"}"), HasSubstr("f.jsonl: not UTF-8 at byte 38"));
  const std::string cut = test::gzipped(good + good);
  EXPECT_THAT(with("g.jsonl.gz", cut.substr(0, cut.size() - 1)), HasSubstr("g.jsonl.gz: ends after"));
}

TEST(Documents, NothingUnpacksToMoreThanTheLimits) {
  const test::TemporaryDirectory directory;
  const std::string bomb(200'000'000, 'x');  // 200 kB or less as files
  const DocumentLimits limits{.line_bytes = 1 << 20, .text_bytes = 2 << 20};
  EXPECT_THAT(why_not({directory.write("a.txt.gz", test::gzipped(bomb))}, limits),
              HasSubstr("a.txt.gz: unpacks to more than 2.0 MiB"));
  EXPECT_THAT(why_not({directory.write("a.txt.zst", test::zstded(bomb))}, limits),
              HasSubstr("a.txt.zst: unpacks to more than 2.0 MiB"));
  EXPECT_THAT(why_not({directory.write("a.jsonl.zst", test::zstded("\n" + bomb))}, limits),
              HasSubstr("a.jsonl.zst: line 2: longer than 1.0 MiB"));
  EXPECT_THAT(why_not({directory.write("a.txt", bomb)}, limits), HasSubstr("a.txt: has more than 2.0 MiB"));
  EXPECT_THAT(texts({directory.write("b.txt", "12345678")}, {.line_bytes = 1, .text_bytes = 8}),
              ElementsAre("12345678"));
  const auto line = directory.write("b.jsonl", "{\"text\":\"1\"}\n");
  EXPECT_THAT(texts({line}, {.line_bytes = 12}), ElementsAre("1"));
  EXPECT_THAT(why_not({line}, {.line_bytes = 11}), HasSubstr("line 1: longer"));
}

}  // namespace
}  // namespace fathom
