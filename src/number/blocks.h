// GGUF's block formats: small integers with scales that a block shares. d and dmin are f16.
//   q8_0  32 numbers   d * q,              q in -128 .. 127
//   q4_0  32 numbers   d * (q - 8),        q in 0 .. 15
//   q5_0  32 numbers   d * (q - 16),       q in 0 .. 31
//   q5_1  32 numbers   d * q + m,          q in 0 .. 31; read alone: what llama.cpp takes for q5_k where rows are short
//   q4_k  256 numbers  d * sc * q - dmin * m,   q in 0 .. 15; sc and m, 0 .. 63, for each 32
//   q5_k  256 numbers  the same,           q in 0 .. 31
//   q6_k  256 numbers  d * sc * (q - 32),  q in 0 .. 63; sc, -128 .. 127, for each 16
// The structs are the bytes of the files.
#pragma once

#include <cstdint>

#include "number/tensor.h"

namespace fathom {

struct BlockQ8_0 {
  uint16_t d;
  int8_t q[32];
};
struct BlockQ4_0 {
  uint16_t d;
  uint8_t q[16];  // number i: low half of byte i for i < 16, else high half of byte i - 16
};
struct BlockQ5_0 {
  uint16_t d;
  uint8_t high[4];  // bit i: the fifth bit of number i
  uint8_t q[16];    // as q4_0
};
struct BlockQ5_1 {
  uint16_t d, m;
  uint8_t high[4];
  uint8_t q[16];
};
struct BlockQ4K {
  uint16_t d, dmin;
  uint8_t scales[12];  // see scale_and_min
  uint8_t q[128];      // numbers 64 j + i and 64 j + 32 + i: halves of byte 32 j + i
};
struct BlockQ5K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t high[32];  // bit s of byte i: the fifth bit of number 32 s + i
  uint8_t q[128];
};
struct BlockQ6K {
  uint8_t low[128];   // of 128 numbers each: number i, low half of byte i for i < 64, else high half of byte i - 64
  uint8_t high[64];   // of 128 numbers each: number i, bits 2 (i / 32) and up of byte i % 32
  int8_t scales[16];  // of 16 numbers each
  uint16_t d;
};
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ4K) == 144 && sizeof(BlockQ5K) == 176 && sizeof(BlockQ6K) == 210);

struct ScaleAndMin {
  uint8_t scale, min;
};
// sc and m of 32 numbers, j in 0 .. 7. The first four pairs have a byte each (6 bits); of the others 4 bits stand
// behind them and 2 in the upper bits of the first.
inline ScaleAndMin scale_and_min(const uint8_t* scales, int j) {
  if (j < 4) return {static_cast<uint8_t>(scales[j] & 63), static_cast<uint8_t>(scales[j + 4] & 63)};
  return {static_cast<uint8_t>((scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4)),
          static_cast<uint8_t>((scales[j + 4] >> 4) | (scales[j] >> 6 << 4))};
}

// n numbers, whole blocks. Pointers to blocks need no alignment.
void decode_blocks(float* out, const void* blocks, Format format, int64_t n);

// rows x cols finite numbers, cols whole blocks. importance: [cols] weights >= 0 of each column's squared error (an
// importance matrix's mean squared activations), or null: all the same. Every block is encoded by itself. q8_0 takes no
// weights and has the bits that the reference gives it. Numbers beyond what f16 scales reach are cut.
void encode_blocks(void* out, const float* in, Format format, int64_t rows, int64_t cols,
                   const float* importance = nullptr);

}  // namespace fathom
