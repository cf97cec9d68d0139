// Number formats: how bf16, f16 and fp8 (e4m3fn) codes become floats and back. Encoding rounds to nearest, ties to
// even.
#pragma once

#include <bit>
#include <cstdint>

#include "number/tensor.h"

namespace fathom {

inline float bf16_to_f32(uint16_t code) { return std::bit_cast<float>(static_cast<uint32_t>(code) << 16); }

// A NaN stays a (quiet) NaN.
inline uint16_t f32_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet_nan : rounded);
}

// Beyond 65504 + half a step: infinity.
uint16_t f32_to_f16(float x);
float f16_to_f32(uint16_t code);

// e4m3fn: bias 7, largest 448, no infinity; 0x7F and 0xFF are NaN. Larger values saturate at 448, infinities too.
inline constexpr float kF8Max = 448;
uint8_t f32_to_f8_e4m3(float x);
float f8_e4m3_to_f32(uint8_t code);

// n numbers from any float or block format (then whole blocks) to f32 and back. Pointers to stored numbers need no
// alignment.
void to_f32(float* out, const void* in, Format format, int64_t n);
void from_f32(void* out, const float* in, Format format, int64_t n);
// The same for rows of whole blocks whose columns matter more or less, see encode_blocks.
void encode_rows(void* out, const float* in, Format format, int64_t rows, int64_t cols, const float* importance);

// FP8 with a scale for each block: number = code * scale[row / block_rows, col / block_cols]. The last block of a
// dimension may be incomplete. V3 stores weights in blocks of 128 x 128 (`weight_scale_inv`) and rounds activations in
// 1 x 128.
struct BlockShape {
  int64_t rows = 128, cols = 128;
};

// Rows [first_row, first_row + n_rows) of a matrix of `cols` columns: out and codes point at first_row, scales at the
// matrix's first scale, [ceil(all rows / block.rows), ceil(cols / block.cols)].
void dequantize_f8_blocks(float* out, const uint8_t* codes, const float* scales, int64_t first_row, int64_t n_rows,
                          int64_t cols, BlockShape block);

// The way back: scale = max(amax of the block, amax_floor) / 448, rounded up to a power of two with `ue8m0`; 1 where
// that is zero. Weights take no floor, activations kActivationAmaxFloor.
inline constexpr float kActivationAmaxFloor = 1e-4f;
void quantize_f8_blocks(uint8_t* codes, float* scales, const float* in, int64_t rows, int64_t cols, BlockShape block,
                        bool ue8m0, float amax_floor = 0);

}  // namespace fathom
