// A teacher's pass over conversations: what it leaves is what the model says, in the same bytes however it was cut.
#include "tune/teacher_pass.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/file.h"
#include "model/tiny_models.h"
#include "ops/cross_entropy.h"
#include "ops/log_softmax.h"
#include "refusal.h"
#include "temporary_directory.h"

namespace fathom::tune {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// Conversations of every length, learned here and there; ids of the bytes tokenizer.
LearnedData some_data() {
  TrainingSet set;
  for (int64_t n = 2; n < 40; n += 3) {
    const std::vector<int32_t> ids = random_ids(n, 256, static_cast<uint64_t>(n));
    set.sequences.push_back({std::ssize(set.ids), n, std::ssize(set.spans), 2});
    set.spans.push_back({n / 4, n / 2});
    set.spans.push_back({n - 1, n});
    set.ids.insert(set.ids.end(), ids.begin(), ids.end());
  }
  return {Tokenizer::load("bytes"), std::move(set)};
}

struct Machine {
  explicit Machine(int threads) : pool(threads) {}
  ThreadPool pool;
  Arena arena;
  Context ctx{pool, arena};
};

class TeacherPass : public testing::Test {
 protected:
  TeacherPass() {
    config_ = tiny_v3();
    config_.vocab_size = 300;  // padded beyond the tokenizer's 258
    parameters_ = tiny_parameters(config_);
    model_ = make_model(config_, parameters_.weights);
  }
  TeacherPassOptions options(const std::string& out) const {
    TeacherPassOptions o{.out = folder_.path() / out, .teacher = "t", .k = 7, .temperatures = {1, 3}};
    o.pass_tokens = 50;
    o.shard_bytes = 700;  // some sequences each
    return o;
  }
  std::optional<TeacherInfo> run(const TeacherPassOptions& o, int threads = 2, int stop_at = -1) {
    Machine machine(threads);
    int asked = 0;
    return write_teacher_logits(machine.ctx, model_, data_, o, [&] { return stop_at >= 0 && asked++ >= stop_at; });
  }
  void expect_same_files(const fs::path& a, const fs::path& b) {
    ASSERT_EQ(list_directory(a).size(), list_directory(b).size());
    for (const fs::path& path : list_directory(a)) {
      EXPECT_EQ(read_file(path, 1 << 20), read_file(b / path.filename(), 1 << 20)) << path;
    }
  }

  test::TemporaryDirectory folder_;
  Tokenizer tokenizer_ = Tokenizer::load("bytes");
  LearnedData data_ = some_data();
  ModelConfig config_;
  Parameters parameters_;
  Model model_;
};

TEST_F(TeacherPass, ItLeavesWhatTheModelSays) {
  ASSERT_TRUE(run(options("a")));
  const TeacherLogits logits(folder_.path() / "a", tokenizer_);
  EXPECT_GT(logits.info().shards.size(), 3u);
  Machine machine(2);
  for (int64_t s = 0; s < std::ssize(data_.set.sequences); ++s) {
    Examples examples;
    data_.set.add_to(examples, s);
    for (const double temperature : {1.0, 3.0}) {
      logits.teach(examples, temperature, 1);
      const Tensor hidden = forward(machine.ctx, model_, make_batch(machine.ctx, examples.sequences));
      const Tensor all = head_logits(machine.ctx, model_, hidden);
      for (size_t t = 0; t < examples.next.size(); ++t) {
        if (examples.next[t] == kNoTarget) continue;
        std::vector<float> row(all.f32_row(static_cast<int64_t>(t)), all.f32_row(static_cast<int64_t>(t)) + 258);
        std::vector<float> sorted = row;
        std::ranges::sort(sorted, std::greater<>());
        for (float& x : row) x = static_cast<float>(x / temperature);
        const LogSoftmax log_p(row);
        for (size_t i = 0; i < 7; ++i) {
          const int32_t id = examples.taught->ids[t * 7 + i];
          EXPECT_NEAR(row[static_cast<size_t>(id)] * temperature, sorted[i], 1e-5);  // the i-th likeliest
          EXPECT_NEAR(examples.taught->logprobs[t * 7 + i], log_p[id], 2e-5);
        }
      }
    }
  }
}

TEST_F(TeacherPass, TheSameBytesHoweverItIsCutAndForAnyNumberOfThreads) {
  ASSERT_TRUE(run(options("whole")));
  for (const int stop_at : {1, 3, 6}) {
    const std::string out = fmt::format("cut{}", stop_at);
    EXPECT_FALSE(run(options(out), 1, stop_at));
    EXPECT_THAT(refusal([&] { TeacherLogits(folder_.path() / out, tokenizer_); }), HasSubstr("is not whole"));
    ASSERT_TRUE(run(options(out), 3));
    expect_same_files(folder_.path() / "whole", folder_.path() / out);
  }
  ASSERT_TRUE(run(options("whole")));  // nothing is left to do
}

TEST_F(TeacherPass, RowsTakeAsManyBytesAsItIsSaid) {
  TeacherPassOptions o = options("a");
  o.shard_bytes = 1 << 20;
  o.type = Format::f16;
  ASSERT_TRUE(run(o));
  const TeacherLogits logits(o.out, tokenizer_);
  const auto of_rows = static_cast<uint64_t>(teacher_bytes(o, logits.n_rows()));
  const auto of_tokens = data_.set.ids.size() * 8 + (data_.set.sequences.size() + 1) * 8;
  const uint64_t file = fs::file_size(o.out / "logits-00000.safetensors");
  EXPECT_GE(file, of_rows + of_tokens);
  EXPECT_LT(file, of_rows + of_tokens + 1024);  // the header
}

TEST_F(TeacherPass, WhatTheTeacherCannotReadIsRefused) {
  config_.max_position_embeddings = 20;
  model_ = make_model(config_, parameters_.weights);
  EXPECT_THAT(refusal([&] { run(options("a")); }), HasSubstr("more than the teacher's context of 20"));
  EXPECT_FALSE(fs::exists(folder_.path() / "a"));
  const Tokenizer other = Tokenizer::load(fs::path(FATHOM_TEST_DATA) / "text/tiny");
  EXPECT_THAT(refusal([&] { check_same_tokens(other, tokenizer_); }), HasSubstr("their logits speak of other tokens"));
  check_same_tokens(other, other);
}

}  // namespace
}  // namespace fathom::tune
