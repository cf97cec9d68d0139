#include "model/cache.h"

#include "base/arithmetic.h"

namespace fathom {
namespace {

// Without memory: layers of so many rows.
LatentCache layers_of(const ModelConfig& config, int64_t rows, Format format) {
  LatentCache cache;
  cache.layout = config.cached_row(format);
  constexpr auto kLine = static_cast<int64_t>(kAlignment);
  cache.layer_bytes = round_up(rows * latent_row_bytes(cache.layout), kLine);
  if (!config.is_sparse()) return cache;
  cache.index_keys = {index_format(format), config.indexer.head_dim};
  cache.index_offset = cache.layer_bytes;
  cache.layer_bytes += round_up(ceil_div(rows, kIndexBlock) * index_block_bytes(cache.index_keys), kLine);
  return cache;
}

LatentCache make_cache(const ModelConfig& config, int64_t capacity, int64_t n_layers, Format format,
                       const Device* device) {
  LatentCache cache = layers_of(config, capacity, format);
  cache.capacity = capacity;
  cache.memory = allocate_where(device, static_cast<size_t>(n_layers * cache.layer_bytes));
  return cache;
}

}  // namespace

int64_t cache_page_bytes(const ModelConfig& config, int64_t n_layers, Format format) {
  return n_layers * make_paged_cache(config, format).layer_bytes;
}

LatentCache make_paged_cache(const ModelConfig& config, Format format) {
  return layers_of(config, kCachePageRows, format);
}

LatentCache make_latent_cache(const ModelConfig& config, int64_t capacity, Format format, const Device* device) {
  return make_cache(config, capacity, config.num_hidden_layers, format, device);
}

LatentCache make_mtp_cache(const ModelConfig& config, int64_t capacity, Format format, const Device* device) {
  return make_cache(config, capacity, 1, format, device);
}

}  // namespace fathom
