#include "tune/teacher_pass.h"

#include <algorithm>

#include "base/error.h"
#include "base/terminal.h"
#include "infer/score.h"
#include "ops/cross_entropy.h"
#include "ops/distillation.h"
#include "text/token_shards.h"

namespace fathom::tune {

void check_same_tokens(const Tokenizer& teacher, const Tokenizer& student) {
  if (teacher.vocab_size() != student.vocab_size()) {
    throw Error(
        "the teacher's tokenizer has {} ids, the student's {}: their logits speak of other tokens; let it learn "
        "from the teacher's traces instead",
        teacher.vocab_size(), student.vocab_size());
  }
  for (int32_t id = 0; id < teacher.vocab_size(); ++id) {
    if (teacher.token_bytes(id) == student.token_bytes(id) && teacher.is_special(id) == student.is_special(id))
      continue;
    throw Error(
        "token {} is \"{}\" to the teacher and \"{}\" to the student: their logits speak of other tokens; let it "
        "learn from the teacher's traces instead",
        id, printable(teacher.token_bytes(id)), printable(student.token_bytes(id)));
  }
}

int64_t teacher_bytes(const TeacherPassOptions& o, int64_t n) {
  return n * (o.k * (4 + format_bytes(o.type)) + 4 * std::ssize(o.temperatures));
}

std::optional<TeacherInfo> write_teacher_logits(Context& ctx, const Model& teacher, const LearnedData& data,
                                                const TeacherPassOptions& o, const std::function<bool()>& interrupted) {
  const DatasetInfo ids = dataset_for(data.tokenizer, "");
  FATHOM_CHECK(ids.vocab_size <= teacher.config.vocab_size);
  TeacherInfo info{.teacher = o.teacher,
                   .tokenizer_xxh3 = ids.tokenizer_xxh3,
                   .vocab_size = ids.vocab_size,
                   .k = std::min(o.k, ids.vocab_size),
                   .temperatures = o.temperatures,
                   .type = o.type,
                   .settings = fmt::format("xxh3 of what is read: {:016x}", data.set.checksum())};
  const TrainingSet& set = data.set;
  for (const TrainingSet::Sequence& sequence : set.sequences) {
    if (sequence.n_ids > teacher.config.max_position_embeddings) {
      throw Error("a conversation has {} tokens, more than the teacher's context of {}: give a smaller --seq-len",
                  sequence.n_ids, teacher.config.max_position_embeddings);
    }
  }
  TeacherLogitsWriter writer(o.out, info, o.shard_bytes);
  if (writer.info().whole) {
    log("{}: all is there already", printable(o.out.native()));
    return writer.info();
  }
  const auto n = std::ssize(set.sequences);
  int64_t begin = writer.sequences_done();
  if (begin > 0) log("{}: going on behind {} of {} sequences", printable(o.out.native()), begin, n);
  // Of ids that the tokenizer does not have nothing is asked.
  const Tensor head = teacher.weights.head.slice(0, ids.vocab_size);
  const int64_t k = info.k, n_norms = std::ssize(o.temperatures);
  Progress progress("teacher's logits", n, begin);
  while (begin < n) {
    if (interrupted && interrupted()) return std::nullopt;
    const ArenaScope scope(ctx.arena);
    Examples together;
    int64_t end = begin;
    do {
      set.add_to(together, end++);
    } while (end < n && std::ssize(together.next) + set.sequences[static_cast<size_t>(end)].n_ids <= o.pass_tokens);
    std::vector<int32_t> wanted;
    for (size_t t = 0; t < together.next.size(); ++t) {
      if (together.next[t] != kNoTarget) wanted.push_back(static_cast<int32_t>(t));
    }
    const int64_t n_rows = std::ssize(wanted);
    const Tensor hidden = forward(ctx, teacher, make_batch(ctx, together.sequences));
    const Tensor top = new_i32(ctx, {n_rows, k}), logprobs = new_f32(ctx, {n_rows, k}),
                 norms = new_f32(ctx, {n_rows, n_norms});
    head_top_logprobs(ctx, top, logprobs, norms, hidden, head, wanted, o.temperatures);
    size_t at = 0;
    int64_t row = 0;
    for (const std::vector<int32_t>& tokens : together.sequences) {
      const auto next = std::span(together.next).subspan(at, tokens.size());
      const int64_t rows = std::ranges::count_if(next, [](int32_t target) { return target != kNoTarget; });
      writer.append({tokens, next}, {top.i32() + row * k, static_cast<size_t>(rows * k)},
                    {logprobs.f32() + row * k, static_cast<size_t>(rows * k)},
                    {norms.f32() + row * n_norms, static_cast<size_t>(rows * n_norms)});
      at += tokens.size();
      row += rows;
    }
    begin = end;
    progress.update(begin);
  }
  progress.finish();
  return writer.commit();
}

}  // namespace fathom::tune
