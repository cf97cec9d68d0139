// The latent cache of one sequence (V2 section 2.1.2): for every layer and token [c | k_rope], kv_lora_rank + rope
// values, whatever the number of heads.
#pragma once

#include "base/buffer.h"
#include "model/config.h"
#include "ops/device.h"
#include "ops/latent_rows.h"

namespace fathom {

struct LatentCache {
  Buffer memory;            // [layers, capacity] rows; of the host's, touched pages only are taken
  int64_t capacity = 0;     // tokens
  int64_t length = 0;       // tokens in the cache
  int64_t layer_bytes = 0;  // from a layer to the next
  LatentRowLayout layout;

  // Row `first` of a layer and those behind it.
  void* rows(int64_t layer, int64_t first = 0) const {
    return static_cast<char*>(memory.data()) + layer * layer_bytes + first * latent_row_bytes(layout);
  }
};

// In the memory of the device that computes, or without one of the host.
LatentCache make_latent_cache(const ModelConfig& config, int64_t capacity, Format format = Format::f32,
                              const Device* device = nullptr);
// The MTP module's: one layer, whose row i stands for the token at i and the one behind it.
LatentCache make_mtp_cache(const ModelConfig& config, int64_t capacity, Format format = Format::f32,
                           const Device* device = nullptr);

}  // namespace fathom
