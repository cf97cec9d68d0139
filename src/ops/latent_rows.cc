#include "ops/latent_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/arithmetic.h"
#include "number/formats.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/latent_row_kernels.h"

namespace fathom {
namespace {

constexpr BlockShape kF8Block{1, 128};
constexpr int64_t kI8Block = format_traits(Format::q8_0).block;

const cpu::LatentRowKernels& kernels() {
  return cpu::choose(cpu::baseline::latent_row_kernels, cpu::avx2::latent_row_kernels, cpu::avx512::latent_row_kernels);
}

int64_t n_scales(const LatentRowLayout& layout) { return ceil_div(layout.kv_lora_rank, kF8Block.cols); }

// Bytes of c and its scales.
int64_t latent_bytes(const LatentRowLayout& layout) {
  switch (layout.format) {
    case Format::f8_e4m3:
      return layout.kv_lora_rank + n_scales(layout) * static_cast<int64_t>(sizeof(float));
    case Format::q8_0:
      return format_bytes(Format::q8_0, round_up(layout.kv_lora_rank, kI8Block));
    default:
      return format_bytes(layout.format, layout.kv_lora_rank);
  }
}

Format rope_format(Format format) {
  return format == Format::f8_e4m3 || format == Format::q8_0 ? Format::bf16 : format;
}

int64_t part_bytes(const LatentRowLayout& layout) {
  return latent_bytes(layout) + format_bytes(rope_format(layout.format), layout.rope);
}

void write_part(const LatentRowLayout& layout, uint8_t* bytes, const float* c, const float* k_rope) {
  const int64_t rank = layout.kv_lora_rank;
  if (layout.format == Format::f8_e4m3) {
    std::vector<float> scales(static_cast<size_t>(n_scales(layout)));
    quantize_f8_blocks(bytes, scales.data(), c, 1, rank, kF8Block, false);
    std::memcpy(bytes + rank, scales.data(), scales.size() * sizeof(float));
  } else if (layout.format == Format::q8_0) {
    std::vector<float> filled(static_cast<size_t>(round_up(rank, kI8Block)));
    std::copy_n(c, rank, filled.data());
    from_f32(bytes, filled.data(), Format::q8_0, round_up(rank, kI8Block));
  } else {
    from_f32(bytes, c, layout.format, rank);
  }
  from_f32(bytes + latent_bytes(layout), k_rope, rope_format(layout.format), layout.rope);
}

void read_part(const LatentRowLayout& layout, float* out, const uint8_t* row) {
  const int64_t rank = layout.kv_lora_rank, dim = rank + layout.rope;
  const cpu::LatentRowKernels& k = kernels();
  switch (layout.format) {
    case Format::bf16:
      return k.widen_bf16(out, row, dim);
    case Format::f16:
      return k.widen_f16(out, row, dim);
    case Format::f8_e4m3:
      for (int64_t begin = 0; begin < rank; begin += kF8Block.cols) {
        float scale;
        std::memcpy(&scale, row + rank + begin / kF8Block.cols * static_cast<int64_t>(sizeof scale), sizeof scale);
        k.widen_f8(out + begin, row + begin, scale, std::min(kF8Block.cols, rank - begin));
      }
      break;
    case Format::q8_0:
      k.widen_q8_0(out, row, rank);
      break;
    default:
      to_f32(out, row, layout.format, dim);
      return;
  }
  k.widen_bf16(out + rank, row + latent_bytes(layout), layout.rope);
}

}  // namespace

int64_t latent_row_bytes(const LatentRowLayout& layout) { return layout.parts * part_bytes(layout); }

void write_latent_row(const LatentRowLayout& layout, void* row, const float* c, const float* k_rope) {
  auto* bytes = static_cast<uint8_t*>(row);
  for (int64_t part = 0; part < layout.parts; ++part, bytes += part_bytes(layout), c += layout.kv_lora_rank) {
    write_part(layout, bytes, c, k_rope);
  }
}

void read_latent_rows(const LatentRowLayout& layout, float* out, const void* rows, int64_t n) {
  const int64_t bytes = part_bytes(layout), dim = layout.kv_lora_rank + layout.rope;
  const auto* part = static_cast<const uint8_t*>(rows);
  for (int64_t i = 0; i < n * layout.parts; ++i, out += dim, part += bytes) read_part(layout, out, part);
}

void read_latent_parts(const LatentRowLayout& layout, int64_t part, float* out, const void* rows, int64_t n) {
  FATHOM_CHECK(layout.rope == 0 && part < layout.parts);
  const int64_t bytes = part_bytes(layout);
  const auto* from = static_cast<const uint8_t*>(rows) + part * bytes;
  for (int64_t i = 0; i < n; ++i, out += layout.kv_lora_rank, from += layout.parts * bytes) {
    read_part(layout, out, from);
  }
}

}  // namespace fathom
