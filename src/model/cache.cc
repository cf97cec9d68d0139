#include "model/cache.h"

namespace fathom {
namespace {

LatentCache make_cache(const ModelConfig& config, int64_t capacity, int64_t n_layers, Format format) {
  LatentCache cache;
  cache.capacity = capacity;
  cache.layout = config.mla().cached_row(format);
  for (int64_t l = 0; l < n_layers; ++l) {
    cache.layers.emplace_back(static_cast<size_t>(capacity * latent_row_bytes(cache.layout)));
  }
  return cache;
}

}  // namespace

LatentCache make_latent_cache(const ModelConfig& config, int64_t capacity, Format format) {
  return make_cache(config, capacity, config.num_hidden_layers, format);
}

LatentCache make_mtp_cache(const ModelConfig& config, int64_t capacity, Format format) {
  return make_cache(config, capacity, 1, format);
}

}  // namespace fathom
