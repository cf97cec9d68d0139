// Supervised fine-tuning (V3 section 5.1): conversations whose answers alone are learned, several in a row without
// seeing each other, through the training loop of train/train.h.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train/train.h"
#include "tune/conversation.h"

namespace fathom::tune {

// What becomes of conversations of more than --seq-len tokens.
enum class TooLong { drop, cut, refuse };
TooLong too_long_named(const std::string& name);

// What a teacher says of the same conversations (train/teacher_logits.h), to be learned with them.
struct TeacherOptions {
  std::filesystem::path logits;          // empty: none
  double weight = 0.5, temperature = 1;  // of the divergence in the loss; of both distributions
};

struct SftOptions {
  // `data` and `val_data`: .jsonl. steps 0: as many as `epochs` take; seq_len 0: 4096, or the model's longest;
  // micro_batch 0: a row.
  TrainOptions train;
  double epochs = 2;
  std::string chat_template;      // as render_chat() takes it, for lines with messages; empty: there is none
  std::optional<bool> thinking;   // as ConversationTemplate has it
  bool only_last_answer = false;  // likewise
  TooLong too_long = TooLong::drop;
  bool packs = true;     // else every sequence is a row
  int64_t skip_bad = 0;  // so many lines that cannot be read are passed over, each told
  TeacherOptions teacher;
};

struct SftCounts {
  int64_t conversations = 0;     // read
  int64_t sequences = 0;         // learned from
  int64_t rows = 0;              // that they are packed into
  int64_t tokens = 0;            // of the sequences
  int64_t trained_tokens = 0;    // of those, that are learned
  int64_t cut = 0, dropped = 0;  // sequences that were too long
  int64_t without_answer = 0;    // conversations with nothing to learn
  int64_t bad = 0;               // lines that were passed over
};

struct SftResult {
  TrainResult train;
  SftCounts counts;
  int64_t steps = 0;  // of the whole run
};

// UsageError for options that fine_tune() would refuse before it reads anything.
void check_sft_options(const SftOptions& options);

// As train(), with the same laws. At the end OUT is a model directory that `fathom serve` talks with: its chat template
// is `options.train.chat_template` where that is given.
SftResult fine_tune(const SftOptions& options, ThreadPool& pool, const std::function<bool()>& stop_requested);

// All of the data, encoded.
struct TrainingSet {
  std::vector<int32_t> ids;  // of all sequences, one behind the other
  struct Sequence {
    int64_t begin, n_ids;
    int64_t first_span, n_spans;
  };
  std::vector<Sequence> sequences;
  std::vector<TrainingSequence::Span> spans;  // within their sequence
  SftCounts counts;                           // rows aside

  // One sequence, and its targets behind those that `examples` has.
  void add_to(Examples& examples, int64_t sequence) const;
  uint64_t checksum() const;
};
// Reads .jsonl files and directories of them. Error, with file and line, for what cannot be learned from; the same for
// any number of threads.
TrainingSet read_training_set(std::span<const std::filesystem::path> data, const Tokenizer& tokenizer,
                              const ConversationTemplate& told_with, const SftOptions& options, ThreadPool& pool);

// The data of a run as fine_tune() learns it, each sequence apart. check: of options.train.
struct LearnedData {
  Tokenizer tokenizer;
  TrainingSet set;
};
LearnedData read_learned_data(const SftOptions& options, ThreadPool& pool);

}  // namespace fathom::tune
