#include "parallel/row_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/arithmetic.h"
#include "base/error.h"
#include "number/formats.h"
#include "ops/grain.h"

namespace fathom {
namespace {

constexpr int64_t kTile = 128;
constexpr float kLargest = 448;  // of e4m3

// The least power of two that brings the largest magnitude into e4m3's range. What is not finite stays so.
float scale_of(const float* x, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  if (!std::isfinite(largest)) return 1;
  constexpr float kLeast = std::numeric_limits<float>::min();  // of which there is an inverse
  if (largest <= kLargest * kLeast) return kLeast;
  int exponent = 0;
  const float mantissa = std::frexp(largest / kLargest, &exponent);  // [0.5, 1)
  return std::ldexp(1.0f, mantissa == 0.5f ? exponent - 1 : exponent);
}

void encode_row(RowFormat format, const float* x, int64_t cols, std::byte* to) {
  if (format == RowFormat::f32) {
    std::memcpy(to, x, static_cast<size_t>(cols) * sizeof(float));
  } else if (format == RowFormat::bf16) {
    for (int64_t i = 0; i < cols; ++i) {
      const uint16_t code = f32_to_bf16(x[i]);
      std::memcpy(to + i * 2, &code, sizeof code);
    }
  } else {
    std::byte* scales = to + cols;
    for (int64_t first = 0; first < cols; first += kTile, scales += sizeof(float)) {
      const int64_t n = std::min(kTile, cols - first);
      const float scale = scale_of(x + first, n), inverse = 1 / scale;
      std::memcpy(scales, &scale, sizeof scale);
      for (int64_t i = first; i < first + n; ++i) to[i] = static_cast<std::byte>(f32_to_f8_e4m3(x[i] * inverse));
    }
  }
}

void decode_row(RowFormat format, float* x, int64_t cols, const std::byte* from) {
  if (format == RowFormat::f32) {
    std::memcpy(x, from, static_cast<size_t>(cols) * sizeof(float));
  } else if (format == RowFormat::bf16) {
    for (int64_t i = 0; i < cols; ++i) {
      uint16_t code;
      std::memcpy(&code, from + i * 2, sizeof code);
      x[i] = bf16_to_f32(code);
    }
  } else {
    const std::byte* scales = from + cols;
    for (int64_t first = 0; first < cols; first += kTile, scales += sizeof(float)) {
      float scale;
      std::memcpy(&scale, scales, sizeof scale);
      for (int64_t i = first; i < std::min(cols, first + kTile); ++i) {
        x[i] = scale * f8_e4m3_to_f32(static_cast<uint8_t>(from[i]));
      }
    }
  }
}

int64_t payload_bytes(RowFormat format, int64_t cols) {
  switch (format) {
    case RowFormat::f32:
      return cols * 4;
    case RowFormat::bf16:
      return cols * 2;
    case RowFormat::fp8:
      break;
  }
  return cols + 4 * ceil_div(cols, kTile);
}

}  // namespace

RowFormat dispatch_format(Precision precision) {
  if (precision == Precision::f32) return RowFormat::f32;
  return precision == Precision::fp8 ? RowFormat::fp8 : RowFormat::bf16;
}

RowFormat combine_format(Precision precision) { return precision == Precision::f32 ? RowFormat::f32 : RowFormat::bf16; }

int64_t row_bytes(RowFormat format, int64_t cols, int64_t n_raw) {
  return payload_bytes(format, cols - n_raw) + n_raw * static_cast<int64_t>(sizeof(float));
}

void encode_rows(ThreadPool& pool, RowFormat format, Tensor rows, int64_t n_raw, std::byte* to) {
  const int64_t cols = rows.cols() - n_raw, bytes = row_bytes(format, rows.cols(), n_raw);
  const int64_t payload = payload_bytes(format, cols);
  pool.parallel_for(0, rows.rows(), row_grain(rows.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      encode_row(format, rows.f32_row(r), cols, to + r * bytes);
      std::memcpy(to + r * bytes + payload, rows.f32_row(r) + cols, static_cast<size_t>(n_raw) * sizeof(float));
    }
  });
}

void decode_rows(ThreadPool& pool, RowFormat format, Tensor rows, int64_t n_raw, const std::byte* from) {
  const int64_t cols = rows.cols() - n_raw, bytes = row_bytes(format, rows.cols(), n_raw);
  const int64_t payload = payload_bytes(format, cols);
  pool.parallel_for(0, rows.rows(), row_grain(rows.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      decode_row(format, rows.f32_row(r), cols, from + r * bytes);
      std::memcpy(rows.f32_row(r) + cols, from + r * bytes + payload, static_cast<size_t>(n_raw) * sizeof(float));
    }
  });
}

}  // namespace fathom
