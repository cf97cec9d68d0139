// Training on many ranks: the loop around train/parallel_step.h, as train/train.h has it for one process.
#pragma once

#include "train/parallel_step.h"
#include "train/train.h"

namespace fathom {

// As train(): the same files, by rank 0 and, weights and moments, by all ranks into a file system that all of them see.
// Losses are those of one process but for the order of sums. UsageError for options that are for one process alone. The
// result is the same on all ranks. Collective.
TrainResult train_on_ranks(const TrainOptions& options, const ParallelLayout& layout, Communicator& comm,
                           ThreadPool& pool, const std::function<bool()>& stop_requested);

}  // namespace fathom
