// Importance matrices: how large the inputs of every matrix of a model are, column by column, over some text.
// Quantizing with them spends a format's codes where an error would be heard. The file is llama.cpp's: a GGUF file of
// the type imatrix with the tensors NAME.in_sum2 and NAME.counts for each matrix NAME.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/file.h"
#include "checkpoint/gguf.h"
#include "checkpoint/packing.h"

namespace fathom {

// Of one tensor of a GGUF file: a matrix, or one for each expert or head.
struct ImatrixEntry {
  int64_t cols = 0;
  std::vector<float> sums;    // [matrices, cols], of squared inputs
  std::vector<float> counts;  // [matrices]: rows (tokens) that were summed

  int64_t matrices() const { return static_cast<int64_t>(counts.size()); }
  // The sums of one matrix, null where there is no data; those of the only one for any.
  const float* of(int64_t matrix) const;
};

struct Imatrix {
  std::string where;                                         // for messages
  std::map<std::string, ImatrixEntry, std::less<>> entries;  // "blk.3.ffn_gate_exps.weight"
  std::string text;                                          // the name of what was read
  int64_t chunks = 0, chunk_tokens = 0;
};

void write_imatrix(AtomicFile& file, const Imatrix& imatrix);  // the caller commits it
// Error unless every tensor in it is one of a pair of the right shapes, and every number is finite and not negative.
Imatrix read_imatrix(const std::filesystem::path& path);
Imatrix parse_imatrix(const GgufFile& file);

// Error where it was made from another model: a name or a shape that a model of `config` does not have. Adds
// what it has in another form: weights for kv_b_proj where only those of its halves are there, and the other way round.
void fit_imatrix(Imatrix& imatrix, const ModelConfig& config);

// Sets the importance of every weight. Returns what has none and is quantized as if all columns mattered alike:
// experts that no token came to, and other matrices.
struct WithoutImportance {
  int64_t experts = 0, experts_of = 0, others = 0;
};
WithoutImportance set_importance(std::vector<PackedWeight>& weights, const Imatrix& imatrix, const ModelConfig& config);

}  // namespace fathom
