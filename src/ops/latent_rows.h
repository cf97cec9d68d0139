// How the latent cache stores a token: a row [c | k_rope], the latent after its norm and the shared key after its
// rotation (V2 section 2.1.2).
//   f32, bf16, f16   kv_lora_rank + rope numbers
//   f8_e4m3          codes of c, an f32 scale for each 128 of them, and k_rope in bf16: 656 bytes for V3
//   q8_0             blocks of 32 of c, the last filled up with zeros, and k_rope in bf16: 672 bytes for V3
// The rotated key is not rounded to 8 bits: its few large values would set the scale of all others.
//
// Of grouped-query attention a row has 2 * num_key_value_heads such parts without k_rope: each head's key, rotated, and
// behind them each head's value (ops/gqa_attention.h).
#pragma once

#include <cstdint>

#include "number/tensor.h"

namespace fathom {

struct LatentRowLayout {
  Format format = Format::f32;         // one of those above
  int64_t kv_lora_rank = 0, rope = 0;  // of a part
  int64_t parts = 1;

  int64_t dim() const { return parts * (kv_lora_rank + rope); }
  bool operator==(const LatentRowLayout&) const = default;
};

int64_t latent_row_bytes(const LatentRowLayout& layout);

// row: latent_row_bytes of memory without alignment. Values beyond the format's range become its largest or infinite,
// as from_f32 has it. c: of all parts, one behind the other; k_rope: of one part, where there is one.
void write_latent_row(const LatentRowLayout& layout, void* row, const float* c, const float* k_rope);

// out: [n, dim]; rows: n of them, one behind the other.
void read_latent_rows(const LatentRowLayout& layout, float* out, const void* rows, int64_t n);

// One part of each. out: [n, kv_lora_rank]; without k_rope.
void read_latent_parts(const LatentRowLayout& layout, int64_t part, float* out, const void* rows, int64_t n);

namespace plain {
void read_latent_rows(const LatentRowLayout& layout, float* out, const void* rows, int64_t n);
}

}  // namespace fathom
