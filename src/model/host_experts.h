// Routed experts in the machine's memory, where the rest of a model is on a device (ops/device.h). The device holds
// some of them, those that were chosen most; what tokens choose of the others the host computes, while the device
// computes its own and the shared expert.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "number/tensor.h"

namespace fathom {

struct Device;
struct ModelWeights;
struct MoeWeights;

// Of one MoE layer.
struct HostLayer {
  Tensor gate_up, down;         // of all experts, as MoeWeights have them, in the machine's memory
  std::vector<int32_t> place;   // [experts]: which of the device's, which MoeWeights have, it is, or -1
  Tensor device_place;          // the same on the device
  std::vector<int64_t> chosen;  // [experts]: by how many tokens, of late
};

class HostExperts {
 public:
  // Takes over the experts of all MoE layers of `weights`, which lie in the machine's memory and stay there for its
  // lifetime: of each layer the first `n_on_device` are copied to the device, where the layer's MoeWeights show them
  // from now on. Everything else that `weights` have is the caller's to move. Threads: of its own.
  HostExperts(ModelWeights& weights, const Device& device, int64_t n_on_device, int n_threads);
  ~HostExperts();  // behind what the host may still be computing
  HostExperts(const HostExperts&) = delete;
  HostExperts& operator=(const HostExperts&) = delete;
  // What one expert of every layer takes.
  static int64_t bytes_of_one(const ModelWeights& weights);

  // What a layer's input, choice and result pass through, contiguous, in memory that the device copies from and to.
  // Layers take turns. What it gave stays where it is, for passes that are recorded.
  struct Staging {
    Tensor x, topk_ids, topk_weights, y;  // [tokens, hidden], [tokens, k] i32, [tokens, k], [tokens, hidden]
  };
  Staging staging(int64_t tokens, int64_t hidden, int64_t k);

  ThreadPool& pool() { return pool_; }
  Arena& arena() { return arena_; }  // of the machine's memory

  // Before a pass: now and then, experts that the host had to compute often take the place of those that the device
  // computed seldom, one in each layer. The same passes give the same moves.
  void adapt();
  int64_t n_on_device() const { return n_on_device_; }
  int64_t n_moved() const { return n_moved_; }

 private:
  struct Held {
    HostLayer layer;
    Tensor gate_up, down;  // on the device
  };
  bool move_one(Held& held);

  const Device& device_;
  int64_t n_on_device_ = 0, n_passes_ = 0, n_moved_ = 0;
  ThreadPool pool_;
  Arena arena_;
  std::deque<Held> layers_;  // MoeWeights point to them
  std::vector<Buffer> device_memory_, staging_memory_;
  int64_t staged_tokens_ = 0;
};

}  // namespace fathom
