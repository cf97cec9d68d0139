// The forward pass, as the report's section 2 has it: embedding, L x {norm, MLA, residual, norm, MLP or MoE, residual},
// norm, head. One definition for training, scoring and generation.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "model/cache.h"
#include "model/expert_reading.h"
#include "model/host_experts.h"
#include "model/weights.h"
#include "ops/experts.h"

namespace fathom {

struct Model;
struct MoeSaved;
// What the chosen experts of a layer make where they are spread over processes (parallel/spread_experts.h): y_sorted
// [slots of s.dispatch, hidden] from s.input and s.topk_ids, unweighted. Calls `meanwhile` once, while rows are on
// their way.
using RoutedExperts = std::function<void(Context& ctx, const Model& model, const MoeWeights& w, Tensor y_sorted,
                                         const MoeSaved& s, const std::function<void()>& meanwhile)>;

// What forward and backward read: weights and what follows from the config.
struct Model {
  ModelConfig config;
  Rope rope;
  Rope index_rope;      // of the indexer: the same angles, halves instead of pairs
  float softmax_scale;  // (nope + rope, or head_dim)^-1/2 * rope.softmax_scale_factor
  ModelWeights weights;
  Precision precision = Precision::f32;  // of the operands of all linear layers but router and head; f32 weights alone
  bool fp8_activations = false;      // round the inputs of FP8 matrices to e4m3 too, a scale each 128 (V3 section 3.3)
  bool dense_attention = false;      // to all tokens, though there is an indexer
  ExpertReading* reading = nullptr;  // where experts may not be in memory
  const RoutedExperts* routed_experts = nullptr;  // where they may be other processes'
  HostExperts* host_experts = nullptr;            // where they may be in the host's memory and all else on a device
};
Model make_model(const ModelConfig& config, const ModelWeights& weights);

// Where training in FP8 scales by powers of two (V3 section 3.3.3): behind the attention, in front of the experts and
// of their second matrix on the way back.
inline Rounding attention_out_rounding(const Model& model) {
  return {model.precision, /*x_power_of_two=*/true, false, /*x_in_e5m6=*/true};
}
inline Rounding experts_up_rounding(const Model& model) {
  return {.precision = model.precision, .x_power_of_two = true, .w_parts = 2};
}
inline Rounding gate_up_rounding(const Model& model) { return {.precision = model.precision, .w_parts = 2}; }
inline Rounding experts_down_rounding(const Model& model) { return {model.precision, false, /*dy_power_of_two=*/true}; }

// Packed sequences, one behind the other, without padding.
struct Batch {
  Tensor ids;                            // [tokens] i32
  Tensor positions;                      // [tokens] i32, from 0 in each sequence (or from the cache's length)
  Tensor seq_offsets;                    // [sequences + 1] i32
  Tensor sequence;                       // [tokens] i32: whose token it is
  std::vector<int32_t> tokens, offsets;  // ids and seq_offsets, for the host to read
  // [sequences], or nothing: how many tokens of each were its prompt, where the others were generated. Without caches
  // these attend in the absorbed form, as they did then, so that training on them has the bits of sampling them.
  // Grouped-query attention has one form, and those bits in any case.
  std::vector<int32_t> prompts{};
  // [layers], or nothing: [tokens, k] i32, the experts that the routers are to take (V3.2 section 3.1, "keep routing"),
  // absent for layers that choose.
  std::vector<Tensor> experts{};
  int64_t n_tokens() const { return ids.cols(); }
  int64_t n_sequences() const { return seq_offsets.cols() - 1; }
};
// The first token of sequence s, or behind the last sequence the number of all.
inline int32_t sequence_begin(const Batch& batch, int64_t s) { return batch.offsets[static_cast<size_t>(s)]; }
// What a Batch says, on the host; sequence s starts at first_position[s], or at 0 when that is empty.
struct BatchNumbers {
  std::vector<int32_t> ids, positions, seq_offsets, sequence;
};
BatchNumbers batch_numbers(std::span<const std::vector<int32_t>> sequences,
                           std::span<const int64_t> first_position = {});

// Sequences -> Batch, its tensors from ctx.arena. Positions of sequence s start at first_position[s], 0 when that is
// empty.
Batch make_batch(Context& ctx, std::span<const std::vector<int32_t>> sequences,
                 std::span<const int64_t> first_position = {});

// What the backward pass needs of one block, all from the arena; see each block in forward.cc.
struct IndexerSaved {
  Tensor q;         // [tokens, index_n_heads * index_head_dim], rotated
  Tensor k_in, k;   // [tokens, index_head_dim] before the norm; behind norm and rotation
  Tensor weights;   // [tokens, index_n_heads], scaled by (index_n_heads * index_head_dim)^-1/2
  Tensor selected;  // [tokens, index_topk] i32: keys counted from the sequence's first, then -1; absent where all of
                    // the batch see no more than index_topk
};
struct MlaSaved {
  Tensor input;                   // [tokens, hidden], after the norm
  Tensor q_a, q_a_rms, q_latent;  // [tokens, q_lora_rank] before the norm; [tokens]; after the norm
  Tensor q;                       // [tokens, heads * (nope + rope)], rotated
  Tensor kv_a, kv_a_rms,
      latent;     // [tokens, kv_lora_rank + rope] before the norm, rope part rotated; [tokens]; [tokens, kv_lora_rank]
  Tensor kv;      // [tokens, heads * (nope + v)]
  Tensor o, lse;  // [tokens, heads * v]; [tokens, heads]
  IndexerSaved indexer;
  // Of grouped-query attention: input; q [tokens, heads * head_dim], rotated; kv [tokens, 2 * kv_heads * head_dim],
  // keys rotated, then values; o and lse.
};
struct MlpSaved {
  Tensor input, gate_up, activated;  // [tokens, hidden], [tokens, 2 * inter], [tokens, inter] or absent (FP8)
};
struct MoeSaved {
  Tensor input;                                   // [tokens, hidden], after the norm
  Tensor logits, scores, topk_ids, topk_weights;  // [tokens, experts] x 2, [tokens, k] x 2
  Dispatch dispatch;
  Tensor gate_up, activated;  // [slots, 2 * inter], [slots, inter] or absent (FP8)
  MlpSaved shared;
};
struct LayerSaved {
  Tensor x, x_rms;  // [tokens, hidden] the residual stream that enters; [tokens]
  MlaSaved attention;
  Tensor mid, mid_rms;  // the stream between attention and MLP
  MlpSaved mlp;
  MoeSaved moe;
  Tensor attention_out, mlp_out;  // kept for `taps` only
};
// What of a layer the backward pass makes again, in the same bits, so that a pass that trains needs less memory.
enum class Recompute {
  none,       // in any case: the experts' copies of their inputs, and in FP8 SwiGLU's output
  selective,  // that, SwiGLU, norms and MLA's up-projections (V3 section 3.2.3)
  full        // all but what enters the layer
};

struct ForwardSaved {
  Recompute recompute = Recompute::none;
  std::vector<LayerSaved> layers;
  Tensor x, x_rms;      // the stream that leaves the last layer; [tokens]
  Tensor final_hidden;  // [tokens, hidden], after the final norm
};

// Floats that a token leaves in the main layers of a forward pass for the backward pass: the greater part of what a
// training step needs beside parameters, gradients and moments, and never more than that.
int64_t saved_floats_a_token(const ModelConfig& config, Recompute recompute, Precision precision);

// Tokens sent to each expert, [MoE layers][experts].
using ExpertLoad = std::vector<std::vector<int64_t>>;

// Sees what a layer has kept, before it is freed.
using LayerVisit = std::function<void(int64_t layer, const LayerSaved& saved)>;

// From about so many tokens on a pass over caches is cheaper expanded.
inline constexpr int64_t kExpandFrom = 128;
inline constexpr size_t kExpandAll = 0, kExpandNone = SIZE_MAX;  // of the sequences of a pass, to be expanded

struct ForwardOptions {
  ForwardSaved* saved = nullptr;  // filled when given (training, scoring); otherwise memory is freed layer by layer
  bool taps = false;              // with saved: keep attention_out and mlp_out too
  Recompute recompute = Recompute::none;  // with saved, and then with memory for what is not kept:
  Arena* scratch = nullptr;
  std::span<LatentCache* const> caches{};  // one a sequence: read, and extended by the new tokens
  // How attention reads caches that are not empty: passes of some hundred tokens are cheaper with keys and values made
  // again from the latents, others in the absorbed form. A token's bits are the same in any passes of one kind. From
  // this sequence on the first, before it the second; where all caches are empty it is the first in any case.
  size_t expand_from = kExpandNone;
  ExpertLoad* expert_load = nullptr;     // when given, one row a MoE layer is appended
  const LayerVisit* on_layer = nullptr;  // when given, called behind every layer
};

// Returns final_hidden [tokens, hidden] (arena).
Tensor forward(Context& ctx, const Model& model, const Batch& batch, const ForwardOptions& options = {});

// Makes what of a layer was not kept (memory from ctx.arena): saved is whole then, but for `taps`.
void recompute_layer(Context& ctx, const Model& model, const LayerWeights& w, const Batch& batch, Recompute what,
                     LayerSaved& saved);

// logits [rows, vocab] = hidden W_head^T
Tensor head_logits(Context& ctx, const Model& model, Tensor hidden);

// What an MTP module (V3 section 2.2) reads: row i of a sequence takes the hidden state at i and the token behind those
// that are in it, and predicts the token behind that: the first module reads token i+1 and predicts token i+2.
struct MtpInput {
  Tensor rows;  // [mtp_tokens] i32: the row of the hidden states that each row takes
  Batch next;   // the tokens behind those, with the positions and offsets of the rows
};
// The rows of a batch whose next token is in it: one less than tokens in each sequence. `batch`: what the trunk read,
// or MtpInput::next of the module before. Memory from ctx.arena.
MtpInput make_mtp_input(Context& ctx, const Batch& batch);
// Of the model's modules one after the other, as long as there are rows.
std::vector<MtpInput> make_mtp_inputs(Context& ctx, const Model& model, const Batch& batch);

struct MtpSaved {
  MtpInput input;
  Tensor embedded, hidden_in;         // [mtp_tokens, hidden] before enorm / hnorm
  Tensor e_rms, h_rms, concatenated;  // [mtp_tokens] x 2, [mtp_tokens, 2 * hidden]
  LayerSaved layer;
  Tensor x, x_rms;  // before shared_head.norm
  Tensor hidden;    // [mtp_tokens, hidden], after it
};
struct MtpOptions {
  MtpSaved* saved = nullptr;               // filled when given (training)
  std::span<LatentCache* const> caches{};  // the module's own (make_mtp_cache), one a sequence: read and extended
  size_t expand_from = kExpandNone;        // as in ForwardOptions
  ExpertLoad* expert_load = nullptr;       // when given, one row is appended
};
// The module w of the model, behind final_hidden or what the module before returned. Returns hidden
// [mtp_tokens, hidden], after the module's norm; logits are head_logits of it.
Tensor mtp_forward(Context& ctx, const Model& model, const MtpWeights& w, const MtpInput& input, Tensor hidden_before,
                   const MtpOptions& options = {});

}  // namespace fathom
