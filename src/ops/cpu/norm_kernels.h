// One row of root-mean-square normalization and of its gradients.
#pragma once

#include <stdint.h>

namespace fathom::cpu {

struct NormKernels {
  // y = x * w / sqrt(mean(x^2) + eps); returns the factor. y may be x.
  float (*rms_norm)(float* y, const float* x, const float* w, int64_t n, float eps);
  // dx (+)= r * (w dy - x * r^2 * mean(w dy x)), r = inv_rms. dx may be dy or x.
  void (*rms_norm_backward_input)(float* dx, const float* dy, const float* x, const float* w, float inv_rms, int64_t n,
                                  bool accumulate);
  // dw += dy * x * inv_rms
  void (*rms_norm_backward_weight)(float* dw, const float* dy, const float* x, float inv_rms, int64_t n);
};

namespace baseline {
extern const NormKernels norm_kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const NormKernels norm_kernels;
}
namespace avx512 {
extern const NormKernels norm_kernels;
}
#else
namespace avx2 {
using baseline::norm_kernels;
}
namespace avx512 {
using baseline::norm_kernels;
}
#endif

}  // namespace fathom::cpu
