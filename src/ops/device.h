// An accelerator: its memory, and its forms of the operators that the forward pass is made of. A Context with one runs
// there, and all tensors given to an operator lie in its memory; without one, on the CPU. What an operator means is
// said where it is declared (ops/rms_norm.h, ...).
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "ops/attention.h"
#include "ops/experts.h"
#include "ops/latent_rows.h"
#include "ops/linear.h"
#include "ops/rope.h"
#include "ops/router.h"

namespace fathom {

namespace cpu {
struct AdamwStep;  // ops/cpu/optimizer_kernels.h
}

// Work that was recorded once, to be done again with one call.
struct DeviceGraph;

// New rows of the latent caches, and which rows each token sees: all of its own sequence up to its own position.
struct DeviceCaches {
  Tensor rows;       // [sequences] i64: address of each sequence's first row in the first layer
  Tensor strides;    // [sequences] i64: bytes from a layer to the next
  Tensor sequence;   // [tokens] i32: whose token it is
  Tensor positions;  // [tokens] i32: the token's row in the cache of its sequence
  LatentRowLayout layout;
  int64_t layer = 0;
};

struct DeviceOperators {
  void (*embedding)(Context&, Tensor y, Tensor ids, Tensor table);  // table: f32, or row by row in any format
  void (*add)(Context&, Tensor out, Tensor a, Tensor b);
  void (*rms_norm)(Context&, Tensor y, Tensor x, Tensor w, float eps, Tensor inv_rms);
  void (*rope)(Context&, const Rope&, Tensor x, Tensor positions, const RopeLayout&);
  void (*swiglu)(Context&, Tensor y, Tensor gate_up);
  // What is declared as add_norm_input, swiglu_input and norm_and_rotate.
  LinearInput (*add_norm_input)(Context&, Tensor y, Tensor sum, Tensor a, Tensor b, Tensor w, float eps, Tensor inv_rms,
                                std::span<const Tensor> weights);
  LinearInput (*swiglu_input)(Context&, Tensor y, Tensor gate_up, std::span<const Tensor> weights);
  void (*norm_and_rotate)(Context&, const Rope&, Tensor q, const RopeLayout&, Tensor latent, Tensor kv_a, Tensor w,
                          float eps, Tensor inv_rms, Tensor positions);
  LinearInput (*make_linear_input)(Context&, Tensor x, std::span<const Tensor> weights);
  void (*linear)(Context&, std::span<const LinearCall> calls);
  void (*route)(Context&, const RouterConfig&, Tensor topk_ids, Tensor topk_weights, Tensor scores, Tensor logits,
                Tensor bias);
  void (*place_experts)(Context&, Tensor placed, Tensor topk_ids, Tensor places);  // placed = places[topk_ids]
  Dispatch (*make_dispatch)(Context&, Tensor topk_ids, int64_t n_routed_experts);
  void (*dispatch)(Context&, Tensor x_sorted, Tensor x, const Dispatch&);
  void (*cross_entropy)(Context&, Tensor loss, Tensor logits, Tensor targets);  // of each row, as head_cross_entropy
  void (*combine)(Context&, Tensor y, Tensor y_sorted, Tensor topk_weights, const Dispatch&);
  // latent: [tokens, kv_lora_rank], k_rope: [tokens, rope], as the cache stores them from now on
  void (*write_cache)(Context&, const DeviceCaches&, Tensor latent, Tensor k_rope);
  void (*mla_attention)(Context&, Tensor o, Tensor q, Tensor kv, Tensor k_rope, Tensor seq_offsets, const MlaDims&,
                        float scale, Tensor lse, Precision);
  // mla_attention_absorbed over those caches, the new tokens' rows among them.
  void (*mla_attention_absorbed)(Context&, Tensor o, Tensor q, Tensor kv_b, Tensor k_b, const DeviceCaches&,
                                 const MlaDims&, float scale);

  // Of training: the backward pass, and the optimizer.
  void (*embedding_backward_weight)(Context&, Tensor dtable, Tensor dy, Tensor ids);
  void (*rms_norm_backward_input)(Context&, Tensor dx, Tensor dy, Tensor x, Tensor w, Tensor inv_rms, bool accumulate);
  void (*rms_norm_backward_weight)(Context&, Tensor dw, Tensor dy, Tensor x, Tensor inv_rms);
  void (*rope_backward)(Context&, const Rope&, Tensor dx, Tensor positions, const RopeLayout&);
  void (*swiglu_backward)(Context&, Tensor d_gate_up, Tensor dy, Tensor gate_up);
  void (*linear_backward_input)(Context&, Tensor dx, Tensor dy, Tensor w, Tensor offsets, bool accumulate, Precision);
  void (*linear_backward_weight)(Context&, std::span<const WeightGradientCall> calls);
  void (*mla_attention_backward)(Context&, Tensor dq, Tensor dkv, Tensor dk_rope, Tensor d_o, Tensor o, Tensor q,
                                 Tensor kv, Tensor k_rope, Tensor lse, Tensor seq_offsets, const MlaDims&, float scale,
                                 Precision);
  void (*weigh_chosen)(Context&, const RouterConfig&, Tensor topk_ids, Tensor topk_weights, Tensor scores,
                       Tensor logits);
  void (*route_backward)(Context&, const RouterConfig&, Tensor d_logits, Tensor d_weights, Tensor topk_ids,
                         Tensor scores, Tensor d_scores);
  void (*dispatch_backward)(Context&, Tensor dx, Tensor dx_sorted, const Dispatch&);
  void (*combine_backward)(Context&, Tensor dy_sorted, Tensor dy, Tensor topk_weights, const Dispatch&);
  void (*combine_backward_weights)(Context&, Tensor d_weights, Tensor d_inner, Tensor inner, Tensor topk_weights,
                                   const Dispatch&);
  // loss[t] of each row, and logits[t, v] = scale * row_scales[t] * dloss[t]/dlogits[t, v], in place.
  void (*cross_entropy_backward)(Context&, Tensor loss, Tensor logits, Tensor targets, float scale, Tensor row_scales);
  bool (*adamw_step)(Context&, const cpu::AdamwStep&, std::span<float> params, std::span<const float> grads, Tensor m,
                     Tensor v);
  void (*move_average)(Context&, std::span<float> average, std::span<const float> values, float decay);
  double (*sum_of_squares)(Context&, std::span<const float> values);
};

// What the host computes beside the device: behind all that the stream was given before, `down` is copied to the host,
// `work` is done there, and `up` is copied back.
struct HostWork {
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<Copy> down, up;  // the host's ends in memory of Device::allocate_pinned
  std::function<void()> work;  // on a thread of the device's; asks nothing of the device
};

struct Device {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  DeviceOperators operators;
  void* stream = nullptr;       // where everything runs in order
  std::shared_ptr<void> state;  // of its functions
  int n_processors = 1;         // multiprocessors
  size_t memory_bytes = 0;

  // Throws Error where there is not enough. Not zeroed.
  Buffer (*allocate)(size_t bytes);
  size_t (*free_bytes)();
  // In the order of the stream; `from` may change as soon as it returns. While recording: what every replay copies.
  void (*upload)(const Device&, void* to, const void* from, size_t bytes);
  // Returns when all is done, the copy too.
  void (*download)(const Device&, void* to, const void* from, size_t bytes);
  void (*copy)(const Device&, void* to, const void* from, size_t bytes);
  void (*fill_zero)(const Device&, void* to, size_t bytes);
  void (*synchronize)(const Device&);  // throws Error for what went wrong on the way

  Buffer (*allocate_pinned)(size_t bytes);  // of the machine's memory, where the device copies from and to
  // Work that is recorded is done, and its copies made, by every replay. One at a time: behind each start comes a join,
  // and what the stream is given behind that finds `up` copied. What the work throws, the next download or
  // synchronize() does.
  void (*start_host)(const Device&, HostWork);
  void (*join_host)(const Device&);

  // Null where work cannot be recorded. What `work` launches is recorded, not run.
  std::shared_ptr<DeviceGraph> (*record)(const Device&, const std::function<void()>& work) = nullptr;
  void (*replay)(const Device&, DeviceGraph&) = nullptr;
};

// Numbers of the host where the context works; memory from ctx.arena.
Tensor from_host(Context& ctx, std::span<const int32_t> numbers);
Tensor from_host(Context& ctx, std::span<const int64_t> numbers);
// `t` where the host can read it: t itself, or its copy in `memory`, which grows as needed. t is contiguous.
Tensor on_host(Context& ctx, Tensor t, Buffer& memory);
// Of the device's memory, or where it is null, of the host's: new; filled from the host; copied.
Buffer allocate_where(const Device* device, size_t bytes);
void upload_where(const Device* device, void* to, const void* from, size_t bytes);
void copy_where(const Device* device, void* to, const void* from, size_t bytes);

// Throws Error where this build has no CUDA, or there is no such device. index: as CUDA counts them.
std::unique_ptr<Device> open_cuda_device(int index);
// "CUDA 13.0", or "CUDA: not built".
std::string cuda_build_text();

}  // namespace fathom
