// What a teacher says of sequences that a student is to learn from, kept in files: of each token that has a target the
// k likeliest targets and their log probabilities.
//
//   DIR/teacher.json                    whose they are, and a checksum of each shard; says when all are there
//   DIR/logits-00000.safetensors, ...   some sequences each:
//     tokens, next   [tokens] i32         what was read, and what should be said; -1 where nothing is
//     seq_offsets    [sequences + 1] i64  where each begins among the tokens, and the last one's end
//     ids            [rows, k] i32        a row for each token with a target, in their order; the likeliest first
//     logprobs       [rows, k] f32, f16   at temperature 1, of the whole vocabulary
//     log_norms      [rows, temperatures] f32  logprob / T - log_norm is the log probability at temperature T
//
// A row takes k * 8 bytes (6 in f16) and 4 for each temperature. A sequence is found by what it says, not by where it
// stands, so that the student may read the same ones in any order.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "model/examples.h"
#include "text/tokenizer.h"

namespace fathom {

inline constexpr int64_t kMaxTeacherTokens = 4096;  // k
inline constexpr size_t kMaxTeacherTemperatures = 16;

struct TeacherShard {
  int64_t sequences = 0, rows = 0;
  uint64_t xxh3 = 0;  // of the whole file
};

// teacher.json.
struct TeacherInfo {
  std::string teacher;         // its name, for people
  std::string tokenizer_xxh3;  // as DatasetInfo has it (text/token_shards.h)
  int64_t vocab_size = 0;      // the tokenizer's: logits of other ids are left out
  int64_t k = 0;
  std::vector<double> temperatures{1};
  Format type = Format::f32;  // of logprobs: f32 or f16
  std::string settings;       // of teacher and data: what is written goes on only where they are the same
  bool whole = false;         // all shards are there
  std::vector<TeacherShard> shards{};
};
std::string teacher_json(const TeacherInfo& info);
// Error where anything is missing or wrong.
TeacherInfo parse_teacher_json(std::string_view json, const std::string& where);

// Of one sequence: what was read, and what should be said (kNoTarget where nothing is). [tokens]
struct TaughtSequence {
  std::span<const int32_t> tokens, next;
};

// Opened for a student: every shard has been read once, against its checksum and everything that it may not say.
class TeacherLogits {
 public:
  // Error where a file is missing, broken or not whole, or of another tokenizer.
  TeacherLogits(const std::filesystem::path& directory, const Tokenizer& tokenizer);

  const TeacherInfo& info() const { return info_; }
  int64_t n_sequences() const { return std::ssize(places_); }
  int64_t n_rows() const;
  uint64_t checksum() const;  // of all that they say

  // Gives the examples what the teacher says of their targets, at one of info().temperatures (UsageError for another).
  // Error for a sequence that the teacher has not read.
  void teach(Examples& examples, double temperature, double weight) const;

 private:
  struct Shard {
    SafetensorsFile file;
    std::vector<int64_t> begins, rows;  // [sequences + 1]: of tokens and of rows
  };
  struct Place {
    size_t shard, sequence;
  };
  void open_shard(const std::filesystem::path& path, const TeacherShard& shard);
  const Place* find(const TaughtSequence& sequence) const;
  TeacherInfo info_;
  std::string where_;
  std::vector<Shard> shards_;
  std::unordered_multimap<uint64_t, Place> places_;  // by a checksum of what they say
};

// Writes them, shard by shard. Who is interrupted goes on behind the last whole shard.
class TeacherLogitsWriter {
 public:
  // UsageError where `directory` holds logits with other settings, or anything else.
  TeacherLogitsWriter(std::filesystem::path directory, TeacherInfo info, int64_t shard_bytes = int64_t{256} << 20);

  const TeacherInfo& info() const { return info_; }
  int64_t sequences_done() const;  // of an earlier run: those to be left out now
  // ids, logprobs: [rows, k]; log_norms: [rows, temperatures]; a row for each target.
  void append(const TaughtSequence& sequence, std::span<const int32_t> ids, std::span<const float> logprobs,
              std::span<const float> log_norms);
  const TeacherInfo& commit();

 private:
  void write_shard();
  std::filesystem::path directory_;
  std::optional<NewDirectory> made_;
  std::optional<DirectoryLock> lock_;
  TeacherInfo info_;
  int64_t shard_bytes_;
  std::vector<int32_t> tokens_, next_, ids_;
  std::vector<int64_t> offsets_{0};
  std::vector<float> logprobs_, log_norms_;
};

}  // namespace fathom
