// Elementwise nonlinear functions over one row.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

struct ActivationKernels {
  // y = silu(gate) * up
  void (*swiglu)(float* y, const float* gate, const float* up, int64_t n);
  // d_gate may be gate, and d_up may be up.
  void (*swiglu_backward)(float* d_gate, float* d_up, const float* dy, const float* gate, const float* up, int64_t n);
  void (*sigmoid)(float* y, const float* x, int64_t n);
  void (*softmax)(float* y, const float* x, int64_t n);
};

namespace baseline {
extern const ActivationKernels activation_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const ActivationKernels activation_kernels;
}
namespace avx512 {
extern const ActivationKernels activation_kernels;
}
#else
namespace avx2 {
using baseline::activation_kernels;
}
namespace avx512 {
using baseline::activation_kernels;
}
#endif

}  // namespace fathom::cpu
