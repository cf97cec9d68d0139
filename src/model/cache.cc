#include "model/cache.h"

namespace fathom {

LatentCache make_latent_cache(const ModelConfig& config, int64_t capacity) {
  LatentCache cache;
  cache.capacity = capacity;
  cache.row = config.cache_row();
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    cache.layers.emplace_back(static_cast<size_t>(capacity * cache.row) * sizeof(float));
  }
  return cache;
}

}  // namespace fathom
