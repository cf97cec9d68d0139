// A teacher's pass over conversations that a student is to learn, whose logits it leaves for it
// (train/teacher_logits.h).
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ops/context.h"
#include "train/teacher_logits.h"
#include "tune/sft.h"

namespace fathom::tune {

struct TeacherPassOptions {
  std::filesystem::path out;
  std::string teacher;  // its name, and what its numbers come of: with another nothing is gone on
  int64_t k = 64;
  std::vector<double> temperatures{1, 2, 4};
  Format type = Format::f32;
  int64_t pass_tokens = 2048;  // of sequences together
  int64_t shard_bytes = int64_t{256} << 20;
};

// Error unless both call the same bytes by the same ids.
void check_same_tokens(const Tokenizer& teacher, const Tokenizer& student);

// Bytes that the rows of `n` targets take.
int64_t teacher_bytes(const TeacherPassOptions& options, int64_t n);

// Nothing when interrupted: the same call goes on behind the last whole shard. Where all has been done nothing is done
// again. Error for a sequence that the teacher cannot read. The same bits for any number of threads.
std::optional<TeacherInfo> write_teacher_logits(Context& ctx, const Model& teacher, const LearnedData& data,
                                                const TeacherPassOptions& options,
                                                const std::function<bool()>& interrupted);

}  // namespace fathom::tune
