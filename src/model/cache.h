// The latent cache of one sequence (V2 section 2.1.2): for every layer and token [c | k_rope], the latent after its
// norm and the shared key after its rotation. kv_lora_rank + rope values a token and layer, whatever the number of
// heads.
#pragma once

#include <vector>

#include "base/buffer.h"
#include "model/config.h"

namespace fathom {

struct LatentCache {
  std::vector<Buffer> layers;  // [capacity, cache_row] f32 each; touched pages only take memory
  int64_t capacity = 0;        // tokens
  int64_t length = 0;          // tokens in the cache
  int64_t row = 0;             // floats in a row

  float* rows(int64_t layer) const { return static_cast<float*>(layers[static_cast<size_t>(layer)].data()); }
};

LatentCache make_latent_cache(const ModelConfig& config, int64_t capacity);
// The MTP module's: one layer, whose row i stands for the token at i and the one behind it.
LatentCache make_mtp_cache(const ModelConfig& config, int64_t capacity);

}  // namespace fathom
