// What a run of training is asked for, and what of it cannot be.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/forward.h"
#include "text/tokenizer.h"
#include "train/saver.h"
#include "train/schedule.h"

namespace fathom {

enum class Balance {
  automatic,  // bias for models with correction biases, aux for others
  bias,       // loss-free: biases of the choice follow the loads
  aux,        // the sequence-wise balance loss
  aux_batch,  // the same over all tokens of a micro-batch
  none
};
// What of a model with an indexer trains (V3.2 section 2.1.1).
enum class Dsa {
  automatic,  // sparse for models with an indexer
  off,        // attention is dense, indexers stay as they are
  warmup,     // indexers alone, beside dense attention
  sparse      // all: attention to what the indexers choose, and indexers by their own loss
};
Dsa dsa_named(const std::string& name);
Balance balance_named(const std::string& name);
Precision precision_named(const std::string& name);
Recompute recompute_named(const std::string& name);
const char* precision_name(Precision precision);

struct TrainOptions {
  std::string command = "train";       // that errors speak for
  std::filesystem::path model_config;  // exactly one of these two
  std::filesystem::path init;
  std::vector<std::filesystem::path> data, val_data;  // text, or a dataset of tokens (text/dataset.h), for `train`
  double fim_rate = 0;                                // of documents of text that are to be filled in, not of val_data
  std::string tokenizer;                              // file, directory or "bytes"; empty: that of `init`
  std::optional<std::string> chat_template;           // that the trained model is to have; nothing: the tokenizer's
  std::filesystem::path out;
  bool resume = false;
  Format save_format = Format::f32;  // of the model directory at the end: f32 or bf16
  uint64_t seed = 0;

  const Device* device = nullptr;        // that computes; null: the CPU
  Precision precision = Precision::f32;  // of the linear layers' operands, router and head aside
  Format moments = Format::f32;          // of AdamW: f32 or bf16

  int64_t steps = 0, seq_len = 0, batch_size = 0;
  int64_t micro_batch = 0;                  // sequences a forward pass; 0: all of the batch at once
  int64_t batch_start = 0, batch_ramp = 0;  // see BatchSizes; 0: batch_size from the first step on
  Recompute recompute = Recompute::none;
  bool mask_documents = false;  // attention, MTP and targets stay within a document
  // Context extension (V3 section 4.3): after step extend_at sequences have extend_seq_len tokens, and there are fewer
  // of them, so that the tokens of a step stay the same. 0: none.
  int64_t extend_seq_len = 0, extend_at = 0;
  LearningRate lr;  // its `steps` is ours
  double weight_decay = 0.1, beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double ema_decay = 0;          // of a moving average of the weights; 0: none
  double clip = 1;               // greatest global norm of the gradient; 0: no limit
  double spike_deviations = 10;  // as reason_to_skip takes it
  int64_t max_skips = 10;        // after so many skipped steps in a row the run ends
  Balance balance = Balance::automatic;
  double bias_update_speed = 0.001;
  double bias_freeze = 0;  // the part of the steps, at the end, in which the biases stay (V3: 500 B of 14.8 T tokens)
  double balance_alpha = -1;  // of the balance loss; below 0: 0.001 for aux, else 0
  double mtp_weight = 0.3;    // where the model has MTP modules
  // After step mtp_late_at (0: never) it has another weight (V3 section 4.2: 0.3, and 0.1 for the last third).
  double mtp_weight_late = 0.1;
  int64_t mtp_late_at = 0;

  Dsa dsa = Dsa::automatic;
  IndexerDims indexer{64, 128, 2048};  // that --dsa warmup gives a model without one
  // YaRN by which --init's model reads so many times longer sequences than yarn_original tokens (0: than its
  // max_position_embeddings); 0: as it is.
  double yarn_factor = 0;
  int64_t yarn_original = 0;

  int64_t val_every = 0;       // 0: only after the last step
  int64_t val_sequences = 64;  // at most, in the middle of the run; the last validation reads all
  int64_t save_every = 0;      // 0: only at the end
  bool check_memory = false;   // that between steps no bit of weights and moments flips
  SaverOptions saver{SaveMode::automatic, SaveFailure::stop, {}};
  std::filesystem::path log;          // empty: OUT/train.jsonl
  std::filesystem::path trace;        // of many ranks: a Chrome trace of the last steps; empty: none
  std::filesystem::path tensorboard;  // directory of event files; empty: none
  int64_t sample_every = 0;
  std::string prompt = "\n";        // of samples
  std::vector<int32_t> prompt_ids;  // in place of it, where there are any
  std::function<void()> check;      // called while text is tokenized, may throw to give up
  // Text that continues the prompt, for log and report: how is the business of who generates.
  std::function<std::string(Context&, const Model&, const Tokenizer&, std::span<const int32_t> prompt, int64_t step)>
      sample;
};

// UsageError that names the option. The second: what the run writes must not be what it reads.
void check_options(const TrainOptions& options);
void check_files(const TrainOptions& options);
// UsageError for what is not computed on a device yet, where one is asked for.
void check_device(const TrainOptions& options, const ModelConfig& config);

// `automatic` made one of the others; UsageError when the model has no correction biases.
Balance resolve_balance(const TrainOptions& options, const ModelConfig& config);

// `automatic` made one of the others; UsageError where the model has no indexer and none to get.
Dsa resolve_dsa(const TrainOptions& options, const ModelConfig& config);

// What a resumed run must have in common with the run it goes on with, beside what it learns from, which adds its own
// (ExampleSource::settings). The number of steps is free: a run may go on longer, its schedule then follows the new
// number.
Settings settings_of(const TrainOptions& options, const ModelConfig& config, Balance balance, double balance_alpha);

}  // namespace fathom
