// Finds bits that flip in memory: what one update of the weights leaves must be there when the next begins.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "train/parallel_step.h"
#include "train/saved_state.h"

namespace fathom {

// XXH3 of weights, biases, moments and averaged weights.
uint64_t state_checksum(ThreadPool& pool, const TrainedState& state);
// Of what this rank has of them.
uint64_t state_checksum(ThreadPool& pool, const RankState& state);

}  // namespace fathom
