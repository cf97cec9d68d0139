// What the kernels of linear layers are given.
#pragma once

#include <stdint.h>

#include "number/tensor.h"

namespace fathom::cuda {

inline constexpr int kCallsTogether = 4;  // in one launch
inline constexpr int kBlock16 = 64;       // bytes of 16 columns of an input as two bf16 each
inline constexpr int kBlock32 = 40;       // bytes of 32 columns of an input in 8 bits

// y[t, r] = sum_k x[t, k] w[r, k], for one matrix, or for those of experts or heads.
struct PanelCall {
  const uint8_t* x;      // rows in the form that the weight reads
  int64_t x_stride;      // bytes
  int64_t x_step;        // bytes from a head's row to the next one's
  const uint8_t* w;      // panels
  int64_t panel_bytes;   // from a panel to the next
  int64_t matrix_bytes;  // from a matrix to the next
  float* y;
  int64_t y_stride, y_step;  // floats
  int rows, cols, tokens;
  const int32_t* offsets;  // of experts, see LinearCall; null otherwise
  const int32_t* experts;
  const int32_t* token_of;  // which row of x each is, or null
  int n_matrices;           // that have work: heads, or places in `experts`
};

struct PanelCalls {
  PanelCall call[kCallsTogether];
  int first_block[kCallsTogether + 1];  // of each call; the last: of none
};

}  // namespace fathom::cuda
