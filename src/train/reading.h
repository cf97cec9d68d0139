// What a run of training reads: the data, cut into the windows of every step and of the validation.
#pragma once

#include <functional>
#include <vector>

#include "model/examples.h"
#include "text/dataset.h"
#include "train/example_source.h"
#include "train/options.h"
#include "train/schedule.h"

namespace fathom {

// Error where the tokenizer or the lengths do not go with the model.
void check_fit(const TrainOptions& options, const ModelConfig& config, const Tokenizer& tokenizer);

// A stretch of the run whose sequences have one length.
struct Phase {
  int64_t seq_len, micro_batch;
  WindowSampler sampler;
  std::vector<Window> val_windows;
};

// What is learned from and what is not, tokenized into OUT/data where it is text.
struct Data {
  TokenDataset train;
  TokenIds val;  // as it is written, without filling in
};

struct Reading {
  Data data;
  std::vector<Phase> phases;  // one, or a second after step extend_at
  int64_t extend_at, seq_len, steps, val_sequences;
  BatchSizes batch_sizes;  // in sequences of seq_len
  int32_t separator;       // of documents, where they are masked

  const Phase& phase(int64_t step) const { return phases.size() > 1 && step > extend_at ? phases[1] : phases[0]; }
  // Of a step, counted over all steps: where sequences have another length, so many that the tokens stay the same.
  struct Sequences {
    int64_t first, n;
  };
  Sequences sequences(int64_t step) const;
};
Reading open_reading(const TrainOptions& options, const Tokenizer& tokenizer, ThreadPool& pool);
// What a resumed run must read again.
Settings settings_of(const Reading& reading);

// The micro-batches of a step.
std::vector<Examples> step_examples(const Reading& reading, int64_t step);
int64_t count_micro_batches(const Reading& reading, int64_t step);

// Micro-batches of the validation windows of the step's length: all after the last step, before it `val_sequences` of
// them spread evenly.
void for_each_validation(const Reading& reading, int64_t step, const std::function<void(const Examples&)>& visit);

// All this as train() takes it.
ExampleSource open_text(const TrainOptions& options, const Tokenizer& tokenizer, ThreadPool& pool);

}  // namespace fathom
