// A checkpoint with any one byte changed, or cut at any length, is not taken: its file is named and the one before it
// is loaded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "base/file.h"
#include "base/rng.h"
#include "base/terminal.h"
#include "checkpoint/safetensors.h"
#include "faults/small_state.h"
#include "refusal.h"

namespace fathom::test {
namespace {

namespace fs = std::filesystem;

class Damage : public testing::Test {
 protected:
  void SetUp() override {
    for (const int64_t step : {1, 2}) {
      save_and_clean(root_.path(), state_of(step, small_config()), tokenizer_, {{"lr", "0.1"}}, {});
    }
  }
  fs::path file(const std::string& name) const { return newest_ / name; }
  static std::string content_of(const fs::path& path) { return read_file(path, size_t{1} << 30); }
  static void put(const fs::path& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
  }
  // What verifying says, and, of some, what loading does.
  void expect_found(const std::string& name, bool load, const std::string& how) {
    const std::string said = refusal([&] { verify_checkpoint(newest_); });
    ++tried_;
    ASSERT_NE(said.find(name), std::string::npos) << name << ": " << how << ": " << said;
    if (!load) return;
    testing::internal::CaptureStderr();
    const int64_t step = loaded_step(root_.path(), pool_);
    EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("passing over " + newest_.native()));
    EXPECT_EQ(step, 1) << name << ": " << how;
  }

  const TemporaryDirectory root_{scratch_root()};
  const fs::path newest_ = checkpoint_directory(root_.path(), 2);
  Tokenizer tokenizer_ = Tokenizer::load("bytes");
  ThreadPool pool_{1};
  int64_t tried_ = 0;
};

// Each byte with one bit flipped, by chance; in the full run with each of its eight.
TEST_F(Damage, EveryByteOfManifestTrainerAndHeaders) {
  Rng rng(1);
  for (const std::string name : {"manifest.json", "trainer.json", "config.json", "generation_config.json",
                                 "optimizer.safetensors", "model.safetensors"}) {
    const std::string whole = content_of(file(name));
    uint64_t end = whole.size();
    if (name.ends_with(".safetensors")) {
      std::memcpy(&end, whole.data(), sizeof end);
      end += sizeof end;
    }
    for (uint64_t i = 0; i < end; ++i) {
      const uint64_t one = rng.below(8);
      for (uint64_t bit = full_run() ? 0 : one; bit <= (full_run() ? 7 : one); ++bit) {
        std::string changed = whole;
        changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
        put(file(name), changed);
        expect_found(name, i % 211 == 0, fmt::format("bit {} of byte {}", bit, i));
        if (HasFatalFailure()) return;
      }
    }
    put(file(name), whole);
  }
  verify_checkpoint(newest_);
  EXPECT_EQ(loaded_step(root_.path(), pool_), 2);
  std::printf("%ld flips of manifest, trainer, config and headers, all found\n", static_cast<long>(tried_));
}

TEST_F(Damage, BitsOfTheDataByChance) {
  Rng rng(2);
  const int n = full_run() ? 10'000 : 1000;
  for (int i = 0; i < n; ++i) {
    const std::string name = i % 2 == 0 ? "model.safetensors" : "optimizer.safetensors";
    const std::string whole = content_of(file(name));
    std::string changed = whole;
    const uint64_t at = rng.below(whole.size());
    changed[at] = static_cast<char>(changed[at] ^ (1 << rng.below(8)));
    put(file(name), changed);
    expect_found(name, i % 100 == 0, fmt::format("byte {}", at));
    put(file(name), whole);
    if (HasFatalFailure()) return;
  }
  verify_checkpoint(newest_);
}

TEST_F(Damage, ALaterOneDoesNotPushOutWhatIsSaved) {
  put(file("model.safetensors"), "");
  save_and_clean(root_.path(), state_of(1, small_config()), tokenizer_, {}, {.newest = 1});
  EXPECT_EQ(loaded_step(root_.path(), pool_), 1);
  save_and_clean(root_.path(), state_of(2, small_config()), tokenizer_, {}, {.newest = 1});
  EXPECT_EQ(loaded_step(root_.path(), pool_), 2);
  EXPECT_FALSE(fs::exists(checkpoint_directory(root_.path(), 1)));
}

// All lengths of all files; in the short run of those with data every 13th.
TEST_F(Damage, EveryLength) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(newest_)) names.push_back(entry.path().filename());
  for (const std::string& name : names) {
    const std::string whole = content_of(file(name));
    const size_t step = full_run() || whole.size() < 4096 ? 1 : 13;
    for (size_t n = 0; n < whole.size(); n += step) {
      put(file(name), whole.substr(0, n));
      expect_found(name, n % 1001 == 0, fmt::format("{} bytes of {}", n, whole.size()));
      if (HasFatalFailure()) return;
    }
    put(file(name), whole + "x");
    expect_found(name, true, "a byte more");
    fs::remove(file(name));
    expect_found(name, true, "missing");
    put(file(name), whole);
    if (HasFatalFailure()) return;
  }
  verify_checkpoint(newest_);
  std::printf("%ld lengths, all found\n", static_cast<long>(tried_));
}

}  // namespace
}  // namespace fathom::test
