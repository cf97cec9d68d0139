// What a step is made of: how many sequences, cut where; and what of it goes to TensorBoard.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "base/file.h"
#include "model/examples.h"
#include "ops/cross_entropy.h"
#include "temporary_directory.h"
#include "train/schedule.h"
#include "train/tensorboard.h"

namespace fathom {
namespace {

using testing::ElementsAre;

TEST(BatchSizes, GrowLinearlyInWholeMicroBatches) {
  const BatchSizes sizes(4, 16, 6, 4);
  std::vector<int64_t> all;
  int64_t before = 0;
  for (int64_t step = 1; step <= 9; ++step) {
    all.push_back(sizes.of(step));
    EXPECT_EQ(sizes.before(step), before);
    before += all.back();
  }
  EXPECT_THAT(all, ElementsAre(4, 4, 8, 8, 12, 12, 16, 16, 16));
  const BatchSizes constant(0, 5, 0, 1);
  EXPECT_EQ(constant.of(1), 5);
  EXPECT_EQ(constant.before(101), 500);
}

TEST(Examples, WindowsAreSequences) {
  const std::vector<int32_t> window{5, 1, 9, 7, 9, 9};
  Examples whole;
  add_window(whole, window);
  add_window(whole, std::span(window).first(3));
  EXPECT_THAT(whole.sequences, ElementsAre(ElementsAre(5, 1, 9, 7, 9), ElementsAre(5, 1)));
  EXPECT_THAT(whole.next, ElementsAre(1, 9, 7, 9, 9, 1, 9));
  EXPECT_EQ(whole.n_main, 7);
  EXPECT_EQ(count_mtp_targets(whole.sequences, 1), 3);
}

TEST(Examples, ASeparatorCutsThemIntoDocuments) {
  Examples cut;
  add_window(cut, std::vector<int32_t>{5, 1, 4, 9, 7, 9, 9, 3, 2}, 9);
  EXPECT_THAT(cut.sequences, ElementsAre(ElementsAre(5, 1, 4, 9), ElementsAre(7, 9), ElementsAre(9), ElementsAre(3)));
  EXPECT_THAT(cut.next, ElementsAre(1, 4, 9, kNoTarget, 9, kNoTarget, kNoTarget, 2));
  EXPECT_EQ(cut.n_main, 5);
  EXPECT_EQ(count_mtp_targets(cut.sequences, 1), 2);
  ThreadPool pool(1);
  Arena arena;
  Context ctx{pool, arena};
  const Example example = make_example(ctx, cut);
  EXPECT_EQ(example.targets.n_main, 5);
  EXPECT_THAT(std::vector<int32_t>(example.batch.positions.i32(), example.batch.positions.i32() + 8),
              ElementsAre(0, 1, 2, 3, 0, 1, 0, 0));
  EXPECT_EQ(memcmp(example.targets.main.i32(), cut.next.data(), cut.next.size() * sizeof(int32_t)), 0);
}

TEST(Tensorboard, ChecksumsAreCastagnoli) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);  // RFC 3720 B.4
}

// Each record: length, its checksum, as many bytes, theirs.
std::vector<std::string> records_of(const std::filesystem::path& directory) {
  std::vector<std::string> records;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string file = read_file(entry.path(), size_t{1} << 20);
    for (size_t at = 0; at < file.size();) {
      const auto masked = [](std::string_view bytes) {
        const uint32_t crc = crc32c(bytes);
        return (crc >> 15 | crc << 17) + 0xa282ead8U;
      };
      uint64_t length = 0;
      uint32_t of_length = 0, of_data = 0;
      std::memcpy(&length, file.data() + at, 8);
      std::memcpy(&of_length, file.data() + at + 8, 4);
      records.push_back(file.substr(at + 12, length));
      std::memcpy(&of_data, file.data() + at + 12 + length, 4);
      EXPECT_EQ(of_length, masked(file.substr(at, 8)));
      EXPECT_EQ(of_data, masked(records.back()));
      at += 16 + length;
    }
  }
  return records;
}

TEST(Tensorboard, AnEventAStep) {
  const test::TemporaryDirectory folder;
  {
    TensorboardLog log(folder.path() / "a" / "b", 7);
    StepMetrics m;
    m.step = 300;
    m.loss = 2.5;
    m.val_loss = 1.5;
    log.write(m);
  }
  const std::vector<std::string> records = records_of(folder.path() / "a" / "b");
  ASSERT_EQ(records.size(), 3U);
  EXPECT_NE(records[0].find("brain.Event:2"), std::string::npos);
  EXPECT_EQ(records[1].substr(9), std::string("\x10\x07\x3a\x02\x08\x01", 6));   // step 7, session log: start
  EXPECT_EQ(records[2].substr(9, 3), "\x10\xac\x02");                            // step 300
  const std::string loss("\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\x20\x40", 19);  // a value: tag, 2.5
  EXPECT_NE(records[2].find(loss), std::string::npos);
  EXPECT_NE(records[2].find("val/loss"), std::string::npos);
  EXPECT_EQ(records[2].find("mfu"), std::string::npos);
}

}  // namespace
}  // namespace fathom
