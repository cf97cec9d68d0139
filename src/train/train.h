// The training loop and its result.
#pragma once

#include <functional>
#include <optional>

#include "train/example_source.h"
#include "train/options.h"

namespace fathom {

struct TrainResult {
  int64_t step = 0, tokens = 0;
  double loss = 0;  // of the last step
  std::optional<double> val_loss;
  double seconds = 0;    // of this process
  bool stopped = false;  // by stop_requested, after saving a checkpoint
};

// Trains until `steps` are done or stop_requested() is true between two steps. At the end OUT is a model directory with
// the report beside it. Same options, same bits, for any number of threads, with or without interruption.
TrainResult train(const TrainOptions& options, const OpenSource& open, ThreadPool& pool,
                  const std::function<bool()>& stop_requested);
// The same from text: pretraining.
TrainResult train(const TrainOptions& options, ThreadPool& pool, const std::function<bool()>& stop_requested);

}  // namespace fathom
