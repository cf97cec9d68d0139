// What a teacher's logits on disk may say, and what a student gets of them.
#include "train/teacher_logits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/checksum.h"
#include "base/file.h"
#include "ops/cross_entropy.h"
#include "refusal.h"
#include "temporary_directory.h"
#include "text/token_shards.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr int64_t kK = 3;

// Sequences of a teacher that says of target t of sequence s that it is s + t, then s + t + 1, ...
struct Taught {
  std::vector<int32_t> tokens, next;
};
const std::vector<Taught> kSequences = {{{1, 2, 3, 4}, {kNoTarget, 3, 4, kNoTarget}},
                                        {{5, 6}, {6, kNoTarget}},
                                        {{1, 2, 3, 4}, {2, kNoTarget, kNoTarget, kNoTarget}},
                                        {{7, 8, 9}, {kNoTarget, kNoTarget, kNoTarget}}};

float logprob(size_t s, int64_t row, int64_t i) {
  return -0.5f - static_cast<float>(s) / 8 - static_cast<float>(row) / 16 - static_cast<float>(i);
}

class TeacherLogitsTest : public testing::Test {
 protected:
  TeacherInfo info(Format type = Format::f32) const {
    return {.teacher = "a teacher",
            .tokenizer_xxh3 = "bytes",
            .vocab_size = tokenizer_.vocab_size(),
            .k = kK,
            .temperatures = {1, 2},
            .type = type,
            .settings = "some"};
  }
  // Sequences [begin, end).
  static void append(TeacherLogitsWriter& writer, size_t begin, size_t end) {
    for (size_t s = begin; s < end; ++s) {
      std::vector<int32_t> ids;
      std::vector<float> logprobs, norms;
      int64_t row = 0;
      for (size_t t = 0; t < kSequences[s].next.size(); ++t) {
        if (kSequences[s].next[t] == kNoTarget) continue;
        for (int64_t i = 0; i < kK; ++i) {
          ids.push_back(static_cast<int32_t>(s + t) + static_cast<int32_t>(i));
          logprobs.push_back(logprob(s, row, i));
        }
        norms.insert(norms.end(), {0, 0.25f * static_cast<float>(row)});
        ++row;
      }
      writer.append({kSequences[s].tokens, kSequences[s].next}, ids, logprobs, norms);
    }
  }
  void write(const fs::path& to, int64_t shard_bytes = 1 << 20, Format type = Format::f32) const {
    TeacherLogitsWriter writer(to, info(type), shard_bytes);
    append(writer, 0, kSequences.size());
    writer.commit();
  }
  // Rewrites a shard of `directory` with one tensor of another content, and its checksum.
  template <class Change>
  void spoil(const fs::path& directory, const Change& change) const {
    const fs::path file = directory / "logits-00000.safetensors", json = directory / "teacher.json";
    std::string bytes = read_file(file, 1 << 20);
    change(bytes);
    write_file_atomically(file, bytes);
    TeacherInfo i = parse_teacher_json(read_file(json, 1 << 20), "x");
    i.shards[0].xxh3 = checksum_of_file(file).xxh3;
    write_file_atomically(json, teacher_json(i));
  }
  std::string refusal_of(const fs::path& directory) const {
    return refusal([&] { TeacherLogits(directory, tokenizer_); });
  }

  test::TemporaryDirectory folder_;
  Tokenizer tokenizer_ = Tokenizer::load("bytes");
};

TEST_F(TeacherLogitsTest, AStudentGetsWhatTheTeacherSaidInAnyOrder) {
  for (const auto& [type, tolerance] : {std::pair(Format::f32, 1e-6), std::pair(Format::f16, 1e-3)}) {
    for (const int64_t shard_bytes : {1, 1 << 20}) {  // a sequence a shard, all in one
      const fs::path at = folder_.path() / fmt::format("{}-{}", shard_bytes, static_cast<int>(type));
      write(at, shard_bytes, type);
      const TeacherLogits logits(at, tokenizer_);
      EXPECT_EQ(logits.n_sequences(), 4);
      EXPECT_EQ(logits.n_rows(), 4);
      EXPECT_EQ(logits.info().shards.size(), shard_bytes == 1 ? 4u : 1u);
      const std::vector<size_t> order = {2, 3, 0, 0, 1};
      for (const double temperature : {1.0, 2.0}) {
        Examples examples;
        for (const size_t s : order) {
          examples.sequences.push_back(kSequences[s].tokens);
          examples.next.insert(examples.next.end(), kSequences[s].next.begin(), kSequences[s].next.end());
        }
        logits.teach(examples, temperature, 0.5);
        const TaughtTokens& taught = *examples.taught;
        EXPECT_EQ(taught.k, kK);
        EXPECT_EQ(taught.temperature, temperature);
        EXPECT_EQ(taught.weight, 0.5);
        size_t at_token = 0;
        for (const size_t s : order) {
          int64_t row = 0;
          for (size_t t = 0; t < kSequences[s].next.size(); ++t, ++at_token) {
            const bool is_taught = kSequences[s].next[t] != kNoTarget;
            for (int64_t i = 0; i < kK; ++i) {
              const size_t n = at_token * kK + static_cast<size_t>(i);
              ASSERT_EQ(taught.ids[n], is_taught ? static_cast<int32_t>(s + t) + static_cast<int32_t>(i) : kNoTarget);
              if (!is_taught) continue;
              const double norm = temperature == 1 ? 0 : 0.25 * static_cast<double>(row);
              EXPECT_NEAR(taught.logprobs[n], logprob(s, row, i) / temperature - norm, tolerance);
            }
            row += is_taught;
          }
        }
      }
    }
  }
}

TEST_F(TeacherLogitsTest, AnInterruptedWriterGoesOnToTheSameBytes) {
  write(folder_.path() / "whole", 1);
  const fs::path cut = folder_.path() / "cut";
  {
    TeacherLogitsWriter writer(cut, info(), 1);
    append(writer, 0, 2);
  }
  EXPECT_THAT(refusal_of(cut), HasSubstr("is not whole"));
  {
    TeacherLogitsWriter writer(cut, info(), 1);
    EXPECT_EQ(writer.sequences_done(), 2);
    append(writer, 2, kSequences.size());
    writer.commit();
  }
  for (const fs::path& path : list_directory(folder_.path() / "whole")) {
    EXPECT_EQ(read_file(path, 1 << 20), read_file(cut / path.filename(), 1 << 20)) << path;
  }
  EXPECT_TRUE(TeacherLogitsWriter(cut, info(), 1).info().whole);
}

TEST_F(TeacherLogitsTest, WhatIsOfAnotherTeacherIsNotGoneOnFrom) {
  write(folder_.path() / "a");
  TeacherInfo other = info();
  other.teacher = "another";
  EXPECT_THAT(refusal([&] { TeacherLogitsWriter(folder_.path() / "a", other); }), HasSubstr("give another --out"));
  write_file_atomically(folder_.path() / "config.json", "{}");
  EXPECT_THAT(refusal([&] { TeacherLogitsWriter(folder_.path(), info()); }), HasSubstr("no directory for logits"));
}

TEST_F(TeacherLogitsTest, WhatTheTeacherHasNotReadIsRefused) {
  write(folder_.path() / "a");
  const TeacherLogits logits(folder_.path() / "a", tokenizer_);
  Examples examples;
  examples.sequences = {{1, 2, 3, 4}};
  examples.next = {2, 3, 4, kNoTarget};  // it has read these, but not to say this
  EXPECT_THAT(refusal([&] { logits.teach(examples, 1, 0.5); }), HasSubstr("has not read a sequence of 4 tokens"));
  examples.next = kSequences[0].next;
  EXPECT_THAT(refusal([&] { logits.teach(examples, 3, 0.5); }),
              HasSubstr("has no norms of temperature 3, but of 1, 2"));
}

TEST_F(TeacherLogitsTest, FilesThatSayWhatTheyMayNotAreRefused) {
  const fs::path at = folder_.path() / "a";
  const auto with = [&](const std::string& from, const std::string& to) {
    fs::remove_all(at);
    write(at);
    spoil(at, [&](std::string& bytes) {
      const size_t found = bytes.find(from);
      ASSERT_NE(found, std::string::npos) << from;
      bytes.replace(found, from.size(), to);
    });
    return refusal_of(at);
  };
  const auto ids = [](std::vector<int32_t> values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
  };
  const auto floats = [](std::vector<float> values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * 4);
  };
  const std::string row = ids({1, 2, 3}), tokens = ids({1, 2, 3, 4, 5, 6});
  EXPECT_THAT(with(row + ids({2, 3, 4}), ids({1, 258, 3}) + ids({2, 3, 4})),
              HasSubstr("outside the vocabulary of 258"));
  EXPECT_THAT(with(row + ids({2, 3, 4}), ids({1, -1, 3}) + ids({2, 3, 4})), HasSubstr("outside the vocabulary"));
  EXPECT_THAT(with(row + ids({2, 3, 4}), ids({1, 3, 3}) + ids({2, 3, 4})), HasSubstr("names an id twice"));
  EXPECT_THAT(with(tokens, ids({1, 2, 3, 4, 5, 999})), HasSubstr("token 5 is outside the vocabulary"));
  const std::string first = floats({logprob(0, 0, 0), logprob(0, 0, 1)});
  EXPECT_THAT(with(first, floats({0.5f, -1})), HasSubstr("no log probability"));
  EXPECT_THAT(with(first, floats({NAN, -1})), HasSubstr("no log probability"));
  EXPECT_THAT(with("\"logprobs\"", "\"logPROBS\""), HasSubstr("has no tensor logprobs"));
  EXPECT_THAT(with("\"next\"", "\"nexT\""), HasSubstr("has no tensor next"));
  // seq_offsets: 0, 4, 6, 10, 13
  const auto offset = [](int64_t value) { return std::string(reinterpret_cast<const char*>(&value), 8); };
  EXPECT_THAT(with(offset(4) + offset(6), offset(7) + offset(6)), HasSubstr("do not divide its tokens"));
  EXPECT_THAT(with(offset(10) + offset(13), offset(10) + offset(14)), HasSubstr("do not divide its tokens"));
  EXPECT_THAT(with(offset(10) + offset(13), offset(-3) + offset(13)), HasSubstr("do not divide its tokens"));
  EXPECT_EQ(with(row, row), "(accepted)");  // as it was written
}

TEST_F(TeacherLogitsTest, WhatChangedOrIsOfAnotherTokenizerIsRefused) {
  const fs::path at = folder_.path() / "a", file = at / "logits-00000.safetensors", json = at / "teacher.json";
  write(at);
  std::string bytes = read_file(file, 1 << 20);
  ++bytes.back();
  write_file_atomically(file, bytes);
  EXPECT_THAT(refusal_of(at), HasSubstr("its content changed"));
  TeacherInfo other = info();
  other.tokenizer_xxh3 = "0123456789abcdef";
  other.whole = true;
  write_file_atomically(json, teacher_json(other));
  EXPECT_THAT(refusal_of(at), HasSubstr("is not the student's"));
}

TEST_F(TeacherLogitsTest, ItsJsonIsCheckedKeyByKey) {
  TeacherInfo good = info();
  good.shards = {{2, 3, 0x1234}};
  const std::string text = teacher_json(good);
  const TeacherInfo again = parse_teacher_json(text, "t");
  EXPECT_EQ(teacher_json(again), text);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    const size_t found = changed.find(from);
    EXPECT_NE(found, std::string::npos) << from;
    changed.replace(found, from.size(), to);
    return refusal([&] { parse_teacher_json(changed, "t"); });
  };
  EXPECT_THAT(with("fathom-teacher-logits", "other"), HasSubstr("\"format\" is not"));
  EXPECT_THAT(with("\"version\": 1", "\"version\": 2"), HasSubstr("version 2"));
  EXPECT_THAT(with("\"k\": 3", "\"k\": 0"), HasSubstr("k is 0"));
  EXPECT_THAT(with("\"k\": 3", "\"k\": 99999"), HasSubstr("k is 99999"));
  EXPECT_THAT(with("\"k\": 3", "\"k\": \"3\""), HasSubstr("k is missing or wrong"));
  EXPECT_THAT(with("\"f32\"", "\"f64\""), HasSubstr("type is f64"));
  EXPECT_THAT(with("1.0", "0.0"), HasSubstr("a temperature"));
  EXPECT_THAT(with("logits-00000", "../logits-0"), HasSubstr("has another name"));
  EXPECT_THAT(with("0000000000001234", "1234"), HasSubstr("no checksum"));
  EXPECT_THAT(with("\"rows\": 3", "\"rows\": -3"), HasSubstr("rows is -3"));
}

}  // namespace
}  // namespace fathom
