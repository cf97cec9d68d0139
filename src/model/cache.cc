#include "model/cache.h"

namespace fathom {
namespace {

LatentCache make_cache(const ModelConfig& config, int64_t capacity, int64_t n_layers) {
  LatentCache cache;
  cache.capacity = capacity;
  cache.row = config.cache_row();
  for (int64_t l = 0; l < n_layers; ++l) {
    cache.layers.emplace_back(static_cast<size_t>(capacity * cache.row) * sizeof(float));
  }
  return cache;
}

}  // namespace

LatentCache make_latent_cache(const ModelConfig& config, int64_t capacity) {
  return make_cache(config, capacity, config.num_hidden_layers);
}

LatentCache make_mtp_cache(const ModelConfig& config, int64_t capacity) { return make_cache(config, capacity, 1); }

}  // namespace fathom
