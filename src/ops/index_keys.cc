// Keys of the indexer as a cache holds them.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/arithmetic.h"
#include "number/formats.h"
#include "ops/cpu/indexer_variants.h"
#include "ops/indexer.h"

namespace fathom {
namespace {

constexpr int64_t kQuad = 4;

int64_t n_quads(const IndexKeyLayout& layout) { return ceil_div(layout.head_dim, kQuad); }

// Bytes of a tile's codes or floats.
int64_t tile_bytes(const IndexKeyLayout& layout) {
  if (layout.format == IndexFormat::f32) return layout.head_dim * kIndexTile * static_cast<int64_t>(sizeof(float));
  return n_quads(layout) * kIndexTile * kQuad;
}

int64_t scale_offset(const IndexKeyLayout& layout, int64_t row) {
  return kIndexBlock / kIndexTile * tile_bytes(layout) + row * static_cast<int64_t>(sizeof(float));
}

const cpu::IndexerKernels& kernels() {
  static const cpu::IndexerKernels& chosen = cpu::indexer_kernels_of(cpu_isa());
  return chosen;
}

}  // namespace

IndexFormat index_format(Format latents) {
  if (latents == Format::f32) return IndexFormat::f32;
  return latents == Format::f8_e4m3 ? IndexFormat::f8 : IndexFormat::i8;
}

int64_t index_block_bytes(const IndexKeyLayout& layout) {
  if (layout.head_dim == 0) return 0;
  const int64_t n = kIndexBlock / kIndexTile * tile_bytes(layout);
  return layout.format == IndexFormat::f32 ? n : scale_offset(layout, kIndexBlock);
}

void write_index_key(const IndexKeyLayout& layout, void* block, int64_t row, const float* key) {
  auto* const bytes = static_cast<char*>(block);
  char* const tile = bytes + row / kIndexTile * tile_bytes(layout);
  const int64_t column = row % kIndexTile;
  if (layout.format == IndexFormat::f32) {
    for (int64_t d = 0; d < layout.head_dim; ++d) {
      std::memcpy(tile + (d * kIndexTile + column) * static_cast<int64_t>(sizeof(float)), key + d, sizeof(float));
    }
    return;
  }
  std::vector<float> x(key, key + layout.head_dim);
  hadamard(x.data(), layout.head_dim);
  std::vector<uint8_t> codes(static_cast<size_t>(n_quads(layout) * kQuad), 0);
  float scale;
  if (layout.format == IndexFormat::i8) {
    int32_t sum;
    scale = kernels().round_i8(reinterpret_cast<int8_t*>(codes.data()), &sum, x.data(), layout.head_dim);
    for (uint8_t& code : codes) code ^= 128;
  } else if (!std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); })) {
    scale = std::numeric_limits<float>::quiet_NaN();  // then codes mean nothing
  } else {
    quantize_f8_blocks(codes.data(), &scale, x.data(), 1, layout.head_dim, {1, layout.head_dim}, true,
                       kActivationAmaxFloor);
  }
  for (int64_t quad = 0; quad < n_quads(layout); ++quad) {
    std::memcpy(tile + (quad * kIndexTile + column) * kQuad, codes.data() + quad * kQuad, kQuad);
  }
  std::memcpy(bytes + scale_offset(layout, row), &scale, sizeof scale);
}

void read_index_key(const IndexKeyLayout& layout, float* key, const void* block, int64_t row) {
  const auto* const bytes = static_cast<const char*>(block);
  const char* const tile = bytes + row / kIndexTile * tile_bytes(layout);
  const int64_t column = row % kIndexTile;
  if (layout.format == IndexFormat::f32) {
    for (int64_t d = 0; d < layout.head_dim; ++d) {
      std::memcpy(key + d, tile + (d * kIndexTile + column) * static_cast<int64_t>(sizeof(float)), sizeof(float));
    }
    return;
  }
  float scale;
  std::memcpy(&scale, bytes + scale_offset(layout, row), sizeof scale);
  for (int64_t d = 0; d < layout.head_dim; ++d) {
    const auto code = static_cast<uint8_t>(tile[(d / kQuad * kIndexTile + column) * kQuad + d % kQuad]);
    key[d] = scale * (layout.format == IndexFormat::i8 ? static_cast<float>(code) - 128 : f8_e4m3_to_f32(code));
  }
}

void hadamard(float* x, int64_t n) {
  if (!std::has_single_bit(static_cast<uint64_t>(n))) return;
  kernels().hadamard(x, n, 1 / std::sqrt(static_cast<float>(n)));
}

}  // namespace fathom
