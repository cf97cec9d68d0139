// Rows of stored weights as floats, whatever they are stored in.
#pragma once

#include <span>
#include <vector>

#include "checkpoint/hf_directory.h"

namespace fathom {

struct RowSource {
  const MatchedTensor* tensor;
  std::vector<float> scales;  // of an FP8 weight: copied, since files owe them no alignment
};
// Error for a scale that is not finite.
std::vector<RowSource> row_sources(std::span<const MatchedTensor> matched);

// Rows [first, first + n) as f32, out: [n, cols]. Of a kv_b_proj stored in halves: whole heads. Error, with the place,
// for a number that is not finite: it would spread to every output without a word.
void read_rows(float* out, const RowSource& source, const ModelConfig& config, int64_t first, int64_t n);

}  // namespace fathom
