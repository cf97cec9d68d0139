// The order in which kernels read a weight [rows, cols]: panels of 8 rows, one behind the other. In a panel the 8 rows
// stand side by side, so that one vector register holds the same columns of all of them and needs no sum across its
// lanes. As many bytes as row by row (FP8: and a scale for 8 rows and 128 columns). The last panel is filled up with
// rows of zeros.
//
// Of block formats a panel has block after block of 8 rows, r below being the row and k the column in the block:
//   q4_0  f16 d[r]; 32-byte vectors v = 0 .. 3: byte 4 r + i holds k = 4 v + i (low half) and 16 + 4 v + i (high)
//   q5_0  f16 d[r]; vectors as q4_0; a vector of fifth bits: bit g of byte 4 r + i belongs to k = 4 g + i
//   q8_0  f16 d[r]; vectors v = 0 .. 7: byte 4 r + i is k = 4 v + i
//   q4_k  f16 d[r], dmin[r]; scales and mins (below); for each 32 columns vectors as q4_0
//   q5_k  the same; behind each 32 columns' vectors one of fifth bits as q5_0
//   q6_k  f16 d[r]; i8 scales [16, r]; for each 32 columns vectors as q4_0, and two of the upper two bits: of vector
//         u = 0, 1 bits 2 g' .. 2 g' + 1 of byte 4 r + i belong to k = 16 u + 4 g' + i
// Scales and mins are numbers of 6 bits, [s][r] for s = 0 .. 7: 64 bytes with sc's low half in the low, m's in the high
// half; then 32 bytes of upper bits: byte r of row h = 0 .. 3 has those of sc of s = 2 h and 2 h + 1, then of m.
// Of other formats a panel is [cols, 8], for FP8 behind the scales [ceil(cols / 128)].
#pragma once

#include <cstdint>

#include "number/tensor.h"

namespace fathom {

inline constexpr int64_t kPanelRows = 8;
inline constexpr int64_t kFp8PanelBlock = 128;

constexpr int64_t panel_bytes(Format format, int64_t cols) {
  const int64_t scales = format == Format::f8_e4m3 ? (cols + kFp8PanelBlock - 1) / kFp8PanelBlock * 4 : 0;
  return kPanelRows * format_bytes(format, cols) + scales;
}

// A weight [rows, cols] or [matrices, rows, cols] in panels at `data`.
inline Tensor panel_tensor(void* data, Format format, std::initializer_list<int64_t> shape) {
  Tensor t(data, format, shape);
  t.panels = true;
  t.row_stride = panel_bytes(format, t.cols());
  return t;
}

// One panel from n_rows (at most 8) rows of `cols` columns, each stored in `format`. FP8 takes the panel's scales,
// [ceil(cols / 128)].
void pack_panel(void* panel, const void* const* rows, int64_t n_rows, Format format, int64_t cols,
                const float* scales = nullptr);

// The panel's numbers, [8, cols]: the plain twin of what kernels do with it.
void unpack_panel(float* out, const void* panel, Format format, int64_t cols);

}  // namespace fathom
