#include "text/dataset.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "text/tokenizer_fixture.h"

namespace fathom {
namespace {

using Ids = std::vector<int32_t>;

Ids read(const std::vector<std::filesystem::path>& files) { return read_dataset(Tokenizer::bytes(), files); }

std::string refusal(const std::vector<std::filesystem::path>& files) {
  try {
    read(files);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Dataset, DocumentsEndWithTheEndToken) {
  const test::TemporaryDirectory directory;
  const auto text = directory.write("a.txt", "ab");
  const auto lines = directory.write("b.jsonl", "{\"text\": \"c\"}\n\n{\"id\": 7, \"text\": \"\\u00e9\"}");
  EXPECT_EQ(read({text, lines}), (Ids{'a', 'b', 257, 'c', 257, 0xc3, 0xa9, 257}));
}

TEST(Dataset, TextIsNotParsedForSpecialTokens) {
  const test::TemporaryDirectory directory;
  EXPECT_EQ(read({directory.write("a.txt", "<|end|>")}).size(), 8u);
}

TEST(Dataset, RefusalsNameTheFileAndThePlace) {
  const test::TemporaryDirectory directory;
  EXPECT_NE(refusal({directory.path() / "none.txt"}).find("none.txt"), std::string::npos);
  EXPECT_NE(refusal({directory.write("bad.txt", "ab\xff")}).find("bad.txt: not UTF-8 at byte 2"), std::string::npos);
  const auto no_text = directory.write("c.jsonl", "{\"text\": \"a\"}\n{\"txt\": 1}\n");
  EXPECT_NE(refusal({no_text}).find("c.jsonl: line 2: no \"text\""), std::string::npos);
  EXPECT_NE(refusal({directory.write("d.jsonl", "{\"text\": 3}")}).find("line 1"), std::string::npos);
  EXPECT_NE(refusal({directory.write("e.jsonl", "{\"text\": \"a\"}\n[")}).find("line 2"), std::string::npos);
  EXPECT_NE(refusal({directory.path()}), "");
}

TEST(WindowSampler, EveryEpochSeesEveryWindowOnce) {
  for (const int64_t n_ids : {8, 9, 15, 65, 129, 1000, 1001}) {
    for (const int64_t seq_len : {1, 3, 7}) {
      const WindowSampler sampler(n_ids, seq_len, 5);
      const int64_t n = sampler.windows_per_epoch();
      EXPECT_GE((n + 2) * seq_len + 1, n_ids) << "an epoch leaves out more than one window";
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        std::set<int64_t> starts;
        for (int64_t i = 0; i < n; ++i) starts.insert(sampler.start(epoch * n + i));
        ASSERT_EQ(static_cast<int64_t>(starts.size()), n);
        EXPECT_GE(*starts.begin(), 0);
        EXPECT_LE(*starts.rbegin() + seq_len + 1, n_ids);
        EXPECT_EQ(*starts.rbegin() - *starts.begin(), (n - 1) * seq_len) << "windows do not follow each other";
      }
    }
  }
}

TEST(WindowSampler, DependsOnThePositionInTheRunAlone) {
  const WindowSampler one(1000, 7, 3), again(1000, 7, 3), other(1000, 7, 4);
  int differ = 0;
  for (int64_t index = 299; index >= 0; --index) {
    EXPECT_EQ(one.start(index), again.start(index));
    differ += one.start(index) != other.start(index);
  }
  for (int64_t index = 0; index < 300; ++index) EXPECT_EQ(one.start(index), WindowSampler(1000, 7, 3).start(index));
  EXPECT_GT(differ, 200);
}

TEST(WindowSampler, EpochsHaveTheirOwnOrder) {
  const WindowSampler sampler(10'000, 10, 1);
  const int64_t n = sampler.windows_per_epoch();
  int64_t same = 0, in_order = 0;
  for (int64_t i = 0; i + 1 < n; ++i) {
    same += sampler.start(i) / 10 == sampler.start(n + i) / 10;
    in_order += sampler.start(i) < sampler.start(i + 1);
  }
  EXPECT_LT(same, n / 20);
  EXPECT_GT(in_order, n / 3);
  EXPECT_LT(in_order, n * 2 / 3);
}

TEST(WindowSampler, RefusesDataShorterThanAWindow) {
  EXPECT_THROW(WindowSampler(7, 7, 0), Error);
  EXPECT_EQ(WindowSampler(8, 7, 0).start(14), 0);
}

TEST(SequentialWindows, TargetsCoverEveryIdButTheFirstOnce) {
  for (const int64_t n_ids : {2, 3, 7, 8, 9, 65, 129}) {
    for (const int64_t seq_len : {1, 3, 7, 64}) {
      std::vector<int> targets(static_cast<size_t>(n_ids));
      for (const Window& window : sequential_windows(n_ids, seq_len)) {
        EXPECT_LE(window.n_ids, seq_len + 1);
        for (int64_t i = 1; i < window.n_ids; ++i) ++targets[static_cast<size_t>(window.start + i)];
      }
      EXPECT_EQ(targets[0], 0);
      for (size_t i = 1; i < targets.size(); ++i) EXPECT_EQ(targets[i], 1) << i;
    }
  }
  EXPECT_THROW(sequential_windows(1, 3), Error);
}

}  // namespace
}  // namespace fathom
