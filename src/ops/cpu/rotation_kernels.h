// Rotation of pairs of values, each by its own angle.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

struct RotationKernels {
  // (x[2i], x[2i+1]) <- (x[2i] cos_i - x[2i+1] sin_i, x[2i+1] cos_i + x[2i] sin_i) for i in [0, half)
  void (*rotate_interleaved)(float* x, const float* cos, const float* sin, int64_t half);
  // The same for the pairs (x[i], x[i + half]).
  void (*rotate_halves)(float* x, const float* cos, const float* sin, int64_t half);
};

namespace baseline {
extern const RotationKernels rotation_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const RotationKernels rotation_kernels;
}
namespace avx512 {
extern const RotationKernels rotation_kernels;
}
#else
namespace avx2 {
using baseline::rotation_kernels;
}
namespace avx512 {
using baseline::rotation_kernels;
}
#endif

}  // namespace fathom::cpu
