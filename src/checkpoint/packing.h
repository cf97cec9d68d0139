// From stored tensors to weights as the kernels read them: which stored tensors make up each weight, in which format it
// goes on, and the packing itself, piece by piece.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/read_rows.h"
#include "model/weights.h"

namespace fathom {

// One weight of the network, fused or whole.
struct PackedWeight {
  WeightKind kind;
  std::string name;  // "model.layers.3.mlp.experts.gate_up_proj"
  Tensor* slot;      // in the weights, with its final shape and format
  // Whose rows follow each other in it, as many of each: gate and up; those of every expert. Of k_b the kv_b_proj.
  std::vector<const RowSource*> sources;
  // How much the columns of each source matter (of k_b: of each head), see encode_blocks. Empty, or null: all the same.
  std::vector<const float*> importance{};
};

// The format of a weight, given what its first source is stored in.
using FormatChoice = std::function<Format(const PackedWeight&, Format stored)>;

// `wanted`, or where rows of `cols` columns are no whole blocks of it, the next format of as many bits or more.
Format fitting_format(Format wanted, int64_t cols);

// Vectors, the router and the weights of an indexer's heads: small, and what they decide is not averaged out.
bool is_always_f32(WeightKind kind);

// Kept as it is stored, or in f32 always; what has no exact form in panels is widened.
Format stored_format(const PackedWeight& weight, Format stored);

// The shape of a weight in `format`, or one that its columns divide into: in panels, or row by row. k_b has none where
// heads do not fill panels.
void shape_packed(Tensor& slot, WeightKind kind, const ModelConfig& config, Format format);
Tensor packed_k_b(const ModelConfig& config);

// Gives every tensor of `weights`, which weight_shapes(config) made and `sources` were matched for, its format and
// shape. Formats that a weight's columns do not divide into give way to ones that they do.
std::vector<PackedWeight> plan_packing(ModelWeights& weights, const ModelConfig& config,
                                       const std::vector<RowSource>& sources, const FormatChoice& choose);

// Bytes [begin, begin + n) of a weight as packed, n and begin whole units of packing_unit(): what one task makes.
int64_t packing_unit(const PackedWeight& weight, const ModelConfig& config);
void pack_bytes(uint8_t* out, const PackedWeight& weight, const ModelConfig& config, int64_t begin, int64_t n);

}  // namespace fathom
