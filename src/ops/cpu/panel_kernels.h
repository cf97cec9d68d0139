// Products of rows with panels of weights (number/panels.h). Weights of block formats meet activations in 8 bits, and
// every block's sum of products is an exact integer; weights of float formats meet floats. A number of y takes its
// blocks in order of the columns, whatever is computed beside it, so its bits depend on its own row alone.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

// y[t, r] = sum_k x[t, k] w[r, k]
struct PanelProduct {
  int64_t n_tokens, cols;
  const uint8_t* x;  // quantized rows, or rows of floats
  int64_t x_stride;  // bytes
  const uint8_t* panels;
  int64_t panel_stride;  // bytes
  int64_t n_rows;        // of w, from the first panel's first
  float* y;
  int64_t y_stride;  // floats
};

// Rows for formats with blocks of 32: i8 codes [cols]; f32 scales [cols / 32], amax / 127; i32 [cols / 32], each an i16
// and zero: minus 8 times the codes' sum.
constexpr int64_t quantized_32_bytes(int64_t cols) { return cols + cols / 32 * 8; }
// Rows for formats with blocks of 256: i8 codes [cols]; f32 scales [cols / 256]; i16 sums of 32 codes [cols / 32], of
// 16 codes [cols / 16].
constexpr int64_t quantized_256_bytes(int64_t cols) { return cols + cols / 256 * 4 + cols / 32 * 2 + cols / 16 * 2; }

// Rows for FP8: floats times this, with which FP8 numbers / 2^120 have products that are far from a float's ends.
constexpr float kF8Lift = 0x1p64f;

struct PanelKernels {
  void (*quantize_32)(uint8_t* out, const float* x, int64_t cols);
  void (*quantize_256)(uint8_t* out, const float* x, int64_t cols);
  void (*lift_f8)(uint8_t* out, const float* x, int64_t cols);
  void (*q8_0)(const PanelProduct&);
  void (*q4_0)(const PanelProduct&);
  void (*q5_0)(const PanelProduct&);
  void (*q4_k)(const PanelProduct&);
  void (*q5_k)(const PanelProduct&);
  void (*q6_k)(const PanelProduct&);
  void (*f32)(const PanelProduct&);
  void (*bf16)(const PanelProduct&);
  void (*f16)(const PanelProduct&);
  void (*f8_e4m3)(const PanelProduct&);
};

// Those of the instruction sets: see panel_variants.h.
namespace baseline {
extern const PanelKernels panel_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const PanelKernels panel_kernels;
}
namespace avx2_vnni {
extern const PanelKernels panel_kernels;
}
namespace avx512 {
extern const PanelKernels panel_kernels;
}
namespace avx512_vnni {
extern const PanelKernels panel_kernels;
}
#elif defined(__aarch64__)
namespace dotprod {
extern const PanelKernels panel_kernels;
}
#endif

}  // namespace fathom::cpu
