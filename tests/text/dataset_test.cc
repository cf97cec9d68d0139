#include "text/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <string>
#include <vector>

#include "base/rng.h"
#include "refusal.h"
#include "sanitized.h"
#include "text/compressed.h"
#include "text/tokenizer_fixture.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using test::slurp, testing::HasSubstr;
using Ids = std::vector<int32_t>;

Ids all_of(const TokenIds& ids) {
  Ids all(static_cast<size_t>(ids.size()));
  ids.copy(0, all);
  return all;
}

Ids read(const std::vector<fs::path>& data, const Tokenizer& tokenizer = Tokenizer::bytes(),
         const TokenizeOptions& options = {}, int threads = 2) {
  const test::TemporaryDirectory kept;
  ThreadPool pool(threads);
  return all_of(open_training_data(tokenizer, data, kept.path() / "data", options, pool).ids);
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

TEST(Dataset, TextCompressedTextAndShardsHaveTheSameIds) {
  const test::TemporaryDirectory directory;
  const Tokenizer tiny = Tokenizer::load(test::text_data() / "tiny");
  std::string lines;
  Rng rng(1);
  for (int i = 0; i < 3000; ++i) {
    lines +=
        fmt::format("{{\"text\": \"The hollow window {} é\\n{}\"}}\n", i, std::string(rng.below(8000), 'a' + i % 26));
  }
  const Ids plain = read({directory.write("a.jsonl", lines)}, tiny);
  EXPECT_EQ(std::ranges::count(plain, tiny.eos_id()), 3000);
  EXPECT_TRUE(read({directory.write("a.jsonl.gz", test::gzipped(lines))}, tiny, {}, 1) == plain);
  EXPECT_TRUE(read({directory.write("a.jsonl.zst", test::zstded(lines))}, tiny, {}, 3) == plain);
  ThreadPool pool(2);
  TokenizeOptions options;
  options.max_shard_bytes = 2'000'000;
  const std::vector<fs::path> data = {directory.path() / "a.jsonl"};
  const fs::path shards = directory.path() / "shards";
  const DatasetInfo info = tokenize_files(tiny, find_text_files(data), shards, options, pool);
  EXPECT_GT(info.shards.size(), 3U);
  EXPECT_EQ(info.n_documents, 3000);
  EXPECT_TRUE(read({shards}, tiny) == plain);
}

TEST(Dataset, SameBytesForAnyNumberOfThreads) {
  const test::TemporaryDirectory directory;
  const Tokenizer tiny = Tokenizer::load(test::text_data() / "tiny");
  std::string lines;
  for (int i = 0; i < (test::kSanitized ? 3'000 : 10'000); ++i)
    lines += fmt::format("{{\"text\": \"The hollow window {} {}\"}}\n", i, std::string(500, 'x'));
  const std::vector<fs::path> data = {directory.write("a.jsonl", lines)};
  TokenizeOptions options;
  options.fim_rate = 0.5;
  options.seed = 9;
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    tokenize_files(tiny, find_text_files(data), directory.path() / fmt::format("{}", threads), options, pool);
  }
  for (const char* file : {"dataset.json", "00000.tokens"}) {
    const std::string one = slurp(directory.path() / "1" / file);
    EXPECT_TRUE(one == slurp(directory.path() / "2" / file) && one == slurp(directory.path() / "5" / file));
  }
  options.seed = 10;
  ThreadPool pool(2);
  tokenize_files(tiny, find_text_files(data), directory.path() / "other", options, pool);
  EXPECT_FALSE(slurp(directory.path() / "1/00000.tokens") == slurp(directory.path() / "other/00000.tokens"));
}

TEST(Dataset, TextIsTokenizedOnceUnlessSomethingChanged) {
  const test::TemporaryDirectory directory;
  const Tokenizer tiny = Tokenizer::load(test::text_data() / "tiny");
  const std::vector<fs::path> data = {directory.write("a.txt", "The hollow window")};
  const fs::path kept = directory.path() / "kept";
  ThreadPool pool(1);
  TokenizeOptions options;
  int64_t made = 0;
  options.check = [&] { ++made; };
  const auto open = [&](const Tokenizer& tokenizer) {
    return open_training_data(tokenizer, data, kept, options, pool);
  };
  const auto makes = [&](const Tokenizer& tokenizer) { return made = 0, open(tokenizer), made > 0; };
  EXPECT_TRUE(makes(tiny));
  EXPECT_FALSE(makes(tiny));
  options.seed = 3;
  EXPECT_FALSE(makes(tiny)) << "which decides nothing yet";
  options.fim_rate = 0.5;
  EXPECT_TRUE(makes(tiny));
  EXPECT_FALSE(makes(tiny));
  options.seed = 4;
  EXPECT_TRUE(makes(tiny));
  options.fim_rate = 0;
  EXPECT_TRUE(makes(tiny));
  EXPECT_TRUE(makes(Tokenizer::bytes()));
  EXPECT_TRUE(makes(tiny));
  fs::last_write_time(data[0], fs::last_write_time(data[0]) + std::chrono::seconds(2));
  EXPECT_TRUE(makes(tiny));
  directory.write("kept/00000.tokens", "damaged");
  EXPECT_TRUE(makes(tiny));
  directory.write("kept/dataset.json", "{");
  EXPECT_TRUE(makes(tiny));
  EXPECT_FALSE(makes(tiny));
  options.accept = [](int64_t n_tokens) { throw Error("{} are too few", n_tokens); };
  EXPECT_THAT(refusal([&] { open(tiny); }), HasSubstr("are too few"));
}

TEST(Dataset, WhatIsRefusedLeavesNothing) {
  const test::TemporaryDirectory directory;
  const fs::path kept = directory.path() / "kept";
  ThreadPool pool(2);
  TokenizeOptions options;
  const auto why = [&](const std::vector<fs::path>& data, const Tokenizer& tokenizer = Tokenizer::bytes()) {
    const std::string message = refusal([&] { open_training_data(tokenizer, data, kept, options, pool); });
    EXPECT_FALSE(fs::exists(kept) || fs::exists(directory.path() / "kept.partial")) << message;
    return message;
  };
  const auto good = directory.write("good.txt", "good"), bad = directory.write("bad.txt", "ab\xff");
  const auto line = directory.write("line.jsonl", "{\"text\": \"a\"}\n{\"txt\": 1}\n");
  EXPECT_THAT(why({good, bad}), HasSubstr("bad.txt: not UTF-8 at byte 2"));
  EXPECT_THAT(why({good, line}), HasSubstr("line.jsonl: line 2: no \"text\""));
  EXPECT_THAT(why({directory.write("empty.txt", "")}), HasSubstr("there is no text in the data"));
  options.fim_rate = 0.5;
  EXPECT_THAT(why({good}), HasSubstr("has no token <｜fim▁begin｜>"));
  options.fim_rate = 0;
  options.accept = [](int64_t n_tokens) { throw Error("{} are too few", n_tokens); };
  EXPECT_THAT(why({good}), HasSubstr("5 are too few"));
  options.accept = nullptr;
  const std::vector<fs::path> data = {good};
  const fs::path shards = directory.path() / "shards";
  tokenize_files(Tokenizer::bytes(), find_text_files(data), shards, options, pool);
  EXPECT_THAT(why({shards}, Tokenizer::load(test::text_data() / "tiny")),
              HasSubstr("shards: was made with a vocabulary of 258"));
  EXPECT_THAT(why({good, shards}), HasSubstr("shards: is a dataset of tokens, not text"));
  options.fim_rate = 0.5;
  EXPECT_THAT(why({shards}), HasSubstr("--fim-rate 0.5"));
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
