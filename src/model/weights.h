// The weights of the network as structs named like the report. Gradients and optimizer moments are the same structs
// over other memory. A weight is [out, in], as in the checkpoint; gate and up projections of an MLP stand in one
// tensor (gate rows first) and the experts of a layer in one, so that each is one product. Training holds all in f32;
// inference may hold matrices in panels of any format (number/panels.h) and the embedding in any format.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/rng.h"
#include "model/config.h"

namespace fathom {

struct Device;

struct HostLayer;

// V3.2's lightning indexer (ops/indexer.h); absent without one.
struct IndexerWeights {
  Tensor q_b;             // [index_n_heads * index_head_dim, q_lora_rank], wq_b in the file
  Tensor k;               // [index_head_dim, hidden], wk
  Tensor k_norm, k_bias;  // [index_head_dim]: of a layer norm
  Tensor head_weights;    // [index_n_heads, hidden], weights_proj
};

struct MlaWeights {
  Tensor q_a;        // [q_lora_rank, hidden]; absent without q_lora
  Tensor q_a_norm;   // [q_lora_rank]; absent without q_lora
  Tensor q_b;        // [heads * (nope + rope), q_lora_rank]; without q_lora [.., hidden], q_proj in the file
  Tensor kv_a;       // [kv_lora_rank + rope, hidden]
  Tensor kv_a_norm;  // [kv_lora_rank]
  Tensor kv_b;       // [heads * (nope + v), kv_lora_rank]
  Tensor o;          // [hidden, heads * v]
  // With kv_b in panels: a head's rows of it for k_nope, transposed, as the absorbed form reads them.
  Tensor k_b;  // [heads, kv_lora_rank, nope]
  IndexerWeights indexer;
};

// Grouped-query attention (ops/gqa_attention.h), where MlaWeights are absent.
struct GqaWeights {
  Tensor q;                       // [heads * head_dim, hidden]
  Tensor k, v;                    // [kv_heads * head_dim, hidden]
  Tensor q_bias, k_bias, v_bias;  // [their rows]; absent without attention_bias
  Tensor o;                       // [hidden, heads * head_dim]
};

struct MlpWeights {
  Tensor gate_up;  // [2 * inter, hidden]: gate rows, then up rows
  Tensor down;     // [hidden, inter]
};

struct MoeWeights {
  Tensor gate;                     // [experts, hidden]: the router
  Tensor e_score_correction_bias;  // [experts]; absent for V2 and in gradients: no gradient descends on it
  Tensor gate_up;                  // [experts, 2 * moe_inter, hidden]: those from first_expert on that are here
  Tensor down;                     // [experts, hidden, moe_inter]
  int64_t first_expert = 0;
  HostLayer* host = nullptr;  // on a device: where experts are that gate_up and down do not have (model/host_experts.h)
  MlpWeights shared;          // width n_shared_experts * moe_inter; absent without shared experts
};

struct LayerWeights {
  Tensor input_norm;  // [hidden]
  MlaWeights attention;
  GqaWeights gqa;              // dense families: gqa.q is present
  Tensor post_attention_norm;  // [hidden]
  MlpWeights mlp;              // dense layers
  MoeWeights moe;              // MoE layers: moe.gate is present
};

struct MtpWeights {
  Tensor enorm, hnorm;  // [hidden]: norms of the next token's embedding and of the hidden state
  Tensor eh_proj;       // [hidden, 2 * hidden], input [embedding | hidden]
  LayerWeights layer;
  Tensor norm;  // [hidden], shared_head.norm; the head itself and the embedding are the main model's
};

struct ModelWeights {
  Tensor embed;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  Tensor norm;  // [hidden]
  Tensor head;  // [vocab, hidden]; with tie_word_embeddings the embedding's memory, in panels a copy
  std::vector<MtpWeights> mtp;
};

// Which weight of the network a tensor is, as far as number formats care.
enum class WeightKind {
  embedding,
  norm,
  norm_bias,  // of an index key's norm, the only one that has one
  bias,       // of queries, keys and values
  attention,  // all projections but the next three
  values,     // of grouped queries: few, and every head of a group reads them
  kv_b,
  k_b,
  indexer,       // its projections of queries and keys
  head_weights,  // of its heads
  dense,         // MLPs of dense layers
  router,
  router_bias,
  shared,  // experts
  experts,
  experts_down,
  mtp_projection,
  head,
};
// Every tensor that is present, fused ones as one, in the order of the layers; k_b in any case.
void for_each_weight(ModelWeights& weights, const std::function<void(WeightKind, Tensor&)>& visit);

// One block of memory that holds all weights: trained parameters first, then the correction biases.
struct Parameters {
  Buffer memory;
  ModelWeights weights;
  int64_t n_trained = 0;  // floats; every tensor begins at a multiple of 16 (the gaps stay zero)
  int64_t n_total = 0;
  int64_t n_embed = 0;                           // of the trained: the embedding, which comes first
  int64_t indexers_begin = 0, indexers_end = 0;  // the indexers of all layers, which stand together
  int64_t experts_begin = 0;                     // and the experts, where they come last

  std::span<float> trained() const { return {static_cast<float*>(memory.data()), static_cast<size_t>(n_trained)}; }
  std::span<float> all() const { return {static_cast<float*>(memory.data()), static_cast<size_t>(n_total)}; }
};

// What of a model a process holds: layers [first_layer, end_layer); what stands in front of them, and behind.
struct WeightPart {
  int64_t first_layer = 0, end_layer = INT64_MAX;
  bool embed = true;
  bool head = true;                                  // the last norm, the head, the MTP modules
  int64_t first_expert = 0, end_expert = INT64_MAX;  // of every layer
  // In memory experts stand behind all else, which other processes have too; otherwise in their layers.
  bool experts_last = false;
};

// Zeroed parameters in the shapes of `config`. with_bias false leaves the correction biases out (gradients, moments).
// What is not in `part` is absent; weights.layers has all layers' places. With a device, in its memory.
Parameters allocate_parameters(const ModelConfig& config, bool with_bias = true, const WeightPart& part = {},
                               const Device* device = nullptr);

// Floats of allocate_parameters(config).trained().
int64_t trained_floats(const ModelConfig& config);

// The tensors of allocate_parameters without memory behind them: for names and shapes alone, their data must not be
// touched.
ModelWeights weight_shapes(const ModelConfig& config);

// One tensor under its Hugging Face name: `view` is it, or its part of a fused tensor (rows of gate_up, one expert).
struct NamedTensor {
  std::string name;  // "model.layers.3.mlp.experts.7.gate_proj.weight"
  Tensor view;       // [out, in] or [n]
  bool trained;      // false for e_score_correction_bias
};

// Every tensor of the model that is present, in the order of the layers: the one walk over parameters. MTP's stored
// copies of embedding and head are not in it, nor is a head that is the embedding.
void for_each_tensor(const ModelWeights& weights, const ModelConfig& config,
                     const std::function<void(const NamedTensor&)>& visit);

// Matrices and embedding from N(0, initializer_range), norms one, biases zero. Same seed, same bits, on any machine,
// and whatever part of the model is there.
void initialize(Parameters& parameters, const ModelConfig& config, uint64_t seed);

}  // namespace fathom
