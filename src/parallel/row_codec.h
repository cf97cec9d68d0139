// How rows of activations travel between ranks: as they are, in bf16, or in FP8 with a scale for each tile of 128 (V3
// section 3.3.3: what experts read, and its gradient on the way back, in FP8; their sums in bf16).
#pragma once

#include <cstddef>

#include "ops/context.h"
#include "ops/rounding.h"

namespace fathom {

enum class RowFormat {
  f32,
  bf16,
  fp8,  // e4m3; scales are powers of two in f32: encoding what was decoded gives the same bytes
};

// Of the products' precision: to the experts, and back as sums.
RowFormat dispatch_format(Precision precision);
RowFormat combine_format(Precision precision);

// Bytes of a row whose last n_raw columns go as f32 in any case.
int64_t row_bytes(RowFormat format, int64_t cols, int64_t n_raw);
// rows: f32 [n, cols]; to: [n, row_bytes].
void encode_rows(ThreadPool& pool, RowFormat format, Tensor rows, int64_t n_raw, std::byte* to);
void decode_rows(ThreadPool& pool, RowFormat format, Tensor rows, int64_t n_raw, const std::byte* from);

}  // namespace fathom
