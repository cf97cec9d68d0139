// The latent cache of one sequence (V2 section 2.1.2): for every layer and token [c | k_rope], kv_lora_rank + rope
// values, whatever the number of heads; and with sparse attention the token's index key (V3.2 section 2.1.1). Of
// grouped-query attention [k | v] of the heads that have their own.
#pragma once

#include <vector>

#include "base/buffer.h"
#include "model/config.h"
#include "ops/attention.h"
#include "ops/device.h"
#include "ops/latent_rows.h"

namespace fathom {

struct LatentCache {
  Buffer memory;            // [layers, capacity] rows; of the host's, touched pages only are taken
  int64_t capacity = 0;     // tokens
  int64_t length = 0;       // tokens in the cache
  int64_t layer_bytes = 0;  // from a layer to the next
  LatentRowLayout layout;
  IndexKeyLayout index_keys{};
  int64_t index_offset = 0;    // bytes from a layer's rows to its index keys
  std::vector<char*> pages{};  // instead of memory, and somebody else's: [layers, kCachePageRows] rows in each

  // A layer with n_new rows behind those that are in it.
  LatentCacheView view(int64_t layer, int64_t n_new = 0) const {
    LatentCacheView view{nullptr, length + n_new, n_new, layout.format};
    if (pages.empty()) {
      view.rows = static_cast<char*>(memory.data()) + layer * layer_bytes;
    } else {
      view.pages = pages.data();
      view.page_offset = layer * layer_bytes;
    }
    if (index_keys.head_dim > 0) {
      view.index_keys = index_keys;
      view.index_offset = index_offset;
      if (pages.empty()) view.index_blocks = static_cast<const char*>(view.rows) + index_offset;
    }
    return view;
  }
  // Row `first` of a layer and those behind it, without pages all.
  void* rows(int64_t layer, int64_t first = 0) const {
    return const_cast<char*>(view(layer).row(first, latent_row_bytes(layout)));  // NOLINT: views are to read
  }
  // Block i of a layer's index keys.
  void* index_block(int64_t layer, int64_t i) const {
    return const_cast<char*>(view(layer).index_block(i, index_block_bytes(index_keys)));  // NOLINT: as above
  }
};

// In the memory of the device that computes, or without one of the host.
LatentCache make_latent_cache(const ModelConfig& config, int64_t capacity, Format format = Format::f32,
                              const Device* device = nullptr);
// The MTP module's: one layer, whose row i stands for the token at i and the one behind it.
LatentCache make_mtp_cache(const ModelConfig& config, int64_t capacity, Format format = Format::f32,
                           const Device* device = nullptr);

// Bytes of a page of a cache of so many layers, and a cache without pages: who owns them appends them and counts
// `capacity` up.
int64_t cache_page_bytes(const ModelConfig& config, int64_t n_layers, Format format);
LatentCache make_paged_cache(const ModelConfig& config, Format format);

}  // namespace fathom
