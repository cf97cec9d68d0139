// Numbers of the latent cache's formats in kernels, with the bits that number/formats.h gives them. Rows of some shapes
// begin at odd addresses, so that what is wider than a byte is put together where it must be.
#pragma once

#include "ops/cuda/kernel.h"
#include "ops/latent_rows.h"

namespace fathom::cuda {

inline constexpr int kFp8Block = 128;  // of c, with one scale
inline constexpr int kQ8Block = 32;
inline constexpr int kQ8BlockBytes = 34;

// Where a row's parts are.
struct RowShape {
  Format format;
  int rank, rope;
  int rope_at;  // bytes of c and its scales
  int bytes;

  __host__ __device__ int dim() const { return rank + rope; }
};

inline RowShape row_shape(const LatentRowLayout& layout) {
  const bool narrow = layout.format == Format::f8_e4m3 || layout.format == Format::q8_0;
  const int64_t bytes = latent_row_bytes(layout);
  return {layout.format, static_cast<int>(layout.kv_lora_rank), static_cast<int>(layout.rope),
          static_cast<int>(bytes - layout.rope * (narrow ? 2 : format_bytes(layout.format))), static_cast<int>(bytes)};
}

// The rows of one layer.
struct CachedRows {
  const int64_t* rows;
  const int64_t* strides;
  const int32_t* sequence;
  const int32_t* positions;
  int64_t layer;

  __device__ uint8_t* of_sequence(int s) const {
    return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(rows[s] + layer * strides[s]));
  }
};

inline CachedRows cached_rows(const DeviceCaches& caches) {
  return {caches.rows.as<int64_t>(), caches.strides.as<int64_t>(), caches.sequence.i32(), caches.positions.i32(),
          caches.layer};
}

__device__ __forceinline__ bool is_aligned(const void* p, int bytes) {
  return (reinterpret_cast<uintptr_t>(p) & static_cast<uintptr_t>(bytes - 1)) == 0;
}

__device__ __forceinline__ uint16_t load_u16(const uint8_t* p) {
  if (is_aligned(p, 2)) return *reinterpret_cast<const uint16_t*>(p);
  return static_cast<uint16_t>(p[0] | p[1] << 8);
}
__device__ __forceinline__ void store_u16(uint8_t* p, uint16_t x) {
  if (is_aligned(p, 2)) {
    *reinterpret_cast<uint16_t*>(p) = x;
  } else {
    p[0] = static_cast<uint8_t>(x);
    p[1] = static_cast<uint8_t>(x >> 8);
  }
}
__device__ __forceinline__ float load_f32(const uint8_t* p) {
  if (is_aligned(p, 4)) return *reinterpret_cast<const float*>(p);
  return __uint_as_float(load_u16(p) | static_cast<uint32_t>(load_u16(p + 2)) << 16);
}
__device__ __forceinline__ void store_f32(uint8_t* p, float x) {
  if (is_aligned(p, 4)) {
    *reinterpret_cast<float*>(p) = x;
  } else {
    store_u16(p, static_cast<uint16_t>(__float_as_uint(x)));
    store_u16(p + 2, static_cast<uint16_t>(__float_as_uint(x) >> 16));
  }
}

__device__ __forceinline__ float widen_bf16(uint16_t code) {
  return __uint_as_float(static_cast<uint32_t>(code) << 16);
}

// The exponent's bias is 120 less, subnormals included.
__device__ __forceinline__ float widen_fp8(uint32_t code) {
  const uint32_t magnitude = (code & 0x7Fu) << 20;
  const uint32_t finite = __float_as_uint(__uint_as_float(magnitude) * 0x1p120f);
  return __uint_as_float((magnitude == (0x7Fu << 20) ? 0x7FC00000u : finite) | (code & 0x80u) << 24);
}

// A number of a row, column counted through c and k_rope.
__device__ __forceinline__ float load_number(const RowShape& shape, const uint8_t* row, int column) {
  switch (shape.format) {
    case Format::f32:
      return reinterpret_cast<const float*>(row)[column];
    case Format::bf16:
      return widen_bf16(reinterpret_cast<const uint16_t*>(row)[column]);
    case Format::f16:
      return f16_to_float(reinterpret_cast<const uint16_t*>(row)[column]);
    default:
      break;
  }
  if (column >= shape.rank) return widen_bf16(load_u16(row + shape.rope_at + 2 * (column - shape.rank)));
  if (shape.format == Format::f8_e4m3) {
    return widen_fp8(row[column]) * load_f32(row + shape.rank + 4 * (column / kFp8Block));
  }
  const uint8_t* block = row + column / kQ8Block * kQ8BlockBytes;
  return static_cast<float>(static_cast<int8_t>(block[2 + column % kQ8Block])) * f16_to_float(load_u16(block));
}

__device__ __forceinline__ uint16_t round_to_bf16(float x) {
  const uint32_t bits = __float_as_uint(x);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16) | 0x40 : rounded);
}

__device__ __forceinline__ uint16_t round_to_f16(float x) {
  const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(((bits >> 16) & 0x8000) | 0x7E00);
  return float_to_f16(x);
}

__device__ __forceinline__ uint8_t round_to_fp8(float x) {
  const uint32_t bits = __float_as_uint(x), sign = (bits >> 24) & 0x80, magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint8_t>(sign | 0x7F);
  if (magnitude >= 0x43E00000) return static_cast<uint8_t>(sign | 0x7E);  // 448 and above
  if (magnitude < 0x3C800000) {  // subnormal: adding 2^14 leaves the number in steps of 2^-9
    return static_cast<uint8_t>(sign | (__float_as_uint(__uint_as_float(magnitude) + 0x1p14f) - 0x46800000));
  }
  return static_cast<uint8_t>(sign | ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1) - 0x3C000000) >> 20));
}

}  // namespace fathom::cuda
