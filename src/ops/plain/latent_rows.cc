#include "ops/latent_rows.h"

#include <cstring>
#include <vector>

#include "base/arithmetic.h"
#include "number/formats.h"

namespace fathom::plain {

void read_latent_rows(const LatentRowLayout& layout, float* out, const void* rows, int64_t n) {
  if (layout.parts > 1) {  // each is a row by itself
    LatentRowLayout one = layout;
    one.parts = 1;
    return plain::read_latent_rows(one, out, rows, n * layout.parts);
  }
  const int64_t rank = layout.kv_lora_rank;
  const bool narrow = layout.format == Format::f8_e4m3 || layout.format == Format::q8_0;
  for (int64_t i = 0; i < n; ++i, out += layout.dim()) {
    const auto* row = static_cast<const uint8_t*>(rows) + i * latent_row_bytes(layout);
    if (!narrow) {
      to_f32(out, row, layout.format, layout.dim());
      continue;
    }
    to_f32(out + rank, row + latent_row_bytes(layout) - 2 * layout.rope, Format::bf16, layout.rope);
    if (layout.format == Format::f8_e4m3) {
      std::vector<float> scales(static_cast<size_t>(ceil_div(rank, 128)));
      std::memcpy(scales.data(), row + rank, scales.size() * sizeof(float));
      dequantize_f8_blocks(out, row, scales.data(), 0, 1, rank, {1, 128});
    } else {
      std::vector<float> filled(static_cast<size_t>(round_up(rank, 32)));
      to_f32(filled.data(), row, Format::q8_0, round_up(rank, 32));
      std::memcpy(out, filled.data(), static_cast<size_t>(rank) * sizeof(float));
    }
  }
}

}  // namespace fathom::plain
