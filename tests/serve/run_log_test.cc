#include "serve/run_log.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "base/error.h"
#include "temporary_directory.h"

namespace fathom::serve {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

void append(const fs::path& file, const std::string& text) {
  std::ofstream(file, std::ios::app | std::ios::binary) << text;
}

std::string line_of(int step) { return "{\"step\":" + std::to_string(step) + ",\"loss\":1.5}\n"; }

// Reads on as the page does, into `text`; what was there before goes where the log is another one.
struct Follower {
  fs::path log;
  size_t max_bytes = kLogPieceBytes;
  std::string text{};
  int n_replaced = 0;
  uint64_t next = 0;
  std::optional<uint64_t> mark{};

  void follow() {
    for (int i = 0; i < 100000; ++i) {
      const auto piece = read_log(log, next, mark, max_bytes);
      if (!piece) return;
      EXPECT_LE(piece->lines.size(), max_bytes);
      EXPECT_TRUE(piece->lines.empty() || piece->lines.back() == '\n');
      const bool replaced = piece->from != next;
      if (replaced) {
        EXPECT_EQ(piece->from, 0U);
        text.clear();
        ++n_replaced;
      }
      text += piece->lines;
      const bool moved = replaced || piece->next > next;
      next = piece->next;
      mark = piece->mark;
      if (!moved || next >= piece->bytes) return;
    }
    FAIL() << "it does not come to an end";
  }
};

std::string why(const auto& work) {
  try {
    work();
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(RunLog, WholeLinesComeHoweverTheyAreWritten) {
  std::string all;
  for (int step = 1; step <= 60; ++step) all += line_of(step);
  for (const size_t written : {size_t{1}, size_t{7}, size_t{100}, all.size()}) {
    for (const size_t max_bytes : {size_t{40}, size_t{64}, size_t{5000}}) {
      const test::TemporaryDirectory folder;
      Follower follower{folder.path() / "train.jsonl", max_bytes};
      follower.follow();  // there is none yet
      for (size_t at = 0; at < all.size(); at += written) {
        append(follower.log, all.substr(at, written));
        follower.follow();
        const std::string so_far = all.substr(0, std::min(at + written, all.size()));
        EXPECT_EQ(follower.text, so_far.substr(0, so_far.rfind('\n') + 1));
      }
      EXPECT_EQ(follower.text, all);
      EXPECT_EQ(follower.n_replaced, 0);
    }
  }
}

TEST(RunLog, ACutLastLineWaits) {
  const test::TemporaryDirectory folder;
  Follower follower{folder.write("log.jsonl", line_of(1) + "{\"step\":2,")};
  follower.follow();
  EXPECT_EQ(follower.text, line_of(1));
  follower.follow();
  EXPECT_EQ(follower.next, line_of(1).size());
  append(follower.log, "\"loss\":1.5}\n");
  follower.follow();
  EXPECT_EQ(follower.text, line_of(1) + line_of(2));
}

TEST(RunLog, LinesThatAreTooLongArePassedOver) {
  for (const size_t length : {size_t{99}, size_t{100}, size_t{101}, size_t{250}, size_t{1000}}) {
    const test::TemporaryDirectory folder;
    const std::string longer(length, 'x');
    Follower follower{folder.write("log.jsonl", line_of(1) + longer), 100};
    follower.follow();
    EXPECT_EQ(follower.text, line_of(1));
    append(follower.log, longer + "\n" + line_of(2));
    follower.follow();
    EXPECT_EQ(follower.text, line_of(1) + line_of(2)) << length;
    EXPECT_EQ(follower.n_replaced, 0);
  }
}

TEST(RunLog, AResumedRunIsReadAnew) {
  const test::TemporaryDirectory folder;
  std::string kept;
  for (int step = 1; step <= 200; ++step) kept += line_of(step);
  Follower follower{folder.write("train.jsonl", kept + "{\"step\":201,\"loss\":2}\n{\"step\":202,\"loss\":2}\n")};
  follower.follow();
  // As the log is cut: another file under the same name, which goes on from there.
  const auto replace = [&](const std::string& text) {
    fs::rename(folder.write("other", text), follower.log);
    follower.follow();
    EXPECT_EQ(follower.text, text);
  };
  replace(kept);  // shorter than what was read
  EXPECT_EQ(follower.n_replaced, 1);
  replace(kept + "{\"step\":201,\"loss\":3}\n");  // only longer: the same log, as one that is copied again
  EXPECT_EQ(follower.n_replaced, 1);
  replace(kept + "{\"step\":201,\"loss\":4}\n{\"step\":202,\"loss\":4}\n");  // longer, and another one
  EXPECT_EQ(follower.n_replaced, 2);
  replace(std::string("{}\n") + follower.text);
  EXPECT_EQ(follower.n_replaced, 3);
  fs::resize_file(follower.log, 0);
  follower.follow();
  EXPECT_EQ(follower.text, "");
  fs::remove(follower.log);
  follower.follow();
  append(follower.log, line_of(1));
  follower.follow();
  EXPECT_EQ(follower.text, line_of(1));
}

TEST(RunLog, JunkIsHandedOnAsItIs) {
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    const test::TemporaryDirectory folder;
    std::string junk;
    const size_t n = random() % 4000;
    while (junk.size() < n) junk += static_cast<char>(random() % 6 == 0 ? '\n' : random());
    Follower follower{folder.write("junk", junk), 64};
    follower.follow();
    // Lines of more than 63 bytes are left out.
    std::string wanted;
    for (size_t at = 0; at < junk.size();) {
      const size_t end = junk.find('\n', at);
      if (end == std::string::npos) break;
      if (end - at < 64) wanted += junk.substr(at, end + 1 - at);
      at = end + 1;
    }
    EXPECT_EQ(follower.text, wanted);
  }
}

TEST(RunLog, AnyPlaceAndMarkMayBeAskedFor) {
  const test::TemporaryDirectory folder;
  const fs::path log = folder.write("log.jsonl", line_of(1) + line_of(2) + line_of(3));
  const uint64_t size = fs::file_size(log);
  EXPECT_EQ(read_log(log, ~uint64_t{0}, std::nullopt)->from, 0U);
  EXPECT_EQ(read_log(log, size + 1, std::nullopt)->next, size);
  EXPECT_EQ(read_log(log, size, 12345)->from, 0U);
  EXPECT_EQ(read_log(log, size, std::nullopt)->lines, "");
  EXPECT_EQ(read_log(log, 3, std::nullopt)->lines, line_of(2) + line_of(3));  // the rest of the first line is none
  const auto whole = read_log(log, 0, std::nullopt);
  EXPECT_EQ(read_log(log, whole->next, whole->mark)->from, whole->next);
}

TEST(RunLog, OnlyFilesAreRead) {
  const test::TemporaryDirectory folder;
  const fs::path pipe = folder.path() / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(why([&] { read_log(pipe, 0, std::nullopt); }), HasSubstr("is no regular file"));
  EXPECT_THAT(why([&] { read_log(folder.path(), 0, std::nullopt); }), HasSubstr("is no regular file"));
  EXPECT_THAT(why([&] { log_state(pipe); }), HasSubstr("is no regular file"));
  EXPECT_FALSE(read_log(folder.path() / "none", 0, std::nullopt));
  EXPECT_FALSE(log_state(folder.path() / "none/log"));
}

TEST(RunLog, TellsWhatHasChanged) {
  const test::TemporaryDirectory folder;
  const fs::path log = folder.write("log.jsonl", line_of(1));
  const auto before = log_state(log);
  EXPECT_EQ(before->bytes, line_of(1).size());
  EXPECT_LT(before->age_s, 60);
  EXPECT_EQ(log_state(log)->changed, before->changed);
  append(log, line_of(2));
  EXPECT_NE(log_state(log)->changed, before->changed);
  fs::last_write_time(log, fs::file_time_type::clock::now() - std::chrono::hours(1));
  EXPECT_NEAR(log_state(log)->age_s, 3600, 60);
  fs::last_write_time(log, fs::file_time_type::clock::now() + std::chrono::hours(1));  // of another machine's clock
  EXPECT_EQ(log_state(log)->age_s, 0);
}

TEST(RunLog, RunsHaveShortNames) {
  const test::TemporaryDirectory folder;
  const auto path = [&](const std::string& name) { return (folder.path() / name).string(); };
  for (const char* name : {"a/run", "b/run", "c"}) fs::create_directories(path(name));
  folder.write("c/train.jsonl", "");
  folder.write("c/other.jsonl", "");
  const auto names = [&](const std::vector<std::string>& paths) {
    std::vector<std::string> all;
    for (const WatchedRun& run : watched_runs(paths)) all.push_back(run.name);
    return all;
  };
  EXPECT_THAT(names({path("a/run")}), ElementsAre("run"));
  EXPECT_THAT(names({path("a/run/"), path("c/train.jsonl")}), ElementsAre("run", "c"));
  EXPECT_THAT(names({path("a/run"), path("b/./run"), path("c/other.jsonl")}), ElementsAre("a/run", "b/run", "c/other"));
  EXPECT_EQ(watched_runs({path("a/run")})[0].log, path("a/run/train.jsonl"));
  EXPECT_THAT(names({"/"}), ElementsAre("/"));
  EXPECT_THAT(why([&] { names({path("d")}); }), HasSubstr("there is no such directory or file"));
  EXPECT_THAT(why([&] { names({path("c"), path("c/train.jsonl")}); }), HasSubstr("is given twice"));
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_THAT(why([&] { names({path("pipe")}); }), HasSubstr("is no regular file"));
}

}  // namespace
}  // namespace fathom::serve
